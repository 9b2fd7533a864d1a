/* What one kernel table is made of: `real` is what is computed in, `elem` what is stored, `v` a vector of reals. The
 * build names the instruction set and dtype: AF_ISA, AF_TYPE, AF_DTYPE, AF_SIMD_HEADER. */
#ifndef AF_TYPES_H
#define AF_TYPES_H

#include <float.h>
#include <math.h>
#include <string.h>

#define AF_DTYPE_F32 0
#define AF_DTYPE_F64 1
#define AF_DTYPE_F16 2
#define AF_DTYPE_BF16 3
#define AF_DOUBLE (AF_DTYPE == AF_DTYPE_F64)
#define AF_HALF (AF_DTYPE >= AF_DTYPE_F16)

#if AF_DOUBLE
typedef double real;
#define AF_LARGEST DBL_MAX
#else
typedef float real;
#define AF_LARGEST FLT_MAX
#endif
#if AF_HALF
typedef uint16_t elem;
#else
typedef real elem;
#endif
#define AF_INFINITY ((real)INFINITY)

#define AF_INLINE static inline __attribute__((always_inline, unused))
/* Clang unrolls a function before it inlines it: asked for a number of times, it does so while n is not known yet. */
#ifdef __clang__
#define UNROLL(i, n) _Pragma("clang loop unroll(full)") for (int i = 0; i < (n); i++)
#else
#define UNROLL(i, n) _Pragma("GCC unroll 32") for (int i = 0; i < (n); i++)
#endif

#include AF_SIMD_HEADER

#if !AF_HALF
AF_INLINE v e_load(const elem *p) { return v_load(p); }
AF_INLINE v e_load_n(const elem *p, int n) { return v_load_n(p, n); }
AF_INLINE void e_store(elem *p, v x) { v_store(p, x); }
AF_INLINE void e_store_n(elem *p, v x, int n) { v_store_n(p, x, n); }
#endif

#define AF_NR (AF_NV * VL) /* query rows in a block: one word of mask bits holds them */

/* Rows in memory, ld elements from one to the next. */
typedef struct matrix {
    const real *at;
    int64_t ld;
} matrix;

/* The same with elements as they are stored. */
typedef struct elem_rows {
    const elem *at;
    int64_t ld;
} elem_rows;

#include "simd/math.h"

#endif

/* One kernel table. Compiled once per (instruction set, dtype), which the build names: AF_ISA, AF_TYPE,
 * AF_SIMD_HEADER. `real` is what is computed in, `elem` what is stored. */
#include "kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "view.h"

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

#include "simd/math.h"

#include "kernel/block.h"
#include "kernel/tile.h"
#include "kernel/pack.h"
#include "kernel/mask.h"
#include "kernel/score.h"
#include "kernel/softmax.h"
#include "kernel/weigh.h"
#include "kernel/top.h"
#include "kernel/finish.h"
#include "kernel/additive.h"
#include "kernel/forward.h"
#include "kernel/decode.h"
#include "kernel/weights.h"
#include "kernel/importance.h"
#include "kernel/probe.h"

#define AF_STRING_(x) #x
#define AF_STRING(x) AF_STRING_(x)

const af_kernels AF_TABLE(AF_TYPE, AF_ISA) = {
    .isa = AF_STRING(AF_ISA),
    .dtype = (af_dtype)AF_DTYPE,
    .needs = AF_NEEDS,
    .real_size = sizeof(real),
    .vl = VL,
    .nr = AF_NR,
    .decode_rows = DECODE_ROWS,
    .scratch_bytes = scratch_bytes,
    .forward = forward,
    .decode = decode,
    .merge = merge,
    .weights = weights,
    .importance = importance,
    .probe = &probe,
};

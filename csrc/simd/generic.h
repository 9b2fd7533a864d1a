/* The vector vocabulary, defined on 16-byte GCC/clang vectors: runs anywhere, and says what each word means.
 *
 *   v    a vector of VL reals          vm   a lane mask
 *   vm_bits(bits): lanes whose bit is set; vm_part(word, c): of bits c VL and up
 *   v_max(a, b), v_min(a, b) return b where either is NaN
 *   v_swap_pairs(a): lanes 1, 0, 3, 2 and so on
 *   v_fraction(a) = a - floor(a), some number in [0, 1] for -infinity
 *   v_scale2(a, n) = a * 2^floor(n); 0 (or NaN, if a is) for -infinity
 *   v_exponent, v_mantissa: a = mantissa * 2^exponent, 1 <= mantissa < 2, for positive normal a
 *   v_hsum4 writes the sums of the lanes of a, b, c, d; v_transpose transposes VL x VL
 *   v_sum_in_order adds VL vectors in the order in which v_hsum4 adds the lanes of one
 *   e_load ... move between memory of the problem's dtype and reals; names in _n touch the first n elements only
 *   b_int8, b_uint8, b_e4m3fn, b_e5m2 load VL bytes of these kinds as reals, for float only; of e4m3fn 2^-8 times them
 *   nonzero_bytes(p, n): bit k tells whether p[k] is not zero, k < n <= 64 */
#ifndef AF_SIMD_H
#define AF_SIMD_H

#define AF_NEEDS 0
#define AF_MR 4
#define AF_NV 2
#define AF_CACHE_BYTES (256 << 10) /* second-level cache: any */
#define AF_FUSED_SOFTMAX 0         /* see fused_softmax.h */
#define AF_EMBEDS 0
#define AF_DECODE_KEYS 2
#define AF_DECODE_COLUMNS 2

#if AF_DOUBLE
typedef int64_t bits_t;
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#else
typedef int32_t bits_t;
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#endif
typedef real v __attribute__((vector_size(16), aligned(sizeof(real)), may_alias));
typedef bits_t vm __attribute__((vector_size(16), aligned(sizeof(real)), may_alias));
#define VL ((int)(16 / sizeof(real)))
/* Adding this rounds to an integer, which is then in the low bits: 1.5 * 2^MANTISSA_BITS. */
#define ROUNDER ((real)((int64_t)3 << (MANTISSA_BITS - 1)))

AF_INLINE v v_set1(real x) { return x - (v){0}; } /* one broadcast; x written into each lane is one insertion a lane */
AF_INLINE v v_zero(void) { return v_set1(0); }
AF_INLINE vm vm_first(int n)
{
    vm m;
    UNROLL(i, VL) m[i] = -(i < n);
    return m;
}
AF_INLINE vm vm_bits(uint64_t bits)
{
    vm m;
    UNROLL(i, VL) m[i] = -(bits_t)(bits >> i & 1);
    return m;
}
AF_INLINE vm vm_part(const uint64_t *word, int c) { return vm_bits(*word >> c * VL); }
AF_INLINE uint64_t vm_word(vm m)
{
    uint64_t word = 0;
    UNROLL(i, VL) word |= (uint64_t)(m[i] & 1) << i;
    return word;
}
AF_INLINE vm vm_gt(v a, v b) { return (vm)(a > b); }
AF_INLINE vm vm_ne(v a, v b) { return (vm)(a != b); }
AF_INLINE v v_select(vm m, v a, v b) { return (v)((m & (vm)a) | (~m & (vm)b)); }

AF_INLINE v v_load(const real *p) { return *(const v *)p; }
AF_INLINE void v_store(real *p, v x) { *(v *)p = x; }
AF_INLINE v v_load_n(const real *p, int n)
{
    v x = v_zero();
    for (int i = 0; i < n; i++) x[i] = p[i];
    return x;
}
AF_INLINE void v_store_n(real *p, v x, int n)
{
    for (int i = 0; i < n; i++) p[i] = x[i];
}
AF_INLINE v v_add(v a, v b) { return a + b; }
AF_INLINE v v_sub(v a, v b) { return a - b; }
AF_INLINE v v_mul(v a, v b) { return a * b; }
AF_INLINE v v_div(v a, v b) { return a / b; }
AF_INLINE v v_reciprocal(v a) { return v_div(v_set1(1), a); }
AF_INLINE v v_fma(v a, v b, v c) { return a * b + c; }
AF_INLINE v v_swap_pairs(v a)
{
    v x;
    UNROLL(i, VL) x[i] = a[i ^ 1];
    return x;
}
AF_INLINE v v_max(v a, v b) { return v_select((vm)(a > b), a, b); }
AF_INLINE v v_min(v a, v b) { return v_select((vm)(a < b), a, b); }
AF_INLINE v v_abs(v a) { return (v)((vm)a & ~(vm)v_set1(-(real)0)); }
AF_INLINE v v_round(v a) { return (a + v_set1(ROUNDER)) - v_set1(ROUNDER); }
AF_INLINE v above_zero_power(v a) { return v_max(v_set1(-EXPONENT_BIAS), a); }
AF_INLINE v v_floor(v a)
{
    const v near = v_round(a);
    return near - (v)(vm_gt(near, a) & (vm)v_set1(1));
}
AF_INLINE v v_fraction(v a) { return above_zero_power(a) - v_floor(above_zero_power(a)); }
AF_INLINE v v_scale2(v a, v n)
{
    const v whole = v_floor(above_zero_power(n));
    return a * (v)((vm)(whole + v_set1(ROUNDER + EXPONENT_BIAS)) << MANTISSA_BITS);
}
AF_INLINE v v_exponent(v a)
{
    v x;
    UNROLL(i, VL) x[i] = (real)((((vm)a)[i] >> MANTISSA_BITS) - EXPONENT_BIAS);
    return x;
}
AF_INLINE v v_mantissa(v a)
{
    const vm fraction = (vm)a & (((bits_t)1 << MANTISSA_BITS) - 1);
    return (v)(fraction | (vm)v_set1(1));
}
AF_INLINE real v_hmax(v a)
{
    real x = a[0];
    UNROLL(i, VL) x = a[i] > x ? a[i] : x;
    return x;
}
AF_INLINE real v_hsum(v a)
{
    real x = 0;
    UNROLL(i, VL) x += a[i];
    return x;
}
AF_INLINE void v_hsum4(v a, v b, v c, v d, real *out)
{
    out[0] = v_hsum(a);
    out[1] = v_hsum(b);
    out[2] = v_hsum(c);
    out[3] = v_hsum(d);
}
AF_INLINE v v_sum_in_order(const v x[VL])
{
    v sum = v_zero();
    UNROLL(i, VL) sum = v_add(sum, x[i]);
    return sum;
}
AF_INLINE void v_transpose(v x[VL])
{
    UNROLL(i, VL)
        UNROLL(j, i) {
            const real t = x[i][j];
            x[i][j] = x[j][i];
            x[j][i] = t;
        }
}

#if AF_HALF
AF_INLINE float float_of_bits(uint32_t bits)
{
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
AF_INLINE uint32_t bits_of_float(float x)
{
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
#endif

#if AF_DTYPE == AF_DTYPE_BF16
AF_INLINE float e_get(elem x) { return float_of_bits((uint32_t)x << 16); }
AF_INLINE elem e_set(float x)
{
    const uint32_t bits = bits_of_float(x);
    if (x != x) return (elem)(bits >> 16 | 0x40);
    return (elem)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#elif AF_DTYPE == AF_DTYPE_F16
AF_INLINE float e_get(elem x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = x & 0x7fff;
    if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x0400) return float_of_bits(sign | ((rest << 13) + (112u << 23)));
    const float tiny = (float)rest * 0x1p-24f;
    return sign ? -tiny : tiny;
}
/* Not inlined: results are rounded in many places, and this is long. */
static __attribute__((noinline)) elem e_set(float x)
{
    const uint32_t bits = bits_of_float(x), rest = bits & 0x7fffffff;
    const elem sign = (elem)(bits >> 16 & 0x8000);
    if (rest > 0x7f800000) return sign | 0x7e00 | (elem)(rest >> 13 & 0x3ff);
    if (rest >= 0x477ff000) return sign | 0x7c00; /* 65520 and above round to infinity */
    if (rest < 0x38800000) {                      /* below 2^-14: adding 0.5 rounds at 2^-24 */
        const float y = float_of_bits(rest) + 0.5f;
        return sign | (elem)(bits_of_float(y) - 0x3f000000);
    }
    return sign | (elem)((rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13);
}
#endif

#if AF_HALF
AF_INLINE v e_load_n(const elem *p, int n)
{
    v x = v_zero();
    for (int i = 0; i < n; i++) x[i] = e_get(p[i]);
    return x;
}
AF_INLINE void e_store_n(elem *p, v x, int n)
{
    for (int i = 0; i < n; i++) p[i] = e_set(x[i]);
}
AF_INLINE v e_load(const elem *p) { return e_load_n(p, VL); }
AF_INLINE void e_store(elem *p, v x) { e_store_n(p, x, VL); }
#endif

#include "bytes.h"

AF_INLINE uint64_t nonzero_bytes(const uint8_t *p, int n)
{
    uint64_t word = 0;
    for (int i = 0; i < n; i++) word |= (uint64_t)(p[i] != 0) << i;
    return word;
}

#endif

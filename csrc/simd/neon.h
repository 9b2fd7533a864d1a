/* The vector vocabulary on NEON (AArch64, where it is always there). See generic.h for the meaning of each word. */
#ifndef AF_SIMD_H
#define AF_SIMD_H

#include <arm_neon.h>

#define AF_NEEDS 0
#define AF_MR 8 /* tile rows: 8 x 3 accumulators, 3 lane vectors and up to 5 broadcasts of 32 registers */
#define AF_NV 3 /* tile columns in vectors */
#define AF_CACHE_BYTES (512 << 10) /* second-level cache: Neoverse N1 has 1 MiB, client cores 512 KiB */
#define AF_FUSED_SOFTMAX 1         /* registers enough to make weights in the tile: see fused_softmax.h */
#define AF_EMBEDS 0
#define AF_DECODE_KEYS 4    /* keys at a time against up to 4 query rows: 16 accumulators */
#define AF_DECODE_COLUMNS 8 /* vectors of values at a time against up to 2 query rows */

#if AF_DOUBLE
typedef float64x2_t v;
typedef uint64x2_t vm;
typedef int64x2_t vi;
#define VL 2
#define OP(name) name##_f64
#define BIT_OP(name) name##_u64
#define INT_OP(name) name##_s64
#define AS_BITS vreinterpretq_u64_f64
#define AS_INT vreinterpretq_s64_f64
#define FROM_BITS vreinterpretq_f64_u64
#define FROM_INT vreinterpretq_f64_s64
#define FLOOR_TO_INT vcvtmq_s64_f64
#define REAL_OF_INT vcvtq_f64_s64
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define MANTISSA_MASK 0x000fffffffffffff
#else
typedef float32x4_t v;
typedef uint32x4_t vm;
typedef int32x4_t vi;
#define VL 4
#define OP(name) name##_f32
#define BIT_OP(name) name##_u32
#define INT_OP(name) name##_s32
#define AS_BITS vreinterpretq_u32_f32
#define AS_INT vreinterpretq_s32_f32
#define FROM_BITS vreinterpretq_f32_u32
#define FROM_INT vreinterpretq_f32_s32
#define FLOOR_TO_INT vcvtmq_s32_f32
#define REAL_OF_INT vcvtq_f32_s32
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define MANTISSA_MASK 0x007fffff
#endif

AF_INLINE v v_set1(real x) { return OP(vdupq_n)(x); }
AF_INLINE v v_zero(void) { return v_set1(0); }
#if AF_DOUBLE
AF_INLINE vi lanes(void) { return (vi){0, 1}; }
AF_INLINE vm lane_bits(void) { return (vm){1, 2}; }
#else
AF_INLINE vi lanes(void) { return (vi){0, 1, 2, 3}; }
AF_INLINE vm lane_bits(void) { return (vm){1, 2, 4, 8}; }
#endif
AF_INLINE vm vm_first(int n) { return INT_OP(vcgtq)(INT_OP(vdupq_n)(n), lanes()); }
AF_INLINE vm vm_bits(uint64_t bits) { return BIT_OP(vtstq)(BIT_OP(vdupq_n)(bits), lane_bits()); }
AF_INLINE vm vm_part(const uint64_t *word, int c) { return vm_bits(*word >> c * VL); }
AF_INLINE uint64_t vm_word(vm m) { return BIT_OP(vaddvq)(BIT_OP(vandq)(m, lane_bits())); }
AF_INLINE vm vm_gt(v a, v b) { return OP(vcgtq)(a, b); }
AF_INLINE vm vm_ne(v a, v b) { return BIT_OP(veorq)(OP(vceqq)(a, b), BIT_OP(vdupq_n)(-1)); }
AF_INLINE v v_select(vm m, v a, v b) { return OP(vbslq)(m, a, b); }

AF_INLINE v v_load(const real *p) { return OP(vld1q)(p); }
AF_INLINE void v_store(real *p, v x) { OP(vst1q)(p, x); }
#if AF_DOUBLE
AF_INLINE v v_load_n(const real *p, int n)
{
    if (n <= 0) return v_zero();
    return n == 1 ? vcombine_f64(vld1_f64(p), vdup_n_f64(0)) : v_load(p);
}
AF_INLINE void v_store_n(real *p, v x, int n)
{
    if (n == 1) vst1q_lane_f64(p, x, 0);
    else if (n > 1) v_store(p, x);
}
#else
AF_INLINE v v_load_n(const real *p, int n)
{
    if (n >= VL) return v_load(p);
    const float32x2_t low = n & 2 ? vld1_f32(p) : vdup_n_f32(0);
    const float32x2_t odd = n & 1 ? vld1_lane_f32(p + (n & 2), vdup_n_f32(0), 0) : vdup_n_f32(0);
    return n & 2 ? vcombine_f32(low, odd) : vcombine_f32(odd, low);
}
AF_INLINE void v_store_n(real *p, v x, int n)
{
    if (n >= VL) {
        v_store(p, x);
        return;
    }
    if (n & 2) vst1_f32(p, vget_low_f32(x));
    if (n & 1) vst1_lane_f32(p + (n & 2), n & 2 ? vget_high_f32(x) : vget_low_f32(x), 0);
}
#endif
#if AF_DOUBLE
AF_INLINE v v_swap_pairs(v a) { return vextq_f64(a, a, 1); }
#else
AF_INLINE v v_swap_pairs(v a) { return vrev64q_f32(a); }
#endif
AF_INLINE v v_add(v a, v b) { return OP(vaddq)(a, b); }
AF_INLINE v v_sub(v a, v b) { return OP(vsubq)(a, b); }
AF_INLINE v v_mul(v a, v b) { return OP(vmulq)(a, b); }
AF_INLINE v v_div(v a, v b) { return OP(vdivq)(a, b); }
AF_INLINE v v_reciprocal(v a) { return v_div(v_set1(1), a); }
AF_INLINE v v_fma(v a, v b, v c) { return OP(vfmaq)(c, a, b); }
/* FMAX gives NaN where either is, FMAXNM where both are; wanted is b. */
AF_INLINE v v_max(v a, v b) { return v_select(vm_gt(a, b), a, b); }
AF_INLINE v v_min(v a, v b) { return v_select(vm_gt(b, a), a, b); }
AF_INLINE v v_abs(v a) { return OP(vabsq)(a); }
AF_INLINE v v_round(v a) { return OP(vrndnq)(a); }
AF_INLINE v above_zero_power(v a) { return v_max(v_set1(-EXPONENT_BIAS), a); }
AF_INLINE v v_fraction(v a) { return v_sub(above_zero_power(a), OP(vrndmq)(above_zero_power(a))); }
AF_INLINE v v_scale2(v a, v n)
{
    const vi biased = INT_OP(vaddq)(FLOOR_TO_INT(above_zero_power(n)), INT_OP(vdupq_n)(EXPONENT_BIAS));
    return v_mul(a, FROM_INT(INT_OP(vshlq_n)(biased, MANTISSA_BITS)));
}
AF_INLINE v v_exponent(v a)
{
    return REAL_OF_INT(INT_OP(vsubq)(INT_OP(vshrq_n)(AS_INT(a), MANTISSA_BITS), INT_OP(vdupq_n)(EXPONENT_BIAS)));
}
AF_INLINE v v_mantissa(v a) { return OP(vbslq)(BIT_OP(vdupq_n)(MANTISSA_MASK), a, v_set1(1)); }
AF_INLINE real v_hmax(v a) { return OP(vmaxvq)(a); }
AF_INLINE real v_hsum(v a) { return OP(vaddvq)(a); }

#if AF_DOUBLE
AF_INLINE void v_hsum4(v a, v b, v c, v d, real *out)
{
    v_store(out, vpaddq_f64(a, b));
    v_store(out + 2, vpaddq_f64(c, d));
}
AF_INLINE v v_sum_in_order(const v x[VL]) { return v_add(x[0], x[1]); }
AF_INLINE void v_transpose(v x[VL])
{
    const v a = vzip1q_f64(x[0], x[1]), b = vzip2q_f64(x[0], x[1]);
    x[0] = a;
    x[1] = b;
}
#else
AF_INLINE void v_hsum4(v a, v b, v c, v d, real *out) { v_store(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))); }
AF_INLINE v v_sum_in_order(const v x[VL]) { return v_add(v_add(x[0], x[1]), v_add(x[2], x[3])); }
AF_INLINE void v_transpose(v x[VL])
{
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(x[0], x[1]));
    const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(x[0], x[1]));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(x[2], x[3]));
    const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(x[2], x[3]));
    x[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    x[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    x[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    x[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
}
#endif

#if AF_DTYPE == AF_DTYPE_F16
AF_INLINE v e_widen(uint16x4_t x) { return vcvt_f32_f16(vreinterpret_f16_u16(x)); }
AF_INLINE uint16x4_t e_narrow(v x) { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }
#elif AF_DTYPE == AF_DTYPE_BF16
AF_INLINE v e_widen(uint16x4_t x) { return vreinterpretq_f32_u32(vshll_n_u16(x, 16)); }
AF_INLINE uint16x4_t e_narrow(v x)
{
    const uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint16x4_t up = vaddhn_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint16x4_t quiet = vorr_u16(vshrn_n_u32(bits, 16), vdup_n_u16(0x40));
    return vbsl_u16(vmovn_u32(vceqq_f32(x, x)), up, quiet);
}
#endif

#if AF_HALF
AF_INLINE v e_load(const elem *p) { return e_widen(vld1_u16(p)); }
AF_INLINE void e_store(elem *p, v x) { vst1_u16(p, e_narrow(x)); }
#endif

#include "bytes.h"
#include "partial.h"

AF_INLINE uint64_t nonzero_bytes(const uint8_t *p, int n)
{
    uint8_t t[64];
    p = with_zeros(p, n, t);
    const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t x[4];
    UNROLL(i, 4) {
        const uint8x16_t byte = vld1q_u8(p + 16 * i);
        x[i] = vandq_u8(vtstq_u8(byte, byte), bit);
    }
    const uint8x16_t pairs = vpaddq_u8(vpaddq_u8(x[0], x[1]), vpaddq_u8(x[2], x[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)), 0);
}

#endif

/* The vector vocabulary on AVX2 with FMA and F16C. See generic.h for the meaning of each word. */
#ifndef AF_SIMD_H
#define AF_SIMD_H

#include <immintrin.h>

#define AF_NEEDS AF_CPU_AVX2
#define AF_MR 4                    /* tile rows: 4 x 3 accumulators, 3 lane vectors and 1 broadcast of 16 registers */
#define AF_NV 3                    /* tile columns in vectors */
#define AF_CACHE_BYTES (512 << 10) /* second-level cache: Zen 2 and 3; Intel has 256 KiB to 2 MiB */
#define AF_FUSED_SOFTMAX 1         /* registers enough to make weights in the tile: see fused_softmax.h */
#define AF_EMBEDS 0
#define AF_BYTE_VECTORS 1
#define AF_DECODE_KEYS 2    /* keys at a time against up to 4 query rows: 8 accumulators */
#define AF_DECODE_COLUMNS 4 /* vectors of values at a time against up to 2 query rows */

#if AF_DOUBLE
typedef __m256d v, vm;
#define VL 4
#define OP(name) _mm256_##name##_pd
#define AS_INT _mm256_castpd_si256
#define AS_REAL _mm256_castsi256_pd
#define INT_OP(name) _mm256_##name##_epi64
#define INT_SET1 _mm256_set1_epi64x
#define LANES _mm256_set_epi64x(3, 2, 1, 0)
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define MANTISSA_MASK 0x000fffffffffffffLL
#define ONE_BITS 0x3ff0000000000000LL
#else
typedef __m256 v, vm;
#define VL 8
#define OP(name) _mm256_##name##_ps
#define AS_INT _mm256_castps_si256
#define AS_REAL _mm256_castsi256_ps
#define INT_OP(name) _mm256_##name##_epi32
#define INT_SET1 _mm256_set1_epi32
#define LANES _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0)
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define MANTISSA_MASK 0x007fffff
#define ONE_BITS 0x3f800000
#endif
/* Adding this rounds to an integer, which is then in the low bits: 1.5 * 2^MANTISSA_BITS. */
#define ROUNDER ((real)((int64_t)3 << (MANTISSA_BITS - 1))) /* added to a whole number n: the lowest bits are n */

AF_INLINE v v_zero(void) { return OP(setzero)(); }
AF_INLINE v v_set1(real x) { return OP(set1)(x); }
AF_INLINE vm vm_first(int n) { return AS_REAL(INT_OP(cmpgt)(INT_SET1(n), LANES)); }
AF_INLINE vm vm_bits(uint64_t bits)
{
    const __m256i lane = INT_OP(sllv)(INT_SET1(1), LANES);
    return AS_REAL(INT_OP(cmpeq)(_mm256_and_si256(INT_SET1((int64_t)bits), lane), lane));
}
AF_INLINE vm vm_part(const uint64_t *word, int c) { return vm_bits(*word >> c * VL); }
AF_INLINE uint64_t vm_word(vm m) { return (uint64_t)OP(movemask)(m); }
AF_INLINE vm vm_gt(v a, v b) { return OP(cmp)(a, b, _CMP_GT_OQ); }
AF_INLINE vm vm_ne(v a, v b) { return OP(cmp)(a, b, _CMP_NEQ_UQ); }

AF_INLINE v v_load(const real *p) { return OP(loadu)(p); }
AF_INLINE void v_store(real *p, v x) { OP(storeu)(p, x); }
AF_INLINE v v_load_n(const real *p, int n) { return OP(maskload)(p, AS_INT(vm_first(n))); }
AF_INLINE void v_store_n(real *p, v x, int n) { OP(maskstore)(p, AS_INT(vm_first(n)), x); }
AF_INLINE v v_add(v a, v b) { return OP(add)(a, b); }
AF_INLINE v v_sub(v a, v b) { return OP(sub)(a, b); }
AF_INLINE v v_mul(v a, v b) { return OP(mul)(a, b); }
AF_INLINE v v_div(v a, v b) { return OP(div)(a, b); }
AF_INLINE v v_reciprocal(v a) { return v_div(v_set1(1), a); }
AF_INLINE v v_fma(v a, v b, v c) { return OP(fmadd)(a, b, c); }
AF_INLINE v v_swap_pairs(v a) { return OP(permute)(a, AF_DOUBLE ? 0x5 : 0xb1); }
AF_INLINE v v_max(v a, v b) { return OP(max)(a, b); }
AF_INLINE v v_min(v a, v b) { return OP(min)(a, b); }
AF_INLINE v v_abs(v a) { return OP(andnot)(v_set1(-(real)0), a); }
AF_INLINE v v_round(v a) { return OP(round)(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
AF_INLINE v above_zero_power(v a) { return v_max(v_set1(-EXPONENT_BIAS), a); }
AF_INLINE v v_floor(v a) { return OP(round)(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
AF_INLINE v v_fraction(v a) { return v_sub(above_zero_power(a), v_floor(above_zero_power(a))); }
AF_INLINE v v_scale2(v a, v n)
{
    const v whole = v_floor(above_zero_power(n));
    const v biased = v_add(whole, v_set1(ROUNDER + EXPONENT_BIAS));
    return v_mul(a, AS_REAL(INT_OP(slli)(AS_INT(biased), MANTISSA_BITS)));
}
AF_INLINE v v_exponent(v a)
{
    const __m256i biased = INT_OP(srli)(AS_INT(a), MANTISSA_BITS);
    const v rounder = v_set1(ROUNDER);
    const v shifted = AS_REAL(_mm256_or_si256(biased, AS_INT(rounder)));
    return v_sub(shifted, v_add(rounder, v_set1(EXPONENT_BIAS)));
}
AF_INLINE v v_mantissa(v a)
{
    return AS_REAL(_mm256_or_si256(_mm256_and_si256(AS_INT(a), INT_SET1(MANTISSA_MASK)), INT_SET1(ONE_BITS)));
}
AF_INLINE v v_select(vm m, v a, v b) { return OP(blendv)(b, a, m); }

#if AF_DOUBLE
AF_INLINE __m128d fold(v a, bool max)
{
    const __m128d lo = _mm256_castpd256_pd128(a), hi = _mm256_extractf128_pd(a, 1);
    const __m128d x = max ? _mm_max_pd(lo, hi) : _mm_add_pd(lo, hi), y = _mm_unpackhi_pd(x, x);
    return max ? _mm_max_pd(x, y) : _mm_add_pd(x, y);
}
AF_INLINE real v_hmax(v a) { return _mm_cvtsd_f64(fold(a, true)); }
AF_INLINE real v_hsum(v a) { return _mm_cvtsd_f64(fold(a, false)); }
AF_INLINE void v_hsum4(v a, v b, v c, v d, real *out)
{
    const v ab = _mm256_hadd_pd(a, b), cd = _mm256_hadd_pd(c, d);
    v_store(out, v_add(_mm256_permute2f128_pd(ab, cd, 0x20), _mm256_permute2f128_pd(ab, cd, 0x31)));
}
AF_INLINE v v_sum_in_order(const v x[VL]) { return v_add(v_add(x[0], x[1]), v_add(x[2], x[3])); }
AF_INLINE void v_transpose(v x[VL])
{
    const v a = _mm256_unpacklo_pd(x[0], x[1]), b = _mm256_unpackhi_pd(x[0], x[1]);
    const v c = _mm256_unpacklo_pd(x[2], x[3]), d = _mm256_unpackhi_pd(x[2], x[3]);
    x[0] = _mm256_permute2f128_pd(a, c, 0x20);
    x[1] = _mm256_permute2f128_pd(b, d, 0x20);
    x[2] = _mm256_permute2f128_pd(a, c, 0x31);
    x[3] = _mm256_permute2f128_pd(b, d, 0x31);
}
#else
AF_INLINE __m128 fold(v a, bool max)
{
    const __m128 lo = _mm256_castps256_ps128(a), hi = _mm256_extractf128_ps(a, 1);
    const __m128 x = max ? _mm_max_ps(lo, hi) : _mm_add_ps(lo, hi), x2 = _mm_movehl_ps(x, x);
    const __m128 y = max ? _mm_max_ps(x, x2) : _mm_add_ps(x, x2), y2 = _mm_shuffle_ps(y, y, 1);
    return max ? _mm_max_ps(y, y2) : _mm_add_ps(y, y2);
}
AF_INLINE real v_hmax(v a) { return _mm_cvtss_f32(fold(a, true)); }
AF_INLINE real v_hsum(v a) { return _mm_cvtss_f32(fold(a, false)); }
AF_INLINE void v_hsum4(v a, v b, v c, v d, real *out)
{
    const v x = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
AF_INLINE v v_sum_in_order(const v x[VL])
{
    const v low = v_add(v_add(x[0], x[1]), v_add(x[2], x[3])), high = v_add(v_add(x[4], x[5]), v_add(x[6], x[7]));
    return v_add(low, high);
}
AF_INLINE void v_transpose(v x[VL])
{
    v t[8], u[8];
    UNROLL(i, 4) {
        t[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    UNROLL(i, 2) {
        UNROLL(c, 2) {
            u[4 * i + 2 * c] = _mm256_shuffle_ps(t[4 * i + c], t[4 * i + 2 + c], 0x44);
            u[4 * i + 2 * c + 1] = _mm256_shuffle_ps(t[4 * i + c], t[4 * i + 2 + c], 0xee);
        }
    }
    UNROLL(c, 4) {
        x[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
        x[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
    }
}
#endif

#if AF_DTYPE == AF_DTYPE_F16
AF_INLINE v e_widen(__m128i x) { return _mm256_cvtph_ps(x); }
AF_INLINE __m128i e_narrow(v x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
#elif AF_DTYPE == AF_DTYPE_BF16
AF_INLINE v e_widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
/* Not inlined: results are rounded in many places, and this is long. */
static __attribute__((noinline)) __m128i e_narrow(v x)
{
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i y = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}
#endif

#if AF_HALF
AF_INLINE v e_load(const elem *p) { return e_widen(_mm_loadu_si128((const __m128i *)p)); }
AF_INLINE void e_store(elem *p, v x) { _mm_storeu_si128((__m128i *)p, e_narrow(x)); }
#endif

#if AF_DTYPE == AF_DTYPE_F32
AF_INLINE __m128i b_bytes(const uint8_t *p) { return _mm_loadl_epi64((const __m128i *)p); }
AF_INLINE v b_int8(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b_bytes(p))); }
AF_INLINE v b_uint8(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b_bytes(p))); }
AF_INLINE v b_e5m2(const uint8_t *p) { return _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), b_bytes(p))); }
/* As float16 the exponent is 8 too small; where all bits are 1, so are those of the NaN. */
AF_INLINE __m128i b_half(__m128i moved) { return _mm_and_si128(moved, _mm_set1_epi16((short)0xbf80)); }
AF_INLINE __m128i b_moved(const uint8_t *p) { return _mm_slli_epi16(_mm_cvtepi8_epi16(b_bytes(p)), 7); }
AF_INLINE bool b_has_nan(const uint8_t *p, int64_t n) /* of e4m3fn */
{
    const __m256i most = _mm256_set1_epi8(0x7f);
    __m256i largest = _mm256_setzero_si256();
    bool last = false;
    int64_t d = 0;
    for (; d + 32 <= n; d += 32)
        largest = _mm256_max_epu8(largest, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(p + d)), most));
    for (; d < n; d++) last |= (p[d] & 0x7f) == 0x7f;
    return last || _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, most));
}
AF_INLINE v b_e4m3fn_finite(const uint8_t *p) { return _mm256_cvtph_ps(b_half(b_moved(p))); }
AF_INLINE v b_e4m3fn(const uint8_t *p)
{
    const __m128i x = b_moved(p), most = _mm_set1_epi16(0x3f80);
    const __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(x, most), most);
    return _mm256_cvtph_ps(_mm_or_si128(nan, b_half(x)));
}
#endif

#include "partial.h"

AF_INLINE uint64_t nonzero_bytes(const uint8_t *p, int n)
{
    uint8_t t[64];
    p = with_zeros(p, n, t);
    const __m256i zero = _mm256_setzero_si256();
    const __m256i lo = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)p), zero);
    const __m256i hi = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(p + 32)), zero);
    return ~((uint64_t)(uint32_t)_mm256_movemask_epi8(hi) << 32 | (uint32_t)_mm256_movemask_epi8(lo));
}

#endif

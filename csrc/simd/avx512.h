/* The vector vocabulary on AVX-512 (F, BW, DQ, VL). See generic.h for the meaning of each word. */
#ifndef AF_SIMD_H
#define AF_SIMD_H

#include <immintrin.h>

#define AF_NEEDS AF_CPU_AVX512
#define AF_MR 8                  /* tile rows: 8 x 3 accumulators, 3 lane vectors and 1 broadcast of 32 registers */
#define AF_NV 3                  /* tile columns in vectors */
#define AF_CACHE_BYTES (1 << 20) /* second-level cache: Skylake-X, Zen 4; later ones up to 2 MiB */
#define AF_FUSED_SOFTMAX 1       /* registers enough to make weights in the tile: see fused_softmax.h */
#define AF_EMBEDS 1              /* operands broadcast from memory by the instruction that uses them */
#define AF_BYTE_VECTORS 1
#define AF_DECODE_KEYS 4    /* keys at a time against up to 4 query rows: 16 accumulators */
#define AF_DECODE_COLUMNS 8 /* vectors of values at a time against up to 2 query rows */

#if AF_DOUBLE
typedef __m512d v;
typedef __mmask8 vm;
typedef __mmask8 __attribute__((may_alias)) vm_part_t;
#define VL 8
#define OP(name) _mm512_##name##_pd
#define OP_MASK(name) _mm512_##name##_pd_mask
#else
typedef __m512 v;
typedef __mmask16 vm;
typedef __mmask16 __attribute__((may_alias)) vm_part_t;
#define VL 16
#define OP(name) _mm512_##name##_ps
#define OP_MASK(name) _mm512_##name##_ps_mask
#endif

AF_INLINE vm vm_first(int n) { return (vm)((1u << n) - 1); }
AF_INLINE vm vm_bits(uint64_t bits) { return (vm)bits; }
AF_INLINE vm vm_part(const uint64_t *word, int c) { return ((const vm_part_t *)word)[c]; }
AF_INLINE uint64_t vm_word(vm m) { return m; }
AF_INLINE vm vm_gt(v a, v b) { return OP_MASK(cmp)(a, b, _CMP_GT_OQ); }
AF_INLINE vm vm_ne(v a, v b) { return OP_MASK(cmp)(a, b, _CMP_NEQ_UQ); }

AF_INLINE v v_zero(void) { return OP(setzero)(); }
AF_INLINE v v_set1(real x) { return OP(set1)(x); }
AF_INLINE v v_load(const real *p) { return OP(loadu)(p); }
AF_INLINE void v_store(real *p, v x) { OP(storeu)(p, x); }
AF_INLINE v v_load_n(const real *p, int n) { return OP(maskz_loadu)(vm_first(n), p); }
AF_INLINE void v_store_n(real *p, v x, int n) { OP(mask_storeu)(p, vm_first(n), x); }
AF_INLINE v v_add(v a, v b) { return OP(add)(a, b); }
AF_INLINE v v_sub(v a, v b) { return OP(sub)(a, b); }
AF_INLINE v v_mul(v a, v b) { return OP(mul)(a, b); }
AF_INLINE v v_div(v a, v b) { return OP(div)(a, b); }
AF_INLINE v v_fma(v a, v b, v c) { return OP(fmadd)(a, b, c); }
#if AF_DOUBLE
AF_INLINE v v_reciprocal(v a) /* of a normal number */
{
    v r = OP(rcp14)(a);
    r = v_fma(r, OP(fnmadd)(a, r, v_set1(1)), r);
    return v_fma(r, OP(fnmadd)(a, r, v_set1(1)), r);
}
#else
AF_INLINE v v_reciprocal(v a)
{
    const v r = OP(rcp14)(a);
    return v_fma(r, OP(fnmadd)(a, r, v_set1(1)), r);
}
#endif
AF_INLINE v v_swap_pairs(v a) { return OP(permute)(a, AF_DOUBLE ? 0x55 : 0xb1); }
AF_INLINE v v_max(v a, v b) { return OP(max)(a, b); }
AF_INLINE v v_min(v a, v b) { return OP(min)(a, b); }
AF_INLINE v v_abs(v a) { return OP(abs)(a); }
AF_INLINE v v_round(v a) { return OP(roundscale)(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
AF_INLINE v v_fraction(v a) { return OP(reduce)(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
AF_INLINE v v_scale2(v a, v n) { return OP(scalef)(a, n); }
AF_INLINE v v_exponent(v a) { return OP(getexp)(a); }
AF_INLINE v v_mantissa(v a) { return OP(getmant)(a, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src); }
AF_INLINE v v_select(vm m, v a, v b) { return OP(mask_blend)(m, b, a); }
AF_INLINE real v_hmax(v a) { return OP(reduce_max)(a); }
AF_INLINE real v_hsum(v a) { return OP(reduce_add)(a); }

#if AF_DOUBLE
AF_INLINE void v_hsum4(v a, v b, v c, v d, real *out)
{
    const v ab = v_add(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
    const v cd = v_add(_mm512_unpacklo_pd(c, d), _mm512_unpackhi_pd(c, d));
    const v x = v_add(_mm512_shuffle_f64x2(ab, cd, 0x44), _mm512_shuffle_f64x2(ab, cd, 0xee));
    const v y = v_add(x, _mm512_shuffle_f64x2(x, x, 0xb1));
    _mm256_storeu_pd(out, _mm512_castpd512_pd256(_mm512_shuffle_f64x2(y, y, 0x08)));
}

AF_INLINE v v_sum_in_order(const v x[VL])
{
    const v even = v_add(v_add(x[0], x[1]), v_add(x[4], x[5])), odd = v_add(v_add(x[2], x[3]), v_add(x[6], x[7]));
    return v_add(even, odd);
}

AF_INLINE void v_transpose(v x[VL])
{
    v t[8], u[8];
    UNROLL(i, 4) {
        t[2 * i] = _mm512_unpacklo_pd(x[2 * i], x[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_pd(x[2 * i], x[2 * i + 1]);
    }
    UNROLL(i, 2) {
        u[4 * i] = _mm512_shuffle_f64x2(t[4 * i], t[4 * i + 2], 0x88);
        u[4 * i + 1] = _mm512_shuffle_f64x2(t[4 * i + 1], t[4 * i + 3], 0x88);
        u[4 * i + 2] = _mm512_shuffle_f64x2(t[4 * i], t[4 * i + 2], 0xdd);
        u[4 * i + 3] = _mm512_shuffle_f64x2(t[4 * i + 1], t[4 * i + 3], 0xdd);
    }
    UNROLL(i, 4) {
        x[i] = _mm512_shuffle_f64x2(u[i], u[i + 4], 0x88);
        x[i + 4] = _mm512_shuffle_f64x2(u[i], u[i + 4], 0xdd);
    }
}
#else
AF_INLINE void v_hsum4(v a, v b, v c, v d, real *out)
{
    const v ab = v_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const v cd = v_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const v x = v_add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)));
}

AF_INLINE v v_sum_in_order(const v x[VL])
{
    v part[4];
    UNROLL(i, 4) part[i] = v_add(v_add(x[4 * i], x[4 * i + 2]), v_add(x[4 * i + 1], x[4 * i + 3]));
    return v_add(v_add(part[0], part[2]), v_add(part[1], part[3]));
}

AF_INLINE void v_transpose(v x[VL])
{
    v t[16], u[16];
    UNROLL(i, 8) {
        t[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    /* u[4 k + c] holds column 4 s + c of rows 4 k .. 4 k + 3 in its 128-bit part s. */
    UNROLL(i, 4) {
        UNROLL(c, 2) {
            const __m512d a = _mm512_castps_pd(t[4 * i + c]), b = _mm512_castps_pd(t[4 * i + 2 + c]);
            u[4 * i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            u[4 * i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    UNROLL(c, 4) {
        const v a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88), b = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
        const v d = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd), e = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
        x[c] = _mm512_shuffle_f32x4(a, b, 0x88);
        x[4 + c] = _mm512_shuffle_f32x4(d, e, 0x88);
        x[8 + c] = _mm512_shuffle_f32x4(a, b, 0xdd);
        x[12 + c] = _mm512_shuffle_f32x4(d, e, 0xdd);
    }
}
#endif

#if AF_DTYPE == AF_DTYPE_F16
AF_INLINE v e_widen(__m256i x) { return _mm512_cvtph_ps(x); }
AF_INLINE __m256i e_narrow(v x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif AF_DTYPE == AF_DTYPE_BF16
AF_INLINE v e_widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
/* Not inlined: results are rounded in many places, and this is long. */
static __attribute__((noinline)) __m256i e_narrow(v x)
{
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const vm nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, up, quiet), 16));
}
#endif

#if AF_HALF
AF_INLINE v e_load(const elem *p) { return e_widen(_mm256_loadu_si256((const __m256i *)p)); }
AF_INLINE v e_load_n(const elem *p, int n) { return e_widen(_mm256_maskz_loadu_epi16(vm_first(n), p)); }
AF_INLINE void e_store(elem *p, v x) { _mm256_storeu_si256((__m256i *)p, e_narrow(x)); }
AF_INLINE void e_store_n(elem *p, v x, int n) { _mm256_mask_storeu_epi16(p, vm_first(n), e_narrow(x)); }
#endif

#if AF_DTYPE == AF_DTYPE_F32
#include "e4m3fn_table.h"

AF_INLINE __m128i b_bytes(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
AF_INLINE v b_int8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b_bytes(p))); }
AF_INLINE v b_uint8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b_bytes(p))); }
AF_INLINE v b_e5m2(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(b_bytes(p)), 8)); }
/* As float16 the exponent is 8 too small. */
AF_INLINE __m256i b_half(__m128i e4m3fn)
{
    const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(e4m3fn), 7);
    return _mm256_and_si256(moved, _mm256_set1_epi16((short)0xbf80));
}
AF_INLINE bool b_has_nan(const uint8_t *p, int64_t n) /* of e4m3fn */
{
    const __m512i most = _mm512_set1_epi8(0x7f);
    __m512i largest = _mm512_setzero_si512();
    int64_t d = 0;
    for (; d + 64 <= n; d += 64) largest = _mm512_max_epu8(largest, _mm512_and_si512(_mm512_loadu_si512(p + d), most));
    const __m512i rest = _mm512_maskz_loadu_epi8(((uint64_t)1 << (n - d)) - 1, p + d);
    return _mm512_cmpeq_epi8_mask(_mm512_max_epu8(largest, _mm512_and_si512(rest, most)), most);
}
AF_INLINE v b_e4m3fn_finite(const uint8_t *p) { return _mm512_cvtph_ps(b_half(b_bytes(p))); }
AF_INLINE v b_e4m3fn(const uint8_t *p)
{
    const __m128i bytes = b_bytes(p), most = _mm_set1_epi8(0x7f);
    const __mmask16 nan = _mm_cmpeq_epi8_mask(_mm_and_si128(bytes, most), most);
    return _mm512_cvtph_ps(_mm256_mask_mov_epi16(b_half(bytes), nan, _mm256_set1_epi16(0x7e00)));
}

/* With AF_CPU_LOOKS_UP: 64 numbers of e4m3fn at a time, by tables of the upper bytes of floats. */
#define AF_LOOKS_UP 1

/* These two in assembly, as the compiler may use no instruction of VBMI of its own accord. */
AF_INLINE __m512i b_permute(__m512i x, const __m512i *order) /* byte i is x[order[i]] */
{
    __m512i y;
    __asm__("vpermb %1, %2, %0" : "=v"(y) : "v"(x), "v"(*order));
    return y;
}
AF_INLINE __m512i b_look_up(__m512i x, const uint8_t *table) /* byte i is table[x[i] & 127] */
{
    const __m512i *half = (const __m512i *)table;
    __asm__("vpermi2b %2, %1, %0" : "+v"(x) : "v"(half[0]), "v"(half[1]));
    return x;
}

/* 64 bytes. Unpacking takes bytes of each 16 in turn. */
AF_INLINE void b_e4m3fn_by_table(const uint8_t *p, v x[4])
{
    const __m512i bytes = b_permute(_mm512_loadu_si512(p), (const __m512i *)unpacked_order);
    const __m512i low = b_look_up(bytes, e4m3fn_table.low), zero = _mm512_setzero_si512();
    __m512i high = b_look_up(bytes, e4m3fn_table.high);
    high = _mm512_ternarylogic_epi32(high, bytes, _mm512_set1_epi8((char)0x80), 0xf8); /* high | bytes & 0x80 */
    const __m512i first = _mm512_unpacklo_epi8(low, high), last = _mm512_unpackhi_epi8(low, high);
    x[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, first));
    x[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, first));
    x[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, last));
    x[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, last));
}
#endif

AF_INLINE uint64_t nonzero_bytes(const uint8_t *p, int n)
{
    const __mmask64 m = n == 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1;
    const __m512i x = _mm512_maskz_loadu_epi8(m, p);
    return _mm512_test_epi8_mask(x, x);
}

#endif

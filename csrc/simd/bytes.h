/* Bytes as floats, one at a time: for instruction sets that have no vectors of them here. */
#ifndef AF_SIMD_BYTES_H
#define AF_SIMD_BYTES_H

#define AF_BYTE_VECTORS 0 /* whether instructions widen vectors of bytes */

#if AF_DTYPE == AF_DTYPE_F32
/* With the exponent of a float, which is 127 - 15 too small, or of e4m3fn 8 more, see generic.h. */
AF_INLINE float float_of_eight(uint8_t x, int mantissa, float factor)
{
    const uint32_t bits = (uint32_t)(x & 0x7f) << (23 - mantissa);
    float y;
    memcpy(&y, &bits, sizeof y);
    return x >> 7 ? -(y * factor) : y * factor;
}
AF_INLINE float float_of_e4m3fn(uint8_t x) { return (x & 0x7f) == 0x7f ? NAN : float_of_eight(x, 3, 0x1p112f); }
AF_INLINE float float_of_e5m2(uint8_t x)
{
    if ((x & 0x7f) > 0x7c) return NAN;
    if ((x & 0x7f) == 0x7c) return x >> 7 ? -INFINITY : INFINITY;
    return float_of_eight(x, 2, 0x1p112f);
}

AF_INLINE bool b_has_nan(const uint8_t *p, int64_t n) /* of e4m3fn */
{
    bool nan = false;
    for (int64_t d = 0; d < n; d++) nan |= (p[d] & 0x7f) == 0x7f;
    return nan;
}

#define B_LOAD(name, value)                                                                                            \
    AF_INLINE v name(const uint8_t *p)                                                                                 \
    {                                                                                                                  \
        float t[VL];                                                                                                   \
        for (int i = 0; i < VL; i++) t[i] = value(p[i]);                                                               \
        return v_load(t);                                                                                              \
    }
B_LOAD(b_int8, (int8_t))
B_LOAD(b_uint8, (uint8_t))
B_LOAD(b_e4m3fn, float_of_e4m3fn)
B_LOAD(b_e4m3fn_finite, float_of_e4m3fn) /* of which NaN may be any number */
B_LOAD(b_e5m2, float_of_e5m2)
#undef B_LOAD
#endif

#endif

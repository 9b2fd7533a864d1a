/* float8_e4m3fn to float by look-up. */
#ifndef AF_E4M3FN_TABLE_H
#define AF_E4M3FN_TABLE_H

#include <stdint.h>

/* The upper half of the float that is 2^-8 times the number (see generic.h) with the lower 7 bits x: 4 of an exponent,
 * which is 7 + 8 - 127 short of a float's, and 3 of a fraction. Without an exponent x counts the smallest number. */
#define NORMAL(x) (((x) >> 3) + 112) << 7 | ((x) & 7) << 4
#define SMALL(x) ((x) == 0 ? 0 : (x) == 1 ? 110 << 7 : (x) < 4 ? 111 << 7 | ((x) & 1) << 6 : 112 << 7 | ((x) & 3) << 5)
#define HALF(x) ((x) == 0x7f ? 0x7fc0 : (x) < 8 ? SMALL(x) : NORMAL(x))

#define HIGH(x) (uint8_t)(HALF(x) >> 8)
#define LOW(x) (uint8_t)(HALF(x))
#define FOUR(byte, x) byte(x), byte((x) + 1), byte((x) + 2), byte((x) + 3)
#define SIXTEEN(byte, x) FOUR(byte, x), FOUR(byte, (x) + 4), FOUR(byte, (x) + 8), FOUR(byte, (x) + 12)
#define ALL(byte)                                                                                                      \
    {SIXTEEN(byte, 0),  SIXTEEN(byte, 16), SIXTEEN(byte, 32), SIXTEEN(byte, 48),                                       \
     SIXTEEN(byte, 64), SIXTEEN(byte, 80), SIXTEEN(byte, 96), SIXTEEN(byte, 112)}

/* Its two bytes; the lower half of the float is zero. */
static const struct {
    _Alignas(64) uint8_t high[128], low[128];
} e4m3fn_table = {ALL(HIGH), ALL(LOW)};

#undef NORMAL
#undef SMALL
#undef HALF
#undef HIGH
#undef LOW
#undef FOUR
#undef SIXTEEN
#undef ALL

/* Where the bytes of 64 must be so that, unpacked twice within each 16, they are in order. */
#define QUARTERS(i) i, (i) + 1, (i) + 2, (i) + 3, (i) + 16, (i) + 17, (i) + 18, (i) + 19, (i) + 32, (i) + 33, (i) + 34
#define REST(i) (i) + 35, (i) + 48, (i) + 49, (i) + 50, (i) + 51
static const _Alignas(64) uint8_t unpacked_order[64] = {QUARTERS(0), REST(0), QUARTERS(4),  REST(4),
                                                        QUARTERS(8), REST(8), QUARTERS(12), REST(12)};
#undef QUARTERS
#undef REST

#endif

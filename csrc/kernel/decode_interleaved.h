/* The products of decode_products.h for more query rows: two keys, or two vectors of values, at a time, so that a query
 * or a weight is loaded once for both.
 *
 * The hardware does not prefetch interleaved rows, so each line is prefetched into the second-level cache, some with
 * every few FMAs: in a burst requests are dropped. With fewer query rows there is too little to compute between the
 * requests, and reading memory in order is faster. */
#ifndef AF_DECODE_INTERLEAVED_H
#define AF_DECODE_INTERLEAVED_H

#include "kernel/decode_products.h"

/* For more than two rows whose queries do not stay in registers, and more than four rows that are computed in pairs:
 * for none of these where each line is requested as rows are read in order. */
AF_INLINE bool interleaves(int rows, int64_t width, bool requested)
{
    if (dot_group(width) == 2) return rows > 4 && !requested;
    return rows > 2;
}

/* 4 KiB ahead, or bursts of 32 lines, were slower (Zen 4, AVX2, 4 rows, heads 32/8 x 128). */
enum { FAR_BYTES = 8192 };

/* The distance in elements at which lines are prefetched from row j of `left` rows; 0 at the end. Nearer ones would
 * arrive late. */
AF_INLINE int64_t prefetch_distance(int64_t j, int64_t left, elem_rows rows, int64_t width)
{
    const int64_t ahead = 2 + FAR_BYTES / (1 + width * (int)sizeof(elem));
    return j + ahead < left ? ahead * rows.ld : 0;
}

/* The first n columns of two keys, at most a vector. */
AF_INLINE void dot_rest(const int nr, int n, const real *query, elem_rows key, v acc[AF_DECODE_KEYS][4], int64_t D)
{
    const v x0 = e_load_n(key.at, n), x1 = e_load_n(key.at + key.ld, n);
    UNROLL(r, nr) {
        const v q = v_load_n(query + r * D, n);
        acc[0][r] = v_fma(q, x0, acc[0][r]);
        acc[1][r] = v_fma(q, x1, acc[1][r]);
    }
}

AF_INLINE void dot_interleaved(const int nr, const real *query, elem_rows key, int64_t ahead, score_rows s, int64_t D)
{
    v acc[AF_DECODE_KEYS][4];
    UNROLL(j, 2)
        UNROLL(r, nr) acc[j][r] = v_zero();
    const elem *row[2] = {hold(key.at), hold(key.at + key.ld)};
    const elem *far[2] = {hold(key.at + ahead), hold(key.at + ahead + key.ld)};
    int64_t d = 0;
    for (; d + 2 * VL <= D; d += 2 * VL)
        UNROLL(j, 2) {
            for (int c = 0; c < 2 * VL; c += LINE_ELEMS) prefetch_line(far[j] + d + c, 0);
            const int64_t at = d + j * VL;
            const v x0 = e_load(row[0] + at), x1 = e_load(row[1] + at);
            UNROLL(r, nr) {
                const v q = v_load(query + r * D + at);
                KEEP_ORDER(); /* else it is loaded twice */
                acc[0][r] = v_fma(q, x0, acc[0][r]);
                acc[1][r] = v_fma(q, x1, acc[1][r]);
            }
        }
    UNROLL(j, 2) prefetch_row(far[j] + d, D - d, 0, false);
    if (key.ld != D)
        UNROLL(j, 2) prefetch_line(far[j] + D - 1, 0);
    if (D - d >= VL) {
        dot_rest(nr, VL, query + d, columns_from(key, d), acc, D);
        d += VL;
    }
    if (d < D) dot_rest(nr, (int)(D - d), query + d, columns_from(key, d), acc, D);
    dot_sums(nr, 2, acc, s);
}

#define DOT_ROWS(nr)                                                                                                   \
    static __attribute__((noinline)) void dot_interleaved_##nr(int n, int64_t ahead, const real *query, elem_rows key, \
                                                               score_rows s, int64_t D)                                \
    {                                                                                                                  \
        int j = 0;                                                                                                     \
        for (; j + 2 <= n; j += 2, key = rows_from(key, 2)) {                                                          \
            __asm__("" : "+r"(ahead)); /* else addresses `ahead` of others take registers of their own */              \
            dot_interleaved(nr, query, key, ahead, score_columns_from(s, j), D);                                       \
        }                                                                                                              \
        if (j < n) dot_tile(nr, 1, query, key, score_columns_from(s, j), D, 0);                                        \
    }
DOT_ROWS(3)
DOT_ROWS(4)
#undef DOT_ROWS

/* decode_scores, where the first rows prefetch the lines `ahead` elements on. */
static void interleaved_scores(int rows, int n, int64_t ahead, const real *query, elem_rows key, score_rows s,
                               int64_t D)
{
    for (; rows > 3; rows -= 4, query += 4 * D, s = score_rows_from(s, 4), ahead = 0)
        dot_interleaved_4(n, ahead, query, key, s, D);
    if (rows == 3) dot_interleaved_3(n, ahead, query, key, s, D);
    else if (rows) {
        const requests ask = requests_for(key, D, 0);
        decode_scores(rows, n, query, key, s, D, &ask);
    }
}

/* decode_values, in the same way. */
static void interleaved_values(int rows, int n, int64_t ahead, score_rows p, elem_rows value, real *acc, int64_t Dv)
{
    for (int j = 0; value.ld != Dv && j < n; j++) prefetch_line(value.at + ahead + j * value.ld + Dv - 1, 0);
    for (; rows > 3; rows -= 4, p = score_rows_from(p, 4), acc += 4 * Dv) axpy_4(n, p, value, acc, Dv, ahead);
    if (rows == 3) axpy_3(n, p, value, acc, Dv, ahead);
    else axpy_few(rows, n, p, value, acc, Dv, 0);
}

#endif

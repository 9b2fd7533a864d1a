/* The products of decode_products.h for more query rows: two keys, or two vectors of values, at a time, so that a query
 * or a weight is loaded once for both.
 *
 * The hardware does not foresee the lines of interleaved rows, so each is prefetched into the second-level cache, some
 * with every few FMAs: in a burst requests are dropped. With fewer query rows there is too little to compute between
 * the requests, and reading memory in order is faster. */
#ifndef AF_DECODE_INTERLEAVED_H
#define AF_DECODE_INTERLEAVED_H

#include "kernel/decode_products.h"

/* For more than two rows whose queries do not stay in registers, and more than four rows that are computed in pairs. */
AF_INLINE bool interleaves(int rows, int64_t width) { return rows > (dot_group(width) == 2 ? 4 : 2); }

enum { FAR_BYTES = 8192 };

/* The distance in elements at which lines are prefetched from row j of `left` rows; 0 at the end. Nearer ones would
 * arrive late. */
AF_INLINE int64_t prefetch_distance(int64_t j, int64_t left, int64_t stride, int64_t width)
{
    const int64_t rows = 2 + FAR_BYTES / (1 + width * (int)sizeof(elem));
    return j + rows < left ? rows * stride : 0;
}

/* n columns of two keys, at most a vector. */
AF_INLINE void dot_rest(const int nr, int n, int64_t D, const real *query, const elem *key0, const elem *key1,
                        v acc[AF_DECODE_KEYS][4])
{
    const v x0 = e_load_n(key0, n), x1 = e_load_n(key1, n);
    UNROLL(r, nr) {
        const v q = v_load_n(query + r * D, n);
        acc[0][r] = v_fma(q, x0, acc[0][r]);
        acc[1][r] = v_fma(q, x1, acc[1][r]);
    }
}

AF_INLINE void dot_interleaved(const int nr, int64_t D, const real *query, const elem *key, int64_t ldk, int64_t ahead,
                               real *s, int64_t lds)
{
    v acc[AF_DECODE_KEYS][4];
    UNROLL(j, 2)
        UNROLL(r, nr) acc[j][r] = v_zero();
    const elem *row[2] = {hold(key), hold(key + ldk)}, *far[2] = {hold(key + ahead), hold(key + ahead + ldk)};
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
    if (ldk != D)
        UNROLL(j, 2) prefetch_line(far[j] + D - 1, 0);
    if (D - d >= VL) {
        dot_rest(nr, VL, D, query + d, row[0] + d, row[1] + d, acc);
        d += VL;
    }
    if (d < D) dot_rest(nr, (int)(D - d), D, query + d, row[0] + d, row[1] + d, acc);
    dot_sums(nr, 2, acc, s, lds);
}

#define DOT_ROWS(nr)                                                                                                   \
    static __attribute__((noinline)) void dot_interleaved_##nr(int n, int64_t left, int64_t D, const real *query,      \
                                                               const elem *key, int64_t ldk, real *s, int64_t lds)     \
    {                                                                                                                  \
        int j = 0;                                                                                                     \
        for (; j + 2 <= n; j += 2, key += 2 * ldk)                                                                     \
            dot_interleaved(nr, D, query, key, ldk, prefetch_distance(j + 1, left, ldk, D), s + j, lds);               \
        if (j < n) dot_tile(nr, 1, D, query, key, ldk, s + j, lds);                                                    \
    }
DOT_ROWS(3)
DOT_ROWS(4)
#undef DOT_ROWS

/* decode_scores for n of the `left` keys that a block has from here on. */
static void interleaved_scores(int rows, int n, int64_t left, int64_t D, const real *query, const elem *key,
                               int64_t ldk, real *s, int64_t lds)
{
    for (; rows > 3; rows -= 4, query += 4 * D, s += 4 * lds, left = 0)
        dot_interleaved_4(n, left, D, query, key, ldk, s, lds);
    if (rows == 3) dot_interleaved_3(n, left, D, query, key, ldk, s, lds);
    else decode_scores(rows, n, D, query, key, ldk, s, lds);
}

/* nc vectors of columns; if they are not whole, one of `last` elements. */
AF_INLINE void axpy_interleaved(const int nr, const int nc, const bool whole, int last, int n, const real *p,
                                int64_t ldp, const elem *value, int64_t ldv, int64_t ahead, real *acc, int64_t Dv)
{
    v sum[4][2];
    UNROLL(r, nr)
        UNROLL(c, nc) sum[r][c] = v_zero();
    for (int j = 0; j < n; j++, value += ldv) {
        v w[4];
        for (int c = 0; c < nc * VL; c += LINE_ELEMS) prefetch_line(value + ahead + c, 0);
        UNROLL(r, nr) w[r] = v_set1(p[r * ldp + j]);
        UNROLL(c, nc) {
            const v x = whole ? e_load(value + c * VL) : e_load_n(value + c * VL, last);
            KEEP_ORDER();
            UNROLL(r, nr) sum[r][c] = v_fma(w[r], x, sum[r][c]);
        }
    }
    UNROLL(r, nr)
        UNROLL(c, nc) add_vector(whole, last, acc + r * Dv + c * VL, sum[r][c]);
}

#define AXPY_ROWS(nr)                                                                                                  \
    static __attribute__((noinline)) void axpy_interleaved_##nr(int n, const real *p, int64_t ldp, const elem *value,  \
                                                                int64_t ldv, int64_t ahead, real *acc, int64_t Dv)     \
    {                                                                                                                  \
        int64_t d = 0;                                                                                                 \
        for (; d + 2 * VL <= Dv; d += 2 * VL)                                                                          \
            axpy_interleaved(nr, 2, true, 0, n, p, ldp, value + d, ldv, ahead, acc + d, Dv);                           \
        for (; d + VL <= Dv; d += VL) axpy_interleaved(nr, 1, true, 0, n, p, ldp, value + d, ldv, ahead, acc + d, Dv); \
        if (d < Dv) axpy_interleaved(nr, 1, false, (int)(Dv - d), n, p, ldp, value + d, ldv, ahead, acc + d, Dv);      \
    }
AXPY_ROWS(3)
AXPY_ROWS(4)
#undef AXPY_ROWS

/* decode_values for n of the `left` values that a block has from here on. */
static void interleaved_values(int rows, int n, int64_t left, const real *p, int64_t ldp, const elem *value,
                               int64_t ldv, real *acc, int64_t Dv)
{
    const int64_t ahead = prefetch_distance(n, left, ldv, Dv);
    for (int j = 0; ldv != Dv && j < n; j++) prefetch_line(value + ahead + j * ldv + Dv - 1, 0);
    for (; rows > 3; rows -= 4, p += 4 * ldp, acc += 4 * Dv) axpy_interleaved_4(n, p, ldp, value, ldv, ahead, acc, Dv);
    if (rows == 3) axpy_interleaved_3(n, p, ldp, value, ldv, ahead, acc, Dv);
    else axpy_few(rows, n, p, ldp, value, ldv, acc, Dv);
}

#endif

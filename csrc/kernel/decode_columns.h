/* The products of decode_products.h where keys or values lie in columns, as in arrays (B, H, D, L): element d of rows
 * j, j + 1 ... side by side. Sums have the bits that rows give:
 *
 *   scores  keys are in the lanes: VL sums for each key, the l-th over the columns l, l + VL ...
 *   values  squares of VL columns and VL keys are transposed in registers
 *
 * Columns are often a power of two apart, and then what is read across all of them shares a few sets of a cache. So
 * many keys of one column, or of VL, are read at a time, and columns behind them are requested meanwhile. */
#ifndef AF_DECODE_COLUMNS_H
#define AF_DECODE_COLUMNS_H

#include "kernel/block.h"
#include "kernel/columns.h"
#include "kernel/decode_interleaved.h"

/* Keys of columns that are short: with sums in memory 108 heads of 3 keys of 512 take 136 us, with sums in registers
 * 50 (Zen 5, AVX-512). */
enum { SHORT_COLUMN = 4 * VL };

/* Values of a column that are read in a row. Keys: AF_COLUMN_KEYS (plan.h), or SHARED_SUMS (block.h). */
enum { VALUE_COLUMN_KEYS = 256 };

/* A column of some keys, and where the sums of a query row are. */
typedef struct key_column {
    elem_rows key;
    const real *query;
    real *sum;
    int64_t distance; /* 0: nothing is requested */
    int n;
    bool first; /* there are no sums yet */
} key_column;

/* sum[j] (+)= query K[j] for nc columns, VL apart, one after the other. */
AF_INLINE void column_sums(const int nc, const key_column *c)
{
    const elem *key[4];
    v q[4];
    UNROLL(i, nc) {
        key[i] = c->key.at + i * VL * c->key.ld;
        q[i] = v_set1(c->query[i * VL]);
    }
    for (int j = 0; j < c->n; j += VL) {
        const int here = c->n - j < VL ? c->n - j : VL;
        v sum = c->first ? v_zero() : v_load(c->sum + j);
        UNROLL(i, nc) {
            const v x = here == VL ? e_load(key[i] + j) : e_load_n(key[i] + j, here);
            if (c->distance) request_column(true, key[i] + j, c->distance);
            sum = v_fma(q[i], x, sum);
        }
        v_store(c->sum + j, sum);
    }
}

/* The scores of VL keys, or n, from VL sums of each. */
AF_INLINE void column_totals(int n, const v x[VL], real *s)
{
    const v total = v_sum_in_order(x);
    if (n >= VL) v_store(s, total);
    else v_store_n(s, total, n);
}

/* The same from their columns, with the sums in registers: for columns so short that all of them are near. */
AF_INLINE void short_column_scores(int n, const real *query, elem_rows key, real *s, int64_t D)
{
    v x[VL];
    UNROLL(l, VL) x[l] = v_zero();
    for (int64_t d = 0; d < D; d += VL)
        UNROLL(l, VL)
            if (d + l < D) x[l] = v_fma(v_set1(query[d + l]), e_load_n(key.at + (d + l) * key.ld, n), x[l]);
    column_totals(n, x, s);
}

/* s[r][j] for n keys, at most as many as column_scores takes. sums: memory for VL of each, [VL][rows][ld]. Four columns
 * at a time share the memory of a sum. With each one is requested that comes FAR_BYTES later, at the end one of the
 * next n keys. */
static void column_scores_of(int rows, int n, const real *query, elem_rows key, score_rows s, int64_t D, real *sums)
{
    const int64_t ld = (n + VL - 1) / VL * VL, ahead = af_min(VL, 1 + FAR_BYTES / (n * (int)sizeof(elem)));
    for (int64_t from = 0, nc; from < D; from += nc * VL) {
        nc = D - from >= 4 * VL ? 4 : D - from >= 2 * VL ? 2 : 1;
        for (int64_t l = 0; l < VL && from + l < D; l++) {
            const int64_t d = from + l, later = d + ahead + (l + ahead < VL ? 0 : (nc - 1) * VL);
            const int64_t away = later < D ? (later - d) * key.ld : n - d * key.ld;
            key_column c = {.key = rows_from(key, d),
                            .query = query + d,
                            .sum = sums + l * rows * ld,
                            .distance = away * (int)sizeof(elem),
                            .n = n,
                            .first = from == 0};
            for (int r = 0; r < rows; r++, c.query += D, c.sum += ld, c.distance = 0) {
                if (nc == 4) column_sums(4, &c);
                else if (nc == 2) column_sums(2, &c);
                else column_sums(1, &c);
            }
        }
    }
    for (int64_t i = D * rows * ld; i < VL * rows * ld; i++) sums[i] = 0;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < n; j += VL) {
            v x[VL];
            UNROLL(l, VL) x[l] = v_load(sums + (l * rows + r) * ld + j);
            column_totals(n - j, x, s.at + r * s.ld + j);
        }
}

/* acc[r][..] += sum_j p[r][j] V[..][j] for VL columns, or so many, and n keys, with a sum for each near_rows of them,
 * as rows have. only (or NULL): the keys, as bits, that enter. */
AF_INLINE void column_output(const int nr, int columns, int n, score_rows p, elem_rows value, score_rows acc,
                             const uint64_t *only, int64_t distance)
{
    enum { LEAST = VL < 8 ? VL : 8 }; /* which divides `few` */
    const int few = near_rows(acc.ld);
    v sum[2], x[VL];
    UNROLL(r, nr) sum[r] = v_zero();
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        if (columns == VL && here == VL) column_square(columns_from(value, j), distance, x);
        else part_of_square(here, columns, columns_from(value, j), distance, x);
        UNROLL(i, VL) {
            if (i < here && (!only || *only >> (j + i) % 64 & 1))
                UNROLL(r, nr) sum[r] = v_fma(v_set1(p.at[r * p.ld + j + i]), x[i], sum[r]);
            if ((i + 1) % LEAST == 0 && ((j + i + 1) % few == 0 || j + i + 1 >= n))
                UNROLL(r, nr) {
                    add_vector(columns == VL, columns, acc.at + r * acc.ld, sum[r]);
                    sum[r] = v_zero();
                }
        }
        if (only && (j + VL) % 64 == 0) only += DECODE_ROWS;
    }
}

#define OUTPUT(nr)                                                                                                     \
    static __attribute__((noinline)) void column_output_##nr(int columns, int n, score_rows p, elem_rows value,        \
                                                             score_rows acc, const uint64_t *only, int64_t distance)   \
    {                                                                                                                  \
        column_output(nr, columns, n, p, value, acc, only, distance);                                                  \
    }
OUTPUT(1)
OUTPUT(2)
#undef OUTPUT

/* Scores of `rows` queries and n keys; key.at[d * key.ld + j] is element d of key j. */
static __attribute__((noinline)) void column_scores(int rows, int n, const real *query, elem_rows key, score_rows s,
                                                    int64_t D, real *sums)
{
    const int most = rows == 1 ? AF_COLUMN_KEYS : SHARED_SUMS / rows / VL * VL;
    for (int j = 0; n <= SHORT_COLUMN && j < n; j += VL)
        for (int r = 0; r < rows; r++) {
            const int here = n - j < VL ? n - j : VL;
            short_column_scores(here, query + r * D, columns_from(key, j), s.at + r * s.ld + j, D);
        }
    if (n <= SHORT_COLUMN) return;
    for (int j = 0; j < n; j += most, key.at += most, s.at += most)
        column_scores_of(rows, n - j < most ? n - j : most, query, key, s, D, sums);
}

/* Adds the values of n keys, each times its weight. words (or NULL): bit j % 64 of words[j / 64][r] tells whether value
 * j enters row r. */
static __attribute__((noinline)) void column_values(int rows, int n, score_rows p, elem_rows value, score_rows acc,
                                                    const uint64_t *words)
{
    const int64_t Dv = acc.ld;
    for (int j = 0; j < n; j += VALUE_COLUMN_KEYS, p.at += VALUE_COLUMN_KEYS, value.at += VALUE_COLUMN_KEYS) {
        const int here = n - j < VALUE_COLUMN_KEYS ? n - j : VALUE_COLUMN_KEYS;
        for (int64_t d = 0; d < Dv; d += VL) {
            const int64_t distance = (d + VL < Dv ? VL * value.ld : here - d * value.ld) * (int64_t)sizeof(elem);
            const elem_rows from = rows_from(value, d);
            const score_rows to = score_columns_from(acc, d);
            const int columns = Dv - d < VL ? (int)(Dv - d) : VL;
            int r = 0;
            for (; !words && r + 2 <= rows; r += 2)
                column_output_2(columns, here, score_rows_from(p, r), from, score_rows_from(to, r), NULL, distance);
            for (; r < rows; r++)
                column_output_1(columns, here, score_rows_from(p, r), from, score_rows_from(to, r),
                                words ? words + j / 64 * DECODE_ROWS + r : NULL, distance);
        }
    }
}

#endif

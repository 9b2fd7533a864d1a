/* The register tile that all products of attention are made of:
 *
 *   C[i][lane] = sum_p A[i][p] B[p][lane]        (or +=)
 *
 *   scores  S = K Q'    rows i: keys   p: D       A = K in place, by rows
 *   values  O += V' P   rows i: Dv     p: keys    A = V' in place, by columns
 *
 * The lanes are AF_NV * VL queries, or fewer. AF_MR x nv accumulators stay in registers over the whole of p; every step
 * loads nv vectors of B and broadcasts one element of each row of A: AF_MR * nv FMAs for AF_MR + nv loads. They start
 * at zero and C is added at the end: a long sum over many blocks of keys is made of short ones, which rounds less. */
#ifndef AF_TILE_H
#define AF_TILE_H

#include "kernel/prefetch.h"

typedef struct tile_result {
    real *at;
    int64_t ld;
} tile_result;

/* Constants wherever they are inlined: rows and vectors of lanes; A[i][p] is at[i * ld + p], or at[p * ld + i] where A
 * is not by rows; whether C is added to. */
typedef struct tile_kind {
    int mr, nv;
    bool by_rows, accumulate;
} tile_kind;

AF_INLINE matrix from_row(const tile_kind t, matrix a, int64_t i)
{
    return (matrix){a.at + i * (t.by_rows ? a.ld : 1), a.ld};
}

/* Every few columns one line per row of `next`, unless that is NULL, is prefetched for the tile at `row`. */
AF_INLINE void tile_sums(const tile_kind t, int64_t k, matrix a, matrix b, v acc[AF_MR][AF_NV], const prefetch *next,
                         int64_t row)
{
    UNROLL(i, t.mr)
        UNROLL(j, t.nv) acc[i][j] = v_zero();
    const int64_t step = next && has_lines(next, row) ? LINE_ELEMS : k;
    for (int64_t begin = 0, end; begin < k; begin = end) {
        end = k - begin < step ? k : begin + step;
        if (next) prefetch_lines(next, row, begin);
        for (int64_t p = begin; p < end; p++) {
            v lanes[AF_NV];
            UNROLL(j, t.nv) lanes[j] = v_load(b.at + j * VL);
            UNROLL(i, t.mr) {
                const v x = v_set1(t.by_rows ? a.at[i * a.ld] : a.at[i]);
                UNROLL(j, t.nv) acc[i][j] = v_fma(x, lanes[j], acc[i][j]);
            }
            a.at += t.by_rows ? 1 : a.ld;
            b.at += b.ld;
        }
    }
}

AF_INLINE void tile_store(const tile_kind t, v acc[AF_MR][AF_NV], tile_result c)
{
    UNROLL(i, t.mr)
        UNROLL(j, t.nv) {
            real *to = c.at + i * c.ld + j * VL;
            v_store(to, t.accumulate ? v_add(v_load(to), acc[i][j]) : acc[i][j]);
        }
}

AF_INLINE void tile(const tile_kind t, int64_t k, matrix a, matrix b, tile_result c, const prefetch *next, int64_t row)
{
    v acc[AF_MR][AF_NV];
    tile_sums(t, k, a, b, acc, next, row);
    tile_store(t, acc, c);
}

/* mr rows from row i on. */
AF_INLINE void tile_at(tile_kind t, const int mr, int64_t i, int64_t k, matrix a, matrix b, tile_result c)
{
    t.mr = mr;
    tile(t, k, from_row(t, a, i), b, (tile_result){c.at + i * c.ld, c.ld}, NULL, 0);
}

/* All rows: whole tiles, then the rest. A rest that need not accumulate repeats rows of the tile before it. With
 * `next`, unless that is NULL, every tile prefetches some of it. */
AF_INLINE void product(const tile_kind t, int64_t rows, int64_t k, matrix a, matrix b, tile_result c,
                       const prefetch *next)
{
    int64_t i = 0;
    for (; i + AF_MR <= rows; i += AF_MR) {
        if (next) prefetch_ahead(next, i);
        tile(t, k, from_row(t, a, i), b, (tile_result){c.at + i * c.ld, c.ld}, next, i);
    }
    if (i == rows) return;
    if (!t.accumulate && rows > AF_MR) {
        tile_at(t, AF_MR, rows - AF_MR, k, a, b, c);
        return;
    }
    if (AF_MR > 4 && i + 4 <= rows) {
        tile_at(t, 4, i, k, a, b, c);
        i += 4;
    }
    if (i + 2 <= rows) {
        tile_at(t, 2, i, k, a, b, c);
        i += 2;
    }
    if (i < rows) tile_at(t, 1, i, k, a, b, c);
}

/* S[n][NR] = K[n][D] Qt[D][NR] */
static void score_product(int nv, int64_t n, int64_t D, matrix key, const real *query, real *s, const prefetch *next)
{
    const matrix b = {query, AF_NR};
    const tile_result c = {s, AF_NR};
    if (nv == 1) product((tile_kind){AF_MR, 1, true, false}, n, D, key, b, c, next);
    else if (nv == 2) product((tile_kind){AF_MR, 2, true, false}, n, D, key, b, c, next);
    else product((tile_kind){AF_MR, AF_NV, true, false}, n, D, key, b, c, next);
}

/* O[Dv][NR] (+)= V'[Dv][n] P[n] */
static void value_product(int nv, bool accumulate, int64_t n, int64_t Dv, matrix value, matrix p, real *o)
{
    const tile_result c = {o, AF_NR};
    if (nv == 1 && accumulate) product((tile_kind){AF_MR, 1, false, true}, Dv, n, value, p, c, NULL);
    else if (nv == 1) product((tile_kind){AF_MR, 1, false, false}, Dv, n, value, p, c, NULL);
    else if (nv == 2 && accumulate) product((tile_kind){AF_MR, 2, false, true}, Dv, n, value, p, c, NULL);
    else if (nv == 2) product((tile_kind){AF_MR, 2, false, false}, Dv, n, value, p, c, NULL);
    else if (accumulate) product((tile_kind){AF_MR, AF_NV, false, true}, Dv, n, value, p, c, NULL);
    else product((tile_kind){AF_MR, AF_NV, false, false}, Dv, n, value, p, c, NULL);
}

#endif

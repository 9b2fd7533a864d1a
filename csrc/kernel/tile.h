/* The register tile that both products of attention are made of:
 *
 *   C[rows][NR] = A[rows][k] B[k][NR]        (or += )
 *
 *   scores  S = K Q'    rows: keys   k: D       A = K in place, its rows lda apart
 *   values  O += V' P   rows: Dv     k: keys    A = V' in place, its columns lda apart
 *
 * B and C have NR = AF_NV * VL query lanes. AF_MR x nv accumulators stay in registers over the whole of k; every step
 * loads nv vectors of B and broadcasts one element of each row of A: AF_MR * nv FMAs for AF_MR + nv loads. They start
 * at zero and C is added at the end: a long sum over many blocks of keys is made of short ones, which rounds less. */
#ifndef AF_TILE_H
#define AF_TILE_H

#include "kernel/prefetch.h"

/* mr, nv, by_rows, accumulate are constants wherever this is inlined. Every few columns one line per row of `next`,
 * unless that is NULL, is prefetched for the tile at `row`. */
AF_INLINE void tile_sums(const int mr, const int nv, const bool by_rows, int64_t k, const real *a, int64_t lda,
                         const real *b, v acc[AF_MR][AF_NV], const prefetch *next, int64_t row)
{
    UNROLL(i, mr)
        UNROLL(j, nv) acc[i][j] = v_zero();
    const int64_t step = next && has_lines(next, row) ? LINE_ELEMS : k;
    for (int64_t begin = 0, end; begin < k; begin = end) {
        end = k - begin < step ? k : begin + step;
        if (next) prefetch_lines(next, row, begin);
        for (int64_t p = begin; p < end; p++) {
            v lanes[AF_NV];
            UNROLL(j, nv) lanes[j] = v_load(b + j * VL);
            UNROLL(i, mr) {
                const v x = v_set1(by_rows ? a[i * lda] : a[i]);
                UNROLL(j, nv) acc[i][j] = v_fma(x, lanes[j], acc[i][j]);
            }
            a += by_rows ? 1 : lda;
            b += AF_NR;
        }
    }
}

AF_INLINE void tile_store(const int mr, const int nv, const bool accumulate, v acc[AF_MR][AF_NV], real *c)
{
    UNROLL(i, mr)
        UNROLL(j, nv) {
            real *to = c + i * AF_NR + j * VL;
            v_store(to, accumulate ? v_add(v_load(to), acc[i][j]) : acc[i][j]);
        }
}

AF_INLINE void tile(const int mr, const int nv, const bool by_rows, const bool accumulate, int64_t k, const real *a,
                    int64_t lda, const real *b, real *c, const prefetch *next, int64_t row)
{
    v acc[AF_MR][AF_NV];
    tile_sums(mr, nv, by_rows, k, a, lda, b, acc, next, row);
    tile_store(mr, nv, accumulate, acc, c);
}

/* All rows: whole tiles, then the rest. A rest that need not accumulate repeats rows of the tile before it. */
AF_INLINE void product(const int nv, const bool by_rows, const bool accumulate, int64_t rows, int64_t k, const real *a,
                       int64_t lda, const real *b, real *c, const prefetch *next)
{
    const int64_t step = by_rows ? lda : 1;
    int64_t i = 0;
    for (; i + AF_MR <= rows; i += AF_MR) {
        if (by_rows) prefetch_ahead(next, i);
        tile(AF_MR, nv, by_rows, accumulate, k, a + i * step, lda, b, c + i * AF_NR, by_rows ? next : NULL, i);
    }
    if (i == rows) return;
    if (!accumulate && rows > AF_MR) {
        i = rows - AF_MR;
        tile(AF_MR, nv, by_rows, false, k, a + i * step, lda, b, c + i * AF_NR, NULL, 0);
        return;
    }
    if (AF_MR > 4 && i + 4 <= rows) {
        tile(4, nv, by_rows, accumulate, k, a + i * step, lda, b, c + i * AF_NR, NULL, 0);
        i += 4;
    }
    if (i + 2 <= rows) {
        tile(2, nv, by_rows, accumulate, k, a + i * step, lda, b, c + i * AF_NR, NULL, 0);
        i += 2;
    }
    if (i < rows) tile(1, nv, by_rows, accumulate, k, a + i * step, lda, b, c + i * AF_NR, NULL, 0);
}

/* S[n][NR] = K[n][D] Qt[D][NR] */
static void score_product(int nv, int64_t n, int64_t D, const real *key, int64_t ldk, const real *query, real *s,
                          const prefetch *next)
{
    if (nv == 1) product(1, true, false, n, D, key, ldk, query, s, next);
    else if (nv == 2) product(2, true, false, n, D, key, ldk, query, s, next);
    else product(AF_NV, true, false, n, D, key, ldk, query, s, next);
}

/* O[Dv][NR] (+)= V'[Dv][n] P[n][NR] */
static void value_product(int nv, bool accumulate, int64_t n, int64_t Dv, const real *value, int64_t ldv, const real *p,
                          real *o)
{
    if (nv == 1 && accumulate) product(1, false, true, Dv, n, value, ldv, p, o, NULL);
    else if (nv == 1) product(1, false, false, Dv, n, value, ldv, p, o, NULL);
    else if (nv == 2 && accumulate) product(2, false, true, Dv, n, value, ldv, p, o, NULL);
    else if (nv == 2) product(2, false, false, Dv, n, value, ldv, p, o, NULL);
    else if (accumulate) product(AF_NV, false, true, Dv, n, value, ldv, p, o, NULL);
    else product(AF_NV, false, false, Dv, n, value, ldv, p, o, NULL);
}

#endif

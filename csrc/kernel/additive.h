/* Additive scores: s[j, i] = sum_d w_d tanh(q[i, d] + b_d + k[j, d]), without the tensor over i, j and d.
 *
 *   tanh(x + y) = 1 - 2 / t,  t = 1 + e^2x e^2y
 *   w / t + w' / t' = (w t' + w' t) / (t t')
 *
 * The exponentials of queries (in the lanes, as in tile.h) and of a block of keys are computed once; then two elements
 * of the sum cost one reciprocal and six other operations. The sum of the w / t of DEPTH elements starts at minus half
 * the sum of their w, its value where all t are 2: the terms stay as small as those of sum w tanh. The error of a tanh
 * is some 3 eps, whatever its size. Where a query or key has an element beyond AF_TANH_RANGE, the product t t' could
 * overflow; there tanh is computed from the sum x + y. Which way a pair takes depends on that query and that key alone,
 * and on the weights: beyond AF_WEIGHT_RANGE every pair takes tanh itself. */
#ifndef AF_ADDITIVE_H
#define AF_ADDITIVE_H

#include "kernel/block.h"
#include "kernel/mask.h"
#include "kernel/pack.h"

#define AF_TANH_RANGE ((real)(AF_DOUBLE ? 85 : 10))
#define AF_WEIGHT_RANGE ((real)(AF_DOUBLE ? 1e150 : 1e20))

enum { ADDITIVE_MR = AF_MR / 2, DEPTH = 8 };

/* All rows of a block are of one head. */
static const real *head_row(const af_tensor *t, const query_block *block)
{
    return t->data ? (const real *)t->data + block->vis.head[0] * t->h : NULL;
}

/* Whether weights are so small that their products with t cannot overflow. */
static bool weights_in_range(const real *weight, int64_t D)
{
    bool in_range = true;
    for (int64_t d = 0; d < D; d++) in_range = in_range && weight[d] < AF_WEIGHT_RANGE && weight[d] > -AF_WEIGHT_RANGE;
    return in_range;
}

/* query[D][NR] = q + b of some rows, a->query_exp = exp(2 (q + b)), a->start the sums of w / 2 over DEPTH elements
 * each, negated; *a->overflow has the lanes that are out of range. */
static void pack_additive_query(const af_call *call, const query_block *block, elem *const rows[AF_NR], real *query,
                                const additive_terms *a)
{
    const real *bias = head_row(&call->score.score_bias, block);
    rows_to_lanes(block->n, block->nv, call->D, rows, 1, query);
    uint64_t in_range = ~(uint64_t)0;
    for (int64_t d = 0; d < call->D; d++)
        for (int c = 0; c < block->nv; c++) {
            real *x = query + d * AF_NR + c * VL;
            const v sum = bias ? v_add(v_load(x), v_set1(bias[d])) : v_load(x);
            const uint64_t all = vm_word(vm_gt(v_set1(AF_TANH_RANGE), v_abs(sum)));
            in_range &= ~((low_bits(VL) & ~all) << c * VL);
            v_store(x, sum);
            v_store(a->query_exp + d * AF_NR + c * VL, v_exp_twice(sum));
        }
    const real *weight = head_row(&call->score.score_weight, block);
    *a->overflow = weights_in_range(weight, call->D) ? ~in_range : ~(uint64_t)0;
    for (int64_t d = 0; d < call->D; d++) {
        if (d % DEPTH == 0) a->start[d / DEPTH] = 0;
        a->start[d / DEPTH] -= weight[d] / 2;
    }
}

/* a->key_exp[n][D] = exp(2 key); a->key_overflow: which keys are out of range. */
static void exp_keys(const additive_terms *a, int n, int64_t D, matrix keys)
{
    for (int j = 0; j < n; j++) {
        const real *key = keys.at + j * keys.ld;
        uint64_t overflow = 0;
        for (int64_t d = 0; d < D; d += VL) {
            const int here = D - d < VL ? (int)(D - d) : VL;
            const v x = v_load_n(key + d, here);
            overflow |= ~vm_word(vm_gt(v_set1(AF_TANH_RANGE), v_abs(x))) & low_bits(VL);
            v_store_n(a->key_exp + j * D + d, v_exp_twice(x), here);
        }
        a->key_overflow[j] = overflow != 0;
    }
}

/* Adds the terms w / t of n elements, n at most DEPTH, for mr keys by nv vectors of queries; mr and nv are constants.
 */
AF_INLINE void additive_step(const int mr, const int nv, int n, int64_t D, const real *key, const real *query,
                             const real *weight, v acc[ADDITIVE_MR][AF_NV])
{
    const v one = v_set1(1);
    int d = 0;
    for (; d + 2 <= n; d += 2, query += 2 * AF_NR) {
        const v w0 = v_set1(weight[d]), w1 = v_set1(weight[d + 1]);
        UNROLL(i, mr) {
            const v x0 = v_set1(key[i * D + d]), x1 = v_set1(key[i * D + d + 1]);
            UNROLL(c, nv) {
                const v t0 = v_fma(x0, v_load(query + c * VL), one);
                const v t1 = v_fma(x1, v_load(query + AF_NR + c * VL), one);
                const v both = v_reciprocal(v_mul(t0, t1));
                acc[i][c] = v_fma(v_fma(w0, t1, v_mul(w1, t0)), both, acc[i][c]);
            }
        }
    }
    if (d == n) return;
    UNROLL(i, mr)
        UNROLL(c, nv) {
            const v t = v_fma(v_set1(key[i * D + d]), v_load(query + c * VL), one);
            acc[i][c] = v_fma(v_set1(weight[d]), v_reciprocal(t), acc[i][c]);
        }
}

AF_INLINE void additive_tile(const int mr, const int nv, int64_t D, const real *key, const real *query,
                             const real *weight, const real *start, real *s)
{
    v sum[ADDITIVE_MR][AF_NV], part[ADDITIVE_MR][AF_NV]; /* a long sum made of short ones rounds less */
    UNROLL(i, mr)
        UNROLL(c, nv) sum[i][c] = part[i][c] = v_zero();
    for (int64_t d = 0; d < D; d += DEPTH, start++) {
        v acc[ADDITIVE_MR][AF_NV];
        UNROLL(i, mr)
            UNROLL(c, nv) acc[i][c] = v_set1(*start);
        if (D - d >= DEPTH) additive_step(mr, nv, DEPTH, D, key + d, query + d * AF_NR, weight + d, acc);
        else additive_step(mr, nv, (int)(D - d), D, key + d, query + d * AF_NR, weight + d, acc);
        UNROLL(i, mr)
            UNROLL(c, nv) part[i][c] = v_add(part[i][c], acc[i][c]);
        if (d % (DEPTH * DEPTH) < DEPTH * (DEPTH - 1) && d + DEPTH < D) continue;
        UNROLL(i, mr)
            UNROLL(c, nv) {
                sum[i][c] = v_add(sum[i][c], part[i][c]);
                part[i][c] = v_zero();
            }
    }
    UNROLL(i, mr)
        UNROLL(c, nv) v_store(s + i * AF_NR + c * VL, v_mul(sum[i][c], v_set1(-2)));
}

AF_INLINE void additive_tiles(const int nv, int n, int64_t D, const additive_terms *a, int at, const real *weight,
                              real *out)
{
    const real *query = a->query_exp + at;
    int j = 0;
    for (; j + ADDITIVE_MR <= n; j += ADDITIVE_MR)
        additive_tile(ADDITIVE_MR, nv, D, a->key_exp + j * D, query, weight, a->start, out + j * AF_NR);
    for (; j < n; j++) additive_tile(1, nv, D, a->key_exp + j * D, query, weight, a->start, out + j * AF_NR);
}

/* One key by the lanes of a word, with tanh itself. */
static void additive_overflow(int nv, int64_t D, const real *key, const real *query, const real *weight, uint64_t lanes,
                              real *s)
{
    for (int c = 0; c < nv; c++) {
        v sum = v_zero(), part = v_zero();
        for (int64_t d = 0; d < D; d++) {
            const v x = v_add(v_load(query + d * AF_NR + c * VL), v_set1(key[d]));
            part = v_fma(v_set1(weight[d]), v_tanh(x), part);
            if (d % (2 * DEPTH) < 2 * DEPTH - 1 && d + 1 < D) continue;
            sum = v_add(sum, part);
            part = v_zero();
        }
        v_store(s + c * VL, v_select(vm_bits(lanes >> c * VL), sum, v_load(s + c * VL)));
    }
}

/* Of n keys, the lanes that take tanh itself with key j. */
AF_INLINE uint64_t overflow_lanes(const additive_terms *a, int j)
{
    return a->key_overflow[j] ? ~(uint64_t)0 : *a->overflow;
}

/* S[n][NR] of the lanes in use, for keys whose exponentials are there. */
static void additive_product(const af_call *call, const query_block *block, const real *query, const additive_terms *a,
                             int n, matrix key, real *out)
{
    const int nv = block->v1 - block->v0, at = block->v0 * VL;
    const real *weight = head_row(&call->score.score_weight, block);
    if (nv == 1) additive_tiles(1, n, call->D, a, at, weight, out + at);
    else if (nv == 2) additive_tiles(2, n, call->D, a, at, weight, out + at);
    else additive_tiles(AF_NV, n, call->D, a, at, weight, out + at);
    for (int j = 0; j < n; j++) {
        const uint64_t lanes = overflow_lanes(a, j) >> at;
        if (lanes & low_bits(nv * VL))
            additive_overflow(nv, call->D, key.at + j * key.ld, query + at, weight, lanes, out + j * AF_NR + at);
    }
}

/* t = 1 + e^2x, as far as tanh x is not 1 or -1 in all its bits. */
AF_INLINE v additive_term(v x)
{
    const v near = v_max(v_set1(-AF_TANH_RANGE), v_min(v_set1(AF_TANH_RANGE), x));
    return v_add(v_exp_twice_fast(near), v_set1(1));
}

/* Few queries, D in the lanes (decode.h): s[r][j]; query[r][D] is q + b. */
static __attribute__((noinline)) void additive_rows(const af_call *call, const query_block *block, int n,
                                                    const real *query, const elem *key, real *s, int64_t lds)
{
    const real *weight = head_row(&call->score.score_weight, block);
    const bool in_pairs = weights_in_range(weight, call->D);
    for (int j = 0; j < n; j++, key += call->operands.key.i)
        for (int r = 0; r < block->n; r++) {
            const real *row = query + r * call->D;
            v sum = v_zero();
            int64_t d = 0;
            for (; in_pairs && d + 2 * VL <= call->D; d += 2 * VL) {
                const v t0 = additive_term(v_add(v_load(row + d), e_load(key + d)));
                const v t1 = additive_term(v_add(v_load(row + d + VL), e_load(key + d + VL)));
                const v w0 = v_load(weight + d), w1 = v_load(weight + d + VL), both = v_reciprocal(v_mul(t0, t1));
                const v halves = v_mul(v_add(w0, w1), v_set1((real)-0.5));
                sum = v_add(sum, v_fma(v_fma(w0, t1, v_mul(w1, t0)), both, halves));
            }
            for (; d < call->D; d += VL) {
                const int here = call->D - d < VL ? (int)(call->D - d) : VL;
                const v t = additive_term(v_add(v_load_n(row + d, here), e_load_n(key + d, here)));
                const v w = v_load_n(weight + d, here);
                sum = v_add(sum, v_fma(w, v_reciprocal(t), v_mul(w, v_set1((real)-0.5))));
            }
            s[r * lds + j] = -2 * v_hsum(sum);
        }
}

#endif

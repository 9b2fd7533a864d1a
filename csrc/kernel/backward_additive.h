/* From dS of additive scores, s = sum_d w_d tanh(x_d) with x = q + b + k, back to queries, keys and weights:
 *
 *   r = 1 / (1 + e^2x)    tanh x = 1 - 2 r    tanh' x = 4 r (1 - r)
 *   dQ[i, d] = 4 w_d sum_j dS r (1 - r)    dK[j, d] = 4 w_d sum_i dS r (1 - r)    dw_d = 2 sum_ij dS (1/2 - r)
 *
 * and db is the sum of dQ over its rows. Queries are in the lanes, so that sums over keys stay in registers. Sums over
 * queries are kept as a vector for each key and element, until VL elements of a key are transposed and added up. Which
 * pairs take e^2x of the sum x is as in additive.h. Blocks of few rows, as in a decoder's step, have elements in the
 * lanes instead. */
#ifndef AF_BACKWARD_ADDITIVE_H
#define AF_BACKWARD_ADDITIVE_H

#include "kernel/derivative.h"

/* Element d of some keys and of a block of rows. */
typedef struct tanh_turn {
    int n;
    const real *key, *key_exp; /* of key j at j * key_ld and j * D */
    int64_t key_ld, D;
    const real *query, *query_exp; /* [NR] */
    lane_tile ds;
    const additive_terms *terms; /* whose keys are those of the turn */
    const uint64_t *seen;        /* [n]: the lanes that see a key, where some pairs overflow */
    real *slope, *tanh;          /* [NR]: sums over the keys of dS r (1 - r) and dS (1/2 - r) */
    real *sums;                  /* [n][VL][VL]: of dS r (1 - r) over the vectors of lanes */
} tanh_turn;

/* A piece of keys against a block of rows. */
typedef struct additive_piece {
    int n;
    const real *query;    /* [D][NR]: q + b */
    additive_terms terms; /* whose keys are those of the piece */
    lane_tile ds;
    real *dk; /* [n][D, padded] */
    const real *weight;
} additive_piece;

/* nv vectors of lanes from c0 on, and whether they are the first ones. What is hidden is left out where some pairs
 * overflow, as its elements may be NaN; nothing else changes, so that a hidden NaN changes no bit. */
AF_INLINE void take_turn(const int nv, const bool overflow, const tanh_turn *t, int c0, bool first)
{
    const v one = v_set1(1), half = v_set1((real)0.5);
    v e[AF_NV], slope[AF_NV], tanh[AF_NV];
    UNROLL(c, nv) {
        e[c] = v_load(t->query_exp + (c0 + c) * VL);
        slope[c] = tanh[c] = v_zero();
    }
    for (int j = 0; j < t->n; j++) {
        const v x = v_set1(t->key_exp[j * t->D]);
        real *sum = t->sums + j * VL * VL;
        v all = first ? v_zero() : v_load(sum);
        UNROLL(c, nv) {
            const int at = (c0 + c) * VL;
            const v change = v_load(t->ds.at + j * t->ds.ld + at);
            v r = v_reciprocal(v_fma(x, e[c], one));
            if (overflow) {
                const v term = additive_term(v_add(v_load(t->query + at), v_set1(t->key[j * t->key_ld])));
                r = v_select(vm_bits(overflow_lanes(t->terms, j) >> at), v_reciprocal(term), r);
            }
            v p = v_mul(change, v_mul(r, v_sub(one, r))), more = v_fma(change, v_sub(half, r), tanh[c]);
            if (overflow) {
                const vm seen = vm_bits(t->seen[j] >> at);
                p = v_select(seen, p, v_zero());
                more = v_select(seen, more, tanh[c]);
            }
            slope[c] = v_add(slope[c], p);
            tanh[c] = more;
            all = v_add(all, p);
        }
        v_store(sum, all);
    }
    UNROLL(c, nv) {
        v_store(t->slope + (c0 + c) * VL, slope[c]);
        v_store(t->tanh + (c0 + c) * VL, tanh[c]);
    }
}

static void take_overflow_turn(const tanh_turn *t, int c, bool first) { take_turn(1, true, t, c, first); }

/* Vectors v0 .. v1 of the lanes. */
static void take_turns(const tanh_turn *t, int v0, int v1)
{
    if (!t->seen && v1 - v0 == AF_NV) {
        take_turn(AF_NV, false, t, v0, true);
        return;
    }
    for (int c = v0; c < v1; c++) {
        if (t->seen) take_overflow_turn(t, c, c == v0);
        else take_turn(1, false, t, c, c == v0);
    }
}

/* dk[j][d .. d + VL) += 4 w * the sums over the lanes. */
static void add_lane_sums(int n, int64_t d, int64_t D, const real *weight, const real *sums, real *dk)
{
    const v w = v_mul(v_set1(4), D - d < VL ? v_load_n(weight + d, (int)(D - d)) : v_load(weight + d));
    for (int j = 0; j < n; j++, dk += padded(D)) {
        v x[VL];
        UNROLL(r, VL) x[r] = v_load(sums + (j * VL + r) * VL);
        v_transpose(x);
        UNROLL(r, VL - 1) x[0] = v_add(x[0], x[r + 1]);
        v_store(dk + d, v_fma(x[0], w, v_load(dk + d)));
    }
}

/* to[lane] += factor * sum[lane] of some vectors. */
static void add_scaled_lanes(int v0, int v1, real factor, const real *sum, real *to)
{
    for (int c = v0; c < v1; c++)
        v_store(to + c * VL, v_fma(v_load(sum + c * VL), v_set1(factor), v_load(to + c * VL)));
}

static bool any_overflow(const additive_terms *a, int n, const query_block *block)
{
    uint64_t any = *a->overflow & low_bits(block->n);
    for (int j = 0; j < n; j++) any |= a->key_overflow[j];
    return any != 0;
}

/* Row r against the keys of a piece: sums[0] and sums[1] are those of tanh_turn. */
static void few_row_derivatives(const additive_piece *piece, const backward_scratch *s, matrix key, int64_t D, int r,
                                real *const sums[2])
{
    const v one = v_set1(1), half = v_set1((real)0.5), four = v_set1(4);
    const real *row = s->few_query + r * D;
    for (int j = 0; j < piece->n; j++) {
        if (s->s[j * AF_NR + r] == -AF_INFINITY) continue;
        const v change = v_set1(piece->ds.at[j * piece->ds.ld + r]);
        for (int64_t d = 0; d < D; d += VL) {
            const int here = D - d < VL ? (int)(D - d) : VL;
            const v x = v_add(v_load_n(row + d, here), v_load_n(key.at + j * key.ld + d, here));
            const v t = v_reciprocal(additive_term(x)), p = v_mul(change, v_mul(t, v_sub(one, t)));
            v_store(sums[0] + d, v_add(v_load(sums[0] + d), p));
            v_store(sums[1] + d, v_fma(change, v_sub(half, t), v_load(sums[1] + d)));
            real *dk = piece->dk + j * padded(D) + d;
            v_store(dk, v_fma(v_mul(four, v_load_n(piece->weight + d, here)), p, v_load(dk)));
        }
    }
}

static void few_derivatives(const additive_piece *piece, const backward_scratch *s, const query_block *block,
                            matrix key, int64_t D, real *part, real *by_weight)
{
    real *const sums[2] = {s->few_sums, s->few_sums + padded(D)};
    for (int r = 0; r < block->n; r++) {
        memset(s->few_sums, 0, (size_t)(2 * padded(D)) * sizeof(real));
        few_row_derivatives(piece, s, key, D, r, sums);
        for (int64_t d = 0; d < D; d++) {
            part[d * AF_NR + r] += 4 * piece->weight[d] * sums[0][d];
            if (by_weight) by_weight[d * AF_NR + r] += 2 * sums[1][d];
        }
    }
}

/* Adds what a piece gives to the part of its block of rows, [D][NR] of dQ, further rows, [D][NR] of the weights, and to
 * dk. */
static void additive_derivatives(const af_backward *w, const backward_scratch *s, const query_block *block, matrix key,
                                 const additive_piece *piece, real *part)
{
    const int64_t D = w->call->D;
    const real *weight = piece->weight;
    real *by_weight = w->by_weight ? part + (D + AF_ROW_SUMS) * AF_NR : NULL;
    if (block->n <= FEW_ROWS) {
        few_derivatives(piece, s, block, key, D, part, by_weight);
        return;
    }
    const bool overflow = any_overflow(&piece->terms, piece->n, block);
    real slope[AF_NR], tanh[AF_NR];
    if (overflow) words_of_scores(block, piece->n, s->s, s->words);
    for (int from = 0; from < piece->n; from += TURN_KEYS) {
        additive_terms terms = piece->terms;
        terms.key_overflow += from;
        tanh_turn t = {.key_ld = key.ld, .D = D, .terms = &terms, .slope = slope, .tanh = tanh, .sums = s->lane_sums};
        t.n = piece->n - from < TURN_KEYS ? piece->n - from : TURN_KEYS;
        t.ds = (lane_tile){piece->ds.at + from * piece->ds.ld, piece->ds.ld};
        t.seen = overflow ? s->words + from : NULL;
        for (int64_t d = 0; d < D; d++) {
            const int64_t lane = d % VL;
            if (lane == 0 && D - d < VL) memset(s->lane_sums, 0, (size_t)(t.n * VL * VL) * sizeof(real));
            t.key = key.at + from * key.ld + d;
            t.key_exp = terms.key_exp + from * D + d;
            t.query = piece->query + d * AF_NR;
            t.query_exp = terms.query_exp + d * AF_NR;
            t.sums = s->lane_sums + lane * VL;
            take_turns(&t, block->v0, block->v1);
            add_scaled_lanes(block->v0, block->v1, 4 * weight[d], slope, part + d * AF_NR);
            if (by_weight) add_scaled_lanes(block->v0, block->v1, 2, tanh, by_weight + d * AF_NR);
            if (w->gradients->key.data && (lane == VL - 1 || d == D - 1))
                add_lane_sums(t.n, d - lane, D, weight, s->lane_sums, piece->dk + from * padded(D));
        }
    }
}

#endif

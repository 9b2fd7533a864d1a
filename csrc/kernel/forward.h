/* Attention of a block of query rows, queries in the lanes: O[i] = sum_j softmax_j(S[j, i]) V[j], S = K Q'.
 *
 *   pack Q once:  Qt[D][NR], scale folded in
 *   for each block of keys in the span:   S = K Qt    modifiers, masks    online softmax    O += V' P
 *   finish:  O / l transposed to the output's rows, lse
 *
 * Cost: 2 (D + Dv) NR flops a key; memory: the few tiles of block.h, all in cache. A hidden key gets P = 0, and 0 * V
 * is 0 unless V holds NaN or inf. So a block whose output is not finite although something was hidden from it is
 * computed again in the NaN-safe way: V then enters only the lanes that see the key. Where V is finite both ways give
 * the same bits. */
#ifndef AF_FORWARD_H
#define AF_FORWARD_H

#include "kernel/additive.h"
#include "kernel/finish.h"
#include "kernel/fused_softmax.h"
#include "kernel/mask.h"
#include "kernel/pack.h"
#include "kernel/prefetch.h"
#include "kernel/score.h"
#include "kernel/softmax.h"
#include "kernel/tile.h"
#include "kernel/topk.h"

static void pack_query(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s)
{
    if (call->score.additive) {
        pack_additive_query(call, block, s);
        return;
    }
    elem *rows[AF_NR] = {0};
    find_rows(&call->operands.query, &block->vis, rows);
    rows_to_lanes(block->n, block->nv, call->D, rows, (real)plan->query_scale, s->query);
}

static void find_next_edges(edges *e, const af_call *call, const af_plan *plan, const query_block *block, af_unit unit)
{
    const af_unit own = unit;
    if (!af_next_block(plan, call, &unit)) return;
    e->queries = unit.rows;
    af_visibility next; /* of which only the rows are wanted */
    next.b = unit.b;
    next.n = unit.rows;
    af_find_rows(&next, call, plan, unit);
    find_rows(&call->operands.query, &next, e->query_row);
    const bool same = own.b == unit.b && own.hg == unit.hg;
    const int64_t hk = af_key_head(call, plan, unit);
    af_interval seen = af_visible_keys(call, unit.b, 0, next.query[0]);
    if (same) seen.end = af_min(seen.end, block->vis.span.begin);
    e->keys = af_max(0, af_min(plan->key_block, seen.end - seen.begin));
    e->key = (const elem *)call->operands.key.data + af_offset(&call->operands.key, unit.b, hk, seen.begin);
    if (!same || !call->operands.value.data) return;
    e->values = e->keys;
    e->value = (const elem *)call->operands.value.data + af_offset(&call->operands.value, unit.b, hk, seen.begin);
}

static void find_edges(edges *e, const af_call *call, const af_plan *plan, const query_block *block, af_unit unit)
{
    const bool in_turn = !call->subset.query_order.data && !call->visible.center.data && !call->subset.global &&
                         !call->subset.key_position; /* the next unit sees keys nearby */
    const int64_t keys = af_max(0, block->vis.span.end - block->vis.span.begin);
    e->outputs = call->operands.value.data && plan->splits == 1 ? block->n : 0;
    if (e->outputs) find_rows(&call->results.output, &block->vis, e->output_row);
    e->far = !in_turn || unit.row + unit.rows == plan->rows ||
             (double)keys * (double)(call->D + call->Dv) * (double)sizeof(elem) > NEAR_BYTES;
    e->queries = e->keys = e->values = 0;
    if (in_turn) find_next_edges(e, call, plan, block, unit);
    const int64_t tiles = af_max(1, keys / AF_MR);
    e->rows_a_tile = (e->outputs + e->queries + e->keys + e->values + tiles - 1) / tiles;
}

/* O[d][lane] += P[j][lane] V[j][d] for the lanes that see key j, and no other. */
static void nan_safe_values(const query_block *block, int n, int64_t Dv, const real *value, int64_t ldv,
                            const uint64_t *words, const real *p, real *o)
{
    for (int64_t d = 0; d < Dv; d++)
        for (int c = block->v0; c < block->v1; c++) {
            v sum = v_zero();
            for (int j = 0; j < n; j++) {
                const v more = v_fma(v_set1(value[j * ldv + d]), v_load(p + j * AF_NR + c * VL), sum);
                sum = v_select(vm_bits(words[j] >> c * VL), more, sum);
            }
            v_store(o + d * AF_NR + c * VL, v_add(v_load(o + d * AF_NR + c * VL), sum));
        }
}

static bool finite_output(const query_block *block, int64_t Dv, const real *o)
{
    v poison = v_zero(); /* x - x is 0, or NaN where x is not finite */
    uint64_t bad = 0;
    for (int c = 0; c < block->nv; c++, poison = v_zero()) {
        for (int64_t d = 0; d < Dv; d++) {
            const v x = v_load(o + d * AF_NR + c * VL);
            poison = v_add(poison, v_sub(x, x));
        }
        bad |= vm_word(vm_ne(poison, v_zero())) << c * VL;
    }
    return !(bad & low_bits(block->n));
}

/* Prefetches of this block's values, needed after its scores, and of the next block's keys. */
static prefetch values_and_next_keys(const af_call *call, const af_plan *plan, const query_block *block, int64_t j0,
                                     int n, edges *e)
{
    const int64_t next = j0 + n;
    prefetch a = {.edge = e,
                  .value_stride = call->operands.value.i,
                  .key_stride = call->operands.key.i,
                  .D = call->D,
                  .Dv = call->Dv};
    a.apart = call->operands.key.i != call->D;
    if (!e->far) return a;
    if (call->operands.value.data) {
        a.value =
            (const elem *)call->operands.value.data + af_offset(&call->operands.value, block->vis.b, block->vis.hk, j0);
        a.values = n;
    }
    if (next < block->vis.span.end) {
        a.key =
            (const elem *)call->operands.key.data + af_offset(&call->operands.key, block->vis.b, block->vis.hk, next);
        a.keys = af_min(plan->key_block, block->vis.span.end - next);
    }
    return a;
}

/* Prefetches of the bias of this block of keys and of the mask of the next, unless all rows share one. */
static void prefetch_lanes(prefetch *a, const af_call *call, const af_plan *plan, const query_block *block, int64_t j0,
                           int n)
{
    const bool bias =
        call->score.bias.data && call->score.bias.j && block->bias_row[0] != block->bias_row[block->n - 1];
    const bool mask =
        call->visible.mask.data && call->visible.mask.j && !block->vis.mask && j0 + n < block->vis.span.end;
    if (!bias && !mask) return;
    a->lanes = block->n;
    a->lanes_a_tile = block->n / (n / AF_MR + 1) + 1;
    a->bias = bias ? block->bias_row : NULL;
    a->bias_begin = j0;
    a->bias_end = j0 + n;
    a->mask = mask ? block->mask_row : NULL;
    a->mask_begin = j0 + n;
    a->mask_end = af_min(block->vis.span.end, j0 + n + plan->key_block);
}

static const real *key_rows(const af_call *call, const query_block *block, const scratch *s, int64_t j0, int n,
                            int64_t *ldk)
{
    const elem *key =
        (const elem *)call->operands.key.data + af_offset(&call->operands.key, block->vis.b, block->vis.hk, j0);
    return real_rows(key, call->operands.key.i, n, call->D, s->key, ldk);
}

/* Scores of one block of keys after modifiers; the block is at least partly visible. */
static void score_block(const af_call *call, const query_block *block, const scratch *s, int64_t j0, int n,
                        const prefetch *next)
{
    int64_t ldk;
    const real *rows = key_rows(call, block, s, j0, n, &ldk);
    if (call->score.additive) additive_product(call, block, s, n, rows, ldk, s->s);
    else
        score_product(block->v1 - block->v0, n, call->D, rows, ldk, s->query + block->v0 * VL, s->s + block->v0 * VL,
                      next);
    modify_scores(call, block, j0, n, s->s);
}

/* The weights of one block of keys whose scores nothing modifies, see fused_softmax.h. */
static bool fused_softmax_block(const af_call *call, const query_block *block, const scratch *s, int64_t j0, int n,
                                int seen, bool nan_safe, const prefetch *next, real *factor)
{
    fused_softmax w;
    const int nv = block->v1 - block->v0;
    start_fused_softmax(&w, s, seen == SEES_SOME ? s->words : NULL, block->v0, factor);
#if AF_FUSED_SOFTMAX
    if (!nan_safe) {
        int64_t ldk;
        const real *rows = key_rows(call, block, s, j0, n, &ldk);
        fused_softmax_product(&w, nv, n, call->D, rows, ldk, s->query + block->v0 * VL, next);
        return end_fused_softmax(&w, nv);
    }
#endif
    const int few = fused_softmax_keys(n);
    score_block(call, block, s, j0, n, next);
    if (seen == SEES_SOME) hide_scores(block, n, s->words, s->s);
    if (nan_safe) words_of_scores(block, n, s->s, s->words);
    for (int j = 0; j < n; j += few) softmax_from_memory(&w, nv, j, n - j < few ? n - j : few);
    return end_fused_softmax(&w, nv);
}

/* The weights of one block of keys of which something is visible; returns whether a maximum moved, and by which
 * factors. */
static bool block_weights(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s,
                          int64_t j0, int n, int seen, bool nan_safe, const prefetch *next, real *factor)
{
    if (plan->base2) return fused_softmax_block(call, block, s, j0, n, seen, nan_safe, next, factor);
    const int at = block->v0 * VL;
    score_block(call, block, s, j0, n, next);
    if (seen == SEES_SOME && (nan_safe || call->results.topk)) hide_scores(block, n, s->words, s->s);
    if (nan_safe) words_of_scores(block, n, s->s, s->words);
    if (call->results.topk) update_topk(call, block, s, j0, n);
    const uint64_t *words = seen == SEES_SOME && !nan_safe && !call->results.topk ? s->words : NULL;
    return softmax_step(block->v1 - block->v0, n, s->s + at, words, block->v0, s->m + at, s->l + at, factor);
}

/* O += V' P for one block of keys. */
static void value_block(const af_call *call, const query_block *block, const scratch *s, int64_t j0, int n,
                        bool accumulate, bool nan_safe)
{
    const elem *value =
        (const elem *)call->operands.value.data + af_offset(&call->operands.value, block->vis.b, block->vis.hk, j0);
    int64_t ldv;
    const real *rows = real_rows(value, call->operands.value.i, n, call->Dv, s->value, &ldv);
    if (nan_safe) nan_safe_values(block, n, call->Dv, rows, ldv, s->words, s->s, s->o);
    else
        value_product(block->v1 - block->v0, accumulate, n, call->Dv, rows, ldv, s->s + block->v0 * VL,
                      s->o + block->v0 * VL);
}

static void run_keys(const af_call *call, const af_plan *plan, query_block *block, const scratch *s, edges *edge,
                     bool nan_safe)
{
    real factor[AF_NR];
    bool first = true, empty = true; /* no block done yet, nothing in O yet */
    reset_state(s);
    if (call->results.topk) reset_topk(call, s);
    for (int64_t j0 = block->vis.span.begin, n; j0 < block->vis.span.end; j0 += n) {
        n = take_keys(block, call, j0, plan->key_block);
        const int seen = block->v0 == block->v1 ? SEES_NOTHING : visible_words(call, block, j0, (int)n, s->words);
        if (seen == SEES_NOTHING) continue;
        prefetch next = values_and_next_keys(call, plan, block, j0, (int)n, edge);
        if (first && !nan_safe) pack_query(call, plan, block, s);
        prefetch_lanes(&next, call, plan, block, j0, (int)n);
        first = false;
        const bool moved = block_weights(call, plan, block, s, j0, (int)n, seen, nan_safe, &next, factor);
        if (!call->operands.value.data) continue;
        if (call->score.gaussian > 0) gaussian_tile(call, block, j0, (int)n, s->s);
        if (empty && (nan_safe || block->v1 - block->v0 < block->nv)) {
            zero_output(call, plan, s);
            empty = false;
        }
        if (moved && !empty) rescale(block->v1 - block->v0, call->Dv, factor, s->o + block->v0 * VL);
        value_block(call, block, s, j0, (int)n, !empty, nan_safe);
        empty = false;
    }
    if (empty && call->operands.value.data) zero_output(call, plan, s);
    block->v0 = 0;
    block->v1 = block->nv;
}

static void forward(const af_call *call, const af_plan *plan, af_unit unit, void *memory, void *partial)
{
    query_block block;
    scratch s;
    make_block(&block, call, plan, unit);
    carve(&s, call, plan, memory);
    block.vis.span = af_split(block.vis.span, unit.split, plan->split_keys);
    edges edge;
    find_edges(&edge, call, plan, &block, unit);
    run_keys(call, plan, &block, &s, &edge, false);
    if (call->operands.value.data && block.hides && !finite_output(&block, call->Dv, s.o))
        run_keys(call, plan, &block, &s, &edge, true);
    if (plan->splits > 1) save_partial(call, plan, &s, partial);
    else finish(call, plan, &block, &s);
}

#endif

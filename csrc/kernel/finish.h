/* From the running state (m, l, O) of a block to its results, and merging the states of several splits of the keys.
 *
 *   with a sink: m' = max(m, sink), l' = l exp(m - m') + exp(sink - m')
 *   output = O exp(m - m') / l'     lse = m' + log l'
 *
 * A row that saw no key has l = 0: its output is zero and its lse -inf. A call that accumulates treats the result over
 * other keys like a sink with a value. */
#ifndef AF_FINISH_H
#define AF_FINISH_H

#include "kernel/block.h"
#include "kernel/pack.h"
#include "kernel/recompute.h"
#include "kernel/softmax.h"
#include "kernel/topk.h"

/* The layout of a partial result: m[NR], l[NR], O, and the lists of topk.h. */
AF_INLINE real *partial_m(void *partial) { return partial; }
AF_INLINE real *partial_l(void *partial) { return (real *)partial + AF_NR; }
AF_INLINE real *partial_o(void *partial) { return (real *)partial + 2 * AF_NR; }

AF_INLINE real *partial_top(const af_call *call, const af_plan *plan, void *partial)
{
    return partial_o(partial) + output_size(call, plan);
}
AF_INLINE real *partial_top_key(const af_call *call, const af_plan *plan, void *partial)
{
    return partial_top(call, plan, partial) + call->results.topk * AF_NR;
}

/* Whether any row saw a key, by its sum of weights. If none did, the rest of a partial result is undefined. */
static bool saw_keys(const real *l)
{
    bool any = false;
    for (int c = 0; c < AF_NR; c++) any = any || l[c] != 0;
    return any;
}

static void save_partial(const af_call *call, const af_plan *plan, const scratch *s, void *partial)
{
    for (int c = 0; c < AF_NR; c++) {
        partial_m(partial)[c] = s->m[c];
        partial_l(partial)[c] = s->l[c];
    }
    if (!saw_keys(s->l)) return;
    for (int64_t i = 0; i < call->results.topk * AF_NR; i++) {
        partial_top(call, plan, partial)[i] = s->top[i];
        partial_top_key(call, plan, partial)[i] = s->top_key[i];
    }
    if (!call->operands.value.data) return;
    const int64_t size = output_size(call, plan);
    for (int64_t i = 0; i < size; i++) partial_o(partial)[i] = s->o[i];
}

/* Adds one logit to each lane: O is to be multiplied by `factor`, the value of the logit by `weight`. */
static void add_logits(bool base2, int nv, const real *logit, const scratch *s, real *factor, real *weight)
{
    for (int c = 0; c < nv; c++) {
        const v old = v_load(s->m + c * VL), x = v_load(logit + c * VL), m = v_max(x, old);
        const v shrink = exp_difference(base2, v_sub(old, m)), more = exp_difference(base2, v_sub(x, m));
        v_store(s->l + c * VL, v_fma(v_load(s->l + c * VL), shrink, more));
        v_store(s->m + c * VL, m);
        v_store(factor + c * VL, v_mul(v_load(factor + c * VL), shrink));
        if (weight) v_store(weight + c * VL, more);
    }
}

/* What the results of each row are made with. */
typedef struct row_factors {
    real factor[AF_NR], keep[AF_NR]; /* output = factor O + keep times what is there, where a call accumulates */
    real inverse[AF_NR], lse[AF_NR];
    uint64_t stay; /* as bits, the rows that this call adds nothing to: nothing is written for them */
} row_factors;

static real *lse_of(const af_call *call, const af_visibility *vis, int lane)
{
    return (real *)call->results.lse.data + af_offset(&call->results.lse, vis->b, vis->head[lane], vis->query[lane]);
}

static void add_sinks(const af_call *call, const query_block *block, const scratch *s, real *factor)
{
    real sink[AF_NR] = {0};
    for (int lane = 0; lane < block->n; lane++) sink[lane] = (real)call->score.sink[block->vis.head[lane]];
    add_logits(false, block->nv, sink, s, factor, NULL);
}

/* The result over other keys counts as one more key, whose score is its lse and whose value its output. Returns the
 * rows that saw no key in this call: their results stay unchanged. */
static uint64_t add_previous(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s,
                             real *factor, real *keep)
{
    real previous[AF_NR] = {0};
    uint64_t stay = 0;
    for (int lane = 0; lane < block->n; lane++) stay |= (uint64_t)(s->l[lane] == 0) << lane;
    for (int lane = 0; lane < block->n; lane++)
        previous[lane] = *lse_of(call, &block->vis, lane) * (plan->base2 ? AF_LOG2E : 1);
    add_logits(plan->base2, block->nv, previous, s, factor, keep);
    return stay;
}

/* What counts as keys besides those of the call. Returns the rows whose results stay. */
static __attribute__((noinline)) uint64_t add_more_logits(const af_call *call, const af_plan *plan,
                                                          const query_block *block, const scratch *s, row_factors *f)
{
    for (int c = 0; c < block->nv; c++) {
        v_store(f->factor + c * VL, v_set1(1));
        v_store(f->keep + c * VL, v_zero());
    }
    if (call->score.sink) add_sinks(call, block, s, f->factor);
    return call->subset.accumulate ? add_previous(call, plan, block, s, f->factor, f->keep) : 0;
}

/* Output row = factor[row] * O[row]; with `keep`, plus keep[row] times what it was. Rows that `stay` are skipped, and a
 * sum that is zero has no sign, as in pack.h. */
static void store_rows(const af_call *call, const query_block *block, const real *o, const real *factor,
                       const real *keep, uint64_t stay)
{
    const int64_t Dv = call->Dv;
    for (int i = 0; i < block->n; i++, o += Dv) {
        if (stay >> i & 1) continue;
        elem *to = find_row(&call->results.output, &block->vis, i);
        const v scale = v_set1(factor[i]);
        int64_t d = 0;
        for (; !keep && d + VL <= Dv; d += VL) e_store(to + d, v_fma(v_load(o + d), scale, v_zero()));
        for (; d < Dv; d += VL) {
            const int here = Dv - d < VL ? (int)(Dv - d) : VL;
            v x = v_fma(v_load_n(o + d, here), scale, v_zero());
            if (keep) x = v_fma(e_load_n(to + d, here), v_set1(keep[i]), x);
            e_store_n(to + d, x, here);
        }
    }
}

static __attribute__((noinline)) void store_lanes(const af_call *call, const query_block *block, const real *o,
                                                  const real *factor, const real *keep, uint64_t stay)
{
    elem *rows[AF_NR];
    find_rows(&call->results.output, &block->vis, rows);
    for (int lane = 0; stay && lane < block->n; lane++)
        if (stay >> lane & 1) rows[lane] = NULL;
    lanes_to_rows(block->n, block->nv, call->Dv, o, factor, keep, rows);
}

/* What each row has besides its output; of padding there is none. */
static __attribute__((noinline)) void store_row_results(const af_call *call, const query_block *block, const scratch *s,
                                                        row_factors *f)
{
    const af_visibility *vis = &block->vis;
    for (int lane = 0; lane < block->n; lane++) {
        if (af_query_is_padding(call, vis->b, vis->query[lane])) {
            f->factor[lane] = f->inverse[lane] = f->keep[lane] = 0;
            f->lse[lane] = -AF_INFINITY;
        }
        if (call->results.lse.data && !(f->stay >> lane & 1)) *lse_of(call, vis, lane) = f->lse[lane];
        if (!call->subset.row_max) continue;
        ((real *)call->subset.row_max)[row_number(call, vis, lane)] = s->m[lane];
        ((real *)call->subset.row_inverse)[row_number(call, vis, lane)] = f->inverse[lane];
    }
}

static void finish(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s)
{
    row_factors f;
    const bool more_logits = call->score.sink || call->subset.accumulate;
    f.stay = more_logits ? add_more_logits(call, plan, block, s, &f) : 0;
    for (int c = 0; c < block->nv; c++) {
        const v m = v_load(s->m + c * VL), l = v_load(s->l + c * VL);
        const vm seen = vm_ne(l, v_zero());
        const v one = v_select(seen, v_div(v_set1(1), l), v_zero());
        v_store(f.inverse + c * VL, one);
        v_store(f.factor + c * VL, more_logits ? v_mul(v_load(f.factor + c * VL), one) : one);
        if (more_logits) v_store(f.keep + c * VL, v_mul(v_load(f.keep + c * VL), one));
        if (!call->results.lse.data) continue;
        const v log2_sum = v_add(plan->base2 ? m : v_mul(m, v_set1(AF_LOG2E)), v_log2(l));
        const v natural = plan->base2 ? v_mul(log2_sum, v_set1(AF_LN2)) : v_fma(v_log2(l), v_set1(AF_LN2), m);
        v_store(f.lse + c * VL, v_select(seen, natural, v_set1(-AF_INFINITY)));
    }
    if (call->visible.q_length || call->results.lse.data || call->subset.row_max) store_row_results(call, block, s, &f);
    if (call->results.topk) finish_topk(call, block, s, f.inverse, plan->base2);
    if (!call->operands.value.data) return;
    const real *keep = call->subset.accumulate ? f.keep : NULL;
    if (plan->decode) store_rows(call, block, s->o, f.factor, keep, f.stay);
    else store_lanes(call, block, s->o, f.factor, keep, f.stay);
}

/* Adds the O of a partial result: O += weight * part. */
static void add_lanes(int nv, int64_t Dv, const real *part, const real *weight, real *o)
{
    for (int64_t d = 0; d < Dv; d++)
        for (int c = 0; c < nv; c++) {
            const int64_t at = d * AF_NR + c * VL;
            v_store(o + at, v_fma(v_load(part + at), v_load(weight + c * VL), v_load(o + at)));
        }
}

static void add_rows(int rows, int64_t Dv, const real *part, const real *weight, real *o)
{
    for (int i = 0; i < rows; i++, part += Dv, o += Dv)
        for (int64_t d = 0; d < Dv; d += VL) {
            const int here = Dv - d < VL ? (int)(Dv - d) : VL;
            v_store_n(o + d, v_fma(v_load_n(part + d, here), v_set1(weight[i]), v_load_n(o + d, here)), here);
        }
}

static void merge_block(const af_call *call, const af_plan *plan, af_unit unit, void *memory, const void *partials)
{
    query_block block;
    scratch s;
    make_block(&block, call, plan, unit);
    carve(&s, call, plan, memory);
    reset_state(&s);
    if (call->results.topk) reset_topk(call, &s);
    if (call->operands.value.data) zero_output(call, plan, &s);
    const char *partial = partials;
    for (int64_t i = 0; i < plan->splits; i++)
        for (int c = 0; c < AF_NR; c++) {
            const real m = partial_m((void *)(partial + i * plan->partial_bytes))[c];
            if (m > s.m[c]) s.m[c] = m;
        }
    for (int64_t i = 0; i < plan->splits; i++) {
        void *part = (void *)(partial + i * plan->partial_bytes);
        if (!saw_keys(partial_l(part))) continue;
        if (call->results.topk)
            join_topk(call, block.nv, &s, partial_top(call, plan, part), partial_top_key(call, plan, part));
        real weight[AF_NR];
        for (int c = 0; c < block.nv; c++) {
            const v w = exp_difference(plan->base2, v_sub(v_load(partial_m(part) + c * VL), v_load(s.m + c * VL)));
            v_store(s.l + c * VL, v_fma(v_load(partial_l(part) + c * VL), w, v_load(s.l + c * VL)));
            v_store(weight + c * VL, w);
        }
        if (!call->operands.value.data) continue;
        if (plan->decode) add_rows(block.n, call->Dv, partial_o(part), weight, s.o);
        else add_lanes(block.nv, call->Dv, partial_o(part), weight, s.o);
    }
    finish(call, plan, &block, &s);
}

/* The splits of each block of a unit. */
static void merge(const af_call *call, const af_plan *plan, af_unit unit, void *memory, const void *partials)
{
    const char *partial = partials;
    for (int g = 0; g < plan->unit_blocks; g++, partial += plan->block_partials) {
        const af_unit block = block_of_unit(plan, unit, g);
        if (block.rows) merge_block(call, plan, block, memory, partial);
    }
}

#endif

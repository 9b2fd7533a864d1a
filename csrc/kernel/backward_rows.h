/* The first pass of gradients: of each row, how its weights are recomputed, P = exp(S - max) * inverse, and
 *
 *   delta = sum_j P[j] dP[j] - grad_lse = <dO, O> - grad_lse
 *
 * Where the loss depends on the weights, or where lse is so large that its rounding is more than that of a softmax,
 * both come from another look at the keys. */
#ifndef AF_BACKWARD_ROWS_H
#define AF_BACKWARD_ROWS_H

#include "kernel/backward_block.h"

/* exp(S - lse) is off by |lse| eps / 2. */
#define AF_LARGE_LSE ((real)64)

static real dot_rows(const elem *a, const elem *b, int64_t n)
{
    v sum = v_zero();
    int64_t d = 0;
    for (; d + VL <= n; d += VL) sum = v_fma(e_load(a + d), e_load(b + d), sum);
    if (d < n) sum = v_fma(e_load_n(a + d, (int)(n - d)), e_load_n(b + d, (int)(n - d)), sum);
    return v_hsum(sum);
}

AF_INLINE real real_of_row(const af_tensor *t, const af_visibility *vis, int lane)
{
    return ((const real *)t->data)[af_offset(t, vis->b, vis->head[lane], vis->query[lane])];
}

/* Of one piece of keys: adds sum_j P dP to `sums`, P relative to the running maximum. */
static void add_products(const query_block *block, int n, const backward_scratch *s, real *sums)
{
    for (int c = block->v0; c < block->v1; c++) {
        v sum = v_zero();
        for (int j = 0; j < n; j++) {
            const v p = v_load(s->s + j * AF_NR + c * VL);
            const v more = v_mul(p, v_load(s->dp + j * AF_NR + c * VL));
            sum = v_add(sum, v_select(vm_ne(p, v_zero()), more, v_zero()));
        }
        v_store(sums + c * VL, v_add(v_load(sums + c * VL), sum));
    }
}

/* The softmax of a block of rows: maxima, sums of exp(S - max), and of exp(S - max) dP. */
static void softmax_rows(const af_backward *w, query_block *block, backward_scratch *s, real *m, real *l, real *sums)
{
    const af_call *call = w->call;
    const af_interval span = block->vis.span;
    elem *rows[AF_NR];
    for (int lane = 0; lane < AF_NR; lane++) {
        m[lane] = -AF_LARGEST;
        l[lane] = sums[lane] = 0;
    }
    find_seeing_rows(&call->operands.query, block, s->empty, rows);
    additive_terms terms = s->additive;
    uint64_t overflow = 0;
    terms.overflow = &overflow;
    pack_backward_query(w, block, rows, s->query, &terms);
    find_seeing_rows(&w->gradients->grad_output, block, s->empty, rows);
    rows_to_lanes(block->n, block->nv, call->Dv, rows, 1, s->grad);
    open_backward_keys(s, w, &block->vis);
    drop_rows drop;
    if (call->score.dropout > 0) find_drop_rows(call, block, &drop);
    key_piece piece;
    for (int64_t j = span.begin; j < span.end; j += piece.n) {
        real factor[AF_NR];
        piece = next_piece(w, block, s, span, j);
        if (piece.seen == SEES_NOTHING) continue;
        const int at = block->v0 * VL, nv = block->v1 - block->v0;
        const matrix key = rows_at(&s->keys, j, piece.n);
        if (takes_exps(w)) exp_keys(&terms, piece.n, call->D, key);
        backward_scores(call, block, s, key, s->query, &terms, piece);
        weight_gradient(w, block, &drop, s, rows_at(&s->values, j, piece.n), s->grad, piece);
        const softmax_state state = {m + at, l + at, factor};
        if (softmax_step(nv, piece.n, s->s + at, NULL, block->v0, state))
            for (int lane = 0; lane < nv * VL; lane++) sums[at + lane] *= factor[lane];
        add_products(block, piece.n, s, sums);
    }
}

/* The rows whose lse does not tell their weights; of `some`, all. */
static uint64_t find_rough_rows(const af_backward *w, const query_block *block, bool all)
{
    uint64_t rough = 0;
    for (int lane = 0; lane < block->n; lane++) {
        const real lse = real_of_row(&w->gradients->lse, &block->vis, lane);
        if (all || lse > AF_LARGE_LSE || -lse > AF_LARGE_LSE) rough |= (uint64_t)(lse != -AF_INFINITY) << lane;
    }
    return rough;
}

static void backward_rows(const af_backward *w, af_unit unit, void *memory)
{
    const af_call *call = w->call;
    const af_gradients *g = w->gradients;
    query_block block;
    backward_scratch s;
    elem *grad[AF_NR], *output[AF_NR] = {0};
    real m[AF_NR], l[AF_NR], sums[AF_NR];
    open_backward(&s, w, memory);
    make_block(&block, call, &w->plan, unit);
    find_seeing_rows(&g->grad_output, &block, s.empty, grad);
    find_rows(&g->output, &block.vis, output);
    const uint64_t rough = find_rough_rows(w, &block, g->grad_weights.data != NULL);
    if (rough) softmax_rows(w, &block, &s, m, l, sums);
    for (int lane = 0; lane < block.n; lane++) {
        const int64_t row = row_number(call, &block.vis, lane);
        const real lse = real_of_row(&g->lse, &block.vis, lane);
        real shift = lse == -AF_INFINITY ? 0 : lse, inverse = lse != -AF_INFINITY, delta = 0;
        if (rough >> lane & 1) {
            if (call->score.sink) l[lane] += (real)exp(call->score.sink[block.vis.head[lane]] - (double)m[lane]);
            shift = m[lane];
            inverse = l[lane] > 0 ? 1 / l[lane] : 0;
            delta = sums[lane] * inverse;
        } else if (lse != -AF_INFINITY) {
            delta = dot_rows(grad[lane], output[lane], call->Dv);
        }
        if (g->grad_lse.data) delta -= real_of_row(&g->grad_lse, &block.vis, lane);
        ((real *)call->subset.row_max)[row] = shift;
        ((real *)call->subset.row_inverse)[row] = inverse;
        ((real *)w->delta)[row] = delta;
    }
}

#endif

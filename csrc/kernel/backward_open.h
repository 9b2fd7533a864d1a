/* The first pass of gradients opens the blocks of a panel: their rows of Q and dO, in the lanes and by rows; how
 * weights are recomputed, P = exp(S - max) * inverse; and
 *
 *   delta = sum_j P[j] dP[j] - grad_lse = <dO, O> - grad_lse
 *
 * Where the loss depends on the weights, or where lse is so large that its rounding is more than that of a softmax,
 * delta and the softmax come from another look at the keys. */
#ifndef AF_BACKWARD_OPEN_H
#define AF_BACKWARD_OPEN_H

#include "kernel/backward_block.h"

static bool all_finite(matrix a, int64_t n, int64_t width)
{
    v poison = v_zero(); /* x - x is 0, or NaN where x is not finite */
    for (int64_t i = 0; i < n; i++) {
        const real *row = a.at + i * a.ld;
        int64_t d = 0;
        for (; d + VL <= width; d += VL) poison = v_add(poison, v_sub(v_load(row + d), v_load(row + d)));
        if (d == width) continue;
        const v rest = v_load_n(row + d, (int)(width - d));
        poison = v_add(poison, v_sub(rest, rest));
    }
    return vm_word(vm_ne(poison, v_zero())) == 0;
}

/* scale * rows of elements, one after the other, padded with zeros. */
static void copy_rows(int n, int64_t width, elem *const *rows, real scale, real *to)
{
    for (int i = 0; i < n; i++, to += padded(width))
        for (int64_t d = 0; d < width; d += VL) {
            const v x = width - d < VL ? e_load_n(rows[i] + d, (int)(width - d)) : e_load(rows[i] + d);
            v_store(to + d, v_mul(x, v_set1(scale)));
        }
}

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

/* The softmax of block g of a panel: maxima, sums of exp(S - max), and of exp(S - max) dP. */
static void softmax_rows(const af_backward *w, backward_scratch *s, int64_t g, real *m, real *l, real *sums)
{
    const af_call *call = w->call;
    backward_block *b = &s->panel.blocks[g];
    query_block *block = &b->block;
    const af_interval span = block->vis.span;
    const real *query = s->panel.query + g * call->D * AF_NR, *grad = s->panel.grad + g * call->Dv * AF_NR;
    const additive_terms terms = terms_of_block(call, s, g);
    for (int lane = 0; lane < AF_NR; lane++) {
        m[lane] = -AF_LARGEST;
        l[lane] = sums[lane] = 0;
    }
    open_backward_keys(s, w, &block->vis);
    key_piece piece;
    for (int64_t j = span.begin; j < span.end; j += piece.n) {
        real factor[AF_NR];
        piece = next_piece(w, block, s, span, j);
        if (piece.seen == SEES_NOTHING) continue;
        const int at = block->v0 * VL, nv = block->v1 - block->v0;
        const matrix key = rows_at(&s->keys, j, piece.n);
        if (takes_exps(w)) exp_keys(&terms, piece.n, call->D, key);
        backward_scores(call, block, s, key, query, &terms, piece);
        weight_gradient(w, block, &b->drop, s, rows_at(&s->values, j, piece.n), grad, piece);
        const softmax_state state = {m + at, l + at, factor};
        if (softmax_step(nv, piece.n, s->s + at, NULL, block->v0, state))
            for (int lane = 0; lane < nv * VL; lane++) sums[at + lane] *= factor[lane];
        add_products(block, piece.n, s, sums);
    }
}

/* Adds the softmax of a row over some keys to that over others. */
static void merge_softmax(real *row, real m, real l, real sum)
{
    if (l == 0) return;
    const real most = row[AF_ROW_MAX] > m ? row[AF_ROW_MAX] : m;
    const real old = (real)exp((double)row[AF_ROW_MAX] - (double)most), own = (real)exp((double)m - (double)most);
    row[AF_ROW_MAX] = most;
    row[AF_ROW_EXP] = old * row[AF_ROW_EXP] + own * l;
    row[AF_ROW_PRODUCT] = old * row[AF_ROW_PRODUCT] + own * sum;
}

/* The numbers of a row; they are `own` unless several calls collect them. */
static real *row_of_softmax(const af_call *call, const af_visibility *vis, int lane, real *own)
{
    const af_tensor *t = &call->subset.collected;
    if (t->data) return (real *)t->data + af_offset(t, vis->b, vis->head[lane], vis->query[lane]);
    own[AF_ROW_MAX] = -AF_INFINITY;
    own[AF_ROW_EXP] = own[AF_ROW_PRODUCT] = 0;
    return own;
}

/* Finds the numbers of rough rows of block g of a panel, or those that the keys of this call add to them. */
static void find_softmax(const af_backward *w, backward_scratch *s, int64_t g, uint64_t rough, real *rows[AF_NR])
{
    const af_call *call = w->call;
    const af_visibility *vis = &s->panel.blocks[g].block.vis;
    real m[AF_NR], l[AF_NR], sums[AF_NR];
    softmax_rows(w, s, g, m, l, sums);
    for (int lane = 0; lane < vis->n; lane++) {
        if (!(rough >> lane & 1)) continue;
        merge_softmax(rows[lane], m[lane], l[lane], sums[lane]);
        if (call->score.sink) merge_softmax(rows[lane], (real)call->score.sink[vis->head[lane]], 1, 0);
    }
}

/* Finds delta of the rows of a block, <dO, O>, and returns the rows that take another look at the keys: those whose lse
 * does not tell their weights, and those whose delta is not finite, as NaN in dO makes it even where a mask hides all
 * keys and there is a sink; of `all`, all. */
static uint64_t find_rough_rows(const af_backward *w, backward_block *b, elem *const grad[AF_NR],
                                elem *const output[AF_NR], bool all)
{
    uint64_t rough = 0;
    for (int lane = 0; lane < AF_NR; lane++) b->delta[lane] = 0;
    for (int lane = 0; lane < b->block.n; lane++) {
        const real lse = real_of_row(&w->gradients->lse, &b->block.vis, lane);
        if (lse == -AF_INFINITY) continue;
        const real delta = all ? 0 : dot_rows(grad[lane], output[lane], w->call->Dv);
        b->delta[lane] = delta;
        const bool large = lse > (real)AF_LARGE_LSE || -lse > (real)AF_LARGE_LSE;
        if (all || large || delta - delta != 0) rough |= (uint64_t)1 << lane;
    }
    return rough;
}

/* The rows of block g of a panel. */
static void pack_block(const af_backward *w, const backward_scratch *s, int64_t g, elem *const query[AF_NR],
                       elem *const grad[AF_NR])
{
    const af_call *call = w->call;
    backward_block *b = &s->panel.blocks[g];
    const query_block *block = &b->block;
    const int64_t row = g * w->plan.block_rows, D = padded(call->D), Dv = padded(call->Dv);
    const real scale = (real)w->plan.query_scale;
    real *lanes = s->panel.query + g * call->D * AF_NR;
    const additive_terms terms = terms_of_block(call, s, g);
    if (call->score.additive) pack_additive_query(call, block, query, lanes, &terms);
    else rows_to_lanes(block->n, block->nv, call->D, query, scale, lanes);
    rows_to_lanes(block->n, block->nv, call->Dv, grad, 1, s->panel.grad + g * call->Dv * AF_NR);
    copy_rows(block->n, call->D, query, scale, s->panel.query_row + row * D);
    copy_rows(block->n, call->Dv, grad, 1, s->panel.grad_row + row * Dv);
    b->finite = all_finite((matrix){s->panel.query_row + row * D, D}, block->n, D) &&
                all_finite((matrix){s->panel.grad_row + row * Dv, Dv}, block->n, Dv);
}

/* The block of a panel that is the unit. */
static void backward_open(const af_backward *w, af_unit unit, void *panel, void *memory)
{
    const af_call *call = w->call;
    const af_gradients *g = w->gradients;
    const int64_t index = unit.row % w->panel_rows / w->plan.block_rows;
    backward_scratch s;
    elem *query[AF_NR], *seeing_grad[AF_NR], *grad[AF_NR] = {0}, *output[AF_NR] = {0};
    real own[AF_NR][AF_COLLECTED], *rows[AF_NR];
    open_backward(&s, w, panel, memory);
    backward_block *b = &s.panel.blocks[index];
    query_block *block = &b->block;
    make_block(block, call, &w->plan, unit);
    find_seeing_rows(&call->operands.query, block, s.empty, query);
    find_seeing_rows(&g->grad_output, block, s.empty, seeing_grad);
    find_rows(&g->grad_output, &block->vis, grad);
    find_rows(&g->output, &block->vis, output);
    if (call->score.dropout > 0) find_drop_rows(call, block, &b->drop);
    if (block->vis.span.begin < block->vis.span.end) pack_block(w, &s, index, query, seeing_grad);
    const uint64_t rough = find_rough_rows(w, b, grad, output, g->grad_weights.data != NULL);
    for (int lane = 0; lane < block->n; lane++) rows[lane] = row_of_softmax(call, &block->vis, lane, own[lane]);
    if (rough && (call->subset.collects || !call->subset.collected.data)) find_softmax(w, &s, index, rough, rows);
    if (call->subset.collects) return;
    for (int lane = 0; lane < AF_NR; lane++) b->softmax.shift[lane] = b->softmax.factor[lane] = 0;
    for (int lane = 0; lane < block->n; lane++) {
        const real lse = real_of_row(&g->lse, &block->vis, lane);
        real shift = lse == -AF_INFINITY ? 0 : lse, inverse = lse != -AF_INFINITY, delta = b->delta[lane];
        if (rough >> lane & 1) {
            const real l = rows[lane][AF_ROW_EXP];
            shift = l == 0 ? 0 : rows[lane][AF_ROW_MAX];
            inverse = l == 0 ? 0 : 1 / l;
            delta = rows[lane][AF_ROW_PRODUCT] * inverse;
        }
        if (g->grad_lse.data) delta -= real_of_row(&g->grad_lse, &block->vis, lane);
        b->softmax.shift[lane] = shift;
        b->softmax.factor[lane] = inverse;
        b->delta[lane] = delta;
        if (w->delta) ((real *)w->delta)[row_number(call, &block->vis, lane)] = delta;
    }
}

#endif

/* Gradients of one panel of query rows against one range of keys. With scores S = K Q' after modifiers, keys by rows:
 *
 *   for each block of keys, for each group of blocks of rows that see any of them:
 *       for each block, piece by piece of keys:
 *           S = K Qt     P = exp(S - max) / l     dP = V dOt     dS = P (dP - delta)     dQt += K' dS
 *       dV += P dO     dK += dS Q
 *
 * dQt is this range's part of dQ. P and dS of hidden pairs are 0, so what is hidden gets exactly 0; but 0 * x is 0 only
 * where x is finite. Where K, Q or dO hold NaN or inf, lanes are selected instead; where all is finite, both ways give
 * the same bits. */
#ifndef AF_BACKWARD_H
#define AF_BACKWARD_H

#include "kernel/backward_additive.h"
#include "kernel/backward_ahead.h"
#include "kernel/backward_keys.h"
#include "kernel/backward_open.h"
#include "plan/visible_queries.h"

/* Keys of a unit: a block of them, as rows of reals. */
typedef struct key_run {
    af_interval keys;
    matrix key, value;
    bool finite;
} key_run;

/* P from S, and dS from dP where gradients of scores are wanted. */
static void weights_and_gradients(const backward_block *b, bool scores, int n, const backward_scratch *s, lane_tile p,
                                  lane_tile ds)
{
    for (int c = b->block.v0; c < b->block.v1; c++) {
        const v shift = v_load(b->softmax.shift + c * VL), factor = v_load(b->softmax.factor + c * VL);
        const v delta = v_load(b->delta + c * VL), hidden = v_set1(-AF_INFINITY);
        for (int j = 0; j < n; j++) {
            const v score = v_load(s->s + j * AF_NR + c * VL);
            const v weight = recompute_weight(false, score, shift, factor);
            v_store(p.at + j * p.ld + c * VL, weight);
            if (!scores) continue;
            const v change = v_mul(weight, v_sub(v_load(s->dp + j * AF_NR + c * VL), delta));
            const v seen = v_select(vm_ne(score, hidden), change, v_zero());
            v_store(ds.at + j * ds.ld + c * VL, v_select(vm_ne(factor, v_zero()), seen, v_zero()));
        }
    }
}

static void clear_lanes(lane_tile t, int64_t n, int first, int last)
{
    for (int64_t j = 0; j < n; j++)
        for (int c = first; c < last; c++) v_store(t.at + j * t.ld + c * VL, v_zero());
}

/* dQt[d][lane] += K[j][d] dS[j][lane] for the lanes that see key j, and no other. */
static void nan_safe_query(const query_block *block, int n, int64_t D, matrix key, const uint64_t *words, lane_tile ds,
                           real *dq)
{
    for (int64_t d = 0; d < D; d++)
        for (int c = block->v0; c < block->v1; c++) {
            v sum = v_zero();
            for (int j = 0; j < n; j++) {
                const v more = v_fma(v_set1(key.at[j * key.ld + d]), v_load(ds.at + j * ds.ld + c * VL), sum);
                sum = v_select(vm_bits(words[j] >> c * VL), more, sum);
            }
            real *to = dq + d * AF_NR + c * VL;
            v_store(to, v_add(v_load(to), sum));
        }
}

/* A piece of keys against block g, which is number `slot` of its group. */
static void backward_piece(const af_backward *w, const backward_scratch *s, const key_run *run, key_piece piece,
                           int64_t g, int slot, real *part)
{
    const af_call *call = w->call;
    const backward_block *b = &s->blocks[g];
    const query_block *block = &b->block;
    const int64_t before = piece.j0 - run->keys.begin;
    const int at = block->v0 * VL, nv = block->v1 - block->v0;
    const lane_tile p = {s->p + before * GROUP_ROWS + slot * AF_NR, GROUP_ROWS};
    const lane_tile ds = {s->ds + before * GROUP_ROWS + slot * AF_NR, GROUP_ROWS};
    const matrix key = {run->key.at + before * run->key.ld, run->key.ld};
    const matrix value = {run->value.at + before * run->value.ld, run->value.ld};
    clear_lanes(p, piece.n, 0, block->v0);
    clear_lanes(p, piece.n, block->v1, block->nv);
    clear_lanes(ds, piece.n, 0, block->v0);
    clear_lanes(ds, piece.n, block->v1, block->nv);
    const real *query = s->panel.query + g * call->D * AF_NR;
    additive_terms terms = terms_of_block(call, s, g);
    if (call->score.additive) {
        terms.key_exp += before * call->D;
        terms.key_overflow += before;
    }
    backward_scores(call, block, s, key, query, &terms, piece);
    if (w->scores) weight_gradient(w, block, &b->drop, s, value, s->panel.grad + g * call->Dv * AF_NR, piece);
    weights_and_gradients(b, w->scores, piece.n, s, p, ds);
    real *sums = part + call->D * AF_NR;
    if (w->gradients->center.data && call->score.gaussian > 0)
        add_center_sums(call, block, s, piece, p, sums + AF_CENTER_SUM * AF_NR);
    if (call->score.dropout > 0) drop_tile(call, block, &b->drop, piece.j0, piece.n, p.at, p.ld);
    if (call->score.gaussian > 0) gaussian_tile(call, block, piece.j0, piece.n, p.at, p.ld);
    if (!b->finite || !run->finite) words_of_scores(block, piece.n, s->s, s->words);
    if (!b->finite) memcpy(s->seen + slot * w->plan.key_block + before, s->words, (size_t)piece.n * sizeof *s->seen);
    if (!w->scores) return;
    score_derivatives(w, block, s, piece, ds, sums);
    if (call->score.additive) {
        const additive_piece own = {
            piece.n, query, terms, ds, s->dk + before * padded(call->D), head_row(&call->score.score_weight, block)};
        additive_derivatives(w, s, block, key, &own, part);
        return;
    }
    if (!w->gradients->query.data) return;
    if (!run->finite) nan_safe_query(block, piece.n, call->D, key, s->words, ds, part);
    else value_product(nv, true, piece.n, call->D, key, (matrix){ds.at + at, ds.ld}, part + at);
}

/* Keys of a run that a block does not see. */
static void clear_keys(const af_backward *w, const backward_scratch *s, const query_block *block, int64_t before,
                       int64_t n, int slot)
{
    const int64_t at = before * GROUP_ROWS + slot * AF_NR;
    clear_lanes((lane_tile){s->p + at, GROUP_ROWS}, n, 0, block->nv);
    clear_lanes((lane_tile){s->ds + at, GROUP_ROWS}, n, 0, block->nv);
    memset(s->seen + slot * w->plan.key_block + before, 0, (size_t)n * sizeof *s->seen);
}

/* P, dS and dQt of a block of rows against a block of keys; returns those that it sees. */
static af_interval backward_block_keys(const af_backward *w, const backward_scratch *s, const key_run *run, int64_t g,
                                       int slot, char *part)
{
    backward_block *b = &s->blocks[g];
    real *sums = (real *)part + g * w->block_part;
    uint8_t *touched = (uint8_t *)part + w->part_bytes - w->panel_blocks + g;
    const af_interval span = af_intersect(b->block.vis.span, run->keys);
    af_interval seen = {0, 0};
    int64_t cleared = run->keys.begin; /* keys before this one have their P and dS */
    key_piece piece;
    for (int64_t j = span.begin; j < span.end; j += piece.n) {
        piece = next_piece(w, &b->block, s, span, j);
        if (piece.seen == SEES_NOTHING) continue;
        if (!*touched) memset(sums, 0, (size_t)w->block_part * sizeof *sums);
        *touched = true;
        seen = af_hull(seen, (af_interval){j, j + piece.n});
        clear_keys(w, s, &b->block, cleared - run->keys.begin, j - cleared, slot);
        backward_piece(w, s, run, piece, g, slot, sums);
        cleared = j + piece.n;
    }
    if (seen.begin < seen.end) clear_keys(w, s, &b->block, cleared - run->keys.begin, run->keys.end - cleared, slot);
    return seen;
}

/* The blocks of a panel that can see some keys, as far as positions and lengths decide it. */
static af_interval seeing_blocks(const af_backward *w, af_unit unit, af_interval keys)
{
    const int64_t group = w->plan.group, rows = w->plan.block_rows, heads = w->call->visible.center.h ? group : 1;
    af_interval queries = {0, 0};
    for (int64_t g = 0; g < heads; g++)
        queries = af_hull(queries, af_visible_queries(w->call, unit.b, unit.hg * group + g, keys));
    const af_interval panel = {unit.row, unit.row + unit.rows};
    const af_interval seen = af_intersect((af_interval){queries.begin * group, queries.end * group}, panel);
    if (seen.begin == seen.end) return seen;
    return (af_interval){(seen.begin - unit.row) / rows, (seen.end - 1 - unit.row) / rows + 1};
}

/* A block of keys against the blocks of rows that see any of them. */
static void backward_keys(const af_backward *w, const backward_scratch *s, const key_run *run, af_interval blocks,
                          char *part)
{
    const int64_t n = run->keys.end - run->keys.begin, D = w->call->D, Dv = w->call->Dv;
    memset(s->dk, 0, (size_t)(n * padded(D)) * sizeof(real));
    memset(s->dv, 0, (size_t)(n * padded(Dv)) * sizeof(real));
    bool any = false;
    row_group group = {.count = 0};
    for (int64_t i = blocks.begin; i < blocks.end; i++) {
        if (group.count == 0) group = (row_group){.first = i};
        af_interval seen = backward_block_keys(w, s, run, i, group.count, part);
        if (seen.begin < seen.end) {
            any = true;
            group.count++;
            seen = (af_interval){seen.begin - run->keys.begin, seen.end - run->keys.begin};
            group.keys = af_hull(group.keys, seen);
            if (group.count < GROUP_BLOCKS) continue;
        }
        backward_group(w, s, group, run->keys.begin);
        group.count = 0;
    }
    backward_group(w, s, group, run->keys.begin);
    if (!any) return;
    const af_visibility *vis = &s->blocks[blocks.begin].block.vis;
    add_key_sums(&w->gradients->key, vis, run->keys, D, s->dk);
    add_key_sums(&w->gradients->value, vis, run->keys, Dv, s->dv);
}

static void backward(const af_backward *w, af_unit unit, af_unit next, void *panel, void *part, void *memory)
{
    const af_call *call = w->call;
    /* Beyond its real keys a batch row that is a residue class may have no memory. */
    const af_interval real = {0, af_real_keys(call, unit.b).end};
    const af_interval range = af_split(real, unit.split, w->range_keys);
    backward_scratch s;
    memset((char *)part + w->part_bytes - w->panel_blocks, 0, (size_t)w->panel_blocks);
    const af_interval blocks = seeing_blocks(w, unit, range);
    if (blocks.begin == blocks.end) return;
    open_backward(&s, w, panel, memory);
    memcpy(s.blocks + blocks.begin, s.panel.blocks + blocks.begin,
           (size_t)(blocks.end - blocks.begin) * sizeof *s.blocks);
    open_backward_keys(&s, w, &s.blocks[blocks.begin].block.vis);
    edges edge = {0};
    if (w->ranges == 1) s.ahead = (prefetch){.edge = &edge, .D = call->D, .Dv = call->Dv};
    key_run run;
    for (int64_t j = range.begin; j < range.end; j = run.keys.end) {
        run.keys = (af_interval){j, af_min(range.end, j + w->plan.key_block)};
        const int64_t n = run.keys.end - j;
        const af_interval seeing = seeing_blocks(w, unit, run.keys);
        if (seeing.begin == seeing.end) continue;
        if (s.ahead.edge) prefetch_with_keys(w, &s, unit, next, run.keys, seeing, run.keys.end == range.end);
        run.key = rows_at(&s.keys, j, n);
        run.value = rows_at(&s.values, j, n);
        run.finite = all_finite(run.key, n, call->D);
        if (takes_exps(w)) exp_keys(&s.additive, (int)n, call->D, run.key);
        backward_keys(w, &s, &run, seeing, part);
    }
}

#endif

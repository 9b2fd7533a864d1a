/* Gradients of a block of keys, dV += P dO and dK += dS Q, whose P and dS wait in the second-level cache. */
#ifndef AF_BACKWARD_KEYS_H
#define AF_BACKWARD_KEYS_H

#include "kernel/backward_block.h"

/* Successive blocks of a panel that see some of a block of keys, and which of these keys. */
typedef struct row_group {
    int64_t first;
    int count;
    af_interval keys;
} row_group;

/* Adds the sums of a block of keys to their gradient. */
static void add_key_sums(const af_tensor *t, const af_visibility *vis, af_interval keys, int64_t width,
                         const real *sums)
{
    if (!t->data) return;
    for (int64_t j = keys.begin; j < keys.end; j++, sums += padded(width)) {
        real *to = (real *)t->data + af_offset(t, vis->b, vis->hk, j);
        int64_t d = 0;
        for (; d + VL <= width; d += VL) v_store(to + d, v_add(v_load(to + d), v_load(sums + d)));
        const int rest = (int)(width - d);
        if (rest) v_store_n(to + d, v_add(v_load_n(to + d, rest), v_load(sums + d)), rest);
    }
}

/* C[n][width] += A[n][rows] B[rows][width], width whole vectors. */
static void key_product(int64_t n, int64_t rows, int64_t width, const real *a, const real *b, real *c)
{
    const matrix from = {a, GROUP_ROWS};
    for (int64_t d = 0; d < width;) {
        const int64_t left = (width - d) / VL;
        const matrix lanes = {b + d, width};
        const tile_result to = {c + d, width};
        const int nv = left == 4 ? 2 : (int)af_min(left, AF_NV);
        if (nv == 1) product((tile_kind){AF_MR, 1, true, true}, n, rows, from, lanes, to, NULL);
        else if (nv == 2) product((tile_kind){AF_MR, 2, true, true}, n, rows, from, lanes, to, NULL);
        else product((tile_kind){AF_MR, AF_NV, true, true}, n, rows, from, lanes, to, NULL);
        d += nv * VL;
    }
}

/* The same where rows of B hold NaN or inf: of the pairs that are seen only. */
static void nan_safe_keys(const af_backward *w, const backward_scratch *s, row_group group, int64_t width,
                          const real *a, const real *b, real *c)
{
    for (int64_t j = group.keys.begin; j < group.keys.end; j++)
        for (int64_t d = 0; d < width; d += VL) {
            v sum = v_zero();
            for (int slot = 0; slot < group.count; slot++) {
                const backward_block *block = &s->blocks[group.first + slot];
                const uint64_t seen = block->finite ? ~(uint64_t)0 : s->seen[slot * w->plan.key_block + j];
                for (int lane = 0; lane < block->block.n; lane++) {
                    const int64_t row = slot * AF_NR + lane;
                    if (!(seen >> lane & 1)) continue;
                    sum = v_fma(v_set1(a[j * GROUP_ROWS + row]), v_load(b + row * width + d), sum);
                }
            }
            real *to = c + j * width + d;
            v_store(to, v_add(v_load(to), sum));
        }
}

/* The rows of a group, in whole vectors, that see any of some keys, as far as positions and lengths decide it. Shortens
 * the keys to where that changes, as af_next_piece does. */
static af_interval seeing_rows(const backward_scratch *s, row_group group, af_interval *keys)
{
    af_interval rows = {0, 0};
    for (int slot = 0; slot < group.count; slot++) {
        const af_visibility *vis = &s->blocks[group.first + slot].block.vis;
        for (int c = 0; c < vis->vectors; c++) {
            const af_interval seen = vis->vector_span[c];
            if (seen.begin >= keys->begin + AF_LEAST_KEYS) keys->end = af_min(keys->end, seen.begin);
            if (seen.end >= keys->begin + AF_LEAST_KEYS) keys->end = af_min(keys->end, seen.end);
        }
    }
    for (int slot = 0; slot < group.count; slot++) {
        const af_visibility *vis = &s->blocks[group.first + slot].block.vis;
        for (int c = 0; c < vis->vectors; c++) {
            const af_interval seen = af_intersect(vis->vector_span[c], *keys);
            const int64_t at = slot * AF_NR + c * VL;
            if (seen.begin < seen.end) rows = af_hull(rows, (af_interval){at, af_min(at + VL, slot * AF_NR + vis->n)});
        }
    }
    return rows;
}

/* dV += P dO and dK += dS Q of a group. `before` is the first key of the block, from which those of the group are
 * counted. */
static void backward_group(const af_backward *w, const backward_scratch *s, row_group group, int64_t before)
{
    if (group.count == 0) return;
    const bool of_value = w->gradients->value.data, of_key = w->gradients->key.data && !w->call->score.additive;
    const int64_t D = padded(w->call->D), Dv = padded(w->call->Dv), first = group.first * w->plan.block_rows;
    const real *query = s->panel.query_row + first * D, *grad = s->panel.grad_row + first * Dv;
    bool finite = true;
    for (int slot = 0; slot < group.count; slot++) finite = finite && s->blocks[group.first + slot].finite;
    if (!finite) {
        if (of_value) nan_safe_keys(w, s, group, Dv, s->p, grad, s->dv);
        if (of_key) nan_safe_keys(w, s, group, D, s->ds, query, s->dk);
        return;
    }
    af_interval keys = {before + group.keys.begin, before + group.keys.end};
    for (; keys.begin < before + group.keys.end; keys = (af_interval){keys.end, before + group.keys.end}) {
        const af_interval rows = seeing_rows(s, group, &keys);
        const int64_t j = keys.begin - before, n = keys.end - keys.begin, at = j * GROUP_ROWS + rows.begin;
        if (rows.begin == rows.end) continue;
        if (of_value) key_product(n, rows.end - rows.begin, Dv, s->p + at, grad + rows.begin * Dv, s->dv + j * Dv);
        if (of_key) key_product(n, rows.end - rows.begin, D, s->ds + at, query + rows.begin * D, s->dk + j * D);
    }
}

#endif

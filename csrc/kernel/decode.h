/* Attention of a few query rows (decoding): D is in the lanes, so that keys and values are read once for all rows at
 * the speed of memory, and no lane is empty. The products are in decode_products.h and decode_interleaved.h.
 *
 * Memory is fastest when it is read in long runs, so a block has many keys: first all keys, then all values. Rows are
 * the queries of all heads that share the key/value head. The resulting m and l are in query lanes as in forward.h, O
 * is stored by rows. */
#ifndef AF_DECODE_H
#define AF_DECODE_H

#include "kernel/additive.h"
#include "kernel/decode_interleaved.h"
#include "kernel/decode_pages.h"
#include "kernel/dropout.h"
#include "kernel/finish.h"
#include "kernel/mask.h"
#include "kernel/score.h"
#include "kernel/softmax.h"

static void decode_query(const af_call *call, const af_plan *plan, const query_block *block, real *query)
{
    const v scale = v_set1((real)plan->query_scale);
    elem *rows[AF_NR];
    const real *bias = call->score.additive ? head_row(&call->score.score_bias, block) : NULL;
    find_rows(&call->operands.query, &block->vis, rows);
    for (int r = 0; r < block->n; r++, query += call->D) {
        const elem *row = rows[r];
        int64_t d = 0;
        for (; d + VL <= call->D; d += VL) v_store(query + d, v_mul(e_load(row + d), scale));
        const int rest = (int)(call->D - d);
        if (rest) v_store_n(query + d, v_mul(e_load_n(row + d, rest), scale), rest);
        for (d = 0; bias && d < call->D; d++) query[d] += bias[d];
    }
}

/* Modifiers and masks on one row of scores, s[0 .. n), n <= 64. Returns the keys whose score is not -inf. */
static uint64_t decode_modify(const af_call *call, const query_block *block, int r, int64_t j0, int n, real *s)
{
    const bool all_pairs = call->results.stage <= AF_CAPPED;
    const af_interval seen = all_pairs ? (af_interval){0, call->Lk} : block->vis.visible[r];
    uint64_t word = low_bits(seen.end - j0) & ~low_bits(seen.begin - j0) & low_bits(n), left = 0;
    if ((call->visible.mask.data || af_has_pattern(call)) && word && !all_pairs)
        word &= row_word(call, block, r, j0, n);
    const real *bias = call->score.bias.data ? block->bias_row[r] : NULL;
    const real distance = (real)(af_position(call, block->vis.b, block->vis.query[r]) - j0);
    real lane[VL];
    for (int i = 0; i < VL; i++) lane[i] = (real)i;
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        v x = v_load_n(s + j, here);
        if (call->score.softcap != 0) x = softcap_value(x, (real)call->score.softcap);
        if (call->score.alibi && !all_pairs)
            x = alibi_value(x, v_set1(lane_slope(call, block, r)), v_sub(v_set1(distance - (real)j), v_load(lane)));
        if (bias && !all_pairs) x = bias_value(x, call->score.bias.j ? v_load_n(bias + j0 + j, here) : v_set1(*bias));
        x = v_select(vm_bits(word >> j), x, v_set1(-AF_INFINITY));
        left |= (vm_word(vm_ne(x, v_set1(-AF_INFINITY))) & low_bits(here)) << j;
        v_store_n(s + j, x, here);
    }
    return left;
}

/* One online softmax step of one row; see softmax.h. Memory is idle in the meantime, so the next lines are
 * prefetched. */
static void decode_softmax(const af_plan *plan, const scratch *scratch, int r, int n, int64_t Dv, line_queue *next)
{
    const bool base2 = plan->base2;
    real *s = scratch->s + r * plan->key_block, *m = scratch->m + r, *l = scratch->l + r, *acc = scratch->o + r * Dv;
    const v low = v_set1(-AF_INFINITY);
    v top = low, sum = v_zero();
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        top = v_max(here == VL ? v_load(s + j) : v_select(vm_first(here), v_load_n(s + j, here), low), top);
    }
    const real high = v_hmax(top);
    if (high > *m + (base2 ? SLACK : SLACK * AF_LN2)) {
        real factor[VL];
        v_store(factor, exp_difference(base2, v_set1(*m - high)));
        *m = high;
        *l *= factor[0];
        for (int64_t d = 0; d < Dv; d++) acc[d] *= factor[0];
    }
    const v shift = v_set1(*m);
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        v x = exp_difference(base2, v_sub(v_load_n(s + j, here), shift));
        x = v_select(vm_first(here), x, v_zero());
        v_store_n(s + j, x, here);
        sum = v_add(sum, x);
        UNROLL(line, 2) prefetch_next_line(next);
    }
    *l += v_hsum(sum);
}

static void unpaged_scores(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s,
                           int64_t j0, int n)
{
    elem_rows key = rows_in_place(s->keys, j0);
    const bool interleave = interleaves(block->n, call->D, plan->request_bytes && key.ld == call->D);
    const bool whole = !interleave && block->n <= dot_group(call->D) && key.ld == call->D;
    const int few = whole ? n : near_rows(call->D);
    const requests ask = requests_for(key, call->D, plan->request_bytes);
    if (call->score.additive) {
        additive_rows(call, block, n, s->query, key.at, s->s, plan->key_block);
        return;
    }
    for (int j = 0; j < n; j += few, key = rows_from(key, few)) {
        const int here = n - j < few ? n - j : few;
        const score_rows to = {s->s + j, plan->key_block};
        if (interleave)
            interleaved_scores(block->n, here, prefetch_distance(here, n - j, key, call->D), s->query, key, to,
                               call->D);
        else {
            prefetch_apart(few, n - j, key, call->D, ask);
            decode_scores(block->n, here, s->query, key, to, call->D, ask);
        }
    }
}

/* Modifiers and masks on the scores of one block of keys. words[j / 64][r]: the keys whose score is not -inf, where
 * something may be hidden. Returns whether there are any; where nothing can be hidden, true. */
static bool modify_block(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s,
                         int64_t j0, int n)
{
    if (!block->hides && call->score.softcap == 0 && !call->score.alibi) return true;
    uint64_t any = 0;
    for (int j = 0; j < n; j += 64)
        for (int r = 0; r < block->n; r++)
            any |= s->words[j / 64 * DECODE_ROWS + r] =
                decode_modify(call, block, r, j0 + j, n - j < 64 ? n - j : 64, s->s + r * plan->key_block + j);
    return any;
}

/* Adds the values of one block of n keys, each times its weight. A function of its own: within decode_keys the pointers
 * of this loop do not stay in registers, which takes 4 % more time with one query row (Zen 4, GCC 12). */
static __attribute__((noinline)) void decode_output(const af_plan *plan, const query_block *block, const scratch *s,
                                                    int n, elem_rows value, int64_t Dv)
{
    const bool interleave = interleaves(block->n, Dv, plan->request_bytes && value.ld == Dv);
    const int few = near_rows(Dv);
    const requests ask = requests_for(value, Dv, plan->request_bytes);
    for (int j = 0; j < n; j += few, value = rows_from(value, few)) {
        const int here = n - j < few ? n - j : few;
        const score_rows p = {s->s + j, plan->key_block};
        if (interleave) {
            interleaved_values(block->n, here, prefetch_distance(here, n - j, value, Dv), p, value, s->o, Dv);
            continue;
        }
        prefetch_apart(few, n - j, value, Dv, ask);
        prefetch_page(value, ask.page);
        decode_values(block->n, here, p, value, s->o, Dv, ask);
    }
}

/* The same without the (row, key) pairs whose score was -inf: 0 times a value that is not finite would be NaN. */
static __attribute__((noinline)) void decode_output_nan_safe(const query_block *block, const scratch *s, int64_t lds,
                                                             int64_t j0, int n, int64_t Dv)
{
    const int few = near_rows(Dv);
    for (int j = 0; j < n; j += few) {
        const elem_rows value = elems_at(s->values, j0 + j, n - j < few ? n - j : few);
        for (int r = 0; r < block->n; r++) {
            const score_rows p = {s->s + r * lds + j, lds}, acc = {s->o + r * Dv, Dv};
            const uint64_t word = s->words[j / 64 * DECODE_ROWS + r] >> j % 64;
            axpy_rows(1, n - j < few ? n - j : few, p, value, acc, &word, 0);
        }
    }
}

/* Scores of one block of keys for each run. */
static void score_keys(const af_call *call, const af_plan *plan, const decode_run *runs, int count, int64_t j0, int n)
{
    const scratch *s = &runs->s;
    if (s->keys->pages || count > 1) read_pages(plan, runs, count, j0, n, KEYS, NULL);
    else if (s->keys->bytes) byte_scores_of(plan, runs, j0, (turn){.j = j0, .n = n});
    else unpaged_scores(call, plan, &runs->block, s, j0, n);
}

/* The weights of one block of keys, and what modifies them. */
static void weigh_keys(const af_call *call, const af_plan *plan, const decode_run *run, int64_t j0, int n)
{
    const query_block *block = &run->block;
    const scratch *s = &run->s;
    const int64_t Dv = call->operands.value.data ? call->Dv : 0;
    line_queue next = {.rows = Dv ? rows_in_line(s->values, j0, n) : 0, .stride = s->values->stride, .width = Dv};
    if (Dv) next.row = address_of(s->values, offset_of(s->values, j0));
    if (!s->values->bytes) {
        next.stride *= (int64_t)sizeof(elem);
        next.width *= (int64_t)sizeof(elem);
    }
    for (int r = 0; r < block->n; r++) {
        decode_softmax(plan, s, r, n, Dv, &next);
        if (call->score.gaussian > 0) gaussian_row(call, block, r, j0, n, s->s + r * plan->key_block);
        if (call->score.dropout > 0 && Dv) drop_row(call, block, r, j0, n, s->s + r * plan->key_block);
    }
}

static void add_values(const af_call *call, const af_plan *plan, const decode_run *runs, int count, int64_t j0, int n,
                       bool nan_safe)
{
    const query_block *block = &runs->block;
    const scratch *s = &runs->s;
    const uint64_t *words = nan_safe ? s->words : NULL;
    if (nan_safe && !s->values->bytes) decode_output_nan_safe(block, s, plan->key_block, j0, n, call->Dv);
    else if (s->values->pages || count > 1) read_pages(plan, runs, count, j0, n, VALUES, words);
    else if (s->values->bytes) byte_output_of(plan, runs, j0, (turn){.j = j0, .n = n}, words);
    else decode_output(plan, block, s, n, rows_in_place(s->values, j0), call->Dv);
}

/* All keys of a unit. What is visible must be the same for all runs: then they have the same pieces. */
static void decode_keys(const af_call *call, const af_plan *plan, decode_run *runs, int count, bool nan_safe)
{
    for (int g = 0; g < count; g++) {
        reset_state(&runs[g].s);
        if (call->operands.value.data) zero_output(call, plan, &runs[g].s);
    }
    const af_interval span = runs->block.vis.span;
    for (int64_t j0 = span.begin, keys; j0 < span.end; j0 += keys) {
        const af_piece piece = af_next_piece(&runs->block.vis, call, span, j0, plan->key_block);
        keys = piece.keys;
        if (piece.first == piece.last) continue;
        const int n = (int)keys;
        bool any = false;
        score_keys(call, plan, runs, count, j0, n);
        for (int g = 0; g < count; g++) {
            runs[g].any = modify_block(call, plan, &runs[g].block, &runs[g].s, j0, n);
            if (runs[g].any) weigh_keys(call, plan, &runs[g], j0, n);
            any |= runs[g].any;
        }
        if (any && call->operands.value.data) add_values(call, plan, runs, count, j0, n, nan_safe);
    }
}

static bool finite_rows(int rows, int64_t Dv, const real *o)
{
    const int64_t n = rows * Dv;
    v poison = v_zero(); /* x - x is 0, or NaN where x is not finite */
    for (int64_t i = 0; i < n; i += VL) {
        const v x = n - i < VL ? v_load_n(o + i, (int)(n - i)) : v_load(o + i);
        poison = v_add(poison, v_sub(x, x));
    }
    return !vm_word(vm_ne(poison, v_zero()));
}

static void decode(const af_call *call, const af_plan *plan, af_unit unit, void *memory, void *partial)
{
    decode_run *runs = memory;
    const int count = plan->unit_blocks;
    carve(&runs->s, call, plan, memory);
    for (int g = 0; g < count; g++) {
        decode_run *run = &runs[g];
        if (g) carve_block(&run->s, &runs->s, call, plan, g);
        make_block(&run->block, call, plan, block_of_unit(plan, unit, g));
        open_key_rows(&run->s, call, plan, &run->block.vis);
        run->block.vis.span = af_split(run->block.vis.span, unit.split, plan->split_keys);
        if (run->block.vis.span.begin < run->block.vis.span.end) decode_query(call, plan, &run->block, run->s.query);
    }
    const bool may_leak = call->operands.value.data && runs->block.hides, safe = may_leak && met_infinity(plan);
    if (!safe) decode_keys(call, plan, runs, count, false);
    for (int g = 0; g < count; g++) {
        decode_run *run = &runs[g];
        if (safe) decode_keys(call, plan, run, 1, true);
        else if (may_leak && !finite_rows(run->block.n, call->Dv, run->s.o)) {
            if (plan->met_infinity) atomic_store_explicit(plan->met_infinity, 1, memory_order_relaxed);
            decode_keys(call, plan, run, 1, true);
        }
        if (plan->splits > 1) save_partial(call, plan, &run->s, (char *)partial + (size_t)g * plan->block_partials);
        else finish(call, plan, &run->block, &run->s);
    }
}

#endif

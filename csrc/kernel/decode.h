/* Attention of a few query rows (decoding): D is in the lanes, so that keys and values are read once for all rows at
 * the speed of memory, and no lane is empty. The products are in decode_products.h and decode_interleaved.h.
 *
 * Memory is fastest when it is read in long runs, so a block has many keys: first all keys, then all values. Rows are
 * the queries of all heads that share the key/value head. The resulting m and l are in query lanes as in forward.h, O
 * is stored by rows. */
#ifndef AF_DECODE_H
#define AF_DECODE_H

#include "kernel/additive.h"
#include "kernel/decode_columns.h"
#include "kernel/decode_interleaved.h"
#include "kernel/decode_mixed.h"
#include "kernel/decode_pages.h"
#include "kernel/dropout.h"
#include "kernel/finish.h"
#include "kernel/mask.h"
#include "kernel/score.h"
#include "kernel/softmax.h"

static void decode_query(const af_call *call, const af_plan *plan, const query_block *block, real *query)
{
    const v scale = v_set1((real)plan->query_scale);
    const real *bias = call->score.additive ? head_row(&call->score.score_bias, block) : NULL;
    const int64_t D = call->D;
    for (int r = 0; r < block->n; r++, query += D) {
        const elem *row = find_row(&call->operands.query, &block->vis, r);
        int64_t d = 0;
        for (; d + VL <= D; d += VL) v_store(query + d, v_mul(e_load(row + d), scale));
        const int rest = (int)(D - d);
        if (rest) v_store_n(query + d, v_mul(e_load_n(row + d, rest), scale), rest);
        for (d = 0; bias && d < D; d++) query[d] += bias[d];
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
    const bool alibi = call->score.alibi && !all_pairs;
    const real distance = alibi ? (real)(af_position(call, block->vis.b, block->vis.query[r]) - j0) : 0;
    real lane[VL];
    for (int i = 0; alibi && i < VL; i++) lane[i] = (real)i;
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        v x = v_load_n(s + j, here);
        if (call->score.softcap != 0) x = softcap_value(x, (real)call->score.softcap);
        if (alibi)
            x = alibi_value(x, v_set1(lane_slope(call, block, r)), v_sub(v_set1(distance - (real)j), v_load(lane)));
        if (bias && !all_pairs) x = bias_value(x, call->score.bias.j ? v_load_n(bias + j0 + j, here) : v_set1(*bias));
        x = v_select(vm_bits(word >> j), x, v_set1(-AF_INFINITY));
        left |= (vm_word(vm_ne(x, v_set1(-AF_INFINITY))) & low_bits(here)) << j;
        v_store_n(s + j, x, here);
    }
    return left;
}

static __attribute__((noinline)) void rescale_row(v factor, real *l, real *acc, int64_t Dv)
{
    real x[VL];
    v_store(x, factor);
    *l *= x[0];
    for (int64_t d = 0; d < Dv; d++) acc[d] *= x[0];
}

/* One online softmax step of one row; see softmax.h. Memory is idle in the meantime, so the next lines are
 * prefetched. */
AF_INLINE void decode_softmax(const af_plan *plan, const scratch *scratch, int r, int n, int64_t Dv, line_queue *next)
{
    const bool base2 = plan->base2;
    real *s = scratch->s + r * plan->key_block, *m = scratch->m + r, *l = scratch->l + r, *acc = scratch->o + r * Dv;
    const v low = v_set1(-AF_INFINITY);
    v top = low, sum = v_zero();
    for (int j = 0; n > 1 && j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        top = v_max(here == VL ? v_load(s + j) : v_select(vm_first(here), v_load_n(s + j, here), low), top);
    }
    const real high = n > 1 ? v_hmax(top) : s[0];
    if (high > *m + (base2 ? SLACK : SLACK * AF_LN2)) {
        if (*l != 0) rescale_row(exp_difference(base2, v_set1(*m - high)), l, acc, Dv);
        *m = high;
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

/* How a product reads rows where they are stored: the same for all head groups of a call. */
typedef struct row_reading {
    bool interleave;
    int few; /* rows at a time */
    requests ask;
} row_reading;

static row_reading reading_of(const af_plan *plan, const af_rows *rows)
{
    const elem_rows some = {NULL, rows->stride};
    const bool requested = plan->request_bytes && rows->stride == rows->width;
    return (row_reading){interleaves((int)plan->rows, rows->width, requested), near_rows(rows->width),
                         requests_for(some, rows->width, plan->request_bytes)};
}

/* Scores of the keys that runs have taken, which lie where they are stored. */
static __attribute__((noinline)) void unpaged_scores(const af_call *call, const af_plan *plan, const decode_run *runs,
                                                     int count)
{
    const int64_t D = call->D, ld = runs->s.keys->stride;
    const row_reading read = reading_of(plan, runs->s.keys);
    const bool whole = !read.interleave && plan->rows <= dot_group(D) && ld == D;
    for (const decode_run *run = runs; run < runs + count; run++) {
        if (!run->n) continue;
        const scratch *s = &run->s;
        elem_rows key = rows_in_place(s->keys, run->j0);
        if (call->score.additive) {
            additive_rows(call, &run->block, run->n, s->query, key.at, s->s, plan->key_block);
            continue;
        }
        const int rows = run->block.n, n = run->n, few = whole ? n : read.few;
        for (int j = 0; j < n; j += few, key = rows_from(key, few)) {
            const int here = n - j < few ? n - j : few;
            const score_rows to = {s->s + j, plan->key_block};
            if (read.interleave)
                interleaved_scores(rows, here, prefetch_distance(here, n - j, key, D), s->query, key, to, D);
            else {
                prefetch_apart(few, n - j, key, D, read.ask);
                decode_scores(rows, here, s->query, key, to, D, &read.ask);
            }
        }
    }
}

static __attribute__((noinline)) bool modify_rows(const af_call *call, const af_plan *plan, const query_block *block,
                                                  const scratch *s, int64_t j0, int n)
{
    uint64_t any = 0;
    for (int j = 0; j < n; j += 64)
        for (int r = 0; r < block->n; r++)
            any |= s->words[j / 64 * DECODE_ROWS + r] =
                decode_modify(call, block, r, j0 + j, n - j < 64 ? n - j : 64, s->s + r * plan->key_block + j);
    return any;
}

/* Modifiers and masks on the scores of one block of keys. words[j / 64][r]: the keys whose score is not -inf, where
 * something may be hidden. Returns whether there are any; where nothing can be hidden, true. */
AF_INLINE bool modify_block(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s,
                            int64_t j0, int n)
{
    if (!block->hides && call->score.softcap == 0 && !call->score.alibi) return true;
    return modify_rows(call, plan, block, s, j0, n);
}

/* Adds the values of the keys that runs have taken, each times its weight. A function of its own: within decode_keys
 * the pointers of this loop do not stay in registers, which takes 4 % more time with one query row (Zen 4, GCC 12). */
static __attribute__((noinline)) void decode_output(const af_plan *plan, const decode_run *runs, int count)
{
    const int64_t Dv = runs->s.values->width;
    const row_reading read = reading_of(plan, runs->s.values);
    for (const decode_run *run = runs; run < runs + count; run++) {
        if (!run->any) continue;
        const scratch *s = &run->s;
        const int rows = run->block.n, n = run->n;
        elem_rows value = rows_in_place(s->values, run->j0);
        for (int j = 0; j < n; j += read.few, value = rows_from(value, read.few)) {
            const int here = n - j < read.few ? n - j : read.few;
            const score_rows p = {s->s + j, plan->key_block};
            if (read.interleave) {
                interleaved_values(rows, here, prefetch_distance(here, n - j, value, Dv), p, value, s->o, Dv);
                continue;
            }
            prefetch_apart(read.few, n - j, value, Dv, read.ask);
            prefetch_page(value, read.ask.page);
            decode_values(rows, here, p, value, s->o, Dv, read.ask);
        }
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

/* Whether a run takes all keys of its span, so that it may have scores before it comes to a block. */
static bool takes_all_keys(const af_call *call, const af_visibility *vis)
{
    return !vis->mask && !call->visible.blocks.data && !call->subset.global && !call->visible.center.data;
}

/* The same where keys, or values, lie in columns. */
static void scores_of_columns(const af_call *call, const af_plan *plan, const decode_run *run)
{
    const scratch *s = &run->s;
    const score_rows to = {s->s, plan->key_block};
    keys_ahead *scored = s->scored;
    if (!scored || !takes_all_keys(call, &run->block.vis)) {
        column_scores(run->block.n, run->n, s->query, columns_at(s->keys, run->j0), to, call->D, s->column_sums);
        return;
    }
    if (run->j0 < scored->begin || run->j0 + run->n > scored->end) {
        scored->begin = run->j0;
        scored->end = af_min(scored->last, run->j0 + AF_COLUMN_KEYS);
        column_scores(1, (int)(scored->end - scored->begin), s->query, columns_at(s->keys, run->j0),
                      (score_rows){scored->score, 0}, call->D, s->column_sums);
    }
    memcpy(to.at, scored->score + (run->j0 - scored->begin), (size_t)run->n * sizeof(real));
}

static void output_of_columns(const af_call *call, const af_plan *plan, const decode_run *run, const uint64_t *words)
{
    const scratch *s = &run->s;
    const score_rows p = {s->s, plan->key_block}, to = {s->o, call->Dv};
    column_values(run->block.n, run->n, p, columns_at(s->values, run->j0), to, words);
}

/* Scores of the keys that runs have taken. */
static void score_runs(const af_call *call, const af_plan *plan, const decode_run *runs, int count)
{
    const af_rows *keys = runs->s.keys;
    const int together = plan->in_turn ? count : 1;
    if (!keys->pages && !keys->bytes && !keys->apart && together == 1) {
        unpaged_scores(call, plan, runs, count);
        return;
    }
    for (const decode_run *run = runs; run < runs + count; run += together) {
        if (!run->n) continue;
        if (keys->apart) scores_of_columns(call, plan, run);
        else if (keys->pages) read_pages(plan, run, together, run->j0, run->n, KEYS, NULL);
        else if (together > 1) mixed_scores(plan, run, together, run->j0, run->n);
        else byte_scores_of(plan, run, run->j0, (turn){.j = run->j0, .n = run->n});
    }
}

/* The weights of the keys that a run has taken, and what modifies them. */
AF_INLINE void weigh_keys(const af_call *call, const af_plan *plan, const decode_run *run)
{
    const query_block *block = &run->block;
    const scratch *s = &run->s;
    const int64_t Dv = call->operands.value.data ? call->Dv : 0, j0 = run->j0;
    const int n = run->n;
    line_queue next = {.stride = s->values->stride, .width = Dv};
    if (Dv && !s->values->apart) next.rows = rows_in_line(s->values, j0, n);
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

/* Adds the values of the keys that runs have taken. */
static void add_values(const af_call *call, const af_plan *plan, const decode_run *runs, int count, bool nan_safe)
{
    const af_rows *values = runs->s.values;
    const int together = plan->in_turn ? count : 1;
    if (!values->pages && !values->bytes && !values->apart && together == 1 && !nan_safe) {
        decode_output(plan, runs, count);
        return;
    }
    for (const decode_run *run = runs; run < runs + count; run += together) {
        const scratch *s = &run->s;
        const uint64_t *words = nan_safe ? s->words : NULL;
        if (together == 1 && !run->any) continue;
        if (values->apart) output_of_columns(call, plan, run, words);
        else if (nan_safe && !values->bytes)
            decode_output_nan_safe(&run->block, s, plan->key_block, run->j0, run->n, call->Dv);
        else if (values->pages) read_pages(plan, run, together, run->j0, run->n, VALUES, words);
        else if (together > 1) mixed_output(plan, run, together, run->j0, run->n);
        else byte_output_of(plan, run, run->j0, (turn){.j = run->j0, .n = run->n}, words);
    }
}

/* Modifiers, then weights, for those runs that have taken keys. Returns whether any may see some of them. */
static __attribute__((noinline)) bool weigh_runs(const af_call *call, const af_plan *plan, decode_run *runs, int count)
{
    bool any = false;
    for (decode_run *run = runs; run < runs + count; run++)
        any |= run->any = run->n && modify_block(call, plan, &run->block, &run->s, run->j0, run->n);
    for (decode_run *run = runs; run < runs + count; run++)
        if (run->any) weigh_keys(call, plan, run);
    return any;
}

/* Takes the next keys of which some row may see any; false if there are none. */
static bool next_keys(const af_call *call, const af_plan *plan, decode_run *run)
{
    const af_interval span = run->block.vis.span;
    run->n = 0;
    while (run->n == 0 && run->next < span.end) {
        const af_piece piece = af_next_piece(&run->block.vis, call, span, run->next, plan->key_block);
        run->j0 = run->next;
        run->next += piece.keys;
        if (piece.first < piece.last) run->n = (int)piece.keys;
    }
    return run->n > 0;
}

/* The same for some runs. Those of alike lots take the keys of the first one. */
static bool take_keys_of_runs(const af_call *call, const af_plan *plan, decode_run *runs, int count)
{
    bool more = false;
    for (int g = 0; g < count; g++) {
        if (g && plan->lots_alike) {
            runs[g].j0 = runs->j0;
            runs[g].next = runs->next;
            runs[g].n = runs->n;
        } else more |= next_keys(call, plan, &runs[g]);
    }
    return more;
}

AF_INLINE void begin_keys(const af_call *call, const af_plan *plan, decode_run *run)
{
    reset_state(&run->s);
    if (call->operands.value.data) zero_output(call, plan, &run->s);
    run->next = run->block.vis.span.begin;
}

/* All keys of some runs, each step for all of them before the next one. Those that read keys in turn see the same
 * keys: so they take the same ones. */
static void decode_keys(const af_call *call, const af_plan *plan, decode_run *runs, int count, bool nan_safe)
{
    for (int g = 0; g < count; g++) begin_keys(call, plan, &runs[g]);
    for (;;) {
        if (!take_keys_of_runs(call, plan, runs, count)) return;
        score_runs(call, plan, runs, count);
        if (weigh_runs(call, plan, runs, count) && call->operands.value.data)
            add_values(call, plan, runs, count, nan_safe);
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

static void open_run(const af_call *call, const af_plan *plan, af_unit unit, decode_run *run)
{
    make_block(&run->block, call, plan, unit);
    open_key_rows(&run->s, call, plan, &run->block.vis);
    const af_interval all = run->block.vis.span;
    run->block.vis.span = af_split(all, unit.split, plan->split_keys);
    if (!run->s.scored || unit.goes_on) return;
    run->s.scored->begin = run->s.scored->end = 0;
    run->s.scored->last = af_split(all, unit.split + unit.more, plan->split_keys).end;
}

/* The same for a run that was open for another head group, where lots are alike. */
static void move_run(const af_call *call, const af_plan *plan, af_unit unit, decode_run *run)
{
    const af_visibility *vis = &run->block.vis;
    move_block(&run->block, call, plan, unit);
    run->s.keys->first = first_row(&call->operands.key, vis->b, vis->hk);
    run->s.values->first = first_row(&call->operands.value, vis->b, vis->hk);
}

/* The runs of a lot: successive head groups from `unit` on, as far as there are any. Returns how many, and moves `unit`
 * on. */
static int open_lot(const af_call *call, const af_plan *plan, af_unit *unit, bool open, decode_run *runs)
{
    int count = 0;
    while (count < plan->unit_blocks && unit->b < call->B) {
        decode_run *run = &runs[count++];
        if (open) move_run(call, plan, *unit, run);
        else open_run(call, plan, *unit, run);
        if (run->block.vis.span.begin < run->block.vis.span.end) decode_query(call, plan, &run->block, run->s.query);
        if (++unit->hg < plan->head_groups) continue;
        unit->hg = 0;
        unit->b++;
    }
    return count;
}

/* A lot of head groups, from their keys to their results. */
static void decode_lot(const af_call *call, const af_plan *plan, decode_run *runs, int count, void *partial)
{
    const bool values = call->operands.value.data, safe = values && runs->block.hides && met_infinity(plan);
    if (!safe) decode_keys(call, plan, runs, count, false);
    for (int g = 0; g < count; g++) {
        decode_run *run = &runs[g];
        const bool may_leak = values && run->block.hides;
        if (safe) decode_keys(call, plan, run, 1, may_leak);
        else if (may_leak && !finite_rows(run->block.n, call->Dv, run->s.o)) {
            if (plan->met_infinity) atomic_store_explicit(plan->met_infinity, 1, memory_order_relaxed);
            decode_keys(call, plan, run, 1, true);
        }
        if (plan->splits > 1) save_partial(call, plan, &run->s, (char *)partial + (size_t)g * plan->block_partials);
        else finish(call, plan, &run->block, &run->s);
    }
}

static void decode(const af_call *call, const af_plan *plan, af_unit unit, void *memory, void *partial)
{
    decode_run *runs = memory;
    carve(&runs->s, call, plan, memory);
    for (int g = 1; g < plan->unit_blocks; g++) carve_block(&runs[g].s, &runs->s, call, plan, g);
    for (int lot = 0; lot < plan->unit_lots; lot++) {
        const int count = open_lot(call, plan, &unit, lot && plan->lots_alike, runs);
        if (count) decode_lot(call, plan, runs, count, partial);
    }
}

#endif

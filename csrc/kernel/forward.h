/* Attention of the blocks of query rows of one unit, queries in the lanes: O[i] = sum_j softmax_j(S[j, i]) V[j],
 * S = K Q'.
 *
 *   for each run of keys, for each block of rows that sees any of them:
 *       pack Q the first time:  Qt[D][NR], scale folded in
 *       S = K Qt    modifiers, masks    online softmax    O += V' P
 *   finish:  O / l transposed to the output's rows, lse
 *
 * All blocks of a unit go through one run of keys before any goes on to the next: keys and values that do not fit the
 * cache are then read once for all blocks, and 16-bit rows widened once. Each block takes its keys in pieces that do
 * not depend on the other blocks, so neither do its bits.
 *
 * Cost: 2 (D + Dv) NR flops a key and block; memory: the tiles of block.h, all in cache. A hidden key gets P = 0, and
 * 0 * V is 0 unless V holds NaN or inf. So a block whose output is not finite although something was hidden from it is
 * computed again in the NaN-safe way: V then enters only the lanes that see the key. Where V is finite both ways give
 * the same bits. */
#ifndef AF_FORWARD_H
#define AF_FORWARD_H

#include "kernel/additive.h"
#include "kernel/dropout.h"
#include "kernel/finish.h"
#include "kernel/fused_softmax.h"
#include "kernel/mask.h"
#include "kernel/pack.h"
#include "kernel/prefetch_block.h"
#include "kernel/score.h"
#include "kernel/softmax.h"
#include "kernel/tile.h"
#include "kernel/topk.h"

/* Keys [j0, j0 + n) of which something is visible: SEES_SOME or SEES_ALL. */
typedef struct key_piece {
    int64_t j0;
    int n, seen;
} key_piece;

static void pack_query(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s)
{
    elem *rows[AF_NR] = {0};
    find_rows(&call->operands.query, &block->vis, rows);
    if (call->score.additive) pack_additive_query(call, block, rows, s->query, &s->additive);
    else rows_to_lanes(block->n, block->nv, call->D, rows, (real)plan->query_scale, s->query);
}

/* n rows of values from column d on, at most CLEAN_COLUMNS of them, with zeros for what is not finite. Returns how many
 * rows hold such elements although some lane sees their key, and which. */
static int clean_values(const scratch *s, int n, matrix value, int64_t columns, int *unclean)
{
    int count = 0;
    for (int j = 0; j < n; j++) {
        const real *from = value.at + j * value.ld;
        real *to = s->clean + j * CLEAN_COLUMNS;
        v poison = v_zero(); /* x - x is 0, or NaN where x is not finite */
        for (int64_t d = 0; d < columns; d += VL) {
            const int here = columns - d < VL ? (int)(columns - d) : VL;
            const v x = v_load_n(from + d, here), none = v_sub(x, x);
            poison = v_add(poison, none);
            v_store(to + d, v_select(vm_ne(none, v_zero()), v_zero(), x));
        }
        if (s->words[j] && vm_word(vm_ne(poison, v_zero()))) unclean[count++] = j;
    }
    return count;
}

/* Adds what clean_values has left out, to the lanes that see it. */
static void add_unclean(const query_block *block, const scratch *s, matrix value, int64_t d, int count,
                        const int *unclean)
{
    for (int c = block->v0; c < block->v1; c++) {
        real *o = s->o + d * AF_NR + c * VL;
        v sum = v_load(o);
        for (int i = 0; i < count; i++) {
            const int j = unclean[i];
            const real x = value.at[j * value.ld + d];
            if (x - x == 0) continue;
            const v more = v_fma(v_set1(x), v_load(s->s + j * AF_NR + c * VL), sum);
            sum = v_select(vm_bits(s->words[j] >> c * VL), more, sum);
        }
        v_store(o, sum);
    }
}

/* O[d][lane] += P[j][lane] V[j][d] for the lanes that see key j, and no other. */
static void nan_safe_values(const query_block *block, int n, int64_t Dv, matrix value, const scratch *s)
{
    int unclean[AF_TILE_KEYS];
    const int at = block->v0 * VL;
    for (int64_t d = 0; d < Dv; d += CLEAN_COLUMNS) {
        const int64_t columns = af_min(CLEAN_COLUMNS, Dv - d);
        const matrix from = {value.at + d, value.ld}, clean = {s->clean, CLEAN_COLUMNS};
        const int count = clean_values(s, n, from, columns, unclean);
        value_product(block->v1 - block->v0, true, n, columns, clean, (matrix){s->s + at, AF_NR},
                      s->o + d * AF_NR + at);
        for (int64_t c = 0; c < columns && count; c++) add_unclean(block, s, value, d + c, count, unclean);
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

/* Scores of a piece after modifiers. */
static void score_block(const af_call *call, const query_block *block, const scratch *s, key_piece piece,
                        const prefetch *next)
{
    const matrix key = rows_at(s->keys, piece.j0, piece.n);
    const int at = block->v0 * VL;
    if (call->score.additive) {
        exp_keys(&s->additive, piece.n, call->D, key);
        additive_product(call, block, s->query, &s->additive, piece.n, key, s->s);
    } else {
        score_product(block->v1 - block->v0, piece.n, call->D, key, s->query + at, s->s + at, next);
    }
    modify_scores(call, block, piece.j0, piece.n, s->s);
}

/* The weights of a piece whose scores nothing modifies, see fused_softmax.h. */
static bool fused_softmax_block(const af_call *call, const block_run *run, key_piece piece, const prefetch *next,
                                real *factor)
{
    const query_block *block = &run->block;
    const scratch *s = &run->s;
    fused_softmax w;
    const int nv = block->v1 - block->v0, n = piece.n;
    start_fused_softmax(&w, s, piece.seen == SEES_SOME ? s->words : NULL, block->v0, factor);
#if AF_FUSED_SOFTMAX
    if (!run->nan_safe) {
        w.key = rows_at(s->keys, piece.j0, n);
        w.query = s->query + block->v0 * VL;
        fused_softmax_product(&w, nv, n, call->D, next);
        return end_fused_softmax(&w, nv);
    }
#endif
    const int few = fused_softmax_keys(n);
    score_block(call, block, s, piece, next);
    if (piece.seen == SEES_SOME) hide_scores(block, n, s->words, s->s);
    if (run->nan_safe) words_of_scores(block, n, s->s, s->words);
    for (int j = 0; j < n; j += few) softmax_from_memory(&w, nv, j, n - j < few ? n - j : few);
    return end_fused_softmax(&w, nv);
}

/* The weights of a piece; returns whether a maximum moved, and by which factors. */
static bool block_weights(const af_call *call, const af_plan *plan, const block_run *run, key_piece piece,
                          const prefetch *next, real *factor)
{
    if (plan->base2) return fused_softmax_block(call, run, piece, next, factor);
    const query_block *block = &run->block;
    const scratch *s = &run->s;
    const int at = block->v0 * VL;
    const bool hide_first = run->nan_safe || call->results.topk;
    score_block(call, block, s, piece, next);
    if (piece.seen == SEES_SOME && hide_first) hide_scores(block, piece.n, s->words, s->s);
    if (run->nan_safe) words_of_scores(block, piece.n, s->s, s->words);
    if (call->results.topk) update_topk(call, block, s, piece.j0, piece.n);
    const uint64_t *words = piece.seen == SEES_SOME && !hide_first ? s->words : NULL;
    const softmax_state state = {s->m + at, s->l + at, factor};
    return softmax_step(block->v1 - block->v0, piece.n, s->s + at, words, block->v0, state);
}

/* O += V' P for a piece. */
static void value_block(const af_call *call, const block_run *run, key_piece piece)
{
    const query_block *block = &run->block;
    const scratch *s = &run->s;
    const matrix value = rows_at(s->values, piece.j0, piece.n);
    if (run->nan_safe) nan_safe_values(block, piece.n, call->Dv, value, s);
    else
        value_product(block->v1 - block->v0, !run->empty, piece.n, call->Dv, value,
                      (matrix){s->s + block->v0 * VL, AF_NR}, s->o + block->v0 * VL);
}

/* Begins with no key seen. */
static void begin_run(const af_call *call, block_run *run, bool nan_safe)
{
    run->next = run->block.vis.span.begin;
    run->nan_safe = nan_safe;
    run->empty = true;
    reset_state(&run->s);
    if (call->results.topk) reset_topk(call, &run->s);
}

/* One step through the keys: the block's next piece. */
static void run_piece(const af_call *call, const af_plan *plan, block_run *run)
{
    real factor[AF_NR];
    query_block *block = &run->block;
    const scratch *s = &run->s;
    const int64_t n = take_keys(block, call, run->next, plan->key_block);
    const af_interval keys = {run->next, run->next + n};
    run->next += n;
    const int seen = block->v0 == block->v1 ? SEES_NOTHING : visible_words(call, block, keys.begin, (int)n, s->words);
    if (seen == SEES_NOTHING) return;
    const key_piece piece = {keys.begin, (int)n, seen};
    prefetch next = values_and_next_keys(call, plan, run, keys);
    if (!run->packed) pack_query(call, plan, block, s);
    run->packed = true;
    prefetch_lanes(&next, call, plan, block, keys);
    const bool moved = block_weights(call, plan, run, piece, &next, factor);
    if (!call->operands.value.data) return;
    if (call->score.gaussian > 0) gaussian_tile(call, block, piece.j0, piece.n, s->s, AF_NR);
    if (call->score.dropout > 0) drop_tile(call, block, &run->drop, piece.j0, piece.n, s->s, AF_NR);
    if (run->empty && (run->nan_safe || block->v1 - block->v0 < block->nv)) {
        zero_output(call, plan, s);
        run->empty = false;
    }
    if (moved && !run->empty) rescale(block->v1 - block->v0, call->Dv, factor, s->o + block->v0 * VL);
    value_block(call, run, piece);
    run->empty = false;
}

static void end_run(const af_call *call, const af_plan *plan, block_run *run)
{
    if (run->empty && call->operands.value.data) zero_output(call, plan, &run->s);
    run->block.v0 = 0;
    run->block.v1 = run->block.nv;
}

/* The first key that a block has still to take; AF_FAR if there is none in any block. */
static int64_t first_key(const block_run *runs, int count)
{
    int64_t first = AF_FAR;
    for (int g = 0; g < count; g++)
        if (runs[g].next < runs[g].block.vis.span.end) first = af_min(first, runs[g].next);
    return first;
}

/* All blocks through all keys, a run of keys at a time. */
static void run_blocks(const af_call *call, const af_plan *plan, block_run *runs, int count)
{
    for (int64_t begin = first_key(runs, count); begin < AF_FAR; begin = first_key(runs, count)) {
        forget_rows_before(runs->s.keys, begin);
        forget_rows_before(runs->s.values, begin);
        for (int g = count - 1; g >= 0; g--) {
            const int64_t end = af_min(runs[g].block.vis.span.end, begin + plan->key_block);
            while (runs[g].next < end) run_piece(call, plan, &runs[g]);
        }
    }
    for (int g = 0; g < count; g++) end_run(call, plan, &runs[g]);
}

/* The rows of each block of a unit, what they see, and what they prefetch; returns how many blocks there are. */
static int begin_blocks(const af_call *call, const af_plan *plan, af_unit unit, block_run *runs)
{
    const int count = (unit.rows + plan->block_rows - 1) / plan->block_rows;
    int leader = count - 1;
    for (int g = 0; g < count; g++) {
        block_run *run = &runs[g];
        if (g) carve_block(&run->s, &runs->s, call, plan, g);
        make_block(&run->block, call, plan, block_of_unit(plan, unit, g));
        if (call->score.dropout > 0) find_drop_rows(call, &run->block, &run->drop);
        run->block.vis.span = af_split(run->block.vis.span, unit.split, plan->split_keys);
        run->packed = false;
        begin_run(call, run, call->operands.value.data && run->block.hides && met_infinity(plan));
    }
    open_key_rows(&runs->s, call, plan, &runs->block.vis);
    const int64_t begin = first_key(runs, count);
    while (leader > 0 && runs[leader].next == runs[leader].block.vis.span.end) leader--;
    for (int g = 0; g < count; g++) find_edges(&runs[g], call, plan, unit, g, g == leader, begin);
    return count;
}

/* Whether hidden values may have entered the output. */
static bool needs_safe_run(const af_call *call, const block_run *run)
{
    return call->operands.value.data && run->block.hides && !run->nan_safe &&
           !finite_output(&run->block, call->Dv, run->s.o);
}

static void forward(const af_call *call, const af_plan *plan, af_unit unit, void *memory, void *partial)
{
    block_run *runs = memory;
    carve(&runs->s, call, plan, memory);
    const int count = begin_blocks(call, plan, unit, runs);
    run_blocks(call, plan, runs, count);
    for (int g = 0; g < count; g++) {
        block_run *run = &runs[g];
        if (needs_safe_run(call, run)) {
            if (plan->met_infinity) atomic_store_explicit(plan->met_infinity, 1, memory_order_relaxed);
            begin_run(call, run, true);
            run_blocks(call, plan, run, 1);
        }
        if (plan->splits > 1) save_partial(call, plan, &run->s, (char *)partial + (size_t)g * plan->block_partials);
        else finish(call, plan, &run->block, &run->s);
    }
}

#endif

/* Writes scores or weights, [rows][keys], for callers who ask for them.
 *
 * At the stages SCORES and CAPPED every pair has its score; in pages, every pair of a key that is not padding, and the
 * others are -inf. At BIASED hidden pairs are -inf. At WEIGHTS they are 0, and the weights of the others are recomputed
 * (recompute.h). A tile has keys by queries, so it is transposed when it is stored. */
#ifndef AF_WEIGHTS_H
#define AF_WEIGHTS_H

#include "kernel/decode.h"
#include "kernel/forward.h"
#include "kernel/recompute.h"

typedef struct weight_rows {
    elem *row[AF_NR];
    row_softmax softmax;
} weight_rows;

/* Whether what is written is multiplied by the Gaussian around centers. Scores are not. */
static bool has_gaussian(const af_call *call) { return call->score.gaussian > 0 && call->results.stage == AF_WEIGHTS; }

/* Stores a tile of weights or scores, transposed, to their rows. */
static void store_tile(const query_block *block, const weight_rows *w, int64_t j0, int n, const real *s)
{
    real one[AF_NR];
    elem *rows[AF_NR];
    for (int lane = 0; lane < AF_NR; lane++) one[lane] = 1;
    for (int lane = 0; lane < block->n; lane++) rows[lane] = w->row[lane] + j0;
    lanes_to_rows(block->n, block->nv, n, s, one, NULL, rows);
}

/* The same for visible pairs only. Gathered keys go to the columns of their positions. */
static void store_visible(const af_call *call, const query_block *block, const scratch *scratch, const weight_rows *w,
                          int64_t j0, int n, bool all)
{
    for (int j = 0; j < n; j++) {
        elem line[AF_NR];
        const int64_t key = call->subset.key_position ? call->subset.key_position[j0 + j] : j0 + j;
        for (int c = block->v0; c < block->v1; c++) e_store(line + c * VL, v_load(scratch->s + j * AF_NR + c * VL));
        for (int lane = block->v0 * VL; lane < block->n && lane < block->v1 * VL; lane++)
            if (all || scratch->words[j] >> lane & 1) w->row[lane][key * call->results.weights.j] = line[lane];
    }
}

static void fill_weights(const query_block *block, const weight_rows *w, int64_t begin, int64_t end, real x)
{
    for (int lane = 0; lane < block->n; lane++) {
        int64_t j = begin;
        for (; j + VL <= end; j += VL) e_store(w->row[lane] + j, v_set1(x));
        if (j < end) e_store_n(w->row[lane] + j, v_set1(x), (int)(end - j));
    }
}

/* The few rows of a decode plan, with keys in the lanes. */
static void decode_weights(const af_call *call, const af_plan *plan, decode_run *run, const weight_rows *w,
                           af_interval span)
{
    const query_block *block = &run->block;
    const scratch *s = &run->s;
    const int64_t lds = plan->key_block;
    decode_query(call, plan, block, s->query);
    for (int64_t j0 = span.begin; j0 < span.end; j0 += lds) {
        const int n = (int)af_min(lds, span.end - j0);
        run->j0 = j0;
        run->n = n;
        score_runs(call, plan, run, 1);
        modify_block(call, plan, block, s, j0, n);
        for (int r = 0; r < block->n; r++) {
            real *row = s->s + r * lds;
            for (int j = 0; call->results.stage == AF_WEIGHTS && j < n; j += VL) {
                const int here = n - j < VL ? n - j : VL;
                const v shift = v_set1(w->softmax.shift[r]), factor = v_set1(w->softmax.factor[r]);
                v_store_n(row + j, recompute_weight(plan->base2, v_load_n(row + j, here), shift, factor), here);
            }
            if (has_gaussian(call)) gaussian_row(call, block, r, j0, n, row);
            for (int j = 0; j < n; j += VL) {
                const int here = n - j < VL ? n - j : VL;
                e_store_n(w->row[r] + j0 + j, v_load_n(row + j, here), here);
            }
        }
    }
}

/* Computes and stores the scores or weights of a block of keys of which something is visible. */
static void tile_weights(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s,
                         const weight_rows *w, key_piece piece)
{
    const int64_t j0 = piece.j0;
    const int n = piece.n;
    score_block(call, block, s, piece, NULL);
    if (piece.seen == SEES_SOME) hide_scores(block, n, s->words, s->s);
    for (int j = 0; call->results.stage == AF_WEIGHTS && j < n; j++)
        for (int c = block->v0; c < block->v1; c++) {
            real *x = s->s + j * AF_NR + c * VL;
            const v shift = v_load(w->softmax.shift + c * VL), factor = v_load(w->softmax.factor + c * VL);
            v_store(x, recompute_weight(plan->base2, v_load(x), shift, factor));
        }
    if (has_gaussian(call)) gaussian_tile(call, block, j0, n, s->s, AF_NR);
    if (call->subset.visible_weights) store_visible(call, block, s, w, j0, n, piece.seen == SEES_ALL);
    else store_tile(block, w, j0, n, s->s);
}

/* Writes the weights of visible pairs only; keys that no row sees are skipped. */
static void write_visible(const af_call *call, const af_plan *plan, query_block *block, const scratch *s,
                          const weight_rows *w, af_interval span)
{
    block->vis.span = span;
    for (int64_t j = span.begin, n; j < span.end; j += n) {
        n = take_keys(block, call, j, plan->key_block);
        const int seen = block->v0 == block->v1 ? SEES_NOTHING : visible_words(call, block, j, (int)n, s->words);
        if (seen != SEES_NOTHING) tile_weights(call, plan, block, s, w, (key_piece){j, (int)n, seen});
    }
}

/* Those of some keys of which a score exists: in pages, only those that are not padding. */
static af_interval scored_keys(const af_call *call, int64_t b, af_interval keys)
{
    const af_visible *v = &call->visible;
    if (!call->operands.block_table) return keys;
    const af_interval there = {v->kv_start ? v->kv_start[b] : 0, v->kv_length ? v->kv_length[b] : call->Lk};
    return af_intersect(keys, there);
}

/* Writes the weights or scores of a chunk of keys; hidden pairs get 0 or -inf. */
static void write_chunk(const af_call *call, const af_plan *plan, decode_run *run, const weight_rows *w,
                        af_interval chunk)
{
    const query_block *block = &run->block;
    const scratch *s = &run->s;
    const bool all_pairs = call->results.stage <= AF_CAPPED;
    const real hidden = call->results.stage == AF_WEIGHTS ? 0 : -AF_INFINITY;
    af_interval span = all_pairs ? scored_keys(call, block->vis.b, chunk) : af_intersect(chunk, block->vis.span);
    if (span.begin == span.end) span = (af_interval){chunk.end, chunk.end};
    fill_weights(block, w, chunk.begin, span.begin, hidden);
    fill_weights(block, w, span.end, chunk.end, hidden);
    if (plan->decode && span.begin < span.end) {
        decode_weights(call, plan, run, w, span);
        return;
    }
    for (int64_t j0 = span.begin; j0 < span.end; j0 += plan->key_block) {
        const int n = (int)af_min(plan->key_block, span.end - j0);
        const int seen = all_pairs ? SEES_ALL : visible_words(call, block, j0, n, s->words);
        if (seen != SEES_NOTHING) tile_weights(call, plan, block, s, w, (key_piece){j0, n, seen});
        else fill_weights(block, w, j0, j0 + n, hidden);
    }
}

static void weights(const af_call *call, const af_plan *plan, af_unit unit, void *memory)
{
    decode_run run;
    query_block *block = &run.block;
    weight_rows w;
    make_block(block, call, plan, unit);
    carve(&run.s, call, plan, memory);
    find_rows(&call->results.weights, &block->vis, w.row);
    if (call->results.stage == AF_WEIGHTS) load_row_softmax(call, block, &w.softmax);
    if (!plan->decode) pack_query(call, plan, block, &run.s);
    open_key_rows(&run.s, call, plan, &block->vis);
    const af_interval chunk = af_split((af_interval){0, call->Lk}, unit.split, plan->chunk_keys);
    if (call->subset.visible_weights)
        write_visible(call, plan, block, &run.s, &w, af_intersect(chunk, block->vis.span));
    else write_chunk(call, plan, &run, &w, chunk);
}

#endif

/* The total weight that each key receives: importance[j] = sum_i exp(S[j, i] - m_i) / l_i, where m_i and l_i come from
 * the pass before. Cost: 2 D flops and one exp per pair.
 *
 * A unit takes one chunk of keys and goes through a range of the queries of one head, in order. Units of the next range
 * begin when all of this one are done, so that each sum has one order. Each key has one partial sum per lane of a
 * vector. */
#ifndef AF_IMPORTANCE_H
#define AF_IMPORTANCE_H

#include "kernel/forward.h"
#include "kernel/recompute.h"

/* Whether a block of rows of one head may see any of some keys, as far as positions and lengths decide it. */
static bool may_see(const af_call *call, af_unit unit, af_interval keys)
{
    if (call->visible.q_length && unit.row >= call->visible.q_length[unit.b]) return false;
    const int64_t first = af_position(call, unit.b, unit.row);
    const int64_t last = af_position(call, unit.b, unit.row + unit.rows - 1);
    return first - call->visible.left < keys.end && last + call->visible.right >= keys.begin;
}

static void add_weights(const af_plan *plan, const query_block *block, int n, const real *s, const row_softmax *rows,
                        real *sums)
{
    for (int j = 0; j < n; j++) {
        v sum = v_load(sums + j * VL);
        for (int c = block->v0; c < block->v1; c++) {
            const v score = v_load(s + j * AF_NR + c * VL);
            const v shift = v_load(rows->shift + c * VL), factor = v_load(rows->factor + c * VL);
            sum = v_add(sum, recompute_weight(plan->base2, score, shift, factor));
        }
        v_store(sums + j * VL, sum);
    }
}

static void block_importance(const af_call *call, const af_plan *plan, af_unit unit, af_interval keys, const scratch *s)
{
    query_block block;
    row_softmax rows;
    make_block(&block, call, plan, unit);
    block.vis.span = af_intersect(block.vis.span, keys);
    open_key_rows(s, call, plan, &block.vis);
    bool packed = false;
    for (int64_t j = block.vis.span.begin, n; j < block.vis.span.end; j += n) {
        n = take_keys(&block, call, j, plan->key_block);
        const int seen = block.v0 == block.v1 ? SEES_NOTHING : visible_words(call, &block, j, (int)n, s->words);
        if (seen == SEES_NOTHING) continue;
        if (!packed) load_row_softmax(call, &block, &rows);
        if (!packed) pack_query(call, plan, &block, s);
        packed = true;
        score_block(call, &block, s, (key_piece){j, (int)n, seen}, NULL);
        if (seen == SEES_SOME) hide_scores(&block, (int)n, s->words, s->s);
        add_weights(plan, &block, (int)n, s->s, &rows, s->sums + (j - keys.begin) * VL);
    }
}

/* The sums of this many blocks of rows are added up separately: a long sum of short sums rounds less. 65,536
 * rows of float32 (AVX-512) make 22 sums of 192 terms each. */
enum { SUMMED_BLOCKS = 64 };

static void flush_sums(const scratch *s, int64_t n)
{
    for (int64_t i = 0; i < n * VL; i++) {
        s->totals[i] += s->sums[i];
        s->sums[i] = 0;
    }
}

static void importance(const af_call *call, const af_plan *plan, af_unit unit, void *memory)
{
    scratch s;
    carve(&s, call, plan, memory);
    const af_interval keys = af_split((af_interval){0, call->Lk}, unit.split, plan->chunk_keys);
    const int64_t n = keys.end - keys.begin;
    for (int64_t i = 0; i < n * VL; i++) s.sums[i] = s.totals[i] = 0;
    const int64_t first = unit.row, end = unit.row + unit.rows;
    int blocks = 0;
    for (unit.row = first; unit.row < end; unit.row += plan->block_rows) {
        unit.rows = (int)af_min(plan->block_rows, end - unit.row);
        if (!may_see(call, unit, keys)) continue;
        block_importance(call, plan, unit, keys, &s);
        if (++blocks % SUMMED_BLOCKS == 0) flush_sums(&s, n);
    }
    flush_sums(&s, n);
    real *out = (real *)call->results.importance + (unit.b * call->H + unit.hg * plan->group) * call->Lk + keys.begin;
    for (int64_t j = 0; j < n; j++) out[j] = (first ? out[j] : 0) + v_hsum(v_load(s.totals + j * VL));
}

#endif

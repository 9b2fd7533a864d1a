/* What a block of rows prefetches on its way through the keys, see prefetch.h. Of the blocks of a unit the one that
 * runs first leads: it prefetches keys and values for all of them. */
#ifndef AF_PREFETCH_BLOCK_H
#define AF_PREFETCH_BLOCK_H

#include "kernel/block.h"

/* The rows of a block alone, without what they see. */
static __attribute__((noinline)) void find_only_rows(af_visibility *vis, const af_call *call, const af_plan *plan,
                                                     af_unit unit)
{
    vis->b = unit.b;
    vis->hk = af_key_head(call, plan, unit);
    vis->n = unit.rows;
    af_find_rows(vis, call, plan, unit);
}

/* The keys and values with which the next unit begins. If they are of the same head, this unit has those from key
 * `begin` on. */
static void find_next_keys(edges *e, const af_call *call, const af_plan *plan, af_unit next, bool same, int64_t begin)
{
    af_visibility vis;
    next.rows = 1;
    find_only_rows(&vis, call, plan, next);
    af_interval seen = af_visible_keys(call, next.b, 0, vis.query[0]);
    if (same) seen.end = af_min(seen.end, begin);
    const int64_t n = af_min(plan->key_block, seen.end - seen.begin);
    if (n < 1 || call->operands.storage) return;
    af_rows keys, values;
    open_rows(&keys, call, plan, KEYS, &vis, NULL, 0);
    queue_rows(e, (row_queue){row_address(&keys, seen.begin), rows_in_line(&keys, seen.begin, n), keys.stride, call->D,
                              false});
    if (!same || !call->operands.value.data) return;
    open_rows(&values, call, plan, VALUES, &vis, NULL, 0);
    queue_rows(e, (row_queue){row_address(&values, seen.begin), rows_in_line(&values, seen.begin, n), values.stride,
                              call->Dv, false});
}

/* The edges of block g, the first key of whose unit is `begin`. */
static void find_edges(block_run *run, const af_call *call, const af_plan *plan, af_unit unit, int g, bool leads,
                       int64_t begin)
{
    edges *e = &run->edge;
    const query_block *block = &run->block;
    const bool in_turn = !call->subset.query_order.data && !call->visible.center.data && !call->subset.global &&
                         !call->subset.key_position; /* the next unit sees keys nearby */
    const int64_t keys = af_max(0, block->vis.span.end - block->vis.span.begin);
    const double bytes = (double)keys * (double)(call->D + call->Dv) * (double)sizeof(elem);
    e->outputs = call->operands.value.data && plan->splits == 1 ? block->n : 0;
    if (e->outputs) find_rows(&call->results.output, &block->vis, e->output_row);
    e->far = !in_turn || (leads && (unit.row + unit.rows == plan->rows || bytes > NEAR_BYTES));
    e->queries = e->queues = 0;
    af_unit next = unit;
    if (in_turn && af_next_unit(plan, call, &next)) {
        const af_unit after = block_of_unit(plan, next, g);
        if (after.rows) {
            af_visibility vis;
            find_only_rows(&vis, call, plan, after);
            find_rows(&call->operands.query, &vis, e->query_row);
            e->queries = after.rows;
        }
        if (leads) find_next_keys(e, call, plan, next, unit.b == next.b && unit.hg == next.hg, begin);
    }
    spread_edges(e, af_max(1, keys / AF_MR));
}

/* This block's values, needed after its scores, and the next block's keys. */
static prefetch values_and_next_keys(const af_call *call, const af_plan *plan, block_run *run, af_interval piece)
{
    const int64_t left = run->block.vis.span.end - piece.end;
    prefetch a = {.edge = &run->edge,
                  .value_stride = call->operands.value.i,
                  .key_stride = call->operands.key.i,
                  .D = call->D,
                  .Dv = call->Dv};
    a.apart = call->operands.key.i != call->D;
    if (!run->edge.far || call->operands.storage) return a;
    if (call->operands.value.data) {
        a.value = row_address(run->s.values, piece.begin);
        a.values = rows_in_line(run->s.values, piece.begin, piece.end - piece.begin);
    }
    if (left > 0) {
        a.key = row_address(run->s.keys, piece.end);
        a.keys = rows_in_line(run->s.keys, piece.end, af_min(plan->key_block, left));
    }
    return a;
}

/* The bias of this block of keys and the mask of the next, unless all rows share one. */
static void prefetch_lanes(prefetch *a, const af_call *call, const af_plan *plan, const query_block *block,
                           af_interval piece)
{
    const bool bias =
        call->score.bias.data && call->score.bias.j && block->bias_row[0] != block->bias_row[block->n - 1];
    const bool mask =
        call->visible.mask.data && call->visible.mask.j && !block->vis.mask && piece.end < block->vis.span.end;
    if (!bias && !mask) return;
    a->lanes = block->n;
    a->lanes_a_tile = block->n / ((int)(piece.end - piece.begin) / AF_MR + 1) + 1;
    a->bias = bias ? block->bias_row : NULL;
    a->bias_begin = piece.begin;
    a->bias_end = piece.end;
    a->mask = mask ? block->mask_row : NULL;
    a->mask_begin = piece.end;
    a->mask_end = af_min(block->vis.span.end, piece.end + plan->key_block);
}

#endif

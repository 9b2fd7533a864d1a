/* What a unit of gradients prefetches with the tiles of its products, see prefetch.h: rows of gradients before it adds
 * to them, and the rows with which the next unit begins. */
#ifndef AF_BACKWARD_AHEAD_H
#define AF_BACKWARD_AHEAD_H

#include "kernel/backward_block.h"

/* The rows of the queries of a unit, if they are one after the other. */
static void queue_queries(edges *e, const af_backward *w, const af_tensor *t, af_unit unit, int64_t width, bool write)
{
    const int64_t group = w->plan.group, Lq = w->call->Lq;
    if (!t->data || (group > 1 && (t->h != Lq * t->i || unit.rows < group * Lq))) return;
    const elem *first = (const elem *)t->data + af_offset(t, unit.b, unit.hg * group, unit.row / group);
    queue_rows(e, (row_queue){first, unit.rows, t->i, width, write});
}

static void queue_keys(edges *e, const af_backward *w, const af_tensor *t, af_unit unit, af_interval keys,
                       int64_t width, bool write)
{
    if (!t->data) return;
    const elem *first = (const elem *)t->data + af_offset(t, unit.b, af_key_head(w->call, &w->plan, unit), keys.begin);
    queue_rows(e, (row_queue){first, keys.end - keys.begin, t->i, width, write});
}

/* With the tiles of some keys and blocks of rows. A unit that has all keys also prefetches what it writes at its end
 * and what `next` begins with; that comes with its last keys, as the second-level cache does not hold it for long. */
static void prefetch_with_keys(const af_backward *w, const backward_scratch *s, af_unit unit, af_unit next,
                               af_interval keys, af_interval blocks, bool last)
{
    const af_call *call = w->call;
    const af_gradients *g = w->gradients;
    edges *e = s->ahead.edge;
    e->queues = 0;
    queue_keys(e, w, &g->key, unit, keys, call->D, true);
    queue_keys(e, w, &g->value, unit, keys, call->Dv, true);
    if (last) {
        const af_interval first = {0, af_min(call->Lk, w->plan.key_block)};
        queue_queries(e, w, &g->query, unit, call->D, true);
        queue_queries(e, w, &call->operands.query, next, call->D, false);
        queue_queries(e, w, &g->grad_output, next, call->Dv, false);
        queue_queries(e, w, &g->output, next, call->Dv, false);
        if (next.row == 0 && next.rows) {
            queue_keys(e, w, &call->operands.key, next, first, call->D, false);
            queue_keys(e, w, &call->operands.value, next, first, call->Dv, false);
        }
    }
    spread_edges(e, 2 * (blocks.end - blocks.begin) * ((keys.end - keys.begin + AF_MR - 1) / AF_MR));
}

#endif

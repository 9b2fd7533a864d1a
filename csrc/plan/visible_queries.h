/* Which queries can see any, or all, of some keys, as far as position and length decide it: the reverse of
 * plan/intervals.h, for passes that go through blocks of keys.
 *
 * Queries are counted as blocks of rows take them: by number, or by place in the call's order of queries. Both
 * functions cost O(1), or O(log Lq) with centers and O(log Lk) with gathered keys. They ignore masks, block masks,
 * global tokens and excluded windows, which can only hide more. */
#ifndef AF_VISIBLE_QUERIES_H
#define AF_VISIBLE_QUERIES_H

#include "plan/intervals.h"

/* The keys that are no padding. */
static inline af_interval af_real_keys(const af_call *call, int64_t b)
{
    const int64_t *position = call->subset.key_position;
    const af_interval real = {call->visible.kv_start ? call->visible.kv_start[b] : 0,
                              call->visible.kv_length ? call->visible.kv_length[b] : call->Lk};
    if (!position) return real;
    return (af_interval){af_count_below(position, call->Lk, real.begin), af_count_below(position, call->Lk, real.end)};
}

/* From the position of the first of some keys that is no padding to the one after that of the last; empty if all are
 * padding. */
static inline af_interval af_key_positions(const af_call *call, int64_t b, af_interval keys)
{
    const int64_t *position = call->subset.key_position;
    keys = af_intersect(keys, af_real_keys(call, b));
    if (!position || keys.begin == keys.end) return keys;
    return (af_interval){position[keys.begin], position[keys.end - 1] + 1};
}

/* How many windows around centers end, or begin, before `limit`. As centers rise from query to query
 * (driver/query_order.c), these are the windows of the first queries. */
static inline int64_t af_count_windows(const af_call *call, int64_t b, int64_t h, bool ends, int64_t limit)
{
    const af_tensor *order = &call->subset.query_order;
    int64_t low = 0, high = call->Lq;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        const int64_t i = order->data ? ((const int64_t *)order->data)[af_offset(order, b, h, middle)] : middle;
        const af_interval window = af_center_window(call, b, h, i);
        if ((ends ? window.end : window.begin) < limit) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The queries whose windows begin at or before position `low` and end at or after position `high`. */
static inline af_interval af_queries_between(const af_call *call, int64_t b, int64_t h, int64_t low, int64_t high)
{
    const int64_t offset = af_position(call, b, 0);
    const af_interval real = {0, call->visible.q_length ? call->visible.q_length[b] : call->Lq};
    const af_interval queries = {high - call->visible.right - offset, low + call->visible.left + 1 - offset};
    if (!call->visible.center.data) return af_intersect(queries, real);
    af_interval places = {af_count_windows(call, b, h, true, high + 1), af_count_windows(call, b, h, false, low + 1)};
    if (call->subset.query_order.data) return af_intersect(places, (af_interval){0, call->Lq});
    if (call->visible.causal) places.begin = af_max(places.begin, high - offset);
    return af_intersect(places, real);
}

/* The queries that can see any of some keys, from the first to the last. Those between can as well, unless keys are
 * gathered or windows have centers. */
static inline af_interval af_visible_queries(const af_call *call, int64_t b, int64_t h, af_interval keys)
{
    const af_interval positions = af_key_positions(call, b, keys);
    if (positions.begin == positions.end) return (af_interval){0, 0};
    if (call->subset.query_order.data && !call->visible.center.data) return (af_interval){0, call->Lq};
    return af_queries_between(call, b, h, positions.end - 1, positions.begin);
}

/* Queries that see all of some keys; with an order of queries maybe not every one. */
static inline af_interval af_queries_seeing_all(const af_call *call, int64_t b, int64_t h, af_interval keys)
{
    const af_interval real = af_real_keys(call, b);
    if (keys.begin < real.begin || keys.end > real.end || keys.begin == keys.end) return (af_interval){0, 0};
    const bool ordered = call->subset.query_order.data != NULL;
    if (ordered && (!call->visible.center.data || call->visible.causal || call->visible.q_length))
        return (af_interval){0, 0};
    const af_interval positions = af_key_positions(call, b, keys);
    return af_queries_between(call, b, h, positions.begin, positions.end - 1);
}

#endif

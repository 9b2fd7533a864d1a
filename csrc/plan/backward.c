#include "plan/backward.h"

#include "kernels.h"

/* Keys of a block: with two or more blocks of rows its weights and their gradients fit the second-level cache. 64 keys
 * are 1 to 2 % slower, 256 1 to 3 % (Zen 4, 4 x 2048 x 64, AVX-512 and AVX2). */
enum { BLOCK_KEYS = 128 };

/* A panel has at most some MOST_RANGES units for the threads, of at least LEAST_RANGE keys. Half of it with twice the
 * units: 1 to 2 % slower; 1024 keys: within 3 % (Zen 4, one thread). */
enum { LEAST_RANGE = 512, MOST_RANGES = 16 };

/* A multiple of the rows of every kernel table's blocks. Half and double: up to 2 % slower (Zen 4). */
enum { PANEL_ROWS = 768 };

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/* Whether rows see what a window leaves of the keys, and rows further on what is further on. */
static bool has_window(const af_call *call)
{
    return !call->visible.center.data && !call->subset.query_order.data && !call->subset.key_position;
}

/* The most keys from the first to the last that a panel sees. */
static int64_t keys_of_panel(const af_backward *w)
{
    const af_call *call = w->call;
    if (!has_window(call) || call->visible.left >= AF_FAR || call->visible.right >= AF_FAR) return call->Lk;
    const int64_t queries = ceil_div(w->panel_rows, w->plan.group) + 1;
    return af_max(0, af_min(call->Lk, call->visible.left + call->visible.right + queries));
}

af_interval af_seen_ranges(const af_backward *w, int64_t b, int64_t row, int64_t rows)
{
    const af_call *call = w->call;
    if (!has_window(call)) return (af_interval){0, w->ranges};
    const int64_t first = af_position(call, b, row / w->plan.group) - call->visible.left,
                  end = af_position(call, b, (row + rows - 1) / w->plan.group) + call->visible.right + 1;
    return (af_interval){af_max(0, af_min(first, call->Lk)) / w->range_keys,
                         ceil_div(af_max(0, af_min(end, call->Lk)), w->range_keys)};
}

void af_plan_backward(af_backward *w, const af_call *call, const af_kernels *kernels)
{
    const af_gradients *gradients = &call->gradients;
    *w = (af_backward){.call = call, .gradients = gradients};
    af_make_plan(&w->plan, call, kernels, 0, false);
    w->plan.key_block = BLOCK_KEYS;
    w->panel_rows = af_min(PANEL_ROWS, w->plan.rows);
    const int64_t keys = keys_of_panel(w);
    w->range_keys = ceil_div(af_max(LEAST_RANGE, ceil_div(keys, MOST_RANGES)), BLOCK_KEYS) * BLOCK_KEYS;
    w->ranges = ceil_div(call->Lk, w->range_keys);
    w->parts = af_min(w->ranges, ceil_div(keys, w->range_keys) + 1);
    w->panel_blocks = ceil_div(w->panel_rows, w->plan.block_rows);
    w->by_weight = gradients->score_weight || gradients->score_bias;
    w->block_part = (call->D + AF_ROW_SUMS + (w->by_weight ? call->D : 0)) * kernels->nr;
    w->part_bytes = (size_t)(w->panel_blocks * w->block_part * kernels->real_size);
    w->part_bytes = (w->part_bytes + (size_t)w->panel_blocks + 63) & ~(size_t)63;
    w->scores = gradients->query.data || gradients->key.data || gradients->bias.data || gradients->alibi ||
                gradients->center.data || w->by_weight;
    w->panel_bytes = kernels->panel_bytes(w);
}

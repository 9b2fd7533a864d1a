#include "plan/backward.h"

#include "kernels.h"
#include "plan/intervals.h"

/* Keys of a block: with two or more blocks of rows its weights and their gradients fit the second-level cache. 64 keys
 * are 1 to 2 % slower, 256 1 to 3 % (Zen 4, 4 x 2048 x 64, AVX-512 and AVX2). */
enum { BLOCK_KEYS = 128 };

/* A head has at most MOST_RANGES units for the threads, of at least LEAST_RANGE keys. Half of it with twice the units:
 * 1 to 2 % slower; 1024 keys: within 3 % (Zen 4, one thread). */
enum { LEAST_RANGE = 512, MOST_RANGES = 16 };

/* A multiple of the rows of every kernel table's blocks. Half and double: up to 2 % slower (Zen 4). */
enum { PANEL_ROWS = 768 };

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

void af_plan_backward(af_backward *w, const af_call *call, const af_kernels *kernels)
{
    const af_gradients *gradients = &call->gradients;
    *w = (af_backward){.call = call, .gradients = gradients};
    af_make_plan(&w->plan, call, kernels);
    w->plan.key_block = BLOCK_KEYS;
    w->range_keys = ceil_div(af_max(LEAST_RANGE, ceil_div(call->Lk, MOST_RANGES)), BLOCK_KEYS) * BLOCK_KEYS;
    w->ranges = ceil_div(call->Lk, w->range_keys);
    w->panel_rows = af_min(PANEL_ROWS, w->plan.rows);
    w->panel_blocks = ceil_div(w->panel_rows, w->plan.block_rows);
    w->by_weight = gradients->score_weight || gradients->score_bias;
    w->block_part = (call->D + AF_ROW_SUMS + (w->by_weight ? call->D : 0)) * kernels->nr;
    w->part_bytes = (size_t)(w->panel_blocks * w->block_part * kernels->real_size);
    w->part_bytes = (w->part_bytes + (size_t)w->panel_blocks + 63) & ~(size_t)63;
    w->scores = gradients->query.data || gradients->key.data || gradients->bias.data || gradients->alibi ||
                gradients->center.data || w->by_weight;
    w->panel_bytes = kernels->panel_bytes(w);
}

#include "plan.h"

#include "kernels.h"
#include "span.h"

/* Keys per score tile. With 48 lanes of float a tile of 128 keys is 24 kB: it stays in a 32 kB first-level cache
 * together with the rows of the query that stream through. */
enum { FORWARD_KEYS = 128, DECODE_KEYS = 64 };

/* A decode unit reads about this many bytes of keys and values: 1 MiB is 40 us at 26 GB/s, long enough to hide the
 * cost of a partial result. The number of splits is bounded so that partial results stay small. */
enum { DECODE_SPLIT_BYTES = 1 << 20, DECODE_MAX_SPLITS = 64 };

/* Blocks of rows are split over their keys when there is only one, and so that one unit lasts some 10 ms at most:
 * key_block * split * (D + Dv) of 2^22 is 0.4 GFLOP with 48 rows. */
enum { FORWARD_SPLIT_KEYS = 2048, FORWARD_SPLIT_WORK = 1 << 22, FORWARD_MAX_SPLITS = 32 };

/* Keys that one unit of the pass over the weights writes. */
enum { WEIGHTS_CHUNK = 8192 };

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/* The most keys that one block of rows can see. */
static int64_t longest_span(const af_problem *p, const af_plan *plan)
{
    if (p->left >= AF_FAR || p->right >= AF_FAR) return p->Lk;
    const int64_t queries = ceil_div(plan->block_rows, plan->group) + 1;
    return af_max(0, af_min(p->Lk, p->left + p->right + queries));
}

static void plan_splits(af_plan *plan, const af_problem *p)
{
    const int64_t span = longest_span(p, plan), width = af_max(1, p->D + p->Dv);
    const int64_t size = p->dtype == AF_F64 ? 8 : p->dtype == AF_F32 ? 4 : 2;
    int64_t keys;
    if (plan->decode) {
        keys = af_max(256, DECODE_SPLIT_BYTES / (width * size));
        keys = af_max(keys, ceil_div(span, DECODE_MAX_SPLITS));
    } else {
        keys = plan->blocks <= 1 ? FORWARD_SPLIT_KEYS : af_max(1024, FORWARD_SPLIT_WORK / width);
        keys = af_max(keys, ceil_div(span, FORWARD_MAX_SPLITS));
    }
    plan->split_keys = round_up(keys, plan->key_block);
    plan->splits = af_max(1, ceil_div(span, plan->split_keys));
}

void af_make_plan(af_plan *plan, const af_problem *p, const af_kernels *kernels)
{
    *plan = (af_plan){.kernels = kernels, .group = p->H / p->Hk};
    plan->rows = plan->group * p->Lq;
    plan->decode = plan->rows <= kernels->decode_rows;
    plan->block_rows = (int)af_min(plan->rows, plan->decode ? kernels->decode_rows : kernels->nr);
    plan->blocks = ceil_div(plan->rows, plan->block_rows);
    plan->key_block = plan->decode ? DECODE_KEYS : FORWARD_KEYS;
    plan_splits(plan, p);
    plan->chunk_keys = WEIGHTS_CHUNK;
    plan->chunks = af_max(1, ceil_div(p->Lk, WEIGHTS_CHUNK));
    plan->partial_bytes = (size_t)(2 + p->Dv) * (size_t)kernels->nr * (size_t)kernels->real_size;
    plan->softmax = p->value.data || p->lse || (p->weights.data && p->stage == AF_WEIGHTS);
    plan->base2 = p->softcap == 0 && !p->bias.data && !p->alibi && plan->softmax;
    plan->query_scale = p->softcap != 0 ? p->scale / p->softcap : p->scale;
    if (plan->base2) plan->query_scale *= 1.4426950408889634;
    plan->pairs = (double)p->B * (double)p->Hk * (double)plan->rows * (double)longest_span(p, plan);
}

af_unit af_plan_unit(const af_plan *plan, const af_problem *p, int64_t index, int64_t splits)
{
    af_unit unit = {.split = index % splits};
    index /= splits;
    unit.row = (plan->blocks - 1 - index % plan->blocks) * plan->block_rows;
    unit.rows = (int)af_min(plan->block_rows, plan->rows - unit.row);
    index /= plan->blocks;
    unit.hk = index % p->Hk;
    unit.b = index / p->Hk;
    return unit;
}

static bool mask_shows(const af_problem *p, int64_t b, int64_t h, int64_t i, int64_t j)
{
    const uint8_t *mask = p->mask.data;
    return !mask || mask[af_offset(&p->mask, b, h, i) + j * p->mask.j];
}

/* Pairs of one block of rows: those visible, and those of the key blocks in which anything is. */
static void count_block(const af_plan *plan, const af_problem *p, af_unit unit, int64_t *visible, int64_t *visited)
{
    const int64_t G = plan->group, end_row = unit.row + unit.rows;
    af_span span = {0, 0};
    for (int64_t i = unit.row / G; i * G < end_row; i++) span = af_join(span, af_visible_keys(p, unit.b, i));
    for (int64_t j0 = span.begin; j0 < span.end; j0 += plan->key_block) {
        const int64_t j1 = af_min(span.end, j0 + plan->key_block);
        int64_t seen = 0;
        for (int64_t row = unit.row; row < end_row; row++) {
            const af_span keys = af_visible_keys(p, unit.b, row / G);
            const int64_t begin = af_max(j0, keys.begin), end = af_min(j1, keys.end);
            if (!p->mask.data) seen += af_max(0, end - begin);
            else
                for (int64_t j = begin; j < end; j++) seen += mask_shows(p, unit.b, unit.hk * G + row % G, row / G, j);
        }
        *visible += seen;
        if (seen || plan->decode) *visited += (j1 - j0) * unit.rows;
    }
}

void af_count_pairs(const af_plan *plan, const af_problem *p, int64_t *visible, int64_t *visited)
{
    *visible = *visited = 0;
    for (int64_t index = 0; index < p->B * p->Hk * plan->blocks; index++)
        count_block(plan, p, af_plan_unit(plan, p, index, 1), visible, visited);
}

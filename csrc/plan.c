#include "plan.h"

#include "kernels.h"
#include "span.h"

/* Keys per score tile: 64, 128 and 192 measured alike on Zen 4 (AVX-512, D = 64 and 128) within the noise. */
enum { FORWARD_KEYS = 128 };

/* Decode: long stretches of keys and then of values, for memory to run at speed. */
enum { DECODE_BLOCK_BYTES = 1 << 19, DECODE_MOST_KEYS = 1024 };

/* A decode unit reads about this many bytes of keys and values: 1 MiB is 40 us at 26 GB/s, long enough to hide the
 * cost of a partial result. The number of splits is bounded so that partial results stay small. */
enum { DECODE_SPLIT_BYTES = 1 << 20, DECODE_MAX_SPLITS = 64 };

/* Blocks of rows are split over their keys when there is only one, and so that one unit lasts some 10 ms at most:
 * split keys * (D + Dv) of 2^22 is 0.4 GFLOP with 48 rows. */
enum { FORWARD_SPLIT_KEYS = 2048, FORWARD_SPLIT_WORK = 1 << 22, FORWARD_MAX_SPLITS = 32 };

/* Keys that one unit of the pass over the weights writes. */
enum { WEIGHTS_CHUNK = 8192 };

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

static int64_t elem_bytes(const af_problem *p) { return p->dtype == AF_F64 ? 8 : p->dtype == AF_F32 ? 4 : 2; }

static int decode_keys(const af_problem *p)
{
    const int64_t fit = DECODE_BLOCK_BYTES / (af_max(1, p->D) * elem_bytes(p)) / 64 * 64;
    return (int)af_max(64, af_min(fit, DECODE_MOST_KEYS));
}

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
    int64_t keys;
    if (plan->decode) {
        keys = af_max(256, DECODE_SPLIT_BYTES / (width * elem_bytes(p)));
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
    plan->key_block = plan->decode ? decode_keys(p) : FORWARD_KEYS;
    plan_splits(plan, p);
    plan->chunk_keys = WEIGHTS_CHUNK;
    plan->chunks = af_max(1, ceil_div(p->Lk, WEIGHTS_CHUNK));
    plan->partial_bytes = (size_t)(2 + p->Dv) * (size_t)kernels->nr * (size_t)kernels->real_size;
    plan->softmax = p->value.data || p->lse || (p->weights.data && p->stage == AF_WEIGHTS);
    plan->base2 = p->softcap == 0 && !p->bias.data && !p->alibi && !p->sink && plan->softmax;
    plan->query_scale = p->scale;
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

/* Pairs of rows [row, end) with keys [j0, j1) that position, length and mask let through. */
static int64_t visible_in(const af_plan *plan, const af_problem *p, af_unit unit, int64_t row, int64_t end, int64_t j0,
                          int64_t j1)
{
    const uint8_t *mask = p->mask.data;
    int64_t seen = 0;
    for (; row < end; row++) {
        const int64_t i = row / plan->group, h = unit.hk * plan->group + row % plan->group;
        const af_span keys = af_visible_keys(p, unit.b, i);
        const int64_t begin = af_max(j0, keys.begin), last = af_min(j1, keys.end);
        if (!mask) seen += af_max(0, last - begin);
        else
            for (int64_t j = begin; j < last; j++) seen += mask[af_offset(&p->mask, unit.b, h, i) + j * p->mask.j] != 0;
    }
    return seen;
}

enum { MAX_VECTORS = 8 };

/* Walks the pieces of keys as kernel/forward.h and kernel/decode.h do. */
static void count_block(const af_plan *plan, const af_problem *p, af_unit unit, int64_t *visible, int64_t *visited)
{
    const int vl = plan->decode ? unit.rows : plan->kernels->vl, nv = (unit.rows + vl - 1) / vl;
    af_span vectors[MAX_VECTORS] = {{0, 0}}, whole = {0, 0};
    for (int lane = 0; lane < unit.rows; lane++) {
        const af_span seen = af_visible_keys(p, unit.b, (unit.row + lane) / plan->group);
        vectors[lane / vl] = af_join(vectors[lane / vl], seen);
        whole = af_join(whole, seen);
    }
    const uint8_t *mask = af_key_mask(p, unit.b, unit.hk);
    whole = af_trim(mask, whole);
    for (int64_t split = 0; split < plan->splits; split++) {
        const af_span span = af_split(whole, split, plan->split_keys);
        for (int64_t j = span.begin, n; j < span.end; j += n) {
            const af_piece piece = af_take_keys(vectors, nv, span, mask, j, plan->key_block);
            n = piece.keys;
            const int64_t seen = visible_in(plan, p, unit, unit.row, unit.row + unit.rows, j, j + n);
            *visible += seen;
            if (seen || (plan->decode && !mask))
                *visited += n * (af_min(unit.rows, piece.last * vl) - piece.first * vl);
        }
    }
}

/* Heads and batch rows that cannot differ are counted once. */
void af_count_pairs(const af_plan *plan, const af_problem *p, int64_t *visible, int64_t *visited)
{
    const bool same_heads = !p->mask.data || p->mask.h == 0;
    const bool same_rows =
        (!p->mask.data || (p->mask.b == 0 && !p->mask.batch)) && !p->q_offset && !p->q_length && !p->kv_length;
    const int64_t rows = same_rows ? 1 : p->B, heads = same_heads ? 1 : p->Hk;
    *visible = *visited = 0;
    for (int64_t b = 0; b < rows; b++)
        for (int64_t hk = 0; hk < heads; hk++)
            for (int64_t block = 0; block < plan->blocks; block++) {
                const int64_t row = block * plan->block_rows;
                const int here = (int)af_min(plan->block_rows, plan->rows - row);
                count_block(plan, p, (af_unit){.b = b, .hk = hk, .row = row, .rows = here}, visible, visited);
            }
    *visible *= (p->B / rows) * (p->Hk / heads);
    *visited *= (p->B / rows) * (p->Hk / heads);
}

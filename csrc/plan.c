#include "plan.h"

#include "kernels.h"
#include "view.h"

/* Keys per score tile. With 48 float32 lanes 64, 128 and 192 measured alike on Zen 4 (AVX-512); with the 24 of AVX2,
 * whose tile is half as large, 256 are 1 to 2 % faster (384 and 512 no faster, in float64 3 % slower). */
enum { FORWARD_KEYS = 128, NARROW_KEYS = 256, NARROW_BYTES = 96 };

/* Decode: long stretches of keys and then of values, for memory to run at speed. */
enum { DECODE_BLOCK_BYTES = 1 << 19, DECODE_MOST_KEYS = 1024 };

/* A decode unit reads about this many bytes of keys and values: 1 MiB is 40 us at 26 GB/s, long enough to hide the
 * cost of a partial result. The number of splits is bounded so that partial results stay small. */
enum { DECODE_SPLIT_BYTES = 1 << 20, DECODE_MAX_SPLITS = 64 };

/* Blocks of rows are split over their keys when there is only one, and so that one unit lasts some 10 ms at most:
 * split keys * (D + Dv) of 2^22 is 0.4 GFLOP with 48 rows. */
enum { FORWARD_SPLIT_KEYS = 2048, FORWARD_SPLIT_WORK = 1 << 22, FORWARD_MAX_SPLITS = 32 };

/* Where rows see a few keys here and there of a long stretch, most splits would be empty: a unit that does see all of
 * its keys (the row of a global token) then lasts some 30 ms. A tanh counts as so many products. */
enum { SPARSE_SPLIT_WORK = 1 << 25 };

/* With additive scores every row costs a tanh for each element of a key, where blocks of rows in the lanes cost about
 * an eighth of that but for all lanes. */
enum { ADDITIVE_DECODE_ROWS = 4 };

/* Keys that one unit of the pass over the weights writes, and of the one that adds them up for each key. */
enum { WEIGHTS_CHUNK = 8192, IMPORTANCE_CHUNK = 1024, IMPORTANCE_LEAST = 128, IMPORTANCE_CHUNKS = 16 };

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

static int decode_keys(const af_problem *p)
{
    const int64_t fit = DECODE_BLOCK_BYTES / (af_max(1, p->D) * af_elem_bytes(p->dtype)) / 64 * 64;
    return (int)af_max(64, af_min(fit, DECODE_MOST_KEYS));
}

/* Twice the keys would leave out only half of what a mask of blocks hides, and take twice the memory where keys are
 * widened or added to queries. */
static int forward_keys(const af_problem *p, const af_kernels *kernels)
{
    const bool narrow = kernels->nr * af_real_bytes(p->dtype) <= NARROW_BYTES;
    return narrow && p->dtype <= AF_F64 && !p->mask.data && !p->additive ? NARROW_KEYS : FORWARD_KEYS;
}

/* The most keys that one block of rows can see. */
static int64_t longest_span(const af_problem *p, const af_plan *plan)
{
    if (p->left >= AF_FAR || p->right >= AF_FAR || p->center.data) return p->Lk;
    const int64_t queries = ceil_div(plan->block_rows, plan->group) + 1;
    return af_max(0, af_min(p->Lk, p->left + p->right + queries));
}

static void plan_splits(af_plan *plan, const af_problem *p)
{
    const int64_t span = longest_span(p, plan), width = af_max(1, (p->additive ? AF_TANH_WORK : 1) * p->D + p->Dv);
    int64_t keys;
    if (plan->decode) {
        keys = af_max(256, DECODE_SPLIT_BYTES / (width * af_elem_bytes(p->dtype)));
        keys = af_max(keys, ceil_div(span, DECODE_MAX_SPLITS));
    } else {
        const bool sparse = p->blocks.data || p->global || p->center.data;
        const int64_t work = sparse ? SPARSE_SPLIT_WORK : FORWARD_SPLIT_WORK;
        keys = plan->blocks <= 1 ? FORWARD_SPLIT_KEYS : af_max(1024, work / width);
        keys = af_max(keys, ceil_div(span, FORWARD_MAX_SPLITS));
    }
    plan->split_keys = round_up(keys, plan->key_block);
    plan->splits = af_max(1, ceil_div(span, plan->split_keys));
}

/* Not too few chunks for threads to share. */
static int64_t importance_chunk(const af_problem *p)
{
    const int64_t keys = round_up(ceil_div(p->Lk, IMPORTANCE_CHUNKS), IMPORTANCE_LEAST);
    return af_max(IMPORTANCE_LEAST, af_min(IMPORTANCE_CHUNK, keys));
}

void af_make_plan(af_plan *plan, const af_problem *p, const af_kernels *kernels)
{
    /* Scores that have weights of their own in each head, and sums over the queries of a head: one head at a time. */
    *plan = (af_plan){.kernels = kernels, .group = p->additive || p->importance ? 1 : p->H / p->Hk};
    plan->head_groups = p->H / plan->group;
    plan->rows = plan->group * p->Lq;
    plan->decode = plan->rows <= (p->additive ? ADDITIVE_DECODE_ROWS : kernels->decode_rows);
    if (p->topk || p->importance) plan->decode = false;
    plan->block_rows = (int)af_min(plan->rows, plan->decode ? kernels->decode_rows : kernels->nr);
    plan->blocks = ceil_div(plan->rows, plan->block_rows);
    plan->key_block = plan->decode ? decode_keys(p) : forward_keys(p, kernels);
    plan_splits(plan, p);
    plan->chunk_keys = p->importance ? importance_chunk(p) : WEIGHTS_CHUNK;
    plan->chunks = af_max(1, ceil_div(p->Lk, plan->chunk_keys));
    const int64_t partial = (2 + 2 * p->topk) * kernels->nr + p->Dv * (plan->decode ? plan->block_rows : kernels->nr);
    plan->partial_bytes = (size_t)partial * (size_t)kernels->real_size;
    plan->softmax = !p->weights.data || p->stage == AF_WEIGHTS || p->value.data;
    plan->second = p->weights.data || p->importance;
    plan->base2 =
        p->softcap == 0 && !p->bias.data && !p->alibi && !p->sink && !p->additive && !p->topk && plan->softmax;
    plan->query_scale = p->additive ? 1 : p->scale;
    if (plan->base2) plan->query_scale *= 1.4426950408889634;
    plan->pairs = (double)p->B * (double)plan->head_groups * (double)plan->rows * (double)longest_span(p, plan);
}

af_unit af_plan_unit(const af_plan *plan, int64_t index, int64_t splits)
{
    af_unit unit = {.split = index % splits};
    index /= splits;
    unit.row = (plan->blocks - 1 - index % plan->blocks) * plan->block_rows;
    unit.rows = (int)af_min(plan->block_rows, plan->rows - unit.row);
    index /= plan->blocks;
    unit.hg = index % plan->head_groups;
    unit.b = index / plan->head_groups;
    return unit;
}

#include "plan/plan.h"

#include "kernels.h"
#include "plan/visibility.h"

/* Keys per score tile. With 48 float32 lanes 64, 128 and 192 measured alike on Zen 4 (AVX-512); with the 24 of AVX2,
 * whose tile is half as large, 256 are 1 to 2 % faster (384 and 512 no faster, in float64 3 % slower). */
enum { FORWARD_KEYS = 128, NARROW_KEYS = AF_TILE_KEYS, NARROW_BYTES = 96 };

/* Rows of values that are whole pages apart share the same few sets of a cache, and few of many stay in it. 512 x 512 x
 * 512, 1024 and 2048: 9.7, 17.0 and 33.7 ms with 128 keys, 9.2, 14.8 and 29.9 with 64 (Zen 4, AVX-512); with AVX2 0 to
 * 4 % less than with 256. */
enum { WIDE_HEAD = 512, WIDE_KEYS = 64 };

/* Decode: a block of keys reads this many bytes of keys, then of values. Memory is fastest when it is read in long
 * runs: with at most 512 keys a block, heads of 64 and 128 are 2 to 10 % slower, with 2048 heads of 64 are 2 to 4 %
 * faster (Zen 4, AVX-512 and AVX2), which is not taken as bits would change. */
enum { DECODE_BLOCK_BYTES = 1 << 19, DECODE_MOST_KEYS = 1024 };

/* A decode unit reads about this many bytes of keys and values: 1 MiB takes 40 us at 26 GB/s (Zen 4), long enough to
 * hide the cost of a partial result. The bound on splits keeps the partial
 * results of 8 rows with 128 columns of float32 at 290 KB at most, which a second-level cache holds. */
enum { DECODE_SPLIT_BYTES = 1 << 20, DECODE_MAX_SPLITS = 64 };

/* Blocks of rows are split over their keys when there is only one, and so that one unit lasts some 10 ms at most:
 * split keys * (D + Dv) of 2^22 is 0.4 GFLOP with 48 rows. Half and double of both: within 2 %, but for 1024 keys of
 * the only block, which are 3 % slower with AVX-512 (Zen 4, 40 x 16384 x 64 and 96 x 32768 x 128). */
enum { FORWARD_SPLIT_KEYS = 2048, FORWARD_SPLIT_WORK = 1 << 22, FORWARD_MAX_SPLITS = 32 };

/* Where rows see only a few scattered keys, most splits would be empty. A unit that does see all of its keys (the
 * row of a global token) then lasts some 30 ms, within the 50 ms between two checks of signals. A tanh counts as
 * AF_TANH_WORK products. */
enum { SPARSE_SPLIT_WORK = 1 << 25 };

/* Blocks of rows in a unit of the attend pass: at most so many, so that a unit of long rows lasts some 30 ms; and fewer
 * where a head would have less than LEAST_UNITS units for the threads. With windows of 256 beside global tokens, 8
 * blocks are 0 to 3 % slower than one (Zen 4). LEAST_UNITS is reasoned, not measured. */
enum { MOST_UNIT_BLOCKS = 8, LEAST_UNITS = 8, UNIT_WORK = 1 << 25 };

/* Units of decode whose head groups read at most BRIEF_BYTES of keys and values each: BRIEF_BLOCKS head groups at a
 * time, and as many lots of them as read BRIEF_UNIT_BYTES, so that many threads have units. 50,000 heads of one key of
 * 16: 2.5 ms with 8 lots of 8 or 4 head groups, 2.8 with 8 of 16, 2.3 with 32 of 8, 3.6 with one. 512 heads of 31 and
 * 60 keys of 64, always 8 lots: 118 and 212 us with a limit of 32 KiB, 127 and 246 with 16, 145 and 246 with 8 (Zen 5,
 * AVX-512, one thread). Head groups that could take turns do so above BRIEF_IN_TURN: 1534 of 64 keys of 40 in (L, B, H,
 * D) have 1.5 times NumPy's speed in turn, 0.7 so. */
enum { BRIEF_BYTES = 1 << 15, BRIEF_IN_TURN = 1 << 13, BRIEF_BLOCKS = 8, BRIEF_LOTS = 8, BRIEF_UNIT_BYTES = 1 << 18 };

/* Units with several splits are at least so many: four for each of 16 threads. */
enum { COLUMN_UNITS = 64 };

/* Decode of heads in turn: see turn_heads. */
enum { TURN_BYTES = 1 << 18, TURN_ROWS = 32 };

/* With additive scores every row costs a tanh for each element of a key, where blocks of rows in the lanes cost about
 * an eighth of that but for all lanes. At 4 queries and 2000 keys x 256, decoding saves 3 % (AVX2) to 35 % (AVX-512,
 * Zen 4). */
enum { ADDITIVE_DECODE_ROWS = 4 };

/* Keys that one unit of the pass over the weights writes, and of the one that adds them up for each key. Zen 4: 16384
 * keys of weights are within 1 %, 4096 from 2 % faster (AVX2) to 8 % slower; 512 keys of importance are up to 19 %
 * slower (AVX2), 2048 1 to 3 % faster, but make half the units. IMPORTANCE_LEAST is a block of keys. */
enum { WEIGHTS_CHUNK = 8192, IMPORTANCE_CHUNK = 1024, IMPORTANCE_LEAST = 128, IMPORTANCE_CHUNKS = 16 };

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

static int decode_keys(const af_call *call)
{
    const int64_t fit = DECODE_BLOCK_BYTES / (af_max(1, call->D) * af_key_bytes(call)) / 64 * 64;
    return (int)af_max(64, af_min(af_min(fit, DECODE_MOST_KEYS), round_up(call->Lk, 64)));
}

/* Twice as many keys would skip only half of what a mask of blocks hides, and take twice the memory where keys are
 * copied or added to queries. */
static int forward_keys(const af_call *call, const af_kernels *kernels)
{
    if (af_max(call->D, call->Dv) >= WIDE_HEAD) return WIDE_KEYS;
    const bool narrow = kernels->nr * af_real_bytes(call->dtype) <= NARROW_BYTES;
    return narrow && !af_copies_keys(call) && !call->visible.mask.data && !call->score.additive ? NARROW_KEYS
                                                                                                : FORWARD_KEYS;
}

/* The most keys that one block of rows can see. */
static int64_t longest_span(const af_call *call, const af_plan *plan)
{
    if (call->visible.left >= AF_FAR || call->visible.right >= AF_FAR || call->visible.center.data) return call->Lk;
    const int64_t queries = ceil_div(plan->block_rows, plan->group) + 1;
    return af_max(0, af_min(call->Lk, call->visible.left + call->visible.right + queries));
}

static void plan_splits(af_plan *plan, const af_call *call)
{
    const int64_t span = longest_span(call, plan),
                  width = af_max(1, (call->score.additive ? AF_TANH_WORK : 1) * call->D + call->Dv);
    int64_t keys;
    if (plan->decode) {
        keys = af_max(256, DECODE_SPLIT_BYTES / (width * af_key_bytes(call)));
        keys = af_max(keys, ceil_div(span, DECODE_MAX_SPLITS));
    } else {
        const bool sparse = call->visible.blocks.data || call->subset.global || call->visible.center.data;
        const int64_t work = sparse ? SPARSE_SPLIT_WORK : FORWARD_SPLIT_WORK;
        keys = plan->blocks <= 1 ? FORWARD_SPLIT_KEYS : af_max(1024, work / width);
        keys = af_max(keys, ceil_div(span, FORWARD_MAX_SPLITS));
    }
    plan->split_keys = round_up(keys, plan->key_block);
    plan->splits = af_max(1, ceil_div(span, plan->split_keys));
}

/* Lots of head groups in a unit of decode; 0 where a head group has more than so many bytes to read, or where queries
 * and outputs of a lot take more memory than a unit reads. */
static int brief_lots(const af_plan *plan, const af_call *call, int64_t bytes)
{
    const int64_t row = af_max(1, (call->D + call->Dv) * af_key_bytes(call));
    const int64_t state = BRIEF_BLOCKS * plan->rows * (call->D + call->Dv) * plan->kernels->real_size;
    if (call->Lk > bytes / row || state > BRIEF_UNIT_BYTES || plan->splits > 1 || call->score.additive) return 0;
    const int64_t lot = BRIEF_BLOCKS * af_max(1, call->Lk * row);
    return (int)af_max(1, af_min(BRIEF_LOTS, BRIEF_UNIT_BYTES / lot));
}

/* Whether every head group sees the same keys, and has its rows where they are stored. */
static bool groups_are_alike(const af_call *call)
{
    const af_visible *v = &call->visible;
    const bool same_positions = !v->q_offset && !v->q_length && !v->kv_length && !v->kv_start && !v->center.data;
    const bool own_rows =
        call->subset.global || call->subset.key_position || call->subset.class_step || call->subset.query_order.data;
    const bool in_place = !call->operands.block_table && !call->operands.storage;
    return same_positions && !own_rows && in_place && af_is_shared(&v->mask) && af_is_shared(&v->blocks);
}

/* How many heads take turns in decode, so that memory is read in long runs: as many as make a run of TURN_BYTES where
 * the heads of a page, or of a row, are side by side, if what is visible and their state allow it. Rows that no page
 * holds only where lines are requested: 15 to 25 GB/s become 22 to 28 (heads 8/8 to 32/8 x 128 and x 64 in (B, L, H,
 * D), Zen 5, AVX-512). One thread needs no number of units: with 8 heads in turn instead of one, 8/8 x 2048 x 64 takes
 * 94 us instead of 120. */
static int turn_heads(const af_plan *plan, const af_call *call)
{
    const af_operands *p = &call->operands;
    const af_visible *v = &call->visible;
    const bool beside = p->block_table
                            ? p->key.h <= p->key.b
                            : plan->request_bytes && !p->storage && p->key.h < p->key.i && p->value.h < p->value.i;
    if (!beside || af_has_columns(call) || call->score.additive) return 1;
    const int64_t rows = p->block_table ? p->page_size : 1;
    const int64_t turn = af_max(1, rows * call->D * af_key_bytes(call));
    if ((v->mask.data && v->mask.h) || (v->blocks.data && v->blocks.h)) return 1;
    int64_t heads = af_min(af_min(plan->head_groups, ceil_div(TURN_BYTES, turn)), TURN_ROWS / plan->rows);
    const int64_t units = call->B * plan->splits * plan->head_groups;
    if (!plan->alone) heads = af_min(heads, ceil_div(units, LEAST_UNITS));
    while (heads > 1 && plan->head_groups % heads) heads--;
    return (int)af_max(1, heads);
}

/* The head groups of a unit of decode. Where each has next to nothing to do, a unit has many: what they share is set up
 * once, and each step is taken for a lot of them before the next one, as loads wait for the stores before them. */
static void plan_decode_unit(af_plan *plan, const af_call *call)
{
    const int turns = turn_heads(plan, call);
    const int lots = brief_lots(plan, call, turns > 1 ? BRIEF_IN_TURN : BRIEF_BYTES);
    const int brief = (int)af_min(BRIEF_BLOCKS, af_min(BRIEF_BLOCKS, call->B) * plan->head_groups);
    plan->unit_blocks = lots ? brief : turns;
    plan->in_turn = !lots && turns > 1;
    plan->unit_lots = lots ? lots : 1;
    plan->lots_alike = lots && groups_are_alike(call);
}

/* Splits in a unit. Keys in columns are read fastest whole: one query row has the scores of so many splits made
 * together (decode_columns.h): 5 heads of 13,250 keys of 64 have 0.87 instead of 0.81 of NumPy's speed, 58 of 512 keys
 * of 512 0.86 instead of 0.70 (Zen 5, AVX-512). */
static int unit_splits(const af_plan *plan, const af_call *call)
{
    const bool together = plan->block_rows == 1 && plan->unit_blocks == 1 && plan->unit_lots == 1;
    if (!plan->decode || !together || !af_in_columns(&call->operands.key, call->D)) return 1;
    int64_t splits = af_min(plan->splits, af_max(1, AF_COLUMN_KEYS / plan->split_keys));
    const double units = (double)call->B * (double)plan->splits * (double)plan->head_groups; /* may be absurdly many */
    if (!plan->alone && units / COLUMN_UNITS < (double)splits) splits = (int64_t)(units / COLUMN_UNITS);
    return (int)af_max(1, splits);
}

/* How many blocks of rows go through the keys together: as many as have their queries and outputs in the second-level
 * cache beside the keys and values that they meet there. One suffices where all keys and values stay in the cache
 * anyway. */
static int unit_blocks(const af_plan *plan, const af_call *call, const af_kernels *kernels)
{
    if (call->results.topk || call->score.additive) return 1;
    const int64_t width = af_max(1, call->D + (call->results.output.data ? call->Dv : 0));
    const int64_t real_size = kernels->real_size;
    const int64_t span = af_max(1, af_min(longest_span(call, plan), plan->split_keys));
    const bool copies = af_copies_keys(call);
    if (!copies && (double)span * (double)(width * real_size) <= (double)kernels->cache_bytes / 2) return 1;
    const int64_t keys = plan->key_block * width * real_size * (copies ? 2 : 1);
    const int64_t fit = (kernels->cache_bytes - keys) / (kernels->nr * width * real_size);
    int64_t most = af_min(MOST_UNIT_BLOCKS, (int64_t)(UNIT_WORK / ((double)span * (double)width)));
    /* Rows of different blocks of a mask may have no key in common: BigBird in float32 is 10 % slower with 8 blocks a
     * unit (Zen 4, AVX-512). 16-bit keys are 4 to 7 % faster with 8 even so, as fewer of them are widened twice. */
    if (call->visible.blocks.data && !copies)
        most = af_min(most, af_min(call->visible.block_q, call->Lq) * plan->group / plan->block_rows);
    return (int)af_max(1, af_min(af_min(fit, most), plan->blocks / LEAST_UNITS));
}

/* At least IMPORTANCE_CHUNKS chunks where keys allow it, so that all threads have work. */
static int64_t importance_chunk(const af_call *call)
{
    const int64_t keys = round_up(ceil_div(call->Lk, IMPORTANCE_CHUNKS), IMPORTANCE_LEAST);
    return af_max(IMPORTANCE_LEAST, af_min(IMPORTANCE_CHUNK, keys));
}

/* Rows of a block. Where one more vector of lanes than the registers take would be a block of its own, two blocks share
 * the rows: with AVX2 a tile one vector wide has too few sums to keep the multipliers busy. 25 to 32 queries over 12 x
 * 1024 x 64: 1.30 ms in blocks of 24, 1.09 in two of 16 (Zen 4, AVX2). */
static int even_rows(int64_t rows, const af_kernels *kernels)
{
    const bool narrow = kernels->nr * kernels->real_size <= NARROW_BYTES;
    if (narrow && rows > kernels->nr && rows <= kernels->nr + kernels->vl)
        return (int)round_up(ceil_div(rows, 2), kernels->vl);
    return (int)af_min(rows, kernels->nr);
}

static bool decodes(const af_call *call, const af_kernels *kernels, int64_t rows)
{
    if (call->results.topk || call->results.importance || call->subset.visible_weights || call->subset.tiles)
        return false;
    return rows <= (call->score.additive ? ADDITIVE_DECODE_ROWS : kernels->decode_rows);
}

bool af_reads_columns(const af_call *call, const af_kernels *kernels)
{
    if (call->score.additive || call->results.weights.data) return false;
    return decodes(call, kernels, call->H / call->Hk * call->Lq);
}

void af_make_plan(af_plan *plan, const af_call *call, const af_kernels *kernels, int64_t request_bytes, bool alone)
{
    /* Scores that have weights of their own in each head, and sums over the queries of a head: one head at a time. */
    *plan = (af_plan){.kernels = kernels,
                      .request_bytes = request_bytes,
                      .alone = alone,
                      .group = call->score.additive || call->results.importance ? 1 : call->H / call->Hk};
    plan->head_groups = call->H / plan->group;
    plan->rows = plan->group * call->Lq;
    plan->decode = decodes(call, kernels, plan->rows);
    plan->block_rows = (int)af_min(plan->rows, plan->decode ? kernels->decode_rows : kernels->nr);
    if (!plan->decode && !call->gradients.size) plan->block_rows = even_rows(plan->rows, kernels);
    plan->blocks = ceil_div(plan->rows, plan->block_rows);
    plan->key_block = plan->decode ? decode_keys(call) : forward_keys(call, kernels);
    plan_splits(plan, call);
    plan->chunk_keys = call->results.importance ? importance_chunk(call) : WEIGHTS_CHUNK;
    plan->chunks = af_max(1, ceil_div(call->Lk, plan->chunk_keys));
    const int64_t partial =
        (2 + 2 * call->results.topk) * kernels->nr + call->Dv * (plan->decode ? plan->block_rows : kernels->nr);
    plan->partial_bytes = (size_t)partial * (size_t)kernels->real_size;
    plan->block_partials = plan->partial_bytes * (size_t)plan->splits;
    plan->unit_lots = 1;
    if (plan->decode) plan_decode_unit(plan, call);
    else plan->unit_blocks = unit_blocks(plan, call, kernels);
    plan->unit_splits = unit_splits(plan, call);
    plan->softmax = !call->results.weights.data || call->results.stage == AF_WEIGHTS;
    if (call->subset.row_lse.data) plan->softmax = false; /* it is known */
    plan->base2 = call->score.softcap == 0 && !call->score.bias.data && !call->score.alibi && !call->score.sink &&
                  !call->score.additive && !call->results.topk && plan->softmax && !call->subset.natural;
    plan->query_scale = call->score.additive ? 1 : call->score.scale;
    if (plan->base2) plan->query_scale *= 1.4426950408889634;
    plan->pairs = (double)call->B * (double)plan->head_groups * (double)plan->rows * (double)longest_span(call, plan);
}

af_unit af_plan_unit(const af_plan *plan, int64_t index, int blocks, int64_t splits)
{
    const int64_t units = af_units_of_rows(plan, blocks), rows = (int64_t)blocks * plan->block_rows;
    af_unit unit = {.split = index % splits};
    index /= splits;
    unit.row = (units - 1 - index % units) * rows;
    unit.rows = (int)af_min(rows, plan->rows - unit.row);
    index = index / units * (plan->decode ? blocks : 1);
    unit.hg = index % plan->head_groups;
    unit.b = index / plan->head_groups;
    return unit;
}

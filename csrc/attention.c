/* The driver: table -> plan -> scratch -> units of work on a team of threads; for one problem, and for many sequences
 * packed one after the other, whose units make one loop. */
#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "attnfast.h"
#include "dispatch.h"
#include "kernels.h"
#include "plan.h"
#include "span.h"
#include "survey.h"
#include "team.h"

/* Less work than this is done by the calling thread: waking a team costs some 5 to 50 us. */
static const double PARALLEL_FLOPS = 4e6;
static const double PARALLEL_BYTES = 1e6;

/* A thread takes units worth about this much at a time; more where neighbouring blocks of rows read the same keys, so
 * that they are its own. */
static const double CHUNK_FLOPS = 2e7, NEIGHBOUR_FLOPS = 3e8;
enum { MOST_NEIGHBOURS = 64 };

/* What a score costs besides the products. */
enum { SOFTMAX_FLOPS = 16 };

/* Partial results that may be waiting to be joined, per thread. */
static const size_t PARTIAL_BYTES = (size_t)1 << 20;

/* Keys add up the weights of so many rows at a time: a unit lasts 0.1 s at most. */
enum { STRETCH_ROWS = 1 << 16 };

enum { LINE = 64 };

typedef struct job {
    const af_problem *problem;
    const af_plan *plan;
    int64_t first_block;   /* of this wave */
    int64_t first_row;     /* of this stretch of rows, where keys add up their weights */
    char *partials;        /* [blocks of the wave][splits] */
    atomic_int *remaining; /* [blocks of the wave] splits still to come */
} job;

static void attention_unit(void *context, int64_t index, void *scratch)
{
    const job *j = context;
    const af_plan *plan = j->plan;
    const int64_t block = index / plan->splits;
    const size_t block_bytes = plan->partial_bytes * (size_t)plan->splits;
    char *partials = plan->splits > 1 ? j->partials + (size_t)block * block_bytes : NULL;
    const af_unit unit = af_plan_unit(plan, j->first_block * plan->splits + index, plan->splits);
    void *partial = partials ? partials + plan->partial_bytes * (size_t)unit.split : NULL;
    if (plan->decode) plan->kernels->decode(j->problem, plan, unit, scratch, partial);
    else plan->kernels->forward(j->problem, plan, unit, scratch, partial);
    if (partials && atomic_fetch_sub(&j->remaining[block], 1) == 1)
        plan->kernels->merge(j->problem, plan, unit, scratch, partials);
}

static void weights_unit(void *context, int64_t index, void *scratch)
{
    const job *j = context;
    j->plan->kernels->weights(j->problem, j->plan, af_plan_unit(j->plan, index, j->plan->chunks), scratch);
}

static void importance_unit(void *context, int64_t index, void *scratch)
{
    const job *j = context;
    const int64_t chunks = j->plan->chunks, groups = j->plan->head_groups;
    af_unit unit = {.split = index % chunks, .hg = index / chunks % groups, .b = index / chunks / groups};
    unit.row = j->first_row;
    unit.rows = (int)af_min(STRETCH_ROWS, j->plan->rows - j->first_row);
    j->plan->kernels->importance(j->problem, j->plan, unit, scratch);
}

static size_t round_to_lines(size_t n) { return (n + LINE - 1) / LINE * LINE; }

static char *align_to_line(void *p) { return (char *)(((uintptr_t)p + LINE - 1) & ~(uintptr_t)(LINE - 1)); }

static int64_t chunk_of(double flops, int64_t units)
{
    const int64_t by_work = (int64_t)(CHUNK_FLOPS / (flops / (double)units + 1));
    return af_max(1, by_work);
}

/* The same where units may be blocks of rows that go through tiles, whose FLOPs tell their time. */
static int64_t tile_chunk_of(const af_problem *p, const af_plan *plan, double flops, int64_t units)
{
    const int64_t chunk = chunk_of(flops, units);
    if (plan->decode || p->additive || p->topk) return chunk;
    return af_max(chunk, af_min(MOST_NEIGHBOURS, (int64_t)(NEIGHBOUR_FLOPS / (flops / (double)units + 1))));
}

static size_t scratch_of(const af_problem *p, const af_plan *plan)
{
    return round_to_lines(plan->kernels->scratch_bytes(p, plan));
}

static double flops_of(const af_problem *p, const af_plan *plan)
{
    const int64_t score = p->additive ? AF_TANH_WORK * p->D : p->D;
    return 2 * plan->pairs * (double)(score + (p->value.data ? p->Dv : 0) + SOFTMAX_FLOPS);
}

static bool worth_a_team(double flops, bool decode, double bytes)
{
    return flops >= PARALLEL_FLOPS || (decode && bytes >= PARALLEL_BYTES);
}

static int team_of(int threads, int64_t units) { return (int)af_min(threads ? threads : af_threads(), units); }

static int team_size(const af_problem *p, const af_plan *plan, int64_t units, int threads)
{
    const double size = (double)af_elem_bytes(p->dtype);
    const double bytes = (double)p->B * (double)p->Hk * (double)p->Lk * (double)(p->D + p->Dv) * size;
    return worth_a_team(flops_of(p, plan), plan->decode, bytes) ? team_of(threads, units) : 1;
}

/* Blocks of rows whose splits may be in flight together. */
static int64_t wave_of(const af_plan *plan, int64_t blocks, int threads)
{
    if (plan->splits == 1) return blocks;
    const size_t block_bytes = plan->partial_bytes * (size_t)plan->splits;
    const int64_t fit = (int64_t)(PARTIAL_BYTES * (size_t)threads / block_bytes);
    return af_min(blocks, af_max(1, fit));
}

/* Units of the pass over the scores that comes after the softmax. */
static int64_t second_units(const af_problem *p, const af_plan *plan)
{
    if (!plan->second) return 0;
    return p->B * plan->head_groups * plan->chunks * (p->importance ? 1 : plan->blocks);
}

static af_status compute(const af_problem *p, const af_plan *plan, af_watch *watch, int threads, char *memory,
                         size_t scratch_bytes, int64_t wave)
{
    const int64_t blocks = p->B * plan->head_groups * plan->blocks;
    char *partials = memory + scratch_bytes * (size_t)threads;
    atomic_int *remaining = (atomic_int *)(partials + plan->partial_bytes * (size_t)(wave * plan->splits));
    job j = {.problem = p, .plan = plan, .partials = partials, .remaining = remaining};
    af_work work = {.context = &j, .scratch = memory, .scratch_bytes = scratch_bytes};
    if (plan->softmax) {
        work.unit = attention_unit;
        work.chunk = tile_chunk_of(p, plan, flops_of(p, plan), blocks * plan->splits);
        for (j.first_block = 0; j.first_block < blocks; j.first_block += wave) {
            const int64_t here = af_min(wave, blocks - j.first_block);
            for (int64_t i = 0; plan->splits > 1 && i < here; i++) atomic_store(&remaining[i], (int)plan->splits);
            work.count = here * plan->splits;
            const af_status status = af_run_work(&work, watch, threads);
            if (status != AF_OK) return status;
        }
    }
    if (!plan->second) return AF_OK;
    work.unit = p->importance ? importance_unit : weights_unit;
    work.count = second_units(p, plan);
    work.chunk = chunk_of(flops_of(p, plan), work.count);
    af_status status = AF_OK;
    const int64_t rows = p->importance ? STRETCH_ROWS : plan->rows;
    for (j.first_row = 0; j.first_row < plan->rows && status == AF_OK; j.first_row += rows)
        status = af_run_work(&work, watch, threads);
    return status;
}

/* Memory for the maximum and sum of each row, if a pass over the weights is to come. */
static af_status keep_row_sums(const af_problem *p, af_plan *plan, void **stats)
{
    *stats = NULL;
    if (!plan->second || !plan->softmax) return AF_OK;
    /* Arrays may repeat their elements, so nothing else bounds the number of rows. */
    if ((double)p->B * (double)p->H * (double)p->Lq > 0x1p56) return AF_NO_MEMORY;
    const size_t rows = (size_t)(p->B * p->H * p->Lq), size = (size_t)plan->kernels->real_size;
    *stats = malloc(2 * rows * size);
    if (!*stats) return AF_NO_MEMORY;
    plan->row_max = *stats;
    plan->row_inverse = (char *)*stats + rows * size;
    return AF_OK;
}

/* Whether there is anything to write to. */
static bool has_results(const af_problem *p)
{
    if (p->B == 0 || p->H == 0 || p->Lq == 0) return false;
    if ((p->value.data && p->Dv > 0) || p->lse.data) return true;
    return p->topk || ((p->weights.data || p->importance) && p->Lk > 0);
}

static af_status run_alone(const af_problem *p, const af_run *run, af_watch *watch)
{
    if (!has_results(p)) return AF_OK;
    assert(p->Hk > 0 && p->H % p->Hk == 0 && p->left >= 0);
    af_plan plan;
    af_make_plan(&plan, p, af_kernels_for(p->dtype));
    void *stats;
    if (keep_row_sums(p, &plan, &stats) != AF_OK) return AF_NO_MEMORY;
    const int64_t blocks = p->B * plan.head_groups * plan.blocks;
    const int threads = team_size(p, &plan, af_max(blocks * plan.splits, second_units(p, &plan)), run->threads);
    const int64_t wave = wave_of(&plan, blocks, threads);
    const size_t scratch_bytes = scratch_of(p, &plan);
    size_t bytes = scratch_bytes * (size_t)threads + LINE;
    if (plan.splits > 1) bytes += (plan.partial_bytes * (size_t)plan.splits + sizeof(atomic_int)) * (size_t)wave;
    void *memory = malloc(bytes);
    const af_status status =
        memory ? compute(p, &plan, watch, threads, align_to_line(memory), scratch_bytes, wave) : AF_NO_MEMORY;
    free(memory);
    free(stats);
    return status;
}

af_status af_attention(const af_problem *p, const af_run *run)
{
    af_watch watch = af_start_watch(run);
    return run_alone(p, run, &watch);
}

/* Packed sequences: those that need no joining of parts are units of one loop, so many at a time. */
enum { TOGETHER = 256 };

typedef struct sequence {
    af_problem problem;
    af_plan plan;
    int64_t end; /* the number of its last unit plus 1 */
} sequence;

typedef struct batch {
    int64_t count;
    double flops;
    size_t scratch_bytes;
    sequence sequence[TOGETHER];
} batch;

static void sequence_unit(void *context, int64_t index, void *scratch)
{
    const batch *all = context;
    int64_t low = 0, high = all->count - 1; /* the first whose end is beyond the unit */
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (all->sequence[middle].end > index) high = middle;
        else low = middle + 1;
    }
    const sequence *s = &all->sequence[low];
    const job j = {.problem = &s->problem, .plan = &s->plan};
    attention_unit((void *)&j, index - (low ? all->sequence[low - 1].end : 0), scratch);
}

static void skip_rows(af_tensor *t, int64_t rows, int64_t size)
{
    if (t->data) t->data = (char *)t->data + rows * t->i * size;
}

static af_problem cut_out(const af_problem *whole, int64_t s, const int64_t *first_query, const int64_t *first_key)
{
    const int64_t size = af_elem_bytes(whole->dtype);
    af_problem p = *whole;
    p.Lq = first_query[s + 1] - first_query[s];
    p.Lk = first_key[s + 1] - first_key[s];
    skip_rows(&p.query, first_query[s], size);
    skip_rows(&p.output, first_query[s], size);
    skip_rows(&p.lse, first_query[s], af_real_bytes(whole->dtype));
    skip_rows(&p.key, first_key[s], size);
    skip_rows(&p.value, first_key[s], size);
    if (p.q_offset) p.q_offset += s;
    if (p.alibi) p.alibi += s * p.alibi_b;
    return p;
}

static af_status run_batch(batch *all, const af_run *run, af_watch *watch)
{
    if (!all->count) return AF_OK;
    const int64_t units = all->sequence[all->count - 1].end;
    const int threads = worth_a_team(all->flops, false, 0) ? team_of(run->threads, units) : 1;
    void *memory = malloc(all->scratch_bytes * (size_t)threads + LINE);
    if (!memory) return AF_NO_MEMORY;
    af_work work = {.unit = sequence_unit, .context = all, .count = units, .chunk = chunk_of(all->flops, units)};
    work.scratch = align_to_line(memory);
    work.scratch_bytes = all->scratch_bytes;
    const af_status status = af_run_work(&work, watch, threads);
    free(memory);
    all->count = 0;
    all->flops = 0;
    all->scratch_bytes = 0;
    return status;
}

af_status af_attention_packed(const af_problem *whole, int64_t sequences, const int64_t *first_query,
                              const int64_t *first_key, const af_run *run)
{
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    batch *all = calloc(1, sizeof *all);
    if (!all) return AF_NO_MEMORY;
    for (int64_t s = 0; s < sequences && status == AF_OK; s++) {
        if (s % 4096 == 4095 && (status = af_ask(&watch)) != AF_OK) break; /* all may be empty */
        const af_problem p = cut_out(whole, s, first_query, first_key);
        if (!has_results(&p)) continue;
        sequence *next = &all->sequence[all->count];
        af_make_plan(&next->plan, &p, af_kernels_for(p.dtype));
        next->problem = p;
        if (next->plan.splits > 1) {
            status = run_alone(&p, run, &watch);
            continue;
        }
        const int64_t before = all->count ? next[-1].end : 0;
        next->end = before + p.B * next->plan.head_groups * next->plan.blocks;
        all->flops += flops_of(&p, &next->plan);
        const size_t scratch_bytes = scratch_of(&p, &next->plan);
        if (scratch_bytes > all->scratch_bytes) all->scratch_bytes = scratch_bytes;
        if (++all->count == TOGETHER) status = run_batch(all, run, &watch);
    }
    if (status == AF_OK) status = run_batch(all, run, &watch);
    free(all);
    return status;
}

af_status af_describe(const af_problem *p, const af_run *run, af_report *report, af_rectangle *rectangles, int64_t room)
{
    *report = (af_report){.isa = af_isa_in_use(p->dtype), .kernel = "none", .threads = 1};
    if (p->B == 0 || p->H == 0 || p->Lq == 0) return AF_OK;
    af_watch watch = af_start_watch(run);
    af_plan plan;
    af_make_plan(&plan, p, af_kernels_for(p->dtype));
    if (af_survey(&plan, p, &watch, report, rectangles, room) != AF_OK) return AF_INTERRUPTED;
    const double size = (double)af_elem_bytes(p->dtype);
    const double queries = (double)p->B * (double)p->H * (double)p->Lq * (double)(p->D + p->Dv);
    const double keys = (double)p->B * (double)p->Hk * (double)p->Lk * (double)(p->D + p->Dv);
    report->kernel = plan.decode ? "decode" : "forward";
    report->tasks = p->B * plan.head_groups * plan.blocks * plan.splits;
    report->threads = team_size(p, &plan, report->tasks, run->threads);
    report->tasks += second_units(p, &plan);
    report->flops = 2 * (double)report->visible_pairs * (double)(p->D + p->Dv);
    report->bytes = size * (queries + keys);
    return AF_OK;
}

/* The driver: table -> plan -> scratch -> units of work on a team of threads. */
#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "attnfast.h"
#include "dispatch.h"
#include "kernels.h"
#include "plan.h"
#include "span.h"
#include "team.h"

/* Less work than this is done by the calling thread: waking a team costs some 5 to 50 us. */
static const double PARALLEL_FLOPS = 4e6;
static const double PARALLEL_BYTES = 1e6;

/* A thread takes units worth about this much at a time, so that neighbouring blocks of rows, which read the same keys,
 * are its own. */
static const double CHUNK_FLOPS = 2e7;

/* What a score costs besides the products. */
enum { SOFTMAX_FLOPS = 16 };

/* Partial results that may be waiting to be joined, per thread. */
static const size_t PARTIAL_BYTES = (size_t)1 << 20;

enum { LINE = 64 };

typedef struct job {
    const af_problem *problem;
    const af_plan *plan;
    int64_t first_block;   /* of this wave */
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
    const af_unit unit = af_plan_unit(plan, j->problem, j->first_block * plan->splits + index, plan->splits);
    void *partial = partials ? partials + plan->partial_bytes * (size_t)unit.split : NULL;
    if (plan->decode) plan->kernels->decode(j->problem, plan, unit, scratch, partial);
    else plan->kernels->forward(j->problem, plan, unit, scratch, partial);
    if (partials && atomic_fetch_sub(&j->remaining[block], 1) == 1)
        plan->kernels->merge(j->problem, plan, unit, scratch, partials);
}

static void weights_unit(void *context, int64_t index, void *scratch)
{
    const job *j = context;
    j->plan->kernels->weights(j->problem, j->plan, af_plan_unit(j->plan, j->problem, index, j->plan->chunks), scratch);
}

static size_t round_to_lines(size_t n) { return (n + LINE - 1) / LINE * LINE; }

static char *align_to_line(void *p) { return (char *)(((uintptr_t)p + LINE - 1) & ~(uintptr_t)(LINE - 1)); }

static int64_t chunk_of(double flops, int64_t units)
{
    const int64_t by_work = (int64_t)(CHUNK_FLOPS / (flops / (double)units + 1));
    return af_max(1, by_work);
}

static double flops_of(const af_problem *p, const af_plan *plan)
{
    return 2 * plan->pairs * (double)(p->D + (p->value.data ? p->Dv : 0) + SOFTMAX_FLOPS);
}

static int team_size(const af_problem *p, const af_plan *plan, int64_t units, int threads)
{
    const double size = p->dtype == AF_F64 ? 8 : p->dtype == AF_F32 ? 4 : 2;
    const double bytes = (double)p->B * (double)p->Hk * (double)p->Lk * (double)(p->D + p->Dv) * size;
    const bool small = flops_of(p, plan) < PARALLEL_FLOPS && (!plan->decode || bytes < PARALLEL_BYTES);
    if (small) return 1;
    return (int)af_min(threads ? threads : af_threads(), units);
}

/* Blocks of rows whose splits may be in flight together. */
static int64_t wave_of(const af_plan *plan, int64_t blocks, int threads)
{
    if (plan->splits == 1) return blocks;
    const size_t block_bytes = plan->partial_bytes * (size_t)plan->splits;
    const int64_t fit = (int64_t)(PARTIAL_BYTES * (size_t)threads / block_bytes);
    return af_min(blocks, af_max(1, fit));
}

static af_status compute(const af_problem *p, const af_plan *plan, af_watch *watch, int threads, char *memory,
                         size_t scratch_bytes, int64_t wave)
{
    const int64_t blocks = p->B * p->Hk * plan->blocks;
    char *partials = memory + scratch_bytes * (size_t)threads;
    atomic_int *remaining = (atomic_int *)(partials + plan->partial_bytes * (size_t)(wave * plan->splits));
    job j = {.problem = p, .plan = plan, .partials = partials, .remaining = remaining};
    af_work work = {.context = &j, .scratch = memory, .scratch_bytes = scratch_bytes};
    if (plan->softmax) {
        work.unit = attention_unit;
        work.chunk = chunk_of(flops_of(p, plan), blocks * plan->splits);
        for (j.first_block = 0; j.first_block < blocks; j.first_block += wave) {
            const int64_t here = af_min(wave, blocks - j.first_block);
            for (int64_t i = 0; plan->splits > 1 && i < here; i++) atomic_store(&remaining[i], (int)plan->splits);
            work.count = here * plan->splits;
            const af_status status = af_run_work(&work, watch, threads);
            if (status != AF_OK) return status;
        }
    }
    if (!p->weights.data) return AF_OK;
    work.unit = weights_unit;
    work.count = blocks * plan->chunks;
    work.chunk = chunk_of(flops_of(p, plan), work.count);
    return af_run_work(&work, watch, threads);
}

/* Memory for the maximum and sum of each row, if a pass over the weights is to come. */
static af_status keep_row_sums(const af_problem *p, af_plan *plan, void **stats)
{
    *stats = NULL;
    if (!p->weights.data || p->stage != AF_WEIGHTS) return AF_OK;
    const size_t rows = (size_t)(p->B * p->H * p->Lq), size = (size_t)plan->kernels->real_size;
    *stats = malloc(2 * rows * size);
    if (!*stats) return AF_NO_MEMORY;
    plan->row_max = *stats;
    plan->row_inverse = (char *)*stats + rows * size;
    return AF_OK;
}

af_status af_attention(const af_problem *p, const af_run *run)
{
    if (p->B == 0 || p->H == 0 || p->Lq == 0) return AF_OK;
    assert(p->Hk > 0 && p->H % p->Hk == 0 && p->left >= 0);
    const bool writes = (p->value.data && p->Dv > 0) || p->lse || (p->weights.data && p->Lk > 0);
    if (!writes) return AF_OK;
    af_plan plan;
    af_make_plan(&plan, p, af_kernels_for(p->dtype));
    void *stats;
    if (keep_row_sums(p, &plan, &stats) != AF_OK) return AF_NO_MEMORY;
    const int64_t blocks = p->B * p->Hk * plan.blocks;
    const int threads = team_size(p, &plan, blocks * plan.splits, run->threads);
    af_watch watch = af_start_watch(run);
    const int64_t wave = wave_of(&plan, blocks, threads);
    const size_t scratch_bytes = round_to_lines(plan.kernels->scratch_bytes(p, &plan));
    size_t bytes = scratch_bytes * (size_t)threads + LINE;
    if (plan.splits > 1) bytes += (plan.partial_bytes * (size_t)plan.splits + sizeof(atomic_int)) * (size_t)wave;
    void *memory = malloc(bytes);
    const af_status status =
        memory ? compute(p, &plan, &watch, threads, align_to_line(memory), scratch_bytes, wave) : AF_NO_MEMORY;
    free(memory);
    free(stats);
    return status;
}

void af_describe(const af_problem *p, int threads, af_report *report)
{
    *report = (af_report){.isa = af_isa_in_use(p->dtype), .kernel = "none", .threads = 1};
    if (p->B == 0 || p->H == 0 || p->Lq == 0) return;
    af_plan plan;
    af_make_plan(&plan, p, af_kernels_for(p->dtype));
    af_count_pairs(&plan, p, &report->visible_pairs, &report->visited_pairs);
    const double size = p->dtype == AF_F64 ? 8 : p->dtype == AF_F32 ? 4 : 2;
    const double queries = (double)p->B * (double)p->H * (double)p->Lq * (double)(p->D + p->Dv);
    const double keys = (double)p->B * (double)p->Hk * (double)p->Lk * (double)(p->D + p->Dv);
    report->kernel = plan.decode ? "decode" : "forward";
    report->tasks = p->B * p->Hk * plan.blocks * plan.splits;
    report->threads = team_size(p, &plan, report->tasks, threads);
    if (p->weights.data) report->tasks += p->B * p->Hk * plan.blocks * plan.chunks;
    report->flops = 2 * (double)report->visible_pairs * (double)(p->D + p->Dv);
    report->bytes = size * (queries + keys);
}

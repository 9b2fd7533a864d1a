#include "driver/passes.h"

#include <assert.h>
#include <stdatomic.h>

#include "driver/joined_batch.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "runtime/cpu.h"
#include "runtime/dispatch.h"

/* Less work than this is done by the calling thread: waking other threads costs some 5 to 50 us. 4 MFLOP take 40 us, 1
 * MB of keys 38 us on one thread (Zen 4: 100 GFLOP/s, 26 GB/s). With threads for 0.8 MFLOP, one call in ten takes 7 ms
 * on a busy machine. */
static const double PARALLEL_FLOPS = 4e6;
static const double PARALLEL_BYTES = 1e6;

/* A thread takes units worth about this much at a time, 0.2 ms; more where neighbouring blocks of rows read the same
 * keys, so that they are in its own cache: at most MAX_NEIGHBOURS units then. With 3e8 FLOP instead of 2e7, two threads
 * are 2 to 4 % faster (Zen 4, windows, causal and 16384 keys). Larger shares would delay the answer to a signal. */
static const double SHARE_FLOPS = 2e7, NEIGHBOUR_FLOPS = 3e8;
enum { MAX_NEIGHBOURS = 64 };

/* What a score costs besides the products: an estimate, which decides on threads and shares only. */
enum { SOFTMAX_FLOPS = 16 };

/* Memory of partial results that wait to be merged, per thread: a second-level cache. Half and double: within 2 % (Zen
 * 4). */
static const size_t PARTIAL_BYTES = (size_t)1 << 20;

/* Query rows of a round of the importance pass up to a head size of IMPORTANCE_COLUMNS: a unit lasts 0.1 s at most. */
enum { IMPORTANCE_ROWS = 1 << 16, IMPORTANCE_COLUMNS = 64, IMPORTANCE_LEAST_ROWS = 256 };

static const int64_t MOST_UNITS = (int64_t)1 << 60;

enum { CACHE_LINE = 64 };

/* How far ahead decoding requests lines, where that helps: with 4 KiB heads 32/8 x 128 read 28 GB/s, with 8 32, with 16
 * 30, with none 17; the machine 41 (Zen 5, AVX-512). On Zen 4 requests made it slower. */
enum { REQUEST_BYTES = 8192 };

void af_attend_unit(const af_pass *pass, int64_t index, void *scratch)
{
    const af_plan *plan = pass->plan;
    const int64_t units = af_split_units(plan), rows = index % pass->round / units;
    af_unit unit = af_plan_unit(plan, index, plan->unit_blocks * plan->unit_lots, units);
    char *partials = NULL;
    if (plan->splits > 1) partials = pass->partials + (size_t)rows * (size_t)plan->unit_blocks * plan->block_partials;
    unit.split *= plan->unit_splits;
    unit.more = (int)af_min(plan->unit_splits, plan->splits - unit.split) - 1;
    for (;; unit.split++, unit.more--, unit.goes_on = true) {
        char *partial = partials ? partials + plan->partial_bytes * (size_t)unit.split : NULL;
        if (plan->decode) plan->kernels->decode(pass->call, plan, unit, scratch, partial);
        else plan->kernels->forward(pass->call, plan, unit, scratch, partial);
        if (unit.more == 0) break;
    }
    if (!partials || atomic_fetch_sub(&pass->remaining[rows], 1) != 1) return;
    atomic_store(&pass->remaining[rows], (int)units); /* for the next round */
    plan->kernels->merge(pass->call, plan, unit, scratch, partials);
}

static void weights_unit(const af_pass *pass, int64_t index, void *scratch)
{
    const af_unit unit = af_plan_unit(pass->plan, index, 1, pass->plan->chunks);
    pass->plan->kernels->weights(pass->call, pass->plan, unit, scratch);
}

/* The same for any head size. */
static int64_t importance_rows(const af_call *call)
{
    const int64_t columns = (call->score.additive ? AF_TANH_WORK : 1) * call->D;
    if (columns <= IMPORTANCE_COLUMNS) return IMPORTANCE_ROWS;
    return af_max(IMPORTANCE_LEAST_ROWS, IMPORTANCE_ROWS * (int64_t)IMPORTANCE_COLUMNS / columns);
}

static void importance_unit(const af_pass *pass, int64_t index, void *scratch)
{
    const int64_t chunks = pass->plan->chunks, groups = pass->plan->head_groups;
    const int64_t rows = importance_rows(pass->call), row = index / pass->round * rows;
    index %= pass->round;
    af_unit unit = {.split = index % chunks, .hg = index / chunks % groups, .b = index / chunks / groups};
    unit.row = row;
    unit.rows = (int)af_min(rows, pass->plan->rows - row);
    pass->plan->kernels->importance(pass->call, pass->plan, unit, scratch);
}

int64_t af_share_of(double flops, int64_t units)
{
    const int64_t by_work = (int64_t)(SHARE_FLOPS / (flops / (double)units + 1));
    return af_max(1, by_work);
}

/* The most units of an attend pass that a thread takes at a time. Blocks of rows that go through tiles of keys share
 * these with their neighbours, so a thread takes more of them. */
static int64_t attend_share(const af_call *call, const af_plan *plan, double flops, int64_t units)
{
    const int64_t share = af_share_of(flops, units);
    if (plan->decode || call->score.additive || call->results.topk) return share;
    return af_max(share, af_min(MAX_NEIGHBOURS, (int64_t)(NEIGHBOUR_FLOPS / (flops / (double)units + 1))));
}

static double flops_of(const af_call *call, const af_plan *plan)
{
    const int64_t score = call->score.additive ? AF_TANH_WORK * call->D : call->D;
    return 2 * plan->pairs * (double)(score + (call->results.output.data ? call->Dv : 0) + SOFTMAX_FLOPS);
}

bool af_worth_threads(double flops) { return flops >= PARALLEL_FLOPS; }

int af_threads_for(int threads, int64_t units, bool worth_threads)
{
    return worth_threads ? (int)af_min(threads ? threads : af_threads(), units) : 1;
}

int64_t af_memory_for(const af_run *run)
{
    const int64_t threads = run->threads ? run->threads : af_threads();
    return threads << 21;
}

/* A number of units. Views of one number may claim any number of rows, for whose sums there is no memory then: above
 * MOST_UNITS nothing is counted. */
static int64_t times(int64_t a, int64_t b) { return (double)a * (double)b < (double)MOST_UNITS ? a * b : MOST_UNITS; }

static void add_pass(af_schedule *s, const af_call *call, af_pass pass)
{
    pass.call = call;
    pass.plan = &s->plan;
    s->pass[s->count++] = pass;
    s->most_units = af_max(s->most_units, pass.units);
}

void af_schedule_call(af_schedule *s, const af_call *call, int threads)
{
    assert(call->Hk > 0 && call->H % call->Hk == 0 && call->visible.left >= 0);
    *s = (af_schedule){0};
    af_plan *plan = &s->plan;
    const int64_t request_bytes = af_cpu_uses(AF_CPU_REQUESTS) ? REQUEST_BYTES : 0;
    const bool alone = (threads ? threads : af_threads()) == 1;
    af_make_plan(plan, call, af_kernels_for(call->dtype), request_bytes, alone);
    plan->met_infinity = &s->met_infinity;
    if (call->operands.storage) plan->bytes = af_byte_kernels_here();
    const double bytes = (double)call->B * (double)call->Hk * (double)call->Lk * (double)(call->D + call->Dv) *
                         (double)af_key_bytes(call);
    s->flops = flops_of(call, plan);
    s->worth_threads = af_worth_threads(s->flops) || (plan->decode && bytes >= PARALLEL_BYTES);
    s->scratch_bytes = plan->kernels->scratch_bytes(call, plan);
    s->scratch_bytes = (s->scratch_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    const int64_t groups = times(call->B, plan->head_groups);
    if (plan->softmax) {
        const int64_t blocks = (int64_t)plan->unit_blocks * plan->unit_lots;
        const int64_t rows =
            plan->decode ? (groups + blocks - 1) / blocks : times(groups, af_units_of_rows(plan, plan->unit_blocks));
        const int64_t units = times(rows, af_split_units(plan));
        const int64_t share = attend_share(call, plan, s->flops, units);
        add_pass(s, call, (af_pass){.unit = af_attend_unit, .units = units, .round = units, .share = share});
    }
    if (call->results.importance) {
        const int64_t units = times(groups, plan->chunks);
        const int64_t rows = importance_rows(call), rounds = (plan->rows + rows - 1) / rows;
        af_pass pass = {.unit = importance_unit, .units = times(units, rounds), .round = units};
        pass.share = af_share_of(s->flops, units);
        add_pass(s, call, pass);
    } else if (call->results.weights.data) {
        const int64_t units = times(times(groups, plan->blocks), plan->chunks);
        const int64_t share = af_share_of(s->flops, units);
        add_pass(s, call, (af_pass){.unit = weights_unit, .units = units, .round = units, .share = share});
    }
}

bool af_schedule_joined(af_schedule *s, af_call *joined, const af_call *call, int threads)
{
    af_schedule_call(s, call, threads);
    if (!s->plan.decode || !s->plan.request_bytes || !af_join_batch(joined, call)) return false;
    af_schedule_call(s, joined, threads);
    return true;
}

/* As many units of rows as may wait together for the splits of their keys to be merged; 0 if none has several. */
static int64_t rows_in_flight(const af_pass *pass, int threads, size_t unit_bytes)
{
    const af_plan *plan = pass->plan;
    if (plan->splits == 1 || pass->unit != af_attend_unit) return 0;
    const int64_t fit = (int64_t)(PARTIAL_BYTES * (size_t)threads / unit_bytes);
    return af_min(pass->units / af_split_units(plan), af_max(1, fit));
}

/* Memory for their partial results. */
static bool take_partials(af_pass *pass, af_arena *arena, int threads)
{
    const af_plan *plan = pass->plan;
    const size_t unit_bytes = plan->block_partials * (size_t)plan->unit_blocks;
    const int64_t rows = rows_in_flight(pass, threads, unit_bytes);
    if (rows == 0) return true;
    const int64_t units = af_split_units(plan);
    pass->round = rows * units;
    pass->partials = af_take(arena, rows, unit_bytes);
    pass->remaining = af_take(arena, rows, sizeof *pass->remaining);
    if (!pass->partials || !pass->remaining) return false;
    for (int64_t i = 0; i < rows; i++) atomic_store(&pass->remaining[i], (int)units);
    return true;
}

typedef struct round {
    const af_pass *pass;
    int64_t first;
} round;

static void round_unit(void *context, int64_t index, void *scratch)
{
    const round *r = context;
    r->pass->unit(r->pass, r->first + index, scratch);
}

static af_status run_passes(const af_schedule *s, af_watch *watch, int threads, char *scratch)
{
    af_status status = AF_OK;
    for (int i = 0; i < s->count; i++) {
        const af_pass *pass = &s->pass[i];
        round r = {.pass = pass};
        af_work work = {.unit = round_unit, .context = &r, .share = pass->share};
        work.scratch = scratch;
        work.scratch_bytes = s->scratch_bytes;
        for (r.first = 0; r.first < pass->units && status == AF_OK; r.first += pass->round) {
            work.count = af_min(pass->round, pass->units - r.first);
            status = af_run_work(&work, watch, threads);
        }
    }
    return status;
}

/* Where the maximum and sum of each row are kept for the pass that recomputes weights. */
static bool take_row_sums(af_call *call, af_arena *arena)
{
    const int64_t rows = call->H * call->Lq;
    /* Arrays may repeat their elements, so nothing else bounds the number of rows. */
    if ((double)call->B * (double)call->H * (double)call->Lq > 0x1p56) return false;
    call->subset.row_max = af_take(arena, call->B * rows, (size_t)af_real_bytes(call->dtype));
    call->subset.row_inverse = af_take(arena, call->B * rows, (size_t)af_real_bytes(call->dtype));
    return call->subset.row_max && call->subset.row_inverse;
}

double af_working_memory(const af_schedule *s, int threads)
{
    const af_call *call = s->pass[0].call;
    const size_t unit_bytes = s->plan.block_partials * (size_t)s->plan.unit_blocks;
    double bytes = (double)threads * (double)s->scratch_bytes;
    for (int i = 0; i < s->count; i++)
        bytes += (double)rows_in_flight(&s->pass[i], threads, unit_bytes) * (double)unit_bytes;
    if (s->count < 2) return bytes;
    return bytes + 2 * (double)af_real_bytes(call->dtype) * (double)call->B * (double)call->H * (double)call->Lq;
}

af_status af_run_call(af_call *call, const af_run *run, af_watch *watch)
{
    if (!af_has_results(call)) return AF_OK;
    af_arena arena = {0};
    af_schedule s;
    af_call joined;
    af_status status = AF_NO_MEMORY;
    if (af_schedule_joined(&s, &joined, call, run->threads)) call = &joined;
    const int threads = af_threads_for(run->threads, s.most_units, s.worth_threads);
    bool taken = s.count < 2 || take_row_sums(call, &arena);
    for (int i = 0; i < s.count; i++) taken = taken && take_partials(&s.pass[i], &arena, threads);
    char *scratch = taken ? af_take(&arena, threads, s.scratch_bytes) : NULL;
    if (scratch) status = run_passes(&s, watch, threads, scratch);
    af_give_back(&arena);
    call->subset.row_max = call->subset.row_inverse = NULL;
    return status;
}

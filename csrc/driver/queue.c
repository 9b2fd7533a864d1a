#include "driver/queue.h"

#include "plan/intervals.h"

/* The first calls for which there is memory. */
enum { LEAST_QUEUED = 4 };

void af_open_queue(af_queue *queue, const af_run *run, af_watch *watch, af_arena *arena)
{
    *queue = (af_queue){.run = run, .watch = watch, .arena = arena};
}

static void queued_unit(void *context, int64_t index, void *scratch)
{
    const af_queue *queue = context;
    int64_t low = 0, high = queue->count - 1; /* the first whose end is beyond the unit */
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (queue->queued[middle]->end > index) high = middle;
        else low = middle + 1;
    }
    const af_pass *pass = &queue->queued[low]->schedule.pass[0];
    pass->unit(pass, index - (low ? queue->queued[low - 1]->end : 0), scratch);
}

af_status af_flush_queue(af_queue *queue)
{
    if (!queue->count) return AF_OK;
    const int64_t units = queue->queued[queue->count - 1]->end;
    const int threads = af_threads_for(queue->run->threads, units, af_worth_threads(queue->flops));
    af_arena arena = {0};
    char *scratch = af_take(&arena, threads, queue->scratch_bytes);
    af_status status = AF_NO_MEMORY;
    if (scratch) {
        af_work work = {.unit = queued_unit, .context = queue, .count = units, .scratch = scratch};
        work.share = af_share_of(queue->flops, units);
        work.scratch_bytes = queue->scratch_bytes;
        status = af_run_work(&work, queue->watch, threads);
    }
    af_give_back(&arena);
    queue->count = 0;
    queue->flops = 0;
    queue->scratch_bytes = 0;
    return status;
}

/* Only calls of one pass whose units need no joining can be packed. */
static bool can_be_packed(const af_schedule *s)
{
    return s->count == 1 && s->plan.splits == 1 && s->pass[0].round == s->pass[0].units;
}

/* Memory for as many calls again as there is memory for. */
static bool grow(af_queue *queue)
{
    const int64_t more = af_min(af_max(LEAST_QUEUED, queue->room), AF_QUEUED_CALLS - queue->room);
    af_queued *calls = af_take(queue->arena, more, sizeof *calls);
    if (!calls) return false;
    for (int64_t n = 0; n < more; n++) queue->queued[queue->room++] = calls + n;
    return true;
}

af_status af_enqueue(af_queue *queue, const af_call *call)
{
    if (!af_has_results(call)) return AF_OK;
    if (queue->count == queue->room && !grow(queue)) return AF_NO_MEMORY;
    af_queued *const *place = &queue->queued[queue->count], *next = *place;
    next->call = *call;
    af_schedule_call(&next->schedule, &next->call);
    if (!can_be_packed(&next->schedule)) return af_run_call(&next->call, queue->run, queue->watch);
    next->end = (queue->count ? place[-1]->end : 0) + next->schedule.pass[0].units;
    queue->flops += next->schedule.flops;
    if (next->schedule.scratch_bytes > queue->scratch_bytes) queue->scratch_bytes = next->schedule.scratch_bytes;
    return ++queue->count == AF_QUEUED_CALLS ? af_flush_queue(queue) : AF_OK;
}

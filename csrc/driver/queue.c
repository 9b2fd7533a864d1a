#include "driver/queue.h"

#include "plan/intervals.h"

/* The first calls for which there is memory. */
enum { LEAST_QUEUED = 4 };

void af_open_queue(af_queue *queue, const af_run *run, af_watch *watch, af_arena *arena)
{
    *queue = (af_queue){.run = run, .watch = watch, .arena = arena};
}

bool af_add_to_group(af_group *group, const af_schedule *s)
{
    if (s->count != 1 || s->plan.splits != 1 || s->pass[0].round != s->pass[0].units) return false;
    group->calls++;
    group->units += s->pass[0].units;
    group->flops += s->flops;
    if (group->scratch_bytes < s->scratch_bytes) group->scratch_bytes = s->scratch_bytes;
    return true;
}

int af_threads_of_group(const af_group *group, const af_run *run)
{
    return af_threads_for(run->threads, group->units, af_worth_threads(group->flops));
}

static void queued_unit(void *context, int64_t index, void *scratch)
{
    const af_queue *queue = context;
    int64_t low = 0, high = queue->group.calls - 1; /* the first whose end is beyond the unit */
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
    const af_group *group = &queue->group;
    if (!group->calls) return AF_OK;
    const int threads = af_threads_of_group(group, queue->run);
    af_arena arena = {0};
    char *scratch = af_take(&arena, threads, group->scratch_bytes);
    af_status status = AF_NO_MEMORY;
    if (scratch) {
        af_work work = {.unit = queued_unit, .context = queue, .count = group->units, .scratch = scratch};
        work.share = af_share_of(group->flops, group->units);
        work.scratch_bytes = group->scratch_bytes;
        status = af_run_work(&work, queue->watch, threads);
    }
    af_give_back(&arena);
    queue->group = (af_group){0};
    return status;
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
    if (queue->group.calls == queue->room && !grow(queue)) return AF_NO_MEMORY;
    af_queued *next = queue->queued[queue->group.calls];
    next->call = *call;
    af_schedule_call(&next->schedule, &next->call, queue->run->threads);
    if (!af_add_to_group(&queue->group, &next->schedule)) return af_run_call(&next->call, queue->run, queue->watch);
    next->end = queue->group.units;
    return queue->group.calls == AF_QUEUED_CALLS ? af_flush_queue(queue) : AF_OK;
}

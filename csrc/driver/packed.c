/* Sequences packed one after the other: a call for each. */
#include <assert.h>

#include "driver/attention.h"
#include "driver/describe.h"
#include "driver/queue.h"
#include "plan/intervals.h"
#include "plan/legal.h"

/* Signals are checked after so many sequences, which may all be empty. */
enum { SEQUENCES_A_CHECK = 4096 };

static af_call cut_sequence(const af_call *whole, int64_t s, const int64_t *first_query, const int64_t *first_key)
{
    af_part part = af_whole_part(whole);
    part.row = s;
    part.i = first_query[s];
    part.Lq = first_query[s + 1] - part.i;
    part.j = first_key[s];
    part.Lk = first_key[s + 1] - part.j;
    return af_cut_call(whole, part);
}

/* Sequences one by one where the algorithm of a call makes loops of its own, else together. */
static af_status run_sequence(af_call *call, bool together, af_queue *queue)
{
    return together ? af_enqueue(queue, call) : af_run_any(call, queue->run, queue->watch);
}

af_status af_attention_packed(const af_problem *problem, int64_t sequences, const int64_t *first_query,
                              const int64_t *first_key, const af_run *run)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    af_arena arena = {0};
    af_queue queue;
    af_call whole;
    af_open_call(&whole, problem);
    assert(af_is_legal_packed(&whole, sequences, first_query, first_key));
    if (!af_has_results(&whole)) return AF_OK;
    const bool together = af_is_plain(&whole);
    if (together) af_causality_as_window(&whole.visible);
    af_open_queue(&queue, run, &watch, &arena);
    for (int64_t s = 0; s < sequences && status == AF_OK; s++) {
        if (s % SEQUENCES_A_CHECK == SEQUENCES_A_CHECK - 1) status = af_check_signals(&watch);
        af_call call = cut_sequence(&whole, s, first_query, first_key);
        if (status == AF_OK) status = run_sequence(&call, together, &queue);
    }
    if (status == AF_OK) status = af_flush_queue(&queue);
    af_give_back(&arena);
    return status;
}

/* Rectangles of one sequence in the rows of all. */
static void move_rectangles(af_rectangle *rectangles, int64_t count, int64_t s, int64_t query, int64_t key)
{
    for (int64_t n = 0; n < count; n++) {
        af_rectangle *r = &rectangles[n];
        r->b = s;
        r->first_query += query;
        r->end_query += query;
        r->first_key += key;
        r->end_key += key;
    }
}

af_status af_describe_packed(const af_problem *problem, int64_t sequences, const int64_t *first_query,
                             const int64_t *first_key, const af_run *run, af_report *report, af_rectangle *rectangles,
                             int64_t room)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    af_call whole;
    af_open_call(&whole, problem);
    assert(af_is_legal_packed(&whole, sequences, first_query, first_key));
    af_begin_report(&whole, report);
    if (whole.H == 0) sequences = 0;
    for (int64_t s = 0; s < sequences && status == AF_OK; s++) {
        const af_call call = cut_sequence(&whole, s, first_query, first_key);
        const int64_t before = af_min(report->rectangles, room);
        status = af_describe_any(&call, run, &watch, report, rectangles, room);
        if (rectangles)
            move_rectangles(rectangles + before, af_min(report->rectangles, room) - before, s, first_query[s],
                            first_key[s]);
    }
    af_end_report(&whole, report);
    return status;
}

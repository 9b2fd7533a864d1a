/* Sequences packed one after the other: a call for each. */
#include <assert.h>

#include "driver/attention.h"
#include "driver/describe.h"
#include "driver/queue.h"
#include "plan/intervals.h"
#include "plan/legal.h"

/* Signals are checked after so many sequences, which may all be empty. */
enum { SEQUENCES_A_CHECK = 4096 };

/* Sequences one by one where the algorithm of a call makes loops of its own, else together. */
static af_status run_sequence(af_call *call, bool together, af_queue *queue)
{
    return together ? af_enqueue(queue, call) : af_run_any(call, queue->run, queue->watch);
}

af_status af_attention_packed(const af_problem *problem, const af_packing *packing, const af_run *run)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    af_arena arena = {0};
    af_queue queue;
    af_call whole;
    af_open_call(&whole, problem);
    assert(af_is_legal_packed(&whole, packing));
    if (!af_has_results(&whole)) return AF_OK;
    const bool together = af_is_plain(&whole);
    if (together) af_causality_as_window(&whole.visible);
    af_open_queue(&queue, run, &watch, &arena);
    for (int64_t s = 0; s < packing->sequences && status == AF_OK; s++) {
        if (s % SEQUENCES_A_CHECK == SEQUENCES_A_CHECK - 1) status = af_check_signals(&watch);
        af_call call = af_cut_call(&whole, af_packed_part(&whole, packing, s));
        if (status == AF_OK) status = run_sequence(&call, together, &queue);
    }
    if (status == AF_OK) status = af_flush_queue(&queue);
    af_give_back(&arena);
    return status;
}

void af_move_rectangles(af_describer *d, int64_t first, af_part sequence)
{
    const int64_t end = af_min(d->report->rectangles, d->room);
    for (int64_t n = first; d->rectangles && n < end; n++) {
        af_rectangle *r = &d->rectangles[n];
        r->b = sequence.row;
        r->first_query += sequence.i;
        r->end_query += sequence.i;
        r->first_key += sequence.j;
        r->end_key += sequence.j;
    }
}

af_status af_describe_packed(const af_problem *problem, const af_packing *packing, const af_run *run, af_report *report,
                             af_rectangle *rectangles, int64_t room)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    af_call whole;
    af_describer d;
    af_open_call(&whole, problem);
    assert(af_is_legal_packed(&whole, packing));
    const bool together = af_is_plain(&whole);
    if (together) af_causality_as_window(&whole.visible);
    af_open_describer(&d, &whole, run, &watch, report);
    d.rectangles = rectangles;
    d.room = room;
    const int64_t sequences = whole.H == 0 ? 0 : packing->sequences;
    for (int64_t s = 0; s < sequences && status == AF_OK; s++) {
        const af_part part = af_packed_part(&whole, packing, s);
        const af_call call = af_cut_call(&whole, part);
        const int64_t before = af_min(report->rectangles, room);
        status = together ? af_describe_queued(&d, &call) : af_describe_any(&d, &call);
        af_move_rectangles(&d, before, part);
    }
    af_describe_group(&d);
    af_end_report(&whole, report);
    return status;
}

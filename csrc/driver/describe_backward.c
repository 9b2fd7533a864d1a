/* What calls for gradients would do. */
#include <assert.h>

#include "driver/backward.h"
#include "driver/describe.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "plan/legal.h"

static af_status describe_one(const af_call *call, const af_gradients *g, const af_run *run, af_watch *watch,
                              af_report *report, af_rectangle *rectangles, int64_t room)
{
    af_backward_schedule s;
    if (call->B == 0 || call->H == 0 || call->Lq == 0) return af_check_signals(watch);
    af_schedule_backward(&s, call, g, run);
    const af_plan *plan = &s.backward.plan;
    if (af_describe_pieces(call, plan, watch, report, rectangles, room) != AF_OK) return AF_INTERRUPTED;
    const int64_t panels = call->B * plan->head_groups * s.panels, ranges = s.backward.ranges;
    report->tasks += ranges > 1 ? 2 * s.blocks + panels * ranges : panels;
    const double memory = af_backward_memory(&s);
    if (s.threads > report->threads) report->threads = s.threads;
    if (memory > report->memory) report->memory = memory;
    report->kernel = "backward";
    return AF_OK;
}

/* Totals: elements of a query and of a key that are read or written, and of the products for each pair. */
static void end_report(const af_call *call, const af_gradients *g, af_report *report)
{
    const double size = (double)af_elem_bytes(call->dtype), D = (double)call->D, Dv = (double)call->Dv;
    const double query = g->query.data ? D : 0, key = g->key.data ? D : 0, value = g->value.data ? Dv : 0;
    const bool of_additive = g->score_weight || g->score_bias;
    const bool scores = g->query.data || g->key.data || g->bias.data || g->alibi || of_additive;
    const double queries = (double)call->B * (double)call->H * (double)call->Lq * (D + 2 * Dv + query);
    const double keys = (double)call->B * (double)call->Hk * (double)call->Lk * (D + Dv + key + value);
    report->flops = 2 * (double)report->visible_pairs * (D + (scores ? Dv : 0) + query + key + value);
    report->bytes = report->kernel[0] == 'n' ? 0 : size * (queries + keys);
}

af_status af_describe_backward(const af_problem *problem, const af_gradients *gradients, const af_run *run,
                               af_report *report, af_rectangle *rectangles, int64_t room)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    const af_call call = af_open_backward(problem, gradients);
    assert(af_is_legal(&call));
    af_begin_report(&call, report);
    const af_status status = describe_one(&call, gradients, run, &watch, report, rectangles, room);
    end_report(&call, gradients, report);
    return status;
}

af_status af_describe_packed_backward(const af_problem *problem, const af_packing *packing,
                                      const af_gradients *gradients, const af_run *run, af_report *report,
                                      af_rectangle *rectangles, int64_t room)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    const af_call whole = af_open_backward(problem, gradients);
    assert(af_is_legal_packed(&whole, packing));
    af_begin_report(&whole, report);
    for (int64_t s = 0; s < packing->sequences && status == AF_OK; s++) {
        const af_part part = af_packed_part(&whole, packing, s);
        const af_call call = af_cut_call(&whole, part);
        const int64_t before = af_min(report->rectangles, room);
        status = describe_one(&call, gradients, run, &watch, report, rectangles, room);
        af_move_rectangles(rectangles, before, af_min(report->rectangles, room), part);
    }
    end_report(&whole, gradients, report);
    return status;
}

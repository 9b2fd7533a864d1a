/* What calls for gradients would do. */
#include <assert.h>

#include "driver/backward.h"
#include "driver/describe.h"
#include "driver/local.h"
#include "driver/passes.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "plan/legal.h"

typedef struct describer {
    af_sink sink;
    af_report *report;
    af_rectangle *rectangles;
    int64_t room;
} describer;

static af_status describe_one(af_sink *sink, const af_call *call)
{
    const describer *d = (const describer *)sink;
    af_report *report = d->report;
    af_backward_schedule s;
    af_schedule_backward(&s, call, sink->run);
    const af_plan *plan = &s.backward.plan;
    if (af_describe_pieces(call, plan, sink->watch, report, d->rectangles, d->room) != AF_OK) return AF_INTERRUPTED;
    report->tasks += s.units;
    const double memory = af_backward_memory(&s) + af_sums_memory(&s);
    if (s.threads > report->threads) report->threads = s.threads;
    if (memory > report->memory) report->memory = memory;
    report->kernel = "backward";
    return AF_OK;
}

static af_status go_on(af_sink *sink)
{
    (void)sink;
    return AF_OK;
}

/* What a call of any kind would do. */
static af_status describe_any(af_call *call, describer *d)
{
    af_arena arena = {0};
    bool causal, several;
    if (call->B == 0 || call->H == 0 || call->Lq == 0) return af_check_signals(d->sink.watch);
    af_status status = af_prepare_local(call, &causal, &several, d->sink.watch, &arena);
    if (status == AF_OK) status = several ? af_call_pairs(call, causal, &d->sink) : describe_one(&d->sink, call);
    af_give_back(&arena);
    return status;
}

/* Totals: elements of a query and of a key that are read or written, and of the products for each pair. */
static void end_report(const af_call *call, af_report *report)
{
    const af_gradients *g = &call->gradients;
    const double size = (double)af_elem_bytes(call->dtype), D = (double)call->D, Dv = (double)call->Dv;
    const double query = g->query.data ? D : 0, key = g->key.data ? D : 0, value = g->value.data ? Dv : 0;
    const bool of_additive = g->score_weight || g->score_bias;
    const bool scores = g->query.data || g->key.data || g->bias.data || g->alibi || g->center.data || of_additive;
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
    af_call call;
    af_open_gradients(&call, problem, gradients);
    assert(af_is_legal(&call));
    describer d = {{describe_one, go_on, run, &watch, af_memory_for(run), true}, report, rectangles, room};
    af_begin_report(&call, report);
    const af_status status = describe_any(&call, &d);
    end_report(&call, report);
    return status;
}

af_status af_describe_packed_backward(const af_problem *problem, const af_packing *packing,
                                      const af_gradients *gradients, const af_run *run, af_report *report,
                                      af_rectangle *rectangles, int64_t room)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    af_call whole;
    af_open_gradients(&whole, problem, gradients);
    assert(af_is_legal_packed(&whole, packing));
    describer d = {{describe_one, go_on, run, &watch, af_memory_for(run), true}, report, rectangles, room};
    af_begin_report(&whole, report);
    const int64_t sequences = whole.H == 0 ? 0 : packing->sequences;
    for (int64_t s = 0; s < sequences && status == AF_OK; s++) {
        const af_part part = af_packed_part(&whole, packing, s);
        af_call call = af_cut_call(&whole, part);
        const int64_t before = af_min(report->rectangles, room);
        status = describe_any(&call, &d);
        af_move_rectangles(rectangles, before, af_min(report->rectangles, room), part);
    }
    end_report(&whole, report);
    return status;
}

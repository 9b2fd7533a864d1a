/* What calls for gradients would do. */
#include <assert.h>

#include "driver/attention.h"
#include "driver/backward_list.h"
#include "driver/describe.h"
#include "driver/local.h"
#include "driver/passes.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "plan/legal.h"

typedef struct describer {
    af_describer pairs; /* whose sink takes calls one by one */
    af_backward_list list;
    af_arena arena;
} describer;

/* A call that is run together with the next ones. */
static af_status describe_listed(describer *d, const af_call *call)
{
    af_backward_schedule s;
    if (call->B == 0 || call->H == 0 || call->Lq == 0) return AF_OK;
    af_schedule_backward(&s, call, d->pairs.sink.run);
    const af_status status = af_describe_pieces(&d->pairs, call, &s.backward.plan);
    if (status != AF_OK) return status;
    d->pairs.report->tasks += s.units;
    d->pairs.report->kernel = "backward";
    return af_list_backward(&d->list, call);
}

/* A call that is run by itself. */
static af_status describe_one(af_sink *sink, const af_call *call)
{
    describer *d = (describer *)sink;
    const af_status status = describe_listed(d, call);
    return status == AF_OK ? af_flush_backward_list(&d->list) : status;
}

static af_status go_on(af_sink *sink)
{
    (void)sink;
    return AF_OK;
}

static void open_describer(describer *d, const af_call *call, const af_run *run, af_watch *watch, af_report *report)
{
    af_open_describer(&d->pairs, call, run, watch, report);
    d->pairs.sink.call = describe_one;
    d->pairs.sink.barrier = go_on;
    d->pairs.sink.memory = AF_GRADIENT_COPIES;
    d->arena = (af_arena){0};
    af_open_backward_list(&d->list, run, watch, &d->arena);
    d->list.report = report;
}

/* What a call of any kind would do. */
static af_status describe_any(describer *d, af_call *call)
{
    af_arena arena = {0};
    af_sink *sink = &d->pairs.sink;
    bool causal, several;
    if (call->B == 0 || call->H == 0 || call->Lq == 0) return af_check_signals(sink->watch);
    af_status status = af_prepare_local(call, &causal, &several, sink->watch, &arena);
    if (status == AF_OK) status = several ? af_call_pairs(call, causal, sink) : describe_one(sink, call);
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
    describer d;
    af_open_gradients(&call, problem, gradients);
    assert(af_is_legal(&call));
    open_describer(&d, &call, run, &watch, report);
    d.pairs.rectangles = rectangles;
    d.pairs.room = room;
    const af_status status = describe_any(&d, &call);
    end_report(&call, report);
    af_give_back(&d.arena);
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
    describer d;
    af_open_gradients(&whole, problem, gradients);
    assert(af_is_legal_packed(&whole, packing));
    const bool together = af_is_plain(&whole);
    if (together) af_causality_as_window(&whole.visible);
    open_describer(&d, &whole, run, &watch, report);
    d.pairs.rectangles = rectangles;
    d.pairs.room = room;
    const int64_t sequences = whole.H == 0 ? 0 : packing->sequences;
    for (int64_t s = 0; s < sequences && status == AF_OK; s++) {
        const af_part part = af_packed_part(&whole, packing, s);
        af_call call = af_cut_call(&whole, part);
        const int64_t before = af_min(report->rectangles, room);
        status = together ? describe_listed(&d, &call) : describe_any(&d, &call);
        af_move_rectangles(&d.pairs, before, part);
    }
    if (status == AF_OK) status = af_flush_backward_list(&d.list);
    end_report(&whole, report);
    af_give_back(&d.arena);
    return status;
}

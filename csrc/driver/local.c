/* What a call with windows of any kind is made of:
 *
 *   plain windows, windows about centers    one call
 *   windows with dilation                   a call for the residue classes of each dilation (dilation.c)
 *   global tokens                           the windows first, then the pairs that they leave out (global_tokens.c)
 *
 * Where weights are wanted of several calls, each recomputes those of its own pairs from the lse over all keys; then
 * each row is divided by its sum. */
#include "driver/local.h"

#include "driver/describe.h"
#include "driver/dilation.h"
#include "driver/global_tokens.h"
#include "driver/passes.h"
#include "driver/query_order.h"
#include "driver/queue.h"
#include "driver/weight_rows.h"
#include "driver/widen.h"
#include "plan/intervals.h"

static bool is_dilated(const af_call *call)
{
    bool dilated = false;
    for (int64_t h = 0; call->visible.dilation && h < call->H; h++) dilated = dilated || call->visible.dilation[h] != 1;
    return dilated;
}

/* Whether any batch row has a global token. 16-bit output and weights have other bits if they are made of several
 * calls: there a batch row without tokens is computed like the others. */
static bool has_global_tokens(const af_call *call)
{
    const uint8_t *global = call->visible.global;
    if (!global || call->dtype > AF_F64 || call->results.weights.data) return global != NULL;
    const uint8_t *end = global + call->B * call->Lk;
    for (; global < end; global++)
        if (*global) return true;
    return false;
}

/* The calls that compute output and lse. */
static af_status call_pairs(const af_call *call, bool causal, af_sink *sink, af_arena *arena)
{
    af_status status = af_call_windows(call, sink, arena);
    if (status == AF_OK) status = sink->barrier(sink);
    if (status == AF_OK && call->visible.global) status = af_call_global_tokens(call, causal, sink);
    return status;
}

/* The calls that write weights: each those of its own pairs. */
static af_status call_weights(const af_call *call, bool causal, const af_tensor *lse, af_sink *sink, af_arena *arena)
{
    af_call weights = *call;
    weights.operands.value = (af_tensor){0};
    weights.results = (af_results){.weights = call->results.weights, .stage = AF_WEIGHTS};
    weights.subset.row_lse = *lse;
    weights.subset.visible_weights = true;
    return call_pairs(&weights, causal, sink, arena);
}

/* Output of 16-bit elements in float32, so that what joins windows and global tokens is not rounded. */
static af_status run_wide(const af_call *call, bool causal, af_sink *sink, af_arena *arena)
{
    const int64_t sizes[3] = {call->B, call->H, call->Lq};
    af_call wide = *call;
    wide.results.weights = (af_tensor){0};
    if (!af_widen_operands(&wide, arena)) return AF_NO_MEMORY;
    af_tensor *output = &wide.results.output;
    if (call->operands.value.data) {
        *output = (af_tensor){.b = call->H * call->Lq * call->Dv, .h = call->Lq * call->Dv, .i = call->Dv, .j = 1};
        if ((double)call->B * (double)call->H * (double)call->Lq * (double)call->Dv > 0x1p56) return AF_NO_MEMORY;
        output->data = af_take(arena, call->B * call->H * call->Lq * call->Dv, sizeof(float));
        if (!output->data) return AF_NO_MEMORY;
    }
    const af_status status = call_pairs(&wide, causal, sink, arena);
    if (status == AF_OK && output->data) af_narrow_rows(call->dtype, output, &call->results.output, sizes, call->Dv);
    return status;
}

/* The lse, which joins windows and global tokens and gives weights, whether a caller wants it or not. */
static bool take_lse(af_call *call, af_arena *arena)
{
    af_tensor *lse = &call->results.lse;
    if (lse->data) return true;
    if ((double)call->B * (double)call->H * (double)call->Lq > 0x1p56) return false;
    *lse = (af_tensor){.b = call->H * call->Lq, .h = call->Lq, .i = 1};
    lse->data = af_take(arena, call->B * call->H * call->Lq, (size_t)af_real_bytes(call->dtype));
    return lse->data != NULL;
}

static af_status run_several(af_call *call, bool causal, af_queue *queue, af_sink *sink, af_arena *arena)
{
    if (!take_lse(call, arena)) return AF_NO_MEMORY;
    af_call pairs = *call;
    pairs.results.weights = (af_tensor){0};
    const bool wide = call->dtype > AF_F64 && call->visible.global;
    af_status status = (wide ? run_wide : call_pairs)(&pairs, causal, sink, arena);
    if (status != AF_OK || !call->results.weights.data) return status;
    status = af_clear_weights(call, queue->run, queue->watch);
    if (status == AF_OK) status = call_weights(call, causal, &call->results.lse, sink, arena);
    return status == AF_OK ? af_normalise_weights(call, queue->run, queue->watch) : status;
}

/* Prepares a call: causality as a window, an order for its centers, no global tokens where there are none. Returns
 * whether it is one call, or several. */
typedef enum kind { FAILED, ONE, SEVERAL } kind;

static kind prepare(af_call *call, bool *causal, af_arena *arena)
{
    *causal = call->visible.causal;
    af_causality_as_window(&call->visible);
    if (!has_global_tokens(call)) call->visible.global = NULL;
    if (call->visible.center.data) return af_order_by_centers(call, arena) ? ONE : FAILED;
    if (!is_dilated(call) && !call->visible.global) return ONE;
    if (call->visible.dilation) return SEVERAL;
    int64_t *ones = af_take(arena, call->H, sizeof *ones);
    for (int64_t h = 0; ones && h < call->H; h++) ones[h] = 1;
    call->visible.dilation = ones;
    return ones ? SEVERAL : FAILED;
}

typedef struct runner {
    af_sink sink;
    af_queue queue;
} runner;

static af_status run_later(af_sink *sink, const af_call *call) { return af_enqueue(&((runner *)sink)->queue, call); }
static af_status run_now(af_sink *sink) { return af_flush_queue(&((runner *)sink)->queue); }

af_status af_run_local(af_call *call, const af_run *run, af_watch *watch)
{
    if (!af_has_results(call)) return AF_OK;
    af_arena arena = {0};
    bool causal;
    af_status status = AF_NO_MEMORY;
    const kind kind = prepare(call, &causal, &arena);
    if (kind == ONE) status = af_run_call(call, run, watch);
    if (kind == SEVERAL) {
        runner r = {.sink = {run_later, run_now}};
        if (af_open_queue(&r.queue, run, watch, &arena)) status = run_several(call, causal, &r.queue, &r.sink, &arena);
    }
    af_give_back(&arena);
    return status;
}

typedef struct describer {
    af_sink sink;
    const af_run *run;
    af_watch *watch;
    af_report *report;
    af_rectangle *rectangles;
    int64_t room;
} describer;

static af_status describe_one(af_sink *sink, const af_call *call)
{
    const describer *d = (const describer *)sink;
    return af_describe_call(call, d->run, d->watch, d->report, d->rectangles, d->room);
}

static af_status go_on(af_sink *sink)
{
    (void)sink;
    return AF_OK;
}

af_status af_describe_local(const af_call *wanted, const af_run *run, af_watch *watch, af_report *report,
                            af_rectangle *rectangles, int64_t room)
{
    af_call call = *wanted;
    af_arena arena = {0};
    describer d = {{describe_one, go_on}, run, watch, report, rectangles, room};
    bool causal;
    af_status status = AF_NO_MEMORY;
    const kind kind = prepare(&call, &causal, &arena);
    if (kind == ONE) status = describe_one(&d.sink, &call);
    if (kind == SEVERAL) status = call_pairs(&call, causal, &d.sink, &arena);
    af_give_back(&arena);
    return status;
}

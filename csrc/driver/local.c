/* What a call with windows of any kind is made of:
 *
 *   plain windows, windows about centers    one call
 *   windows with dilation                   a call for the residue classes of each dilation (dilation.c)
 *   global tokens                           the windows first, then the pairs that they leave out (global_tokens.c);
 *                                           of short rows one call with a mask (short_rows.c)
 *
 * Of several calls that make one, each recomputes the weights of its own pairs from the lse over all keys; then each
 * row of weights is divided by its sum. */
#include "driver/local.h"

#include "driver/describe.h"
#include "driver/dilation.h"
#include "driver/global_tokens.h"
#include "driver/passes.h"
#include "driver/query_order.h"
#include "driver/queue.h"
#include "driver/short_rows.h"
#include "driver/weight_rows.h"
#include "driver/widen.h"
#include "plan/intervals.h"

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

af_status af_call_pairs(const af_call *call, bool causal, af_sink *sink)
{
    if (af_has_short_rows(call)) return af_call_short_rows(call, causal, sink);
    const af_status status = af_call_windows(call, sink);
    return status == AF_OK && call->visible.global ? af_call_global_tokens(call, causal, sink) : status;
}

static af_status call_weights(const af_call *call, bool causal, af_sink *sink)
{
    af_call weights = *call;
    weights.operands.value = (af_tensor){0};
    weights.results = (af_results){.weights = call->results.weights, .stage = AF_WEIGHTS};
    weights.subset.row_lse = call->results.lse;
    weights.subset.visible_weights = true;
    return af_call_pairs(&weights, causal, sink);
}

/* 16-bit calls with global tokens: in float32, so that what joins windows and tokens is not rounded. */
typedef struct wide_pairs {
    af_sink *sink;
    bool causal;
} wide_pairs;

static af_status call_wide_pairs(void *context, const af_call *wide)
{
    const wide_pairs *w = context;
    return af_call_pairs(wide, w->causal, w->sink);
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

/* The weights, each call those of its own pairs; then each row is divided by its sum. The lse of a row that is rounded
 * by more than exp() bears is made again, from scores that have the bits of those which the weights are recomputed
 * from. */
static af_status run_weights(const af_call *call, bool causal, af_sink *sink, af_arena *arena)
{
    af_call rows = *call;
    bool rough;
    af_status status = af_find_rough_lse(call, sink->watch, &rough);
    if (status == AF_OK && rough) {
        rows.operands.value = rows.results.output = rows.results.weights = rows.results.lse = (af_tensor){0};
        rows.subset.natural = rows.subset.tiles = true;
        status = take_lse(&rows, arena) ? af_call_pairs(&rows, causal, sink) : AF_NO_MEMORY;
        if (status == AF_OK) status = af_copy_fine_lse(call, &rows, sink->watch);
        rows.results.weights = call->results.weights;
    }
    if (status == AF_OK) status = af_clear_weights(&rows, sink->run, sink->watch);
    if (status == AF_OK) status = call_weights(&rows, causal, sink);
    return status == AF_OK ? af_normalise_weights(&rows, sink->run, sink->watch) : status;
}

static af_status run_several(af_call *call, bool causal, af_sink *sink, af_arena *arena)
{
    if (!take_lse(call, arena)) return AF_NO_MEMORY;
    af_call pairs = *call;
    af_status status;
    pairs.results.weights = (af_tensor){0};
    if (call->dtype > AF_F64 && call->visible.global && !af_has_short_rows(call))
        status = af_run_wide(&pairs, sink->run, sink->watch, call_wide_pairs, &(wide_pairs){sink, causal});
    else status = af_call_pairs(&pairs, causal, sink);
    return status == AF_OK && call->results.weights.data ? run_weights(call, causal, sink, arena) : status;
}

af_status af_prepare_local(af_call *call, bool *causal, bool *several, af_watch *watch, af_arena *arena)
{
    *causal = call->visible.causal;
    *several = false;
    af_causality_as_window(&call->visible);
    if (!af_has_short_rows(call) && !has_global_tokens(call)) call->visible.global = NULL;
    if (call->visible.center.data) return af_order_by_centers(call, watch, arena);
    if (!af_is_dilated(call) && !call->visible.global) return AF_OK;
    *several = true;
    if (call->visible.dilation) return AF_OK;
    int64_t *ones = af_take(arena, call->H, sizeof *ones);
    for (int64_t h = 0; ones && h < call->H; h++) ones[h] = 1;
    call->visible.dilation = ones;
    return ones ? AF_OK : AF_NO_MEMORY;
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
    bool causal, several;
    af_status status = af_prepare_local(call, &causal, &several, watch, &arena);
    if (status == AF_OK && !several) status = af_run_call(call, run, watch);
    if (status == AF_OK && several) {
        runner r = {.sink = {run_later, run_now, run, watch, af_memory_for(run), false}};
        af_open_queue(&r.queue, run, watch, &arena);
        status = run_several(call, causal, &r.sink, &arena);
    }
    af_give_back(&arena);
    return status;
}

af_status af_describe_local(af_describer *d, const af_call *wanted)
{
    af_call call = *wanted;
    af_arena arena = {0};
    bool causal, several;
    af_status status = af_prepare_local(&call, &causal, &several, d->sink.watch, &arena);
    if (status == AF_OK && !several) status = af_describe_call(d, &call);
    if (status == AF_OK && several) status = af_call_pairs(&call, causal, &d->sink);
    af_describe_group(d);
    af_give_back(&arena);
    return status;
}

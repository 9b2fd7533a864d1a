/* Gradients of a call with windows of any kind, which is made of the same calls as its output (driver/local.c). Each
 * knows the lse and delta of its rows over all keys, so it needs none of the others:
 *
 *   P = exp(S - lse)     delta = <dO, O> - grad_lse     dS = P (dP - delta)
 *
 * Where this does not do (kernel/backward_open.h), the calls first collect for each row the maximum of its scores, the
 * sum of exp(S - max) and that of exp(S - max) dP. */
#include <float.h>
#include <math.h>

#include "driver/backward.h"
#include "driver/local.h"
#include "plan/intervals.h"

static af_status run_one(af_sink *sink, const af_call *call) { return af_run_backward(call, sink->run, sink->watch); }

static af_status go_on(af_sink *sink)
{
    (void)sink;
    return AF_OK;
}

/* Rows between two checks of signals. */
enum { ROWS_A_CHECK = 1 << 16 };

static double real_at(const af_call *call, const af_tensor *t, int64_t at)
{
    return call->dtype == AF_F64 ? ((const double *)t->data)[at] : (double)((const float *)t->data)[at];
}

/* Lanes of a sum, so that compilers make vectors of it. */
enum { SUM_LANES = 8 };

static double sum_of_sizes_f32(const float *a, const float *b, int64_t n)
{
    float sums[SUM_LANES] = {0}, sum = 0;
    int64_t d = 0;
    for (; d + SUM_LANES <= n; d += SUM_LANES)
        for (int k = 0; k < SUM_LANES; k++) sums[k] += fabsf(a[d + k] * b[d + k]);
    for (; d < n; d++) sum += fabsf(a[d] * b[d]);
    for (int k = 0; k < SUM_LANES; k++) sum += sums[k];
    return (double)sum;
}

static double sum_of_sizes_f64(const double *a, const double *b, int64_t n)
{
    double sums[SUM_LANES] = {0}, sum = 0;
    int64_t d = 0;
    for (; d + SUM_LANES <= n; d += SUM_LANES)
        for (int k = 0; k < SUM_LANES; k++) sums[k] += fabs(a[d + k] * b[d + k]);
    for (; d < n; d++) sum += fabs(a[d] * b[d]);
    for (int k = 0; k < SUM_LANES; k++) sum += sums[k];
    return sum;
}

/* Whether <dO, O> of a row is sure to be finite, in any order of summation. */
static bool has_delta(const af_call *call, int64_t b, int64_t h, int64_t i)
{
    const af_tensor *grad = &call->gradients.grad_output, *output = &call->gradients.output;
    const int64_t x = af_offset(grad, b, h, i), y = af_offset(output, b, h, i);
    if (call->dtype == AF_F64)
        return sum_of_sizes_f64((const double *)grad->data + x, (const double *)output->data + y, call->Dv) <=
               DBL_MAX / 2;
    return sum_of_sizes_f32((const float *)grad->data + x, (const float *)output->data + y, call->Dv) <= FLT_MAX / 2;
}

/* Whether lse and output may not tell what some row is: all of what the kernel calls rough (kernel/backward_open.h),
 * as no row may depend on which others are there. */
static af_status find_rough_row(const af_call *call, af_watch *watch, bool *found)
{
    const int64_t count = call->B * call->H * call->Lq;
    const af_gradients *g = &call->gradients;
    *found = g->grad_weights.data != NULL;
    for (int64_t row = 0; row < count && !*found; row++) {
        if (row % ROWS_A_CHECK == 0 && af_check_signals(watch) == AF_INTERRUPTED) return AF_INTERRUPTED;
        const int64_t i = row % call->Lq, h = row / call->Lq % call->H, b = row / call->Lq / call->H;
        const double lse = real_at(call, &g->lse, af_offset(&g->lse, b, h, i));
        if (lse != -INFINITY) *found = fabs(lse) > AF_LARGE_LSE || !has_delta(call, b, h, i);
    }
    return AF_OK;
}

/* Of rows that have seen nothing yet. */
static bool take_collected(af_call *call, af_arena *arena)
{
    const int64_t rows = call->B * call->H * call->Lq;
    if ((double)call->B * (double)call->H * (double)call->Lq > 0x1p56) return false;
    af_tensor *t = &call->subset.collected;
    *t = (af_tensor){.b = AF_COLLECTED * call->H * call->Lq, .h = AF_COLLECTED * call->Lq, .i = AF_COLLECTED};
    t->data = af_take(arena, AF_COLLECTED * rows, (size_t)af_real_bytes(call->dtype));
    for (int64_t row = 0; t->data && row < rows; row++)
        for (int k = 0; k < AF_COLLECTED; k++) {
            const double x = k == AF_ROW_MAX ? -INFINITY : 0;
            if (call->dtype == AF_F64) ((double *)t->data)[AF_COLLECTED * row + k] = x;
            else ((float *)t->data)[AF_COLLECTED * row + k] = (float)x;
        }
    return t->data != NULL;
}

/* What the rows of a call are over all its keys, where lse and output do not tell it. */
static af_status collect_rows(af_call *call, bool causal, af_sink *sink, af_arena *arena)
{
    bool collects;
    const af_status status = find_rough_row(call, sink->watch, &collects);
    if (status != AF_OK || !collects) return status;
    if (!take_collected(call, arena)) return AF_NO_MEMORY;
    af_call rows = *call;
    af_gradients *g = &rows.gradients;
    g->query = g->key = g->value = g->bias = g->center = (af_tensor){0};
    g->alibi = g->sink = NULL;
    rows.subset.collects = true;
    return af_call_pairs(&rows, causal, sink);
}

af_status af_run_local_backward(af_call *call, const af_run *run, af_watch *watch)
{
    if (call->B == 0 || call->H == 0 || call->Lq == 0) return AF_OK;
    af_arena arena = {0};
    bool causal, several;
    af_status status = af_prepare_local(call, &causal, &several, watch, &arena);
    if (status == AF_OK && !several) status = af_run_backward(call, run, watch);
    if (status == AF_OK && several) {
        af_sink sink = {run_one, go_on, run, watch, AF_GRADIENT_COPIES, false};
        if (call->visible.global) status = collect_rows(call, causal, &sink, &arena);
        if (status == AF_OK) status = af_call_pairs(call, causal, &sink);
    }
    af_give_back(&arena);
    return status;
}

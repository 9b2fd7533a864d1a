#include "driver/weight_rows.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "driver/passes.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "runtime/dispatch.h"

/* 16-bit weights that are widened at a time: a buffer of 2 KB on the stack. */
enum { BUFFERED_WEIGHTS = 512 };

/* Rows between two checks of signals. */
enum { ROWS_A_CHECK = 1 << 16 };

/* A row, its lse, and the score of its sink. */
typedef struct weight_row {
    char *weights;
    double lse, sink;
} weight_row;

static weight_row find_row(const af_call *call, int64_t row)
{
    const int64_t i = row % call->Lq, h = row / call->Lq % call->H, b = row / call->Lq / call->H;
    const af_tensor *t = &call->results.weights, *lse = &call->results.lse;
    weight_row found = {.weights = (char *)t->data + af_offset(t, b, h, i) * af_elem_bytes(call->dtype)};
    const int64_t at = af_offset(lse, b, h, i);
    if (lse->data) found.lse = call->dtype == AF_F64 ? ((double *)lse->data)[at] : ((float *)lse->data)[at];
    found.sink = call->score.sink ? call->score.sink[h] : -INFINITY;
    return found;
}

static bool is_rough(const af_call *call, double lse)
{
    return isfinite(lse) && fabs(lse) > (call->dtype == AF_F64 ? 1 / DBL_EPSILON : 1 / (double)FLT_EPSILON);
}

af_status af_find_rough_lse(const af_call *call, af_watch *watch, bool *found)
{
    const int64_t count = call->B * call->H * call->Lq;
    *found = false;
    for (int64_t row = 0; row < count && !*found; row++) {
        if (row % ROWS_A_CHECK == 0 && af_check_signals(watch) == AF_INTERRUPTED) return AF_INTERRUPTED;
        *found = is_rough(call, find_row(call, row).lse);
    }
    return AF_OK;
}

af_status af_copy_fine_lse(const af_call *from, const af_call *to, af_watch *watch)
{
    const int64_t count = from->B * from->H * from->Lq;
    for (int64_t row = 0; row < count; row++) {
        if (row % ROWS_A_CHECK == 0 && af_check_signals(watch) == AF_INTERRUPTED) return AF_INTERRUPTED;
        const int64_t i = row % to->Lq, h = row / to->Lq % to->H, b = row / to->Lq / to->H;
        const int64_t at = af_offset(&to->results.lse, b, h, i);
        const double lse = find_row(from, row).lse;
        if (is_rough(from, lse)) continue;
        if (to->dtype == AF_F64) ((double *)to->results.lse.data)[at] = lse;
        else ((float *)to->results.lse.data)[at] = (float)lse;
    }
    return AF_OK;
}

static void clear_row(void *context, int64_t row, void *scratch)
{
    const af_call *call = context;
    (void)scratch;
    memset(find_row(call, row).weights, 0, (size_t)(call->Lk * af_elem_bytes(call->dtype)));
}

/* The sum of n weights from key j on. */
static double sum_of(const af_call *call, const char *weights, int64_t j, int64_t n)
{
    float wide[BUFFERED_WEIGHTS];
    double sum = 0;
    if (call->dtype == AF_F64) {
        for (int64_t m = 0; m < n; m++) sum += ((const double *)weights)[j + m];
        return sum;
    }
    const float *from = (const float *)weights + j;
    if (call->dtype != AF_F32) {
        af_kernels_for(call->dtype)->widen((const uint16_t *)weights + j, wide, n);
        from = wide;
    }
    for (int64_t m = 0; m < n; m++) sum += from[m];
    return sum;
}

static void scale_by(const af_call *call, char *weights, int64_t j, int64_t n, double factor)
{
    float wide[BUFFERED_WEIGHTS];
    if (call->dtype == AF_F64) {
        for (int64_t m = 0; m < n; m++) ((double *)weights)[j + m] *= factor;
    } else if (call->dtype == AF_F32) {
        for (int64_t m = 0; m < n; m++) ((float *)weights)[j + m] = (float)(((float *)weights)[j + m] * factor);
    } else {
        af_kernels_for(call->dtype)->widen((uint16_t *)weights + j, wide, n);
        for (int64_t m = 0; m < n; m++) wide[m] = (float)(wide[m] * factor);
        af_kernels_for(call->dtype)->narrow(wide, (uint16_t *)weights + j, n);
    }
}

/* Whether the rounding of lse changes 16-bit weights less than their own rounding does. Then they are not divided:
 * their sum, of rounded numbers, would be further from the truth than lse. */
static bool is_exact(const af_call *call, double lse) { return call->dtype > AF_F64 && fabs(lse) < 2048; }

static void normalise_row(void *context, int64_t row, void *scratch)
{
    const af_call *call = context;
    const weight_row r = find_row(call, row);
    (void)scratch;
    if (!isfinite(r.lse) || is_exact(call, r.lse)) return;
    double sum = exp(r.sink - r.lse);
    for (int64_t j = 0; j < call->Lk; j += BUFFERED_WEIGHTS)
        sum += sum_of(call, r.weights, j, af_min(BUFFERED_WEIGHTS, call->Lk - j));
    if (!isfinite(sum) || sum == 0) return;
    for (int64_t j = 0; j < call->Lk; j += BUFFERED_WEIGHTS)
        scale_by(call, r.weights, j, af_min(BUFFERED_WEIGHTS, call->Lk - j), 1 / sum);
}

static af_status for_each_row(const af_call *call, void (*unit)(void *, int64_t, void *), const af_run *run,
                              af_watch *watch)
{
    af_call rows = *call;
    const int64_t count = call->B * call->H * call->Lq;
    const af_work work = {.unit = unit, .context = &rows, .count = count, .share = 1 + 4096 / (1 + call->Lk)};
    const bool worth_threads = af_worth_threads((double)count * (double)call->Lk);
    return af_run_work(&work, watch, af_threads_for(run->threads, count, worth_threads));
}

af_status af_clear_weights(const af_call *call, const af_run *run, af_watch *watch)
{
    return for_each_row(call, clear_row, run, watch);
}

af_status af_normalise_weights(const af_call *call, const af_run *run, af_watch *watch)
{
    return for_each_row(call, normalise_row, run, watch);
}

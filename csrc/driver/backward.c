/* Gradients of calls: what is run, see driver/backward_list.h, and the sums over rows at its end. */
#include "driver/backward.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "driver/attention.h"
#include "driver/backward_list.h"
#include "driver/local.h"
#include "driver/passes.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "plan/legal.h"
#include "runtime/dispatch.h"

/* Panels in flight have about so many ranges for each thread, and take at most so many bytes for each. Half and double
 * of both: within 1 % on one thread (Zen 4, 4 x 2048 x 64). */
enum { RANGES_PER_THREAD = 8, PANEL_BYTES = 4 << 20 };

static double real_at(const af_call *call, const void *data, int64_t at)
{
    return call->dtype == AF_F64 ? ((const double *)data)[at] : (double)((const float *)data)[at];
}

static void add_real(const af_call *call, void *data, int64_t at, double x)
{
    if (call->dtype == AF_F64) ((double *)data)[at] += x;
    else ((float *)data)[at] = (float)(((float *)data)[at] + x);
}

/* What rows add to the slope, the sink and the bias of their head. */
static void sum_rows(const af_backward *w, int64_t b, int64_t h)
{
    const af_call *call = w->call;
    const af_gradients *g = w->gradients;
    const int64_t first = (b * call->H + h) * call->Lq, all = call->B * call->H * call->Lq;
    const double *slope = w->row_sums ? w->row_sums + AF_ALIBI_SUM * all + first : NULL;
    const double *bias = w->row_sums ? w->row_sums + AF_BIAS_SUM * all + first : NULL;
    const double *center = w->row_sums ? w->row_sums + AF_CENTER_SUM * all + first : NULL;
    const double gaussian = call->score.gaussian; /* its square may overflow */
    double by_slope = 0, by_sink = 0, by_bias = 0;
    for (int64_t i = 0; i < call->Lq; i++) {
        const double lse = real_at(call, g->lse.data, af_offset(&g->lse, b, h, i));
        if (g->alibi) by_slope += slope[i];
        /* The derivative of log 2^-(gaussian (j - c))^2 is 2 log(2) gaussian^2 (j - c). */
        if (g->center.data && center[i] != 0)
            ((double *)g->center.data)[af_offset(&g->center, b, h, i)] +=
                2 * 0.69314718055994531 * gaussian * (gaussian * center[i]);
        if (g->sink && lse > -INFINITY) by_sink -= exp(call->score.sink[h] - lse) * real_at(call, w->delta, first + i);
        if (!g->bias.data || g->bias.j != 0) continue;
        if (g->bias.i == 0) by_bias += bias[i];
        else add_real(call, g->bias.data, af_offset(&g->bias, b, h, i), bias[i]);
    }
    if (g->alibi) g->alibi[b * call->score.alibi_b + h] += by_slope;
    if (g->sink) g->sink[h] += by_sink;
    if (g->bias.data && g->bias.j == 0 && g->bias.i == 0)
        add_real(call, g->bias.data, af_offset(&g->bias, b, h, 0), by_bias);
}

/* What blocks of rows add to the weights and the bias of additive scores of their head. */
static void sum_blocks(const af_backward *w, int64_t b, int64_t h)
{
    const af_call *call = w->call;
    const int64_t first = (b * call->H + h) * w->plan.blocks, all = call->B * call->H * w->plan.blocks;
    double *const to[AF_VECTOR_SUMS] = {
        w->gradients->score_weight ? w->gradients->score_weight + h * call->score.score_weight.h : NULL,
        w->gradients->score_bias ? w->gradients->score_bias + h * call->score.score_bias.h : NULL};
    for (int k = 0; k < AF_VECTOR_SUMS; k++)
        for (int64_t block = 0; to[k] && block < w->plan.blocks; block++)
            for (int64_t d = 0; d < call->D; d++) to[k][d] += w->vector_sums[(k * all + first + block) * call->D + d];
}

int64_t af_blocks_of_rows(const af_backward *w, int64_t rows) { return af_max(1, rows / w->plan.block_rows); }

static int64_t units_of_blocks(const af_backward *w, int64_t most_rows)
{
    const int64_t blocks = af_blocks_of_rows(w, most_rows);
    return (w->panel_blocks + blocks - 1) / blocks;
}

/* Panels that may be in flight at the same time. */
static int64_t panels_in_flight(const af_backward_schedule *s, int64_t threads)
{
    const af_backward *w = &s->backward;
    if (w->ranges <= 1) return 0;
    const int64_t wanted = (RANGES_PER_THREAD * threads + w->parts - 1) / w->parts;
    return af_min(af_panels_that_fit(w->panel_bytes + (size_t)w->parts * w->part_bytes, threads),
                  af_min(wanted, s->panels));
}

int64_t af_panels_that_fit(size_t bytes, int64_t threads)
{
    return af_max(1, (int64_t)((size_t)PANEL_BYTES * (size_t)threads / bytes));
}

void af_share_schedule(af_backward_schedule *s, int threads)
{
    s->threads = threads;
    s->slots = panels_in_flight(s, threads);
    s->order = af_order_panels(&s->backward, af_max(s->slots, threads));
}

void af_schedule_backward(af_backward_schedule *s, const af_call *call, const af_run *run)
{
    af_backward *w = &s->backward;
    const af_gradients *g = &call->gradients;
    *s = (af_backward_schedule){0};
    af_plan_backward(w, call, af_kernels_for(call->dtype));
    const double width = (double)af_max(call->D, call->Dv) * (call->score.additive ? AF_TANH_WORK : 1);
    s->flops = 14 * w->plan.pairs * width;
    s->order = af_order_panels(w, 1);
    s->panels = af_panels(&s->order);
    s->open_units = units_of_blocks(w, AF_OPEN_ROWS);
    s->finish_units = units_of_blocks(w, AF_FINISH_ROWS);
    s->panel_units = 1;
    if (w->ranges > 1) s->panel_units = s->open_units + (call->subset.collects ? 0 : w->parts + s->finish_units);
    s->units = s->panels * s->panel_units;
    s->row_sums = g->alibi || g->center.data || (g->bias.data && g->bias.j == 0);
    s->scratch_bytes = w->plan.kernels->backward_bytes(w);
    if (w->ranges <= 1) s->scratch_bytes += w->panel_bytes + w->part_bytes;
    af_share_schedule(s, af_threads_for(run->threads, s->units, af_worth_threads(s->flops)));
}

double af_sums_memory(const af_backward_schedule *s)
{
    const af_backward *w = &s->backward;
    const af_call *call = w->call;
    const double rows = (double)call->B * (double)call->H * (double)call->Lq;
    const size_t row_bytes = (w->gradients->sink ? (size_t)af_real_bytes(call->dtype) : 0) +
                             (s->row_sums ? AF_ROW_SUMS * sizeof(double) : 0);
    const double blocks = (double)(call->B * call->H * w->plan.blocks);
    return rows * (double)row_bytes + (w->by_weight ? AF_VECTOR_SUMS * blocks * (double)call->D * sizeof(double) : 0);
}

bool af_take_sums(af_backward_schedule *s, af_arena *arena)
{
    af_backward *w = &s->backward;
    const af_call *call = w->call;
    const int64_t rows = call->B * call->H * call->Lq;
    /* Arrays may repeat their elements, so nothing else bounds the number of rows. */
    if ((double)call->B * (double)call->H * (double)call->Lq > 0x1p56) return false;
    if (w->gradients->sink) {
        w->delta = af_take(arena, rows, (size_t)af_real_bytes(call->dtype));
        if (!w->delta) return false;
    }
    if (s->row_sums) {
        w->row_sums = af_take(arena, AF_ROW_SUMS * rows, sizeof(double));
        if (!w->row_sums) return false;
        memset(w->row_sums, 0, (size_t)(AF_ROW_SUMS * rows) * sizeof(double));
    }
    if (w->by_weight) {
        const int64_t sums = AF_VECTOR_SUMS * call->B * call->H * w->plan.blocks;
        w->vector_sums = af_take(arena, sums, (size_t)call->D * sizeof(double));
        if (!w->vector_sums) return false;
        memset(w->vector_sums, 0, (size_t)(sums * call->D) * sizeof(double));
    }
    return true;
}

void af_add_sums(const af_backward_schedule *s)
{
    const af_backward *w = &s->backward;
    const af_call *call = w->call;
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++) {
            if (!call->subset.collects && (w->gradients->sink || s->row_sums)) sum_rows(w, b, h);
            if (w->vector_sums) sum_blocks(w, b, h);
        }
}

/* Signals are checked after so many sequences, which may all be empty. */
enum { SEQUENCES_A_CHECK = 4096 };

static bool has_rows(const af_call *call) { return call->B > 0 && call->H > 0 && call->Lq > 0; }

af_status af_run_backward(const af_call *call, const af_run *run, af_watch *watch)
{
    if (!has_rows(call)) return AF_OK;
    af_arena arena = {0};
    af_backward_list list;
    af_open_backward_list(&list, run, watch, &arena);
    af_status status = af_list_backward(&list, call);
    if (status == AF_OK) status = af_flush_backward_list(&list);
    af_give_back(&arena);
    return status;
}

af_status af_attention_backward(const af_problem *problem, const af_gradients *gradients, const af_run *run)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_call call;
    af_open_gradients(&call, problem, gradients);
    assert(af_is_legal(&call) && (!has_rows(&call) || af_are_legal_gradients(&call)));
    return af_run_local_backward(&call, run, &watch);
}

af_status af_attention_packed_backward(const af_problem *problem, const af_packing *packing,
                                       const af_gradients *gradients, const af_run *run)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    af_call whole;
    af_open_gradients(&whole, problem, gradients);
    assert(af_is_legal_packed(&whole, packing) && (!has_rows(&whole) || af_are_legal_gradients(&whole)));
    if (!has_rows(&whole)) return AF_OK;
    const bool together = af_is_plain(&whole);
    if (together) af_causality_as_window(&whole.visible);
    af_arena arena = {0};
    af_backward_list list;
    af_open_backward_list(&list, run, &watch, &arena);
    for (int64_t s = 0; s < packing->sequences && status == AF_OK; s++) {
        if (s % SEQUENCES_A_CHECK == SEQUENCES_A_CHECK - 1) status = af_check_signals(&watch);
        af_call call = af_cut_call(&whole, af_packed_part(&whole, packing, s));
        if (status != AF_OK || !has_rows(&call)) continue;
        status = together ? af_list_backward(&list, &call) : af_run_local_backward(&call, run, &watch);
    }
    if (status == AF_OK) status = af_flush_backward_list(&list);
    af_give_back(&arena);
    return status;
}

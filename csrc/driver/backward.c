/* Gradients of one call: passes over its rows, then rounds of heads, see plan/backward.h; last the sums over rows. */
#include "driver/backward.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "driver/local.h"
#include "driver/passes.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "plan/legal.h"
#include "runtime/dispatch.h"

/* Heads of a round have about so many units for each thread, and panels and parts of dQ of at most so many bytes for
 * each. Half and double of both: within 1 % on one thread (Zen 4, 4 x 2048 x 64). */
enum { UNITS_PER_THREAD = 8, HEAD_BYTES = 4 << 20 };

/* One round: `heads` heads from number `head` on, a head being a batch row and a group of query heads; one panel. */
typedef struct backward_round {
    const af_backward *backward;
    int64_t head, heads, row, rows;
    int threads;
    char *panels, *parts; /* [heads of a round] and [heads of a round][ranges] */
} backward_round;

typedef struct backward_run {
    backward_round round;
    const af_backward_schedule *schedule;
    char *scratch;
    af_watch *watch;
} backward_run;

static af_unit unit_of_head(const backward_round *r, int64_t head)
{
    const int64_t groups = r->backward->plan.head_groups;
    return (af_unit){.b = head / groups, .hg = head % groups, .row = r->row, .rows = (int)r->rows};
}

static int64_t blocks_of_round(const backward_round *r)
{
    return (r->rows + r->backward->plan.block_rows - 1) / r->backward->plan.block_rows;
}

static af_unit unit_of_block(const backward_round *r, int64_t head, int64_t block)
{
    af_unit unit = unit_of_head(r, r->head + head);
    const int64_t rows = r->backward->plan.block_rows, before = block * rows;
    unit.rows = (int)af_min(rows, r->rows - before);
    unit.row += before;
    return unit;
}

static void open_unit(void *context, int64_t index, void *scratch)
{
    const backward_round *r = context;
    const af_backward *w = r->backward;
    const int64_t blocks = blocks_of_round(r), head = index / blocks;
    const af_unit unit = unit_of_block(r, head, index % blocks);
    w->plan.kernels->backward_open(w, unit, r->panels + (size_t)head * w->panel_bytes, scratch);
}

static void range_unit(void *context, int64_t index, void *scratch)
{
    const backward_round *r = context;
    const af_backward *w = r->backward;
    const int64_t head = index / w->ranges;
    af_unit unit = unit_of_head(r, r->head + head);
    unit.split = index % w->ranges;
    char *panel = r->panels + (size_t)head * w->panel_bytes, *part = r->parts + (size_t)index * w->part_bytes;
    w->plan.kernels->backward(w, unit, (af_unit){0}, panel, part, scratch);
}

static void finish_unit(void *context, int64_t index, void *scratch)
{
    const backward_round *r = context;
    const af_backward *w = r->backward;
    const int64_t blocks = blocks_of_round(r), head = index / blocks;
    const af_unit unit = unit_of_block(r, head, index % blocks);
    (void)scratch;
    w->plan.kernels->backward_finish(w, unit, r->parts + (size_t)(head * w->ranges) * w->part_bytes);
}

/* Everything of a head with at most one range; the panel and the part are at the end of its scratch memory. */
static void head_unit(void *context, int64_t head, void *scratch)
{
    const backward_round *r = context;
    const af_backward *w = r->backward;
    const af_kernels *kernels = w->plan.kernels;
    char *panel = (char *)scratch + kernels->backward_bytes(w), *part = panel + w->panel_bytes;
    const int64_t blocks = blocks_of_round(r);
    for (int64_t g = 0; g < blocks; g++) kernels->backward_open(w, unit_of_block(r, head, g), panel, scratch);
    if (w->ranges == 0 || w->call->subset.collects) return;
    const bool more = head + r->threads < r->heads;
    const af_unit next = more ? unit_of_head(r, r->head + head + r->threads) : (af_unit){0};
    kernels->backward(w, unit_of_head(r, r->head + head), next, panel, part, scratch);
    for (int64_t g = 0; g < blocks; g++) kernels->backward_finish(w, unit_of_block(r, head, g), part);
}

static bool repeats(const af_tensor *t, int64_t batch) { return t->data && batch > 1 && (t->batch || t->b == 0); }

/* How many heads may be in a round: those of different batch rows, or of one, may add to the same gradient; those of
 * the residue classes of one do not. */
static int64_t heads_apart(const af_backward *w)
{
    const af_call *call = w->call;
    const af_gradients *g = w->gradients;
    if (g->bias.data && g->bias.h == 0) return 1;
    if (w->plan.group != call->H / call->Hk) return 1; /* heads that share keys */
    const bool shared = repeats(&g->query, call->B) || repeats(&g->key, call->B) || repeats(&g->value, call->B) ||
                        repeats(&g->bias, call->B);
    return w->plan.head_groups * (shared ? af_max(1, call->subset.classes) : call->B);
}

static af_status run_units(const backward_run *run, void (*unit)(void *, int64_t, void *), void *context, int64_t count,
                           int64_t share)
{
    const af_work work = {unit, context, count, share, run->scratch, run->schedule->scratch_bytes};
    return af_run_work(&work, run->watch, (int)af_min(run->schedule->threads, af_max(1, count)));
}

/* A panel of the heads of a round. */
static af_status run_panel(backward_run *run)
{
    backward_round *r = &run->round;
    const af_backward *w = r->backward;
    if (w->ranges <= 1) return run_units(run, head_unit, r, r->heads, 1);
    const int64_t blocks = r->heads * blocks_of_round(r);
    af_status status = run_units(run, open_unit, r, blocks, 4);
    if (w->call->subset.collects) return status;
    if (status == AF_OK) status = run_units(run, range_unit, r, r->heads * w->ranges, 1);
    if (status == AF_OK) status = run_units(run, finish_unit, r, blocks, 8);
    return status;
}

static af_status run_rounds(backward_run *run)
{
    backward_round *r = &run->round;
    const af_backward *w = r->backward;
    const int64_t heads = w->call->B * w->plan.head_groups, apart = heads_apart(w);
    af_status status = AF_OK;
    for (r->head = 0; r->head < heads; r->head += r->heads) {
        const int64_t end = af_min(heads, (r->head / apart + 1) * apart);
        r->heads = af_min(run->schedule->most_heads, end - r->head);
        for (r->row = 0; r->row < w->plan.rows && status == AF_OK; r->row += w->panel_rows) {
            r->rows = af_min(w->panel_rows, w->plan.rows - r->row);
            status = run_panel(run);
        }
        if (status != AF_OK) return status;
    }
    return status;
}

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

void af_schedule_backward(af_backward_schedule *s, const af_call *call, const af_run *run)
{
    af_backward *w = &s->backward;
    const af_gradients *g = &call->gradients;
    *s = (af_backward_schedule){0};
    af_plan_backward(w, call, af_kernels_for(call->dtype));
    const double width = (double)af_max(call->D, call->Dv) * (call->score.additive ? AF_TANH_WORK : 1);
    const double flops = 14 * w->plan.pairs * width;
    s->blocks = call->B * w->plan.head_groups * w->plan.blocks;
    s->panels = (w->plan.rows + w->panel_rows - 1) / w->panel_rows;
    s->threads = af_threads_for(run->threads, s->blocks, af_worth_threads(flops));
    s->scratch_bytes = w->plan.kernels->backward_bytes(w);
    s->row_sums = g->alibi || g->center.data || (g->bias.data && g->bias.j == 0);
    s->most_heads = heads_apart(w);
    if (w->ranges <= 1) {
        s->scratch_bytes += w->panel_bytes + w->part_bytes;
        return;
    }
    const size_t head_bytes = w->panel_bytes + (size_t)w->ranges * w->part_bytes;
    const int64_t wanted = (UNITS_PER_THREAD * s->threads + w->ranges - 1) / w->ranges;
    const int64_t fit = (int64_t)((size_t)HEAD_BYTES * (size_t)s->threads / head_bytes);
    s->most_heads = af_max(1, af_min(af_min(wanted, fit), s->most_heads));
}

/* Heads of a round whose panels and parts are not in the scratch memory. */
static int64_t heads_in_flight(const af_backward_schedule *s) { return s->backward.ranges > 1 ? s->most_heads : 0; }

double af_backward_memory(const af_backward_schedule *s)
{
    const af_backward *w = &s->backward;
    const af_call *call = w->call;
    const double rows = (double)call->B * (double)call->H * (double)call->Lq;
    const size_t row_bytes = (w->gradients->sink ? (size_t)af_real_bytes(call->dtype) : 0) +
                             (s->row_sums ? AF_ROW_SUMS * sizeof(double) : 0);
    const double blocks = (double)(call->B * call->H * w->plan.blocks);
    const double vectors = w->by_weight ? AF_VECTOR_SUMS * blocks * (double)call->D * sizeof(double) : 0;
    const double head = (double)w->panel_bytes + (double)w->ranges * (double)w->part_bytes;
    return vectors + rows * (double)row_bytes + (double)s->threads * (double)s->scratch_bytes +
           (double)heads_in_flight(s) * head;
}

/* Memory for what the passes hand on. */
static bool take_memory(const af_backward_schedule *s, af_backward *w, backward_run *run, af_arena *arena)
{
    const af_call *call = w->call;
    const int64_t rows = call->B * call->H * call->Lq, heads = heads_in_flight(s);
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
    run->round.panels = af_take(arena, heads, w->panel_bytes);
    run->round.parts = af_take(arena, heads * w->ranges, w->part_bytes);
    run->scratch = af_take(arena, s->threads, s->scratch_bytes);
    return run->round.panels && run->round.parts && run->scratch;
}

static bool has_rows(const af_call *call) { return call->B > 0 && call->H > 0 && call->Lq > 0; }

af_status af_run_backward(const af_call *call, const af_run *run, af_watch *watch)
{
    if (!has_rows(call)) return AF_OK;
    af_backward_schedule s;
    af_backward *w = &s.backward;
    af_arena arena = {0};
    af_schedule_backward(&s, call, run);
    backward_run passes = {.round = {.backward = w, .threads = s.threads}, .schedule = &s, .watch = watch};
    af_status status = AF_NO_MEMORY;
    if (take_memory(&s, w, &passes, &arena)) {
        status = run_rounds(&passes);
        for (int64_t b = 0; b < call->B && status == AF_OK; b++)
            for (int64_t h = 0; h < call->H; h++) {
                if (!call->subset.collects && (call->gradients.sink || s.row_sums)) sum_rows(w, b, h);
                if (w->vector_sums) sum_blocks(w, b, h);
            }
    }
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
    for (int64_t s = 0; s < packing->sequences && status == AF_OK; s++) {
        af_call call = af_cut_call(&whole, af_packed_part(&whole, packing, s));
        status = af_check_signals(&watch);
        if (status == AF_OK) status = af_run_local_backward(&call, run, &watch);
    }
    return status;
}

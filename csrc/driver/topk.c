#include "driver/topk.h"

#include <math.h>

#include "driver/passes.h"
#include "driver/select.h"
#include "driver/widen.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "runtime/dispatch.h"

/* (query, key) pairs whose scores are in memory at a time, unless one query has more: 8 MiB of float32. Half
 * and double: within 0.5 % (Zen 4, k = 100 of 1024 keys). */
enum { ROW_PAIRS = 1 << 21 };

/* Weights computed before they are rounded: a buffer of 1 KB on the stack. */
enum { BUFFERED_WEIGHTS = 256 };

typedef struct rows {
    const af_run *run;
    af_watch *watch;
    int threads;         /* at most, and what there is memory for */
    char *scratch;       /* for each of them */
    const af_call *call; /* some queries of one head, with reals as elements; their rows of scores: */
    af_tensor scores, lse;
    void *row_max, *row_inverse; /* as in af_subset */
    int64_t b, h, first, k;
    af_dtype dtype; /* of the weights that are wanted */
    const af_tensor *index, *weight;
} rows;

static size_t scratch_bytes(int64_t k) { return 2 * (size_t)af_selection_room(k) * sizeof(af_ranked); }

static double real_at(const rows *r, const void *reals, int64_t at)
{
    return r->call->dtype == AF_F64 ? ((const double *)reals)[at] : (double)((const float *)reals)[at];
}

/* A row whose keys are chosen. */
typedef struct chosen_row {
    const af_ranked *keys;
    int64_t count, row; /* of keys; of scores */
    double top, share;  /* score and weight of the heaviest key */
    int64_t *index;
    char *weight;
} chosen_row;

/* Keys and weights [first, first + n) of a row. Past the visible keys: -1 and 0. */
static void write_piece(const rows *r, const chosen_row *c, int64_t first, int64_t n)
{
    const int64_t size = af_elem_bytes(r->dtype);
    float narrow[BUFFERED_WEIGHTS];
    for (int64_t m = 0; m < n; m++) {
        const int64_t at = first + m, key = at < c->count ? c->keys[at].key : 0;
        const double score = at < c->count ? real_at(r, r->scores.data, c->row * r->call->Lk + key) : -(double)INFINITY;
        const bool there = score != -INFINITY;
        const double exact = there ? exp(score - c->top) * c->share : 0;
        c->index[at] = there ? key : -1;
        if (r->dtype == AF_F64) ((double *)c->weight)[at] = exact;
        else narrow[m] = (float)exact;
    }
    if (r->dtype != AF_F64) af_kernels_for(r->dtype)->narrow(narrow, c->weight + first * size, n);
}

/* `watch`: NULL in a unit of a parallel loop. */
static af_status choose_row(const rows *r, int64_t row, char *scratch, af_watch *watch)
{
    const int64_t i = r->first + row, Lk = r->call->Lk;
    af_ranked *entries = (af_ranked *)scratch;
    const af_selection selection = {.scores = (char *)r->scores.data + row * Lk * af_real_bytes(r->call->dtype),
                                    .dtype = r->call->dtype,
                                    .n = Lk,
                                    .k = r->k,
                                    .entries = entries,
                                    .spare = entries + af_selection_room(r->k),
                                    .watch = watch};
    chosen_row c = {.count = af_min(r->k, Lk), .row = row};
    if (af_select(&selection, &c.keys) == AF_INTERRUPTED) return AF_INTERRUPTED;
    c.index = (int64_t *)r->index->data + af_offset(r->index, r->b, r->h, i);
    c.weight = (char *)r->weight->data + af_offset(r->weight, r->b, r->h, i) * af_elem_bytes(r->dtype);
    c.top = c.count ? real_at(r, r->scores.data, row * Lk + c.keys[0].key) : 0;
    /* Not from the lse, whose rounding weights would show. The softmax may take a maximum that is near the top only. */
    c.share = fmin(1, exp(c.top - real_at(r, r->row_max, row)) * real_at(r, r->row_inverse, row));
    for (int64_t n = 0; n < r->k; n += BUFFERED_WEIGHTS) {
        if (watch && af_check_signals(watch) == AF_INTERRUPTED) return AF_INTERRUPTED;
        write_piece(r, &c, n, af_min(BUFFERED_WEIGHTS, r->k - n));
    }
    return AF_OK;
}

static void choose_unit(void *context, int64_t row, void *scratch) { choose_row(context, row, scratch, NULL); }

/* Queries [first, first + n) of one head as a call of their own, which computes scores or lse. */
static af_call cut_queries(const af_call *whole, const rows *r, int64_t n, int64_t numbers[3])
{
    const af_visible *v = &whole->visible;
    const af_part part = {.row = r->b, .b = r->b, .B = 1, .h = r->h, .H = 1, .i = r->first, .Lq = n, .Lk = whole->Lk};
    int64_t *offset = numbers, *length = numbers + 1, *zero = numbers + 2;
    af_call call = af_cut_call(whole, part);
    *offset = r->first + (v->q_offset ? v->q_offset[r->b] : 0);
    *length = v->q_length ? af_max(0, af_min(n, v->q_length[r->b] - r->first)) : n;
    *zero = 0;
    call.visible.q_offset = offset;
    call.visible.q_length = length;
    call.subset.classes = call.subset.class_step = 1; /* for the block mask */
    call.subset.class_query = &r->first;
    call.subset.class_key = zero;
    call.operands.value = (af_tensor){0};
    call.results = (af_results){.stage = AF_WEIGHTS};
    return call;
}

/* Sums and scores of some queries, then their keys. A row of which there is only one at a time is long. */
static af_status run_queries(const af_call *call, rows *r, bool one_row)
{
    af_call part = *call;
    part.results.lse = r->lse;
    part.subset.natural = true;
    part.subset.row_max = r->row_max;
    part.subset.row_inverse = r->row_inverse;
    af_status status = af_run_call(&part, r->run, r->watch);
    if (status != AF_OK) return status;
    part = *call;
    part.results = (af_results){.weights = r->scores, .stage = AF_BIASED};
    status = af_run_call(&part, r->run, r->watch);
    if (status != AF_OK) return status;
    if (one_row) return choose_row(r, 0, r->scratch, r->watch);
    const double work = (double)call->Lq * (double)call->Lk * 16;
    af_work units = {.unit = choose_unit, .context = r, .count = call->Lq, .share = 1, .scratch = r->scratch};
    units.scratch_bytes = scratch_bytes(r->k);
    return af_run_work(&units, r->watch, af_threads_for(r->threads, call->Lq, af_worth_threads(work)));
}

static af_status run_heads(const af_call *call, rows *r, af_arena *arena)
{
    const int64_t most = af_max(1, ROW_PAIRS / af_max(1, call->Lk));
    const size_t real = (size_t)af_real_bytes(call->dtype);
    int64_t numbers[3];
    r->index = &call->results.top_index;
    r->weight = &call->results.top_weight;
    r->scores = (af_tensor){.data = af_take(arena, most * call->Lk, real), .i = call->Lk, .j = 1};
    r->lse = (af_tensor){.data = af_take(arena, 3 * most, real), .i = 1};
    r->threads = af_threads_for(r->run->threads, af_min(most, call->Lq), true);
    r->scratch = af_take(arena, r->threads, scratch_bytes(r->k));
    if (!r->scores.data || !r->lse.data || !r->scratch) return AF_NO_MEMORY;
    r->row_max = (char *)r->lse.data + (size_t)most * real;
    r->row_inverse = (char *)r->lse.data + 2 * (size_t)most * real;
    for (r->b = 0; r->b < call->B; r->b++)
        for (r->h = 0; r->h < call->H; r->h++)
            for (r->first = 0; r->first < call->Lq; r->first += most) {
                const af_call part = cut_queries(call, r, af_min(most, call->Lq - r->first), numbers);
                r->call = &part;
                const af_status status = run_queries(&part, r, most == 1);
                if (status != AF_OK) return status;
            }
    return AF_OK;
}

static af_status run_part(void *context, const af_call *part)
{
    af_arena arena = {0};
    const af_status status = run_heads(part, context, &arena);
    af_give_back(&arena);
    return status;
}

af_status af_run_long_topk(const af_call *wanted, const af_run *run, af_watch *watch)
{
    af_call call = *wanted;
    rows r = {.run = run, .watch = watch, .k = wanted->results.topk, .dtype = wanted->dtype};
    call.operands.value = call.results.output = (af_tensor){0};
    if (!af_has_results(&call)) return AF_OK;
    return call.dtype <= AF_F64 ? run_part(&r, &call) : af_run_wide(&call, run, watch, run_part, &r);
}

#include "driver/topk.h"

#include <math.h>

#include "driver/passes.h"
#include "driver/widen.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "runtime/dispatch.h"

/* Scores in memory at a time. */
enum { ROW_PAIRS = 1 << 21 };

/* A key and what it is ranked by: NaN counts as +inf. Equal scores rank in the order of their keys. */
typedef struct ranked {
    double score;
    int64_t key;
} ranked;

static bool ranks_before(ranked a, ranked b) { return a.score > b.score || (a.score == b.score && a.key < b.key); }

/* Restores a heap, whose root ranks last, after its entry `at` has changed. */
static void sift_down(ranked *heap, int64_t n, int64_t at)
{
    const ranked moved = heap[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && ranks_before(heap[child], heap[child + 1])) child++;
        if (!ranks_before(moved, heap[child])) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

typedef struct rows {
    int threads;         /* at most, and what there is memory for */
    const af_call *call; /* one head; rows of scores in `scores`, their lse in `lse` */
    const char *scores, *lse;
    int64_t b, h, first, k;
    af_dtype dtype; /* of the weights that are wanted */
    const af_tensor *index, *weight;
} rows;

static double real_at(const rows *r, const char *reals, int64_t at)
{
    return r->call->dtype == AF_F64 ? ((const double *)reals)[at] : (double)((const float *)reals)[at];
}

static ranked rank(const rows *r, int64_t row, int64_t key)
{
    const double score = real_at(r, r->scores, row * r->call->Lk + key);
    return (ranked){isnan(score) ? INFINITY : score, key};
}

/* The k keys of a row that rank first, in order. */
static void choose(const rows *r, int64_t row, ranked *heap)
{
    const int64_t k = r->k;
    for (int64_t j = 0; j < k; j++) heap[j] = rank(r, row, j);
    for (int64_t i = k / 2 - 1; i >= 0; i--) sift_down(heap, k, i);
    for (int64_t j = k; j < r->call->Lk; j++) {
        const ranked next = rank(r, row, j);
        if (!ranks_before(next, heap[0])) continue;
        heap[0] = next;
        sift_down(heap, k, 0);
    }
    for (int64_t n = k - 1; n > 0; n--) {
        const ranked last = heap[0];
        heap[0] = heap[n];
        heap[n] = last;
        sift_down(heap, n, 0);
    }
}

static void choose_unit(void *context, int64_t row, void *scratch)
{
    const rows *r = context;
    const int64_t i = r->first + row, size = af_elem_bytes(r->dtype);
    ranked *heap = scratch;
    choose(r, row, heap);
    int64_t *index = (int64_t *)r->index->data + af_offset(r->index, r->b, r->h, i);
    char *weight = (char *)r->weight->data + af_offset(r->weight, r->b, r->h, i) * size;
    const af_kernels *kernels = af_kernels_for(r->dtype);
    /* The share of the heaviest key, which the rounding of its score and of the lse must not lift above 1. */
    const double top = r->k ? real_at(r, r->scores, row * r->call->Lk + heap[0].key) : 0;
    const double share = fmin(0, top - real_at(r, r->lse, row));
    for (int64_t n = 0; n < r->k; n++, weight += size) {
        const double score = real_at(r, r->scores, row * r->call->Lk + heap[n].key);
        const bool there = score != -INFINITY;
        const double exact = there ? exp(score - top + share) : 0;
        const float narrow = (float)exact;
        index[n] = there ? heap[n].key : -1;
        if (r->dtype == AF_F64) *(double *)weight = exact;
        else kernels->narrow(&narrow, weight, 1);
    }
}

/* Queries [first, first + n) of one head as a call of their own. */
static af_call cut_queries(const af_call *whole, int64_t b, int64_t h, const int64_t *first, int64_t n,
                           int64_t *numbers)
{
    const int64_t size = af_elem_bytes(whole->dtype), real_size = af_real_bytes(whole->dtype), i = *first;
    int64_t *offset = numbers, *length = numbers + 1, *zero = numbers + 2;
    af_call call = *whole;
    const af_visible *v = &whole->visible;
    *offset = i + (v->q_offset ? v->q_offset[b] : 0);
    *length = v->q_length ? af_max(0, af_min(n, v->q_length[b] - i)) : n;
    *zero = 0;
    call.B = call.H = call.Hk = 1;
    call.Lq = n;
    af_move_tensor(&call.operands.query, b, h, i, size);
    af_move_tensor(&call.operands.key, b, h / (whole->H / whole->Hk), 0, size);
    af_move_tensor(&call.visible.mask, b, h, i, 1);
    af_move_tensor(&call.visible.blocks, b, h, 0, 1);
    af_move_tensor(&call.score.bias, b, h, i, real_size);
    call.subset.classes = call.subset.class_step = 1;
    call.subset.class_query = first;
    call.subset.class_key = zero;
    call.visible.q_offset = offset;
    call.visible.q_length = length;
    if (v->kv_length) call.visible.kv_length += b;
    if (call.score.alibi) call.score.alibi += b * call.score.alibi_b + h;
    if (call.score.sink) call.score.sink += h;
    call.results = (af_results){.stage = AF_WEIGHTS};
    return call;
}

/* Scores and lse of some queries, then their keys. */
static af_status run_queries(const af_call *call, rows *r, af_tensor *scores, af_tensor *lse, const af_run *run,
                             af_watch *watch, void *scratch)
{
    af_call part = *call;
    part.results.lse = *lse;
    af_status status = af_run_call(&part, run, watch);
    if (status != AF_OK) return status;
    part.results = (af_results){.weights = *scores, .stage = AF_BIASED};
    status = af_run_call(&part, run, watch);
    if (status != AF_OK) return status;
    const double work = (double)call->Lq * (double)call->Lk * 16;
    af_work units = {.unit = choose_unit, .context = r, .count = call->Lq, .chunk = 1, .scratch = scratch};
    units.scratch_bytes = (size_t)r->k * sizeof(ranked);
    return af_run_work(&units, watch, af_threads_for(r->threads, call->Lq, af_worth_threads(work)));
}

static af_status run_heads(const af_call *call, rows *r, const af_run *run, af_watch *watch, af_arena *arena)
{
    const int64_t most = af_max(1, ROW_PAIRS / call->Lk);
    const int64_t size = af_real_bytes(call->dtype);
    int64_t numbers[3];
    af_tensor scores = {.i = call->Lk, .j = 1}, lse = {.i = 1};
    scores.data = af_take(arena, most * call->Lk, (size_t)size);
    lse.data = af_take(arena, most, (size_t)size);
    r->threads = af_threads_for(run->threads, af_min(most, call->Lq), true);
    void *scratch = af_take(arena, r->threads * r->k, sizeof(ranked));
    if (!scores.data || !lse.data || !scratch) return AF_NO_MEMORY;
    r->scores = scores.data;
    r->lse = lse.data;
    for (r->b = 0; r->b < call->B; r->b++)
        for (r->h = 0; r->h < call->H; r->h++)
            for (r->first = 0; r->first < call->Lq; r->first += most) {
                const af_call part =
                    cut_queries(call, r->b, r->h, &r->first, af_min(most, call->Lq - r->first), numbers);
                r->call = &part;
                const af_status status = run_queries(&part, r, &scores, &lse, run, watch, scratch);
                if (status != AF_OK) return status;
            }
    return AF_OK;
}

af_status af_run_long_topk(const af_call *wanted, const af_run *run, af_watch *watch)
{
    if (!af_has_results(wanted)) return AF_OK;
    af_call call = *wanted;
    af_arena arena = {0};
    rows r = {.k = wanted->results.topk, .dtype = wanted->dtype};
    r.index = &wanted->results.top_index;
    r.weight = &wanted->results.top_weight;
    af_status status = AF_NO_MEMORY;
    if (call.dtype <= AF_F64 || af_widen_operands(&call, &arena)) status = run_heads(&call, &r, run, watch, &arena);
    af_give_back(&arena);
    return status;
}

#include "driver/classes.h"

#include <float.h>
#include <math.h>

#include "driver/passes.h"
#include "plan/intervals.h"

void *af_take_of_classes(af_classes *c, int64_t count, size_t size)
{
    void *memory = af_take(c->arena, count, size);
    if (!memory) c->status = AF_NO_MEMORY;
    return memory;
}

static int64_t *take_row_numbers(af_classes *c) { return af_take_of_classes(c, af_class_rows(c), sizeof(int64_t)); }

/* How many of the numbers below `length` are of a residue class: of a start, the first of the class from there on. */
static int64_t class_length(int64_t length, int64_t residue, int64_t step)
{
    return af_max(0, af_floor_div(length - residue + step - 1, step));
}

void af_split_rows(af_classes *c, af_tensor *t, const int64_t *residue, int64_t rows)
{
    if (!t->data) return;
    int64_t *batch = take_row_numbers(c);
    if (!batch) return;
    for (int64_t n = 0; n < af_class_rows(c); n++) batch[n] = af_offset(t, n / c->count, 0, 0) + residue[n] * t->i;
    t->batch = batch;
    t->i = rows > 1 ? t->i * c->step : 0;
}

/* The same for the weights, whose columns are keys. */
static void split_weights(af_classes *c, af_tensor *t)
{
    const int64_t column = t->j;
    if (!t->data) return;
    af_split_rows(c, t, c->own, c->Lq);
    for (int64_t n = 0; c->status == AF_OK && n < af_class_rows(c); n++)
        ((int64_t *)t->batch)[n] += c->other[n] * column;
    t->j = column * c->step;
}

/* Whether the queries of a class have keys of the same residue in all batch rows. */
static bool residues_are_alike(const af_call *call, int64_t step)
{
    for (int64_t b = 1; b < call->B; b++)
        if ((af_position(call, b, 0) - af_position(call, 0, 0)) % step != 0) return false;
    return true;
}

bool af_rows_share_copies(const af_call *call, const af_tensor *t, int64_t step)
{
    return !t->b && !t->batch && residues_are_alike(call, step);
}

double af_copied_bytes(const af_classes *c, const af_call *call, const af_tensor *t, int64_t size)
{
    if (!t->data || t->j == 0) return 0;
    return (double)size * (double)(t->h ? call->H : 1) * (double)(t->i ? c->Lq : 1) * (double)c->Lk;
}

bool af_take_columns(af_classes *c, const af_tensor *t, int64_t size, af_columns *g)
{
    *g = (af_columns){.classes = c, .from = *t, .size = size};
    g->heads = t->h ? c->whole->H : 1;
    g->rows = t->i ? c->Lq : 1;
    g->copies = af_rows_share_copies(c->whole, t, c->step) ? c->count : af_class_rows(c);
    const int64_t plane = g->rows * c->Lk;
    int64_t *batch = take_row_numbers(c);
    if ((double)g->copies * (double)g->heads * (double)plane > 0x1p56) c->status = AF_NO_MEMORY;
    void *to = c->status == AF_OK ? af_take_of_classes(c, g->copies * g->heads * plane, (size_t)size) : NULL;
    if (!to) return false;
    for (int64_t n = 0; n < af_class_rows(c); n++) batch[n] = n % g->copies * g->heads * plane;
    g->to = (af_tensor){.data = to, .batch = batch, .h = t->h ? plane : 0, .i = t->i ? c->Lk : 0, .j = 1};
    c->copied += (double)g->copies * (double)g->heads * (double)plane * (double)size;
    return true;
}

static void gather_line(void *context, int64_t line, void *scratch)
{
    const af_columns *g = context;
    const af_classes *c = g->classes;
    const int64_t i = line % g->rows, h = line / g->rows % g->heads, n = line / g->rows / g->heads;
    const int64_t first = c->other[n], last = c->whole->Lk - 1;
    const char *from = (const char *)g->from.data + af_line_of_whole(g, n, h, i) * g->size;
    char *to = (char *)g->to.data + af_offset(&g->to, n, h, i) * g->size;
    (void)scratch;
    for (int64_t j = 0; j < c->Lk; j++) {
        const int64_t key = af_min(first + j * c->step, last);
        if (g->size == 1) to[j] = from[key];
        else if (g->size == 4) ((uint32_t *)to)[j] = ((const uint32_t *)from)[key];
        else ((uint64_t *)to)[j] = ((const uint64_t *)from)[key];
    }
}

void af_gather_columns(af_classes *c, af_tensor *t, int64_t size)
{
    af_columns g;
    if (!af_take_columns(c, t, size, &g)) return;
    const af_work work = {.unit = gather_line, .context = &g, .count = g.copies * g.heads * g.rows, .share = 1};
    const bool worth_threads = af_worth_threads(4 * (double)work.count * (double)c->Lk);
    *t = g.to;
    c->status = af_run_work(&work, c->sink->watch, af_threads_for(c->sink->run->threads, work.count, worth_threads));
}

/* A mask or bias. */
static void split_pairs(af_classes *c, af_tensor *t, int64_t size)
{
    if (!t->data || c->status != AF_OK) return;
    if (t->j == 0) af_split_rows(c, t, c->own, c->Lq);
    else af_gather_columns(c, t, size);
}

/* Slopes of heads for distances that are counted in steps. A finite slope stays finite, as a distance of 0 must cost
 * nothing. */
static void split_alibi(af_classes *c, af_score *score)
{
    const int64_t H = c->whole->H;
    const double most = c->whole->dtype == AF_F64 ? DBL_MAX : FLT_MAX;
    if (!score->alibi) return;
    double *slopes = af_take_of_classes(c, af_class_rows(c) * H, sizeof *slopes);
    if (!slopes) return;
    for (int64_t n = 0; n < af_class_rows(c); n++)
        for (int64_t h = 0; h < H; h++) {
            const double slope = score->alibi[n / c->count * score->alibi_b + h], product = slope * (double)c->step;
            slopes[n * H + h] = isfinite(slope) ? fmax(-most, fmin(product, most)) : slope;
        }
    score->alibi = slopes;
    score->alibi_b = H;
}

static void split_positions(af_classes *c, af_visible *visible)
{
    const af_call *whole = c->whole;
    int64_t *offset = take_row_numbers(c), *q_length = take_row_numbers(c), *kv_length = take_row_numbers(c);
    int64_t *kv_start = visible->kv_start ? take_row_numbers(c) : NULL;
    if (c->status != AF_OK) return;
    for (int64_t n = 0; n < af_class_rows(c); n++) {
        const int64_t b = n / c->count, own = c->first + n % c->count, position = af_position(whole, b, own);
        c->own[n] = own;
        offset[n] = af_floor_div(position, c->step);
        q_length[n] = class_length(visible->q_length ? visible->q_length[b] : whole->Lq, own, c->step);
        const int64_t residue = position - offset[n] * c->step;
        kv_length[n] = class_length(visible->kv_length ? visible->kv_length[b] : whole->Lk, residue, c->step);
        if (kv_start) kv_start[n] = class_length(visible->kv_start[b], residue, c->step);
        c->other[n] = residue < whole->Lk ? residue : 0; /* of a class without keys there is no address to compute */
    }
    visible->q_offset = offset;
    visible->q_length = q_length;
    visible->kv_length = kv_length;
    visible->kv_start = kv_start;
}

/* A block mask goes by the numbers of the whole call. */
static void split_blocks(af_classes *c, af_tensor *t)
{
    int64_t *batch = t->data ? take_row_numbers(c) : NULL;
    if (!batch) return;
    for (int64_t n = 0; n < af_class_rows(c); n++) batch[n] = af_offset(t, n / c->count, 0, 0);
    t->batch = batch;
}

void af_split_call(af_classes *c, af_call *call)
{
    *call = *c->whole;
    c->own = take_row_numbers(c);
    c->other = take_row_numbers(c);
    split_positions(c, &call->visible);
    if (c->status != AF_OK) return;
    af_split_rows(c, &call->operands.query, c->own, c->Lq);
    af_split_rows(c, &call->results.output, c->own, c->Lq);
    af_split_rows(c, &call->results.lse, c->own, c->Lq);
    af_split_rows(c, &call->subset.row_lse, c->own, c->Lq);
    split_weights(c, &call->results.weights);
    af_split_rows(c, &call->operands.key, c->other, c->Lk);
    af_split_rows(c, &call->operands.value, c->other, c->Lk);
    split_pairs(c, &call->visible.mask, 1);
    split_pairs(c, &call->score.bias, af_real_bytes(call->dtype));
    split_alibi(c, &call->score);
    split_blocks(c, &call->visible.blocks);
    call->subset.classes = c->count;
    call->subset.class_step = c->step;
    call->subset.class_query = c->own;
    call->subset.class_key = c->other;
    call->B = af_class_rows(c);
    call->Lq = c->Lq;
    call->Lk = c->Lk;
}

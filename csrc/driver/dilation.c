/* A window of dilation d is a plain window among the queries and keys of one residue class mod d. The classes become
 * batch rows whose strides are d times as long, so the kernels need not know. */
#include "driver/dilation.h"

#include <float.h>
#include <math.h>

#include "driver/arena.h"
#include "driver/passes.h"
#include "plan/intervals.h"

/* Where the calls of all windows go, and the memory of those that wait. */
typedef struct windows {
    af_sink *sink;
    af_arena arena;
    double waiting; /* bytes of gathered columns in it */
} windows;

/* Residue classes [first, first + count) of the queries of a call: class c has the queries first + c,
 * first + c + step ... and the keys whose residue is that of the positions of these queries. */
typedef struct classes {
    const af_call *whole;
    int64_t step, first, count;
    int64_t Lq, Lk;       /* of each class */
    int64_t *own, *other; /* first query and first key, [B][count] */
    windows *windows;
    af_status status;
} classes;

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

static void *take(classes *c, int64_t count, size_t size)
{
    void *memory = af_take(&c->windows->arena, count, size);
    if (!memory) c->status = AF_NO_MEMORY;
    return memory;
}

static int64_t batch_rows(const classes *c) { return c->whole->B * c->count; }

static int64_t *take_row_numbers(classes *c) { return take(c, batch_rows(c), sizeof(int64_t)); }

/* How many of the numbers below `length` are of a residue class: of a start, the first of the class from there on. */
static int64_t class_length(int64_t length, int64_t residue, int64_t step)
{
    return af_max(0, floor_div(length - residue + step - 1, step));
}

/* Every step-th row of a tensor from a residue on: a batch row for each class. */
static void split_rows(classes *c, af_tensor *t, const int64_t *residue, int64_t rows)
{
    if (!t->data) return;
    int64_t *batch = take_row_numbers(c);
    if (!batch) return;
    for (int64_t n = 0; n < batch_rows(c); n++) batch[n] = af_offset(t, n / c->count, 0, 0) + residue[n] * t->i;
    t->batch = batch;
    t->i = rows > 1 ? t->i * c->step : 0;
}

/* The same for the weights, whose columns are keys. */
static void split_weights(classes *c, af_tensor *t)
{
    const int64_t column = t->j;
    if (!t->data) return;
    split_rows(c, t, c->own, c->Lq);
    for (int64_t n = 0; c->status == AF_OK && n < batch_rows(c); n++) ((int64_t *)t->batch)[n] += c->other[n] * column;
    t->j = column * c->step;
}

/* Columns of a tensor that are gathered, one line after the other. */
typedef struct gathering {
    const classes *c;
    af_tensor from, to;
    int64_t heads, rows, size; /* bytes of an element, 1, 4 or 8 */
} gathering;

static void gather_line(void *context, int64_t line, void *scratch)
{
    const gathering *g = context;
    const classes *c = g->c;
    const int64_t i = line % g->rows, h = line / g->rows % g->heads, n = line / g->rows / g->heads;
    const int64_t row = g->from.i ? c->own[n] + i * c->step : 0, first = c->other[n], last = c->whole->Lk - 1;
    const char *from = (const char *)g->from.data + af_offset(&g->from, n / c->count, h, row) * g->size;
    char *to = (char *)g->to.data + af_offset(&g->to, n, h, i) * g->size;
    (void)scratch;
    for (int64_t j = 0; j < c->Lk; j++) {
        const int64_t key = af_min(first + j * c->step, last);
        if (g->size == 1) to[j] = from[key];
        else if (g->size == 4) ((uint32_t *)to)[j] = ((const uint32_t *)from)[key];
        else ((uint64_t *)to)[j] = ((const uint64_t *)from)[key];
    }
}

/* Whether the queries of a class have keys of the same residue in all batch rows. */
static bool residues_are_alike(const af_call *call, int64_t step)
{
    for (int64_t b = 1; b < call->B; b++)
        if ((af_position(call, b, 0) - af_position(call, 0, 0)) % step != 0) return false;
    return true;
}

/* Whether all batch rows share the gathered columns of a tensor. */
static bool rows_share(const af_call *call, const af_tensor *t, int64_t step)
{
    return !t->b && !t->batch && residues_are_alike(call, step);
}

/* A mask or bias; its columns are gathered, because kernels want them side by side. */
static void split_pairs(classes *c, af_tensor *t, int64_t size)
{
    if (!t->data || c->status != AF_OK) return;
    if (t->j == 0) {
        split_rows(c, t, c->own, c->Lq);
        return;
    }
    gathering g = {.c = c, .from = *t, .heads = t->h ? c->whole->H : 1, .rows = t->i ? c->Lq : 1, .size = size};
    const int64_t copies = rows_share(c->whole, t, c->step) ? c->count : batch_rows(c), plane = g.rows * c->Lk;
    int64_t *batch = take_row_numbers(c);
    if ((double)copies * (double)g.heads * (double)plane > 0x1p56) c->status = AF_NO_MEMORY;
    void *to = c->status == AF_OK ? take(c, copies * g.heads * plane, (size_t)size) : NULL;
    if (!to) return;
    for (int64_t n = 0; n < batch_rows(c); n++) batch[n] = n % copies * g.heads * plane;
    *t = (af_tensor){.data = to, .batch = batch, .h = g.from.h ? plane : 0, .i = g.from.i ? c->Lk : 0, .j = 1};
    g.to = *t;
    const af_work work = {.unit = gather_line, .context = &g, .count = copies * g.heads * g.rows, .share = 1};
    const bool worth_threads = af_worth_threads(4 * (double)work.count * (double)c->Lk);
    const af_sink *sink = c->windows->sink;
    c->status = af_run_work(&work, sink->watch, af_threads_for(sink->run->threads, work.count, worth_threads));
    c->windows->waiting += (double)work.count * (double)c->Lk * (double)size;
}

/* Slopes of heads for distances that are counted in steps. A finite slope stays finite, as a distance of 0 must cost
 * nothing. */
static void split_alibi(classes *c, af_score *score)
{
    const int64_t H = c->whole->H;
    const double most = c->whole->dtype == AF_F64 ? DBL_MAX : FLT_MAX;
    if (!score->alibi) return;
    double *slopes = take(c, batch_rows(c) * H, sizeof *slopes);
    if (!slopes) return;
    for (int64_t n = 0; n < batch_rows(c); n++)
        for (int64_t h = 0; h < H; h++) {
            const double slope = score->alibi[n / c->count * score->alibi_b + h], product = slope * (double)c->step;
            slopes[n * H + h] = isfinite(slope) ? fmax(-most, fmin(product, most)) : slope;
        }
    score->alibi = slopes;
    score->alibi_b = H;
}

static void split_positions(classes *c, af_visible *visible)
{
    const af_call *whole = c->whole;
    int64_t *offset = take_row_numbers(c), *q_length = take_row_numbers(c), *kv_length = take_row_numbers(c);
    int64_t *kv_start = visible->kv_start ? take_row_numbers(c) : NULL;
    if (c->status != AF_OK) return;
    for (int64_t n = 0; n < batch_rows(c); n++) {
        const int64_t b = n / c->count, own = c->first + n % c->count, position = af_position(whole, b, own);
        c->own[n] = own;
        offset[n] = floor_div(position, c->step);
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
static void split_blocks(classes *c, af_tensor *t)
{
    int64_t *batch = t->data ? take_row_numbers(c) : NULL;
    if (!batch) return;
    for (int64_t n = 0; n < batch_rows(c); n++) batch[n] = af_offset(t, n / c->count, 0, 0);
    t->batch = batch;
}

/* The classes as one call. */
static af_status call_classes(classes *c)
{
    af_call call = *c->whole;
    c->own = take_row_numbers(c);
    c->other = take_row_numbers(c);
    split_positions(c, &call.visible);
    if (c->status != AF_OK) return c->status;
    split_rows(c, &call.operands.query, c->own, c->Lq);
    split_rows(c, &call.results.output, c->own, c->Lq);
    split_rows(c, &call.results.lse, c->own, c->Lq);
    split_rows(c, &call.subset.row_lse, c->own, c->Lq);
    split_weights(c, &call.results.weights);
    split_rows(c, &call.operands.key, c->other, c->Lk);
    split_rows(c, &call.operands.value, c->other, c->Lk);
    split_pairs(c, &call.visible.mask, 1);
    split_pairs(c, &call.score.bias, af_real_bytes(call.dtype));
    split_alibi(c, &call.score);
    split_blocks(c, &call.visible.blocks);
    call.subset.classes = c->count;
    call.subset.class_step = c->step;
    call.subset.class_query = c->own;
    call.subset.class_key = c->other;
    call.B = batch_rows(c);
    call.Lq = c->Lq;
    call.Lk = c->Lk;
    return c->status == AF_OK ? c->windows->sink->call(c->windows->sink, &call) : c->status;
}

/* Bytes of the columns that are gathered of a tensor for one class of one batch row. */
static double gathered_bytes(const af_call *call, const af_tensor *t, const classes *c, int64_t size)
{
    if (!t->data || t->j == 0) return 0;
    return (double)size * (double)(t->h ? call->H : 1) * (double)(t->i ? c->Lq : 1) * (double)c->Lk;
}

static int64_t at_most(double fit, int64_t most) { return fit < 1 ? 1 : fit < (double)most ? (int64_t)fit : most; }

/* Runs the calls that wait once they hold more than af_memory_for(). */
static af_status bound_memory(windows *w)
{
    if (w->waiting < (double)af_memory_for(w->sink->run)) return AF_OK;
    const af_status status = w->sink->barrier(w->sink);
    af_give_back(&w->arena);
    w->waiting = 0;
    return status;
}

/* The classes of the residues [first, end). All must have equally many queries, as the classes of one call do. As many
 * classes and batch rows become one call as have gathered columns of af_memory_for(), at least one. */
static af_status call_residues(const af_call *whole, int64_t step, int64_t first, int64_t end, windows *w)
{
    classes c = {.step = step, .windows = w};
    c.Lq = floor_div(whole->Lq - first + step - 1, step);
    c.Lk = floor_div(whole->Lk + step - 1, step);
    if (c.Lq <= 0 || first == end) return AF_OK;
    const af_tensor *mask = &whole->visible.mask, *bias = &whole->score.bias;
    const double bytes =
        gathered_bytes(whole, mask, &c, 1) + gathered_bytes(whole, bias, &c, af_real_bytes(whole->dtype));
    const double fit = (double)af_memory_for(w->sink->run) / (bytes + 1);
    const bool share = bytes == 0 || (rows_share(whole, mask, step) && rows_share(whole, bias, step));
    const int64_t most = bytes == 0 ? end - first : at_most(fit, end - first);
    const int64_t rows = share ? whole->B : at_most(fit / (double)(end - first), whole->B);
    af_status status = AF_OK;
    for (int64_t b = 0; b < whole->B && status == AF_OK; b += rows)
        for (c.first = first; c.first < end && status == AF_OK; c.first += most) {
            af_part part = af_whole_part(whole);
            part.row = part.b = b;
            part.B = af_min(rows, whole->B - b);
            const af_call call = af_cut_call(whole, part);
            c.whole = &call;
            c.count = af_min(most, end - c.first);
            status = call_classes(&c);
            if (status == AF_OK) status = bound_memory(w);
        }
    return status;
}

/* Heads of one dilation go together, as long as they begin and end with a group. */
static int64_t end_of_heads(const af_call *call, int64_t h)
{
    const int64_t group = call->H / call->Hk, *dilation = call->visible.dilation;
    int64_t end = h + 1;
    while (end < call->H && dilation[end] == dilation[h]) end++;
    if (h % group != 0) return af_min(end, (h / group + 1) * group);
    return end - h > group ? end / group * group : end;
}

static af_status call_heads(const af_call *whole, int64_t h, int64_t end, windows *w)
{
    const int64_t step = whole->visible.dilation[h], longer = whole->Lq % step;
    af_part part = af_whole_part(whole);
    part.h = h;
    part.H = end - h;
    af_call call = af_cut_call(whole, part);
    call.visible.dilation = NULL;
    call.visible.global = NULL;
    if (step == 1) return w->sink->call(w->sink, &call);
    const af_status status = call_residues(&call, step, 0, longer, w);
    return status == AF_OK ? call_residues(&call, step, longer, step, w) : status;
}

af_status af_call_windows(const af_call *whole, af_sink *sink)
{
    windows w = {.sink = sink};
    af_status status = AF_OK;
    for (int64_t h = 0, end; h < whole->H && status == AF_OK; h = end) {
        end = end_of_heads(whole, h);
        status = call_heads(whole, h, end, &w);
    }
    if (status == AF_OK) status = sink->barrier(sink);
    af_give_back(&w.arena);
    return status;
}

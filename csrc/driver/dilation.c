/* A window of dilation d is a plain window among the queries and keys of one residue class mod d. The classes become
 * batch rows whose strides are d times as long, so the kernels need not know. */
#include "driver/dilation.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "plan/intervals.h"

/* The classes of a call: batch row b, class c has the queries first + c, first + c + step ... and the keys other,
 * other + step ..., which are those of the class of their positions. */
typedef struct classes {
    int64_t step, first, count; /* residues [first, first + count) of queries */
    int64_t B;                  /* batch rows of the call */
    int64_t *own, *other;       /* [B][count] */
    af_arena *arena;
    bool failed; /* no memory */
} classes;

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

static void *take(classes *c, int64_t count, size_t size)
{
    void *memory = af_take(c->arena, count, size);
    if (!memory) c->failed = true;
    return memory;
}

static int64_t *take_row_numbers(classes *c) { return take(c, c->B * c->count, sizeof(int64_t)); }

/* How many of the numbers below `length` are of a residue class. */
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
    for (int64_t n = 0; n < c->B * c->count; n++) batch[n] = af_offset(t, n / c->count, 0, 0) + residue[n] * t->i;
    t->batch = batch;
    t->i = rows > 1 ? t->i * c->step : 0;
}

/* The same for the weights, whose columns are keys. */
static void split_weights(classes *c, af_tensor *t, int64_t rows)
{
    const int64_t column = t->j;
    if (!t->data) return;
    split_rows(c, t, c->own, rows);
    for (int64_t n = 0; !c->failed && n < c->B * c->count; n++) ((int64_t *)t->batch)[n] += c->other[n] * column;
    t->j = column * c->step;
}

/* A mask or bias; its columns are gathered, because kernels want them side by side. */
static void split_pairs(classes *c, af_tensor *t, const af_call *call, int64_t Lq, int64_t Lk, int64_t size)
{
    if (!t->data) return;
    if (t->j == 0) {
        split_rows(c, t, c->own, Lq);
        return;
    }
    bool same_rows = !t->b && !t->batch;
    for (int64_t n = c->count; n < c->B * c->count; n++) same_rows = same_rows && c->other[n] == c->other[n % c->count];
    const int64_t B = same_rows ? 1 : c->B, heads = t->h ? call->H : 1, rows = t->i ? Lq : 1, plane = heads * rows * Lk;
    int64_t *batch = take_row_numbers(c);
    if ((double)B * (double)c->count * (double)plane > 0x1p56) c->failed = true;
    char *to = c->failed ? NULL : take(c, B * c->count * plane, (size_t)size);
    if (!to) return;
    const af_tensor from = *t;
    *t = (af_tensor){.data = to, .batch = batch, .h = from.h ? rows * Lk : 0, .i = from.i ? Lk : 0, .j = 1};
    for (int64_t n = 0; n < c->B * c->count; n++) batch[n] = n % (B * c->count) * plane;
    for (int64_t n = 0; n < B * c->count; n++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < rows; i++) {
                const int64_t row = from.i ? c->own[n] + i * c->step : 0;
                const char *line = (const char *)from.data + af_offset(&from, n / c->count, h, row) * size;
                for (int64_t j = 0; j < Lk; j++, to += size)
                    memcpy(to, line + af_min(c->other[n] + j * c->step, call->Lk - 1) * size, (size_t)size);
            }
}

/* The slope of a head for distances that are counted in steps; what is finite stays so, and a
 * distance of 0 costs nothing. */
static void split_alibi(classes *c, af_score *score, af_dtype dtype, int64_t H)
{
    const double most = dtype == AF_F64 ? DBL_MAX : FLT_MAX;
    if (!score->alibi) return;
    double *slopes = take(c, c->B * c->count * H, sizeof *slopes);
    if (!slopes) return;
    for (int64_t n = 0; n < c->B * c->count; n++)
        for (int64_t h = 0; h < H; h++) {
            const double slope = score->alibi[n / c->count * score->alibi_b + h], product = slope * (double)c->step;
            slopes[n * H + h] = isfinite(slope) ? fmax(-most, fmin(product, most)) : slope;
        }
    score->alibi = slopes;
    score->alibi_b = H;
}

static void split_positions(classes *c, const af_call *whole, af_visible *visible)
{
    int64_t *offset = take_row_numbers(c), *q_length = take_row_numbers(c), *kv_length = take_row_numbers(c);
    if (c->failed) return;
    for (int64_t n = 0; n < c->B * c->count; n++) {
        const int64_t b = n / c->count, own = c->first + n % c->count, position = af_position(whole, b, own);
        c->own[n] = own;
        offset[n] = floor_div(position, c->step);
        q_length[n] = class_length(visible->q_length ? visible->q_length[b] : whole->Lq, own, c->step);
        const int64_t residue = position - offset[n] * c->step;
        kv_length[n] = class_length(visible->kv_length ? visible->kv_length[b] : whole->Lk, residue, c->step);
        c->other[n] = kv_length[n] ? residue : 0; /* of a class without keys there is no address to compute */
    }
    visible->q_offset = offset;
    visible->q_length = q_length;
    visible->kv_length = kv_length;
}

/* Queries of the residues [first, end), which have equally many: no row past the end is read or written. */
static af_status call_classes(const af_call *whole, int64_t step, int64_t first, int64_t end, af_sink *sink,
                              af_arena *arena)
{
    const int64_t Lq = floor_div(whole->Lq - first + step - 1, step), Lk = floor_div(whole->Lk + step - 1, step);
    if (Lq <= 0 || first == end) return AF_OK;
    classes c = {.step = step, .first = first, .count = end - first, .B = whole->B, .arena = arena};
    af_call call = *whole;
    c.own = take_row_numbers(&c);
    c.other = take_row_numbers(&c);
    split_positions(&c, whole, &call.visible);
    if (c.failed) return AF_NO_MEMORY;
    split_rows(&c, &call.operands.query, c.own, Lq);
    split_rows(&c, &call.results.output, c.own, Lq);
    split_rows(&c, &call.results.lse, c.own, Lq);
    split_rows(&c, &call.subset.row_lse, c.own, Lq);
    split_weights(&c, &call.results.weights, Lq);
    split_rows(&c, &call.operands.key, c.other, Lk);
    split_rows(&c, &call.operands.value, c.other, Lk);
    split_pairs(&c, &call.visible.mask, whole, Lq, Lk, 1);
    split_pairs(&c, &call.score.bias, whole, Lq, Lk, af_real_bytes(whole->dtype));
    split_alibi(&c, &call.score, whole->dtype, whole->H);
    if (call.visible.blocks.data) {
        int64_t *batch = take_row_numbers(&c);
        for (int64_t n = 0; batch && n < c.B * c.count; n++)
            batch[n] = af_offset(&call.visible.blocks, n / c.count, 0, 0);
        call.visible.blocks.batch = batch;
    }
    call.subset.classes = c.count;
    call.subset.class_step = step;
    call.subset.class_query = c.own;
    call.subset.class_key = c.other;
    if (c.failed) return AF_NO_MEMORY;
    call.B *= c.count;
    call.Lq = Lq;
    call.Lk = Lk;
    return sink->call(sink, &call);
}

/* Query heads [h, end) of a call and their key/value heads. */
static af_call cut_heads(const af_call *whole, int64_t h, int64_t end)
{
    const int64_t group = whole->H / whole->Hk, size = af_elem_bytes(whole->dtype);
    const int64_t real_size = af_real_bytes(whole->dtype);
    af_call call = *whole;
    call.H = end - h;
    call.Hk = af_max(1, call.H / group);
    call.subset.first_hk += h / group;
#define SKIP(tensor, heads, bytes)                                                                                     \
    if ((tensor).data) (tensor).data = (char *)(tensor).data + (heads) * (tensor).h * (bytes)
    SKIP(call.operands.query, h, size);
    SKIP(call.operands.key, h / group, size);
    SKIP(call.operands.value, h / group, size);
    SKIP(call.results.output, h, size);
    SKIP(call.results.weights, h, size);
    SKIP(call.results.lse, h, real_size);
    SKIP(call.subset.row_lse, h, real_size);
    SKIP(call.visible.mask, h, 1);
    SKIP(call.visible.blocks, h, 1);
    SKIP(call.score.bias, h, real_size);
#undef SKIP
    if (call.score.alibi) call.score.alibi += h;
    if (call.score.sink) call.score.sink += h;
    return call;
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

af_status af_call_windows(const af_call *whole, af_sink *sink, af_arena *arena)
{
    af_status status = AF_OK;
    for (int64_t h = 0, end; h < whole->H && status == AF_OK; h = end) {
        end = end_of_heads(whole, h);
        af_call call = cut_heads(whole, h, end);
        const int64_t step = whole->visible.dilation[h], longer = whole->Lq % step;
        call.visible.dilation = NULL;
        call.visible.global = NULL;
        if (step == 1) {
            status = sink->call(sink, &call);
            continue;
        }
        status = call_classes(&call, step, 0, longer, sink, arena);
        if (status == AF_OK) status = call_classes(&call, step, longer, step, sink, arena);
    }
    return status;
}

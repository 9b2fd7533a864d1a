#include "xla/call.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const int option_axes[XLA_OPTIONS] = {3, 3, 3, 0, 0, 0, 0, 1, -1, -2, -2, -1};

/* Only the first error is kept: the others follow from it. */
void xla_fail(xla_call *call, int code, const char *format, ...)
{
    va_list values;
    if (call->code) return;
    call->code = code;
    va_start(values, format);
    vsnprintf(call->message, sizeof call->message, format, values);
    va_end(values);
}

/* ---- attributes ---- */

static const void *find_attribute(xla_call *call, const char *name, int dtype)
{
    const xla_attributes *a = &call->frame->attributes;
    for (int64_t n = 0; n < a->count; n++) {
        if (a->names[n]->length != strlen(name) || memcmp(a->names[n]->text, name, strlen(name)) != 0) continue;
        if (a->kinds[n] == XLA_SCALAR && a->values[n]->dtype == dtype) return a->values[n]->value;
    }
    xla_fail(call, XLA_INVALID_ARGUMENT, "attnfast has no attribute %s of type %d in this call", name, dtype);
    return NULL;
}

int64_t xla_integer(xla_call *call, const char *name)
{
    const int64_t *value = find_attribute(call, name, XLA_S64);
    return value ? *value : 0;
}

static double real_attribute(xla_call *call, const char *name)
{
    const double *value = find_attribute(call, name, XLA_F64);
    return value ? *value : 0;
}

/* ---- buffers ---- */

static void join_batch(xla_call *call, const xla_buffer *buffer)
{
    for (int k = 0; k < call->batch_axes; k++) {
        if (buffer->dims[k] == 1 || buffer->dims[k] == call->batch[k]) continue;
        if (call->batch[k] != 1) xla_fail(call, XLA_INVALID_ARGUMENT, "batch axes of attnfast do not broadcast");
        call->batch[k] = buffer->dims[k];
    }
}

static const xla_buffer *take(xla_call *call, const xla_buffers *all, int64_t *next, int axes)
{
    static const xla_buffer nothing;
    const xla_buffer *buffer = *next < all->count ? all->buffers[(*next)++] : NULL;
    const int64_t rank = axes < 0 ? -axes : call->batch_axes + axes;
    if (!buffer || buffer->rank != rank) {
        xla_fail(call, XLA_INVALID_ARGUMENT, "attnfast got too few buffers, or one that has not %d axes", (int)rank);
        return &nothing;
    }
    if (axes >= 0) join_batch(call, buffer);
    return buffer;
}

const xla_buffer *xla_next_argument(xla_call *call, int axes)
{
    return take(call, &call->frame->arguments, &call->next_argument, axes);
}

const xla_buffer *xla_next_result(xla_call *call, int axes)
{
    return take(call, &call->frame->results, &call->next_result, axes);
}

void xla_take_operands(xla_call *call, const xla_frame *frame)
{
    *call = (xla_call){.frame = frame};
    call->tokens_first = xla_integer(call, "tokens_first") != 0;
    for (int k = 0; k < XLA_MOST_AXES; k++) call->batch[k] = 1;
    const int64_t first = call->next_argument;
    const int64_t rank = first < frame->arguments.count ? frame->arguments.buffers[first]->rank : 0;
    if (rank < 3 || rank > XLA_MOST_AXES)
        xla_fail(call, XLA_INVALID_ARGUMENT, "query must have 3 to %d axes, got %d", XLA_MOST_AXES, (int)rank);
    else call->batch_axes = (int)rank - 3;
    call->query = xla_next_argument(call, 3);
    call->key = xla_next_argument(call, 3);
    call->value = xla_next_argument(call, 3);
}

void xla_take_options(xla_call *call)
{
    const int64_t given = xla_integer(call, "given");
    for (int n = 0; n < XLA_OPTIONS; n++)
        if (given >> n & 1) call->options[n] = xla_next_argument(call, option_axes[n]);
}

/* The offset of each batch row: one stride where the batch axes collapse into one, else a table. */
static void set_batch(xla_call *call, af_tensor *t, const xla_buffer *buffer)
{
    int64_t step[XLA_MOST_AXES], size = 1, span = -1;
    bool collapses = true;
    for (int k = (int)buffer->rank - 1; k >= 0; k--) {
        if (k < call->batch_axes) step[k] = buffer->dims[k] == 1 ? 0 : size;
        size *= buffer->dims[k];
    }
    for (int k = call->batch_axes - 1; k >= 0; k--) {
        if (call->batch[k] == 1) continue;
        if (span == -1) t->b = step[k];
        else if (step[k] != span) collapses = false;
        span = step[k] * call->batch[k];
    }
    if (collapses) return;
    int64_t *offsets = af_take(&call->arena, call->problem.B, sizeof *offsets);
    if (!offsets) {
        XLA_NO_MEMORY(call);
        return;
    }
    for (int64_t b = 0; b < call->problem.B; b++) {
        int64_t rest = b;
        offsets[b] = 0;
        for (int k = call->batch_axes - 1; k >= 0; k--) {
            offsets[b] += rest % call->batch[k] * step[k];
            rest /= call->batch[k];
        }
    }
    t->batch = offsets;
}

af_tensor xla_pairs(xla_call *call, const xla_buffer *buffer, int axes)
{
    af_tensor t = {0};
    if (!buffer || call->code) return t;
    int64_t size = 1, *strides[3] = {&t.h, &t.i, &t.j};
    t.data = buffer->data;
    for (int n = axes - 1; n >= 0; n--) {
        const int64_t length = buffer->dims[call->batch_axes + n];
        *strides[n] = length == 1 ? 0 : size;
        size *= length;
    }
    set_batch(call, &t, buffer);
    return t;
}

af_tensor xla_rows(xla_call *call, const xla_buffer *buffer, int axes)
{
    af_tensor t = xla_pairs(call, buffer, axes);
    if (!call->tokens_first) return t;
    const int64_t heads = t.i;
    t.i = t.h;
    t.h = heads;
    return t;
}

/* ---- options ---- */

static int64_t batch_offset(const af_tensor *t, int64_t b) { return t->batch ? t->batch[b] : b * t->b; }

static const int64_t *numbers(xla_call *call, xla_option option, const char *name, int64_t least, int64_t most)
{
    const xla_buffer *buffer = call->options[option];
    if (!buffer) return NULL;
    const af_tensor t = xla_pairs(call, buffer, 0);
    int64_t *number = af_take(&call->arena, call->problem.B, sizeof *number);
    if (!number) {
        XLA_NO_MEMORY(call);
        return NULL;
    }
    for (int64_t b = 0; b < call->problem.B && !call->code; b++) {
        const int64_t at = batch_offset(&t, b);
        number[b] = buffer->dtype == XLA_S32 ? ((const int32_t *)t.data)[at] : ((const int64_t *)t.data)[at];
        if (number[b] < least || number[b] > most)
            xla_fail(call, XLA_INVALID_ARGUMENT, "%s must be within %lld .. %lld, got %lld", name, (long long)least,
                     (long long)most, (long long)number[b]);
    }
    return number;
}

/* `width` numbers of each of some rows. */
static const double *reals(xla_call *call, const xla_buffer *buffer, const af_tensor *t, int64_t rows, int64_t width)
{
    double *real = af_take(&call->arena, rows * width, sizeof *real);
    if (!real) XLA_NO_MEMORY(call);
    for (int64_t b = 0; real && b < rows; b++)
        for (int64_t h = 0; h < width; h++) {
            const int64_t at = batch_offset(t, b) + h;
            real[b * width + h] =
                buffer->dtype == XLA_F64 ? ((const double *)t->data)[at] : (double)((const float *)t->data)[at];
        }
    return real;
}

static void fill_visible(xla_call *call)
{
    const af_problem *p = &call->problem;
    call->visible = (af_visible){
        .size = sizeof call->visible,
        .left = xla_integer(call, "left"),
        .right = xla_integer(call, "right"),
        .causal = xla_integer(call, "causal") != 0,
        .q_offset = numbers(call, XLA_Q_OFFSET, "q_offset", -AF_MAX_POSITION, AF_MAX_POSITION),
        .q_length = numbers(call, XLA_Q_LENGTH, "q_lengths", 0, p->Lq),
        .kv_length = numbers(call, XLA_KV_LENGTH, "kv_lengths", 0, p->Lk),
        .kv_start = numbers(call, XLA_KV_START, "kv_starts", 0, p->Lk),
        .mask = xla_pairs(call, call->options[XLA_MASK], 3),
        .blocks = xla_pairs(call, call->options[XLA_BLOCKS], 3),
        .block_q = xla_integer(call, "block_q"),
        .block_k = xla_integer(call, "block_k"),
    };
}

/* One vector for all heads, or one for each. */
static af_tensor vectors(const xla_buffer *buffer)
{
    if (!buffer) return (af_tensor){0};
    return (af_tensor){.data = buffer->data, .h = buffer->dims[0] == 1 ? 0 : buffer->dims[1], .j = 1};
}

static void fill_score(xla_call *call)
{
    const xla_buffer *alibi = call->options[XLA_ALIBI], *sink = call->options[XLA_SINK];
    const xla_buffer *seed = call->options[XLA_SEED];
    if (call->code) return;
    call->score = (af_score){
        .size = sizeof call->score,
        .scale = real_attribute(call, "scale"),
        .softcap = real_attribute(call, "softcap"),
        .dropout = real_attribute(call, "dropout"),
        .additive = call->options[XLA_SCORE_WEIGHT] != NULL,
        .score_weight = vectors(call->options[XLA_SCORE_WEIGHT]),
        .score_bias = vectors(call->options[XLA_SCORE_BIAS]),
        .bias = xla_pairs(call, call->options[XLA_BIAS], 3),
    };
    if (call->code) return;
    if (alibi) {
        const af_tensor t = xla_pairs(call, alibi, 1);
        call->score.alibi = reals(call, alibi, &t, call->problem.B, call->problem.H);
        call->score.alibi_b = call->problem.H;
    }
    if (sink) call->score.sink = reals(call, sink, &(af_tensor){.data = sink->data}, 1, call->problem.H);
    if (seed) {
        const uint32_t *half = seed->data;
        call->score.dropout_seed = (uint64_t)half[0] << 32 | half[1];
    }
}

static af_dtype dtype_of(xla_call *call, int dtype)
{
    switch (dtype) {
    case XLA_F32:
        return AF_F32;
    case XLA_F64:
        return AF_F64;
    case XLA_F16:
        return AF_F16;
    case XLA_BF16:
        return AF_BF16;
    default:
        xla_fail(call, XLA_INVALID_ARGUMENT, "query must be a float of 16, 32 or 64 bits");
        return AF_F32;
    }
}

void xla_fill_problem(xla_call *call)
{
    if (call->code) return;
    const int64_t *q = call->query->dims + call->batch_axes, *k = call->key->dims + call->batch_axes;
    const int heads = call->tokens_first ? 1 : 0, rows = 1 - heads;
    call->problem = (af_problem){
        .size = sizeof call->problem,
        .dtype = dtype_of(call, call->query->dtype),
        .B = 1,
        .H = q[heads],
        .Hk = k[heads],
        .Lq = q[rows],
        .Lk = k[rows],
        .D = q[2],
        .Dv = call->value->dims[call->batch_axes + 2],
        .operands = &call->operands,
        .visible = &call->visible,
        .score = &call->score,
        .results = &call->results,
    };
    for (int n = 0; n < call->batch_axes; n++) call->problem.B *= call->batch[n];
    call->operands = (af_operands){.size = sizeof call->operands,
                                   .query = xla_rows(call, call->query, 3),
                                   .key = xla_rows(call, call->key, 3),
                                   .value = xla_rows(call, call->value, 3)};
    call->results = (af_results){.size = sizeof call->results, .stage = AF_WEIGHTS};
    fill_visible(call);
    fill_score(call);
}

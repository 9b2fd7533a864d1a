/* One batch row after the other. Rows at the position of a global token see every key and come first, in an order of
 * their own, so that few blocks hold them all. The others see the tokens only, whose keys and values are gathered,
 * unless a mask or bias goes by the keys' positions; then the pieces of keys jump from one token to the next. Gradients
 * of gathered rows are added to those of the tokens. */
#include "driver/global_tokens.h"

#include <string.h>

#include "driver/arena.h"
#include "plan/intervals.h"

/* Memory of calls that wait: more than this, and they are run first. */
enum { MOST_WAITING = 1 << 22 };

typedef struct tokens {
    af_sink *sink;
    af_arena arena;
    int64_t waiting; /* bytes of it */
} tokens;

static void *take(tokens *t, int64_t count, size_t size)
{
    t->waiting += count * (int64_t)size;
    return af_take(&t->arena, count, size);
}

static int64_t *take_numbers(tokens *t, int64_t count) { return take(t, count, sizeof(int64_t)); }

/* The global tokens of a batch row, then Lk. */
static int64_t *token_keys(tokens *t, const uint8_t *global, int64_t Lk, int64_t *count)
{
    *count = 0;
    for (int64_t j = 0; j < Lk; j++) *count += global[j] != 0;
    int64_t *keys = take_numbers(t, *count + 1), n = 0;
    if (!keys) return NULL;
    for (int64_t j = 0; j < Lk; j++)
        if (global[j]) keys[n++] = j;
    keys[n] = Lk;
    return keys;
}

/* Queries at the position of a token, then the others; `seeing` of the former. */
static int64_t *order_queries(tokens *t, const af_call *call, const uint8_t *global, int64_t offset, int64_t *seeing)
{
    int64_t *order = take_numbers(t, call->Lq), n = 0;
    if (!order) return NULL;
    const int64_t first = af_max(0, -offset), end = af_min(call->Lq, call->Lk - offset);
    for (int64_t i = first; i < end; i++)
        if (global[i + offset]) order[n++] = i;
    *seeing = n;
    for (int64_t i = 0; i < call->Lq; i++)
        if (i < first || i >= end || !global[i + offset]) order[n++] = i;
    return order;
}

/* Rows between two checks of signals. */
enum { ROWS_A_CHECK = 1 << 14 };

/* Some rows of each key/value head side by side, to which the tensor then points. To describe a call it is enough
 * that they are there: operands may have no memory, or be of another type than the call. */
static af_status gather(tokens *t, af_tensor *tensor, int64_t Hk, int64_t width, const int64_t *keys, int64_t n,
                        int64_t size)
{
    if (!tensor->data) return AF_OK;
    char *rows = take(t, Hk * n * width, (size_t)size), *to = rows;
    if (!rows) return AF_NO_MEMORY;
    for (int64_t h = 0; h < Hk && !t->sink->dry; h++)
        for (int64_t k = 0; k < n; k++, to += width * size) {
            if (k % ROWS_A_CHECK == 0 && af_check_signals(t->sink->watch) == AF_INTERRUPTED) return AF_INTERRUPTED;
            const int64_t from = af_offset(tensor, 0, h, keys[k]);
            memcpy(to, (const char *)tensor->data + from * size, (size_t)(width * size));
        }
    *tensor = (af_tensor){.data = rows, .h = n * width, .i = width, .j = 1};
    return AF_OK;
}

/* Rows of zeros in place of those that gradients are wanted of. */
static af_status take_zeros(tokens *t, af_tensor *gradient, int64_t Hk, int64_t width, int64_t n, int64_t size)
{
    if (!gradient->data) return AF_OK;
    char *rows = take(t, Hk * n * width, (size_t)size);
    if (!rows) return AF_NO_MEMORY;
    memset(rows, 0, (size_t)(Hk * n * width * size));
    *gradient = (af_tensor){.data = rows, .h = n * width, .i = width, .j = 1};
    return AF_OK;
}

/* Adds gradients of gathered rows to those of the tokens. */
static void scatter(const af_tensor *from, const af_tensor *to, const af_call *call, int64_t width, const int64_t *keys)
{
    for (int64_t h = 0; to->data && h < call->Hk; h++)
        for (int64_t k = 0; k < call->Lk; k++) {
            const int64_t own = af_offset(from, 0, h, k), at = af_offset(to, 0, h, keys[k]);
            for (int64_t d = 0; d < width; d++)
                if (call->dtype == AF_F64) ((double *)to->data)[at + d] += ((const double *)from->data)[own + d];
                else ((float *)to->data)[at + d] += ((const float *)from->data)[own + d];
        }
}

/* Batch row b as a call of the pairs that its windows leave out: a global token and any other query or key. */
static af_call cut_row(const af_call *whole, int64_t b, bool causal)
{
    af_part part = af_whole_part(whole);
    part.row = part.b = b;
    part.B = 1;
    af_call call = af_cut_call(whole, part);
    call.score.sink = call.gradients.sink = NULL; /* they enter once, with the windows */
    call.subset.excluded_left = whole->visible.left;
    call.subset.excluded_right = whole->visible.right;
    call.subset.accumulate = whole->results.output.data || whole->results.lse.data;
    call.visible.left = AF_FAR;
    call.visible.right = causal ? 0 : AF_FAR;
    call.visible.global = NULL;
    return call;
}

/* Rows that see the tokens only. */
static af_status call_gathered(tokens *t, af_call call, const int64_t *keys, int64_t n, int64_t size)
{
    if (!call.Lq) return AF_OK;
    const af_tensor key = call.gradients.key, value = call.gradients.value;
    int64_t *length = take_numbers(t, 1);
    af_status status = length ? gather(t, &call.operands.key, call.Hk, call.D, keys, n, size) : AF_NO_MEMORY;
    if (status == AF_OK) status = gather(t, &call.operands.value, call.Hk, call.Dv, keys, n, size);
    if (status == AF_OK) status = take_zeros(t, &call.gradients.key, call.Hk, call.D, n, size);
    if (status == AF_OK) status = take_zeros(t, &call.gradients.value, call.Hk, call.Dv, n, size);
    if (status != AF_OK) return status;
    *length = call.visible.kv_length ? *call.visible.kv_length : call.Lk;
    call.visible.kv_length = length;
    call.subset.global = NULL;
    call.subset.key_position = keys;
    call.Lk = n;
    status = t->sink->call(t->sink, &call);
    if (status != AF_OK || t->sink->dry) return status;
    scatter(&call.gradients.key, &key, &call, call.D, keys);
    scatter(&call.gradients.value, &value, &call, call.Dv, keys);
    return AF_OK;
}

static af_status call_row(tokens *t, const af_call *whole, int64_t b, bool causal)
{
    const uint8_t *global = whole->visible.global + b * whole->Lk;
    int64_t count, seeing = 0;
    const int64_t *keys = token_keys(t, global, whole->Lk, &count);
    if (keys && !count) return AF_OK;
    af_call call = cut_row(whole, b, causal);
    const int64_t offset = call.visible.q_offset ? *call.visible.q_offset : 0;
    int64_t *order = order_queries(t, &call, global, offset, &seeing), *starts = take_numbers(t, 2);
    if (!keys || !order || !starts) return AF_NO_MEMORY;
    starts[0] = 0;
    starts[1] = count;
    call.subset.global = global;
    call.subset.global_keys = keys;
    call.subset.global_starts = starts;
    call.subset.query_order = (af_tensor){.data = order, .i = 1};
    if (call.visible.mask.data || call.score.bias.data || call.visible.blocks.data || call.score.alibi ||
        call.gradients.grad_weights.data)
        return t->sink->call(t->sink, &call);
    call.Lq = seeing;
    const af_status status = seeing ? t->sink->call(t->sink, &call) : AF_OK;
    call.Lq = whole->Lq - seeing;
    call.subset.query_order.data = order + seeing;
    return status == AF_OK ? call_gathered(t, call, keys, count, af_elem_bytes(whole->dtype)) : status;
}

af_status af_call_global_tokens(const af_call *call, bool causal, af_sink *sink)
{
    tokens t = {.sink = sink};
    af_status status = AF_OK;
    for (int64_t b = 0; b < call->B && status == AF_OK; b++) {
        status = call_row(&t, call, b, causal);
        if (status != AF_OK || t.waiting < MOST_WAITING) continue;
        status = sink->barrier(sink);
        af_give_back(&t.arena);
        t.waiting = 0;
    }
    if (status == AF_OK) status = sink->barrier(sink);
    af_give_back(&t.arena);
    return status;
}

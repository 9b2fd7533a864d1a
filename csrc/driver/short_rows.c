#include "driver/short_rows.h"

#include <string.h>

#include "driver/arena.h"
#include "plan/intervals.h"

/* Half a tile of keys: little is computed in vain, and a mask has 64 kB. 1000 x 2 x 32 x 16 with one token: 10.3 ms as
 * calls for each batch row, 4.3 so (Zen 4, AVX-512). */
enum { SHORT_KEYS = 64, SHORT_QUERIES = 1024 };

bool af_has_short_rows(const af_call *call)
{
    const af_visible *v = &call->visible;
    return v->global && call->Lk <= SHORT_KEYS && call->Lq <= SHORT_QUERIES && !v->mask.data && !v->blocks.data;
}

static int64_t offset_of(const af_visible *v, int64_t b) { return v->q_offset ? v->q_offset[b] : 0; }

static int64_t dilation_of(const af_visible *v, int64_t h) { return v->dilation ? v->dilation[h] : 1; }

/* The rows of batch row b and head h. */
static void fill_mask(const af_call *call, int64_t b, int64_t h, uint8_t *to)
{
    const af_visible *v = &call->visible;
    const uint8_t *global = v->global + b * call->Lk;
    const int64_t step = dilation_of(v, h);
    for (int64_t i = 0; i < call->Lq; i++, to += call->Lk) {
        const int64_t p = i + offset_of(v, b);
        const bool all = p >= 0 && p < call->Lk && global[p];
        for (int64_t j = 0; j < call->Lk; j++) {
            const int64_t away = j - p, steps = away / step;
            const bool near = away % step == 0 && steps >= -v->left && steps <= v->right;
            to[j] = all || global[j] || near;
        }
    }
}

/* Whether all batch rows have the mask of the first. */
static bool rows_are_alike(const af_call *call)
{
    const af_visible *v = &call->visible;
    for (int64_t b = 1; b < call->B; b++)
        if (offset_of(v, b) != offset_of(v, 0) || memcmp(v->global, v->global + b * call->Lk, (size_t)call->Lk) != 0)
            return false;
    return true;
}

static bool heads_are_alike(const af_call *call)
{
    for (int64_t h = 1; h < call->H; h++)
        if (dilation_of(&call->visible, h) != dilation_of(&call->visible, 0)) return false;
    return true;
}

/* Batch rows b .. b + n, whose mask begins with that of row b. */
static af_call cut_rows(const af_call *whole, int64_t b, int64_t n, bool causal, af_tensor mask)
{
    af_part part = af_whole_part(whole);
    part.row = part.b = b;
    part.B = n;
    af_call call = af_cut_call(whole, part);
    call.visible.mask = mask;
    call.visible.global = NULL;
    call.visible.dilation = NULL;
    call.visible.left = AF_FAR;
    call.visible.right = causal ? 0 : AF_FAR;
    return call;
}

af_status af_call_short_rows(const af_call *call, bool causal, af_sink *sink)
{
    const bool rows_alike = rows_are_alike(call);
    const int64_t heads = heads_are_alike(call) ? 1 : call->H, pairs = call->Lq * call->Lk;
    const int64_t fit = af_max(1, sink->memory / af_max(1, heads * pairs));
    const int64_t rows = rows_alike ? 1 : af_min(fit, call->B), at_a_time = rows_alike ? call->B : rows;
    af_arena arena = {0};
    uint8_t *mask = af_take(&arena, rows * heads, (size_t)pairs);
    af_status status = mask ? AF_OK : AF_NO_MEMORY;
    const af_tensor tensor = {
        .data = mask, .b = rows_alike ? 0 : heads * pairs, .h = heads > 1 ? pairs : 0, .i = call->Lk, .j = 1};
    for (int64_t b = 0; b < call->B && status == AF_OK; b += at_a_time) {
        const int64_t n = af_min(at_a_time, call->B - b);
        for (int64_t r = 0; r < af_min(n, rows); r++)
            for (int64_t h = 0; h < heads; h++) fill_mask(call, b + r, h, mask + (r * heads + h) * pairs);
        const af_call part = cut_rows(call, b, n, causal, tensor);
        status = sink->call(sink, &part);
        if (status == AF_OK) status = sink->barrier(sink);
    }
    af_give_back(&arena);
    return status;
}

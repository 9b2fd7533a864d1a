#include "driver/query_order.h"

#include "plan/intervals.h"

static bool centers_rise(const af_call *call, int64_t B, int64_t H)
{
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t i = 1; i < call->Lq; i++)
                if (af_center(call, b, h, i) < af_center(call, b, h, i - 1)) return false;
    return true;
}

/* Merges two sorted runs of queries; of equal centers those of the first run come first. */
static void merge_runs(const af_call *call, int64_t b, int64_t h, const int64_t *first, const int64_t *second,
                       const int64_t *end, int64_t *to)
{
    const int64_t *a = first, *c = second;
    while (a < second || c < end) {
        const bool from_first = c == end || (a < second && af_center(call, b, h, *a) <= af_center(call, b, h, *c));
        *to++ = from_first ? *a++ : *c++;
    }
}

/* Merge sort: equal centers stay in order. */
static void sort_queries(const af_call *call, int64_t b, int64_t h, int64_t *order, int64_t *spare)
{
    const int64_t n = call->Lq;
    for (int64_t i = 0; i < n; i++) order[i] = i;
    for (int64_t width = 1; width < n; width *= 2) {
        for (int64_t i = 0; i < n; i += 2 * width) {
            const int64_t middle = af_min(i + width, n), end = af_min(i + 2 * width, n);
            merge_runs(call, b, h, order + i, order + middle, order + end, spare + i);
        }
        for (int64_t i = 0; i < n; i++) order[i] = spare[i];
    }
}

bool af_order_by_centers(af_call *call, af_arena *arena)
{
    const af_tensor *t = &call->visible.center;
    const int64_t B = t->b || t->batch ? call->B : 1, H = t->h ? call->H : 1, Lq = call->Lq;
    if (!t->i || centers_rise(call, B, H)) return true;
    if ((double)B * (double)H * (double)Lq > 0x1p56) return false;
    int64_t *order = af_take(arena, B * H * Lq, sizeof *order), *spare = af_take(arena, Lq, sizeof *spare);
    if (!order || !spare) return false;
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++) sort_queries(call, b, h, order + (b * H + h) * Lq, spare);
    call->subset.query_order = (af_tensor){.data = order, .b = B > 1 ? H * Lq : 0, .h = H > 1 ? Lq : 0, .i = 1};
    return true;
}

#include "driver/query_order.h"

#include <string.h>

#include "plan/intervals.h"

/* Queries between two checks of signals. */
enum { QUERIES_A_CHECK = 1 << 16 };

/* The centers of one head of one batch row. */
typedef struct centers {
    const af_call *call;
    af_watch *watch;
    int64_t b, h;
} centers;

static double center_of(const centers *c, int64_t i) { return af_center(c->call, c->b, c->h, i); }

static bool is_interrupted(const centers *c, int64_t n)
{
    return n % QUERIES_A_CHECK == 0 && af_check_signals(c->watch) == AF_INTERRUPTED;
}

static af_status find_fall(const centers *c, bool *found)
{
    for (int64_t i = 1; i < c->call->Lq && !*found; i++) {
        if (is_interrupted(c, i)) return AF_INTERRUPTED;
        *found = center_of(c, i) < center_of(c, i - 1);
    }
    return AF_OK;
}

/* Merges the sorted runs [begin, middle) and [middle, end); of equal centers those of the first run come first. */
static af_status merge_runs(const centers *c, const int64_t *from, int64_t begin, int64_t middle, int64_t end,
                            int64_t *to)
{
    int64_t first = begin, second = middle;
    for (int64_t n = begin; n < end; n++) {
        if (is_interrupted(c, n)) return AF_INTERRUPTED;
        const bool from_first =
            second == end || (first < middle && center_of(c, from[first]) <= center_of(c, from[second]));
        to[n] = from[from_first ? first++ : second++];
    }
    return AF_OK;
}

/* Merge sort: equal centers stay in order. The sorted queries are in `order`. */
static af_status sort_queries(const centers *c, int64_t *order, int64_t *spare)
{
    const int64_t n = c->call->Lq;
    int64_t *from = order, *to = spare;
    for (int64_t i = 0; i < n; i++) from[i] = i;
    for (int64_t width = 1; width < n; width *= 2) {
        for (int64_t i = 0; i < n; i += 2 * width)
            if (merge_runs(c, from, i, af_min(i + width, n), af_min(i + 2 * width, n), to) == AF_INTERRUPTED)
                return AF_INTERRUPTED;
        int64_t *sorted = to;
        to = from;
        from = sorted;
    }
    if (from != order) memcpy(order, from, (size_t)n * sizeof *order);
    return AF_OK;
}

af_status af_order_by_centers(af_call *call, af_watch *watch, af_arena *arena)
{
    const af_tensor *t = &call->visible.center;
    const int64_t B = t->b || t->batch ? call->B : 1, H = t->h ? call->H : 1, Lq = call->Lq;
    bool falls = false;
    if (!t->i) return AF_OK;
    for (int64_t head = 0; head < B * H && !falls; head++)
        if (find_fall(&(centers){call, watch, head / H, head % H}, &falls) == AF_INTERRUPTED) return AF_INTERRUPTED;
    if (!falls) return AF_OK;
    if ((double)B * (double)H * (double)Lq > 0x1p56) return AF_NO_MEMORY;
    int64_t *order = af_take(arena, B * H * Lq, sizeof *order), *spare = af_take(arena, Lq, sizeof *spare);
    if (!order || !spare) return AF_NO_MEMORY;
    for (int64_t head = 0; head < B * H; head++)
        if (sort_queries(&(centers){call, watch, head / H, head % H}, order + head * Lq, spare) == AF_INTERRUPTED)
            return AF_INTERRUPTED;
    call->subset.query_order = (af_tensor){.data = order, .b = B > 1 ? H * Lq : 0, .h = H > 1 ? Lq : 0, .i = 1};
    return AF_OK;
}

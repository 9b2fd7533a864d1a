/* Which keys a query can see, as far as position and length decide it: one interval of keys for each query.
 *
 *   key j is visible to query i of batch row b  iff  i < q_length[b],  kv_start[b] <= j < kv_length[b],
 *                                                    c - left <= j <= c + right,  c = p = i + q_offset[b]
 *
 * or c a place of its own, center[b, h, i], where there is one; then causality is min(right bound, p). Causality
 * otherwise is a window whose right bound is 0. Masks, block masks, global tokens and -inf biases hide more, see
 * visibility.h and kernel/mask.h. */
#ifndef AF_INTERVALS_H
#define AF_INTERVALS_H

#include <string.h>

#include "plan/call.h"

typedef struct af_interval {
    int64_t begin, end; /* begin == end: nothing */
} af_interval;

static inline int64_t af_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t af_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Causality as a bound of the window, unless the window has a center of its own. */
static inline void af_causality_as_window(af_visible *visible)
{
    if (!visible->causal || visible->center.data) return;
    visible->right = af_min(visible->right, 0);
    visible->causal = false;
}

static inline int64_t af_position(const af_call *call, int64_t b, int64_t i)
{
    return call->visible.q_offset ? call->visible.q_offset[b] + i : i;
}

static inline bool af_query_is_padding(const af_call *call, int64_t b, int64_t i)
{
    return call->visible.q_length && i >= call->visible.q_length[b];
}

static inline int64_t af_offset(const af_tensor *t, int64_t b, int64_t h, int64_t i)
{
    return (t->batch ? t->batch[b] : b * t->b) + h * t->h + i * t->i;
}

/* The largest whole number up to x, |x| < 2^62. */
static inline int64_t af_floor(double x)
{
    const int64_t n = (int64_t)x;
    return n - ((double)n > x);
}

static inline double af_center(const af_call *call, int64_t b, int64_t h, int64_t i)
{
    return ((const double *)call->visible.center.data)[af_offset(&call->visible.center, b, h, i)];
}

/* The window around a center, which may fall between keys or far outside of them. */
static inline af_interval af_center_window(const af_call *call, int64_t b, int64_t h, int64_t i)
{
    const double center = af_center(call, b, h, i), far = (double)AF_FAR;
    const double first = center - (double)call->visible.left, last = center + (double)call->visible.right;
    af_interval window = {-AF_FAR, AF_FAR};
    if (call->visible.left < AF_FAR && first >= -far) window.begin = first > far ? AF_FAR : -af_floor(-first);
    if (call->visible.right < AF_FAR && last <= far) window.end = last < -far ? -AF_FAR : af_floor(last) + 1;
    return window;
}

/* How many of n rising numbers are below a limit. */
static inline int64_t af_count_below(const int64_t *numbers, int64_t n, int64_t limit)
{
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (numbers[middle] < limit) low = middle + 1;
        else high = middle;
    }
    return low;
}

static inline af_interval af_visible_keys(const af_call *call, int64_t b, int64_t h, int64_t i)
{
    const int64_t position = af_position(call, b, i);
    const int64_t start = call->visible.kv_start ? call->visible.kv_start[b] : 0,
                  length = call->visible.kv_length ? call->visible.kv_length[b] : call->Lk;
    af_interval window = {position - call->visible.left, position + call->visible.right + 1};
    if (call->visible.center.data) {
        window = af_center_window(call, b, h, i);
        if (call->visible.causal) window.end = af_min(window.end, position + 1);
    }
    af_interval span = {af_max(start, window.begin), af_min(length, window.end)};
    if (call->subset.key_position)
        span = (af_interval){af_count_below(call->subset.key_position, call->Lk, span.begin),
                             af_count_below(call->subset.key_position, call->Lk, span.end)};
    if (af_query_is_padding(call, b, i) || span.begin >= span.end) return (af_interval){0, 0};
    return span;
}

/* The smallest interval that holds both. */
static inline af_interval af_hull(af_interval a, af_interval b)
{
    if (a.begin == a.end) return b;
    if (b.begin == b.end) return a;
    return (af_interval){af_min(a.begin, b.begin), af_max(a.end, b.end)};
}

static inline af_interval af_intersect(af_interval a, af_interval b)
{
    const af_interval both = {af_max(a.begin, b.begin), af_min(a.end, b.end)};
    return both.begin < both.end ? both : (af_interval){0, 0};
}

/* The `split`-th run of `keys` keys of an interval. */
static inline af_interval af_split(af_interval span, int64_t split, int64_t keys)
{
    const int64_t begin = af_min(span.end, span.begin + split * keys);
    return (af_interval){begin, af_min(span.end, begin + keys)};
}

/* Runs of visible and hidden keys in a mask over the keys, one byte each. */

static inline uint64_t af_eight_bytes(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}

/* How many of the n keys from here on are visible, or hidden, up to the first one that is not. */
static inline int64_t af_visible_run(const uint8_t *mask, int64_t n)
{
    int64_t j = 0;
    for (uint64_t x; j + 8 <= n; j += 8) {
        x = af_eight_bytes(mask + j);
        if ((x - 0x0101010101010101) & ~x & 0x8080808080808080) break; /* a byte is 0 */
    }
    while (j < n && mask[j]) j++;
    return j;
}

static inline int64_t af_hidden_run(const uint8_t *mask, int64_t n)
{
    int64_t j = 0;
    while (j + 8 <= n && af_eight_bytes(mask + j) == 0) j += 8;
    while (j < n && !mask[j]) j++;
    return j;
}

/* An interval without the hidden keys at its ends. */
static inline af_interval af_trim(const uint8_t *mask, af_interval span)
{
    if (!mask || span.begin == span.end) return span;
    span.begin += af_hidden_run(mask + span.begin, span.end - span.begin);
    while (span.end - span.begin >= 8 && af_eight_bytes(mask + span.end - 8) == 0) span.end -= 8;
    while (span.end > span.begin && !mask[span.end - 1]) span.end--;
    return span.begin < span.end ? span : (af_interval){0, 0};
}

#endif

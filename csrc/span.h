/* Which keys a query can see, as far as position and length decide it: one interval of keys for each query.
 *
 *   key j is visible to query i of batch row b  iff  i < q_length[b],  j < kv_length[b],
 *                                                    c - left <= j <= c + right,  c = p = i + q_offset[b]
 *
 * or c a place of its own, center[b, h, i], where there is one; then causality is min(right bound, p). Causality
 * otherwise is a window whose right bound is 0. Masks, block masks, global tokens and -inf biases hide more, see view.h
 * and kernel/mask.h. */
#ifndef AF_SPAN_H
#define AF_SPAN_H

#include <string.h>

#include "attnfast.h"

typedef struct af_span {
    int64_t begin, end; /* begin == end: nothing */
} af_span;

static inline int64_t af_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t af_max(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t af_position(const af_problem *p, int64_t b, int64_t i)
{
    return p->q_offset ? p->q_offset[b] + i : i;
}

static inline bool af_query_is_padding(const af_problem *p, int64_t b, int64_t i)
{
    return p->q_length && i >= p->q_length[b];
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

static inline double af_center(const af_problem *p, int64_t b, int64_t h, int64_t i)
{
    return ((const double *)p->center.data)[af_offset(&p->center, b, h, i)];
}

/* The window about a center, which may lie between keys or far from all of them. */
static inline af_span af_center_window(const af_problem *p, int64_t b, int64_t h, int64_t i)
{
    const double center = af_center(p, b, h, i), far = (double)AF_FAR;
    const double first = center - (double)p->left, last = center + (double)p->right;
    af_span window = {-AF_FAR, AF_FAR};
    if (p->left < AF_FAR && first >= -far) window.begin = first > far ? AF_FAR : -af_floor(-first);
    if (p->right < AF_FAR && last <= far) window.end = last < -far ? -AF_FAR : af_floor(last) + 1;
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

static inline af_span af_visible_keys(const af_problem *p, int64_t b, int64_t h, int64_t i)
{
    const int64_t position = af_position(p, b, i);
    const int64_t length = p->kv_length ? p->kv_length[b] : p->Lk;
    af_span window = {position - p->left, position + p->right + 1};
    if (p->center.data) {
        window = af_center_window(p, b, h, i);
        if (p->causal) window.end = af_min(window.end, position + 1);
    }
    af_span span = {af_max(0, window.begin), af_min(length, window.end)};
    if (p->place)
        span = (af_span){af_count_below(p->place, p->Lk, span.begin), af_count_below(p->place, p->Lk, span.end)};
    if (af_query_is_padding(p, b, i) || span.begin >= span.end) return (af_span){0, 0};
    return span;
}

/* The smallest interval that holds both. */
static inline af_span af_join(af_span a, af_span b)
{
    if (a.begin == a.end) return b;
    if (b.begin == b.end) return a;
    return (af_span){af_min(a.begin, b.begin), af_max(a.end, b.end)};
}

static inline af_span af_common(af_span a, af_span b)
{
    const af_span both = {af_max(a.begin, b.begin), af_min(a.end, b.end)};
    return both.begin < both.end ? both : (af_span){0, 0};
}

/* The `split`-th stretch of `keys` keys of a span. */
static inline af_span af_split(af_span span, int64_t split, int64_t keys)
{
    const int64_t begin = af_min(span.end, span.begin + split * keys);
    return (af_span){begin, af_min(span.end, begin + keys)};
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

/* A span without the hidden keys at its ends. */
static inline af_span af_trim(const uint8_t *mask, af_span span)
{
    if (!mask || span.begin == span.end) return span;
    span.begin += af_hidden_run(mask + span.begin, span.end - span.begin);
    while (span.end - span.begin >= 8 && af_eight_bytes(mask + span.end - 8) == 0) span.end -= 8;
    while (span.end > span.begin && !mask[span.end - 1]) span.end--;
    return span.begin < span.end ? span : (af_span){0, 0};
}

#endif

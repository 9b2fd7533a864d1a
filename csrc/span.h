/* Which keys a query can see, as far as position and length decide it: one interval of keys for each query.
 *
 *   key j is visible to query i of batch row b  iff  i < q_length[b],  j < kv_length[b],
 *                                                    p - left <= j <= p + right,  p = i + q_offset[b]
 *
 * Causality is a window whose right bound is 0. Dense masks and -inf biases hide more, see kernel/mask.h. */
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

static inline af_span af_visible_keys(const af_problem *p, int64_t b, int64_t i)
{
    const int64_t position = af_position(p, b, i);
    const int64_t length = p->kv_length ? p->kv_length[b] : p->Lk;
    const af_span span = {af_max(0, position - p->left), af_min(length, position + p->right + 1)};
    if (af_query_is_padding(p, b, i) || span.begin >= span.end) return (af_span){0, 0};
    return span;
}

static inline int64_t af_offset(const af_tensor *t, int64_t b, int64_t h, int64_t i)
{
    return (t->batch ? t->batch[b] : b * t->b) + h * t->h + i * t->i;
}

/* The smallest interval that holds both. */
static inline af_span af_join(af_span a, af_span b)
{
    if (a.begin == a.end) return b;
    if (b.begin == b.end) return a;
    return (af_span){af_min(a.begin, b.begin), af_max(a.end, b.end)};
}

/* The mask's row over the keys, if every row of a key/value head has the same one; else NULL. */
static inline const uint8_t *af_key_mask(const af_problem *p, int64_t b, int64_t hk)
{
    const af_tensor *t = &p->mask;
    const int64_t group = p->H / p->Hk;
    if (!t->data || t->j != 1 || (t->i && p->Lq > 1) || (t->h && group > 1)) return NULL;
    return (const uint8_t *)t->data + af_offset(t, b, hk * group, 0);
}

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

/* The `split`-th stretch of `keys` keys of a span. */
static inline af_span af_split(af_span span, int64_t split, int64_t keys)
{
    const int64_t begin = af_min(span.end, span.begin + split * keys);
    return (af_span){begin, af_min(span.end, begin + keys)};
}

/* Keys that are done together, and the vectors of query lanes [first, last) that see any of them. */
typedef struct af_piece {
    int64_t keys;
    int first, last;
} af_piece;

/* A corner is not cut off a piece shorter than this, nor is a piece cut for fewer hidden keys: in the forward kernel a
 * piece of one key costs as much as 2.7 keys of a long one. */
enum { AF_LEAST_KEYS = 16, AF_LEAST_HIDDEN = 4 };

/* How many of n keys make one piece under a mask: hidden ones up to the first visible, or visible ones up to so many
 * hidden ones that they are better left out. */
static inline int64_t af_cut_keys(const uint8_t *mask, int64_t n)
{
    int64_t end = af_hidden_run(mask, n);
    if (end) return end;
    for (int64_t hidden = 0;; end += hidden) {
        end += af_visible_run(mask + end, n - end);
        hidden = af_hidden_run(mask + end, n - end);
        if (hidden >= AF_LEAST_HIDDEN || end + hidden == n) return end;
    }
}

/* The next piece of `span` from j on, at most `most` keys. `vectors` are the spans of the nv vectors of lanes. Where
 * rows see shifted intervals (causal, windows) the corners are cut off in steps, so that a vector does not go through
 * keys that none of its lanes sees. `mask` is the one that all rows have, or NULL. */
static inline af_piece af_take_keys(const af_span *vectors, int nv, af_span span, const uint8_t *mask, int64_t j,
                                    int64_t most)
{
    int64_t end = af_min(span.end, j + most);
    for (int c = 0; c < nv; c++) {
        if (vectors[c].begin >= j + AF_LEAST_KEYS && vectors[c].begin < end) end = vectors[c].begin;
        if (vectors[c].end >= j + AF_LEAST_KEYS && vectors[c].end < end) end = vectors[c].end;
    }
    if (mask) end = j + af_cut_keys(mask + j, end - j);
    af_piece piece = {.keys = end - j};
    for (int c = 0; c < nv; c++) {
        if (vectors[c].begin >= end || vectors[c].end <= j) continue;
        if (piece.last == 0) piece.first = c;
        piece.last = c + 1;
    }
    return piece;
}

#endif

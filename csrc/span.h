/* Which keys a query can see, as far as position and length decide it: one interval of keys for each query.
 *
 *   key j is visible to query i of batch row b  iff  i < q_length[b],  j < kv_length[b],
 *                                                    p - left <= j <= p + right,  p = i + q_offset[b]
 *
 * Causality is a window whose right bound is 0. Dense masks and -inf biases hide more, see kernel/mask.h. */
#ifndef AF_SPAN_H
#define AF_SPAN_H

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

/* The smallest interval that holds both. */
static inline af_span af_join(af_span a, af_span b)
{
    if (a.begin == a.end) return b;
    if (b.begin == b.end) return a;
    return (af_span){af_min(a.begin, b.begin), af_max(a.end, b.end)};
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

/* The next piece of `span` from j on, at most `most` keys. `vectors` are the spans of the nv vectors of lanes. Where
 * rows see shifted intervals (causal, windows) the corners are cut off in steps, so that a vector does not go through
 * keys that none of its lanes sees. */
static inline af_piece af_take_keys(const af_span *vectors, int nv, af_span span, int64_t j, int64_t most)
{
    enum { LEAST = 16 };
    int64_t end = af_min(span.end, j + most);
    for (int c = 0; c < nv; c++) {
        if (vectors[c].begin >= j + LEAST && vectors[c].begin < end) end = vectors[c].begin;
        if (vectors[c].end >= j + LEAST && vectors[c].end < end) end = vectors[c].end;
    }
    af_piece piece = {.keys = end - j};
    for (int c = 0; c < nv; c++) {
        if (vectors[c].begin >= end || vectors[c].end <= j) continue;
        if (piece.last == 0) piece.first = c;
        piece.last = c + 1;
    }
    return piece;
}

static inline int64_t af_offset(const af_tensor *t, int64_t b, int64_t h, int64_t i)
{
    return (t->batch ? t->batch[b] : b * t->b) + h * t->h + i * t->i;
}

#endif

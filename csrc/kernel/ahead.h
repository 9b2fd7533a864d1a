/* Memory that will be wanted soon, fetched into the second-level cache a few rows at a time between tiles of scores.
 * The hardware does not see it coming: values are read a few columns at a time, queries and outputs a block at a time.
 * Only what no earlier unit has read is fetched: asking for what is near already costs more than it gains.
 *
 *   with the tile of keys j .. j + 8 of a block come
 *   rows j .. j + 8 of    values, this block's    keys, the next block's or the next unit's
 *   and in a unit's first block of keys    queries, the next unit's    outputs, its own
 *   and of some lanes the rows over keys of    a bias, for this block    a mask, for the next */
#ifndef AF_AHEAD_H
#define AF_AHEAD_H

typedef struct ahead {
    const elem *value, *key;
    int64_t value_stride, key_stride, values, keys; /* strides and numbers of rows */
    elem *const *query, *const *output;
    int64_t queries, outputs;
    int64_t D, Dv;
    const real *const *bias;
    const uint8_t *const *mask;
    int64_t bias_begin, bias_end, mask_begin, mask_end; /* keys */
    int64_t lanes, lanes_a_tile;
} ahead;

AF_INLINE void fetch_row(const elem *row, int64_t n, const int write)
{
    for (int64_t c = 0; c < n; c += 64 / (int)sizeof(elem)) {
        if (write) __builtin_prefetch(row + c, 1, 2);
        else __builtin_prefetch(row + c, 0, 2);
    }
}

AF_INLINE void fetch_bytes(const void *from, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)from + i, 0, 2);
}

AF_INLINE void fetch_ahead(const ahead *a, int64_t begin, int64_t rows)
{
    const int64_t end = begin + rows;
    for (int64_t r = begin; r < end && r < a->values; r++) fetch_row(a->value + r * a->value_stride, a->Dv, 0);
    for (int64_t r = begin; r < end && r < a->keys; r++) fetch_row(a->key + r * a->key_stride, a->D, 0);
    for (int64_t r = begin; r < end && r < a->queries; r++) fetch_row(a->query[r], a->D, 0);
    for (int64_t r = begin; r < end && r < a->outputs; r++) fetch_row(a->output[r], a->Dv, 1);
    if (!a->lanes) return;
    const int64_t lane = begin / rows * a->lanes_a_tile;
    for (int64_t r = lane; r < lane + a->lanes_a_tile && r < a->lanes; r++) {
        if (a->bias) fetch_bytes(a->bias[r] + a->bias_begin, (a->bias_end - a->bias_begin) * (int)sizeof(real));
        if (a->mask) fetch_bytes(a->mask[r] + a->mask_begin, a->mask_end - a->mask_begin);
    }
}

#endif

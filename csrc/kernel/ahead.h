/* Memory that will be wanted soon, fetched into the second-level cache a few rows at a time between tiles of scores.
 * The hardware does not see it coming: values are read a few columns at a time, queries and outputs a block at a time.
 *
 *   with the tile of keys j .. j + 8 of a block come rows j .. j + 8 of    values, this block's    keys, the next
 * block's and in a unit's first block of keys    queries, the next unit's    outputs, its own */
#ifndef AF_AHEAD_H
#define AF_AHEAD_H

typedef struct ahead {
    const elem *value, *key;
    int64_t value_stride, key_stride, values, keys; /* strides and numbers of rows */
    const elem *const *query;
    elem *const *output;
    int64_t queries, outputs;
    int64_t D, Dv;
} ahead;

AF_INLINE void fetch_row(const elem *row, int64_t n, const int write)
{
    for (int64_t c = 0; c < n; c += 64 / (int)sizeof(elem)) {
        if (write) __builtin_prefetch(row + c, 1, 2);
        else __builtin_prefetch(row + c, 0, 2);
    }
}

AF_INLINE void fetch_ahead(const ahead *a, int64_t begin, int64_t rows)
{
    const int64_t end = begin + rows;
    for (int64_t r = begin; r < end && r < a->values; r++) fetch_row(a->value + r * a->value_stride, a->Dv, 0);
    for (int64_t r = begin; r < end && r < a->keys; r++) fetch_row(a->key + r * a->key_stride, a->D, 0);
    for (int64_t r = begin; r < end && r < a->queries; r++) fetch_row(a->query[r], a->D, 0);
    for (int64_t r = begin; r < end && r < a->outputs; r++) fetch_row(a->output[r], a->Dv, 1);
}

#endif

/* Memory that will be wanted soon, fetched into the second-level cache in and between tiles of scores. The hardware
 * does not see it coming: values are read a few columns at a time, queries and outputs a block at a time. Only what is
 * far is fetched: asking for what an earlier unit has brought costs more than it gains. And a little at a time:
 * requests beyond some 24 lines under way are dropped.
 *
 *   with the tile of keys j .. j + 8 of a block come, a line of each every few columns,
 *   rows j .. j + 8 of    values, this block's    keys, the next block's
 *   and before it rows of what is wanted when this unit ends and the next one begins
 *   and of some lanes the rows over keys of    a bias, for this block    a mask, for the next */
#ifndef AF_AHEAD_H
#define AF_AHEAD_H

/* What a unit writes when it ends and what is new to the next unit when it begins: the rows that are left to fetch, an
 * equal part of them with every tile. */
typedef struct edges {
    elem *output_row[AF_NR], *query_row[AF_NR];
    const elem *key, *value;
    int64_t outputs, queries, keys, values;
    int64_t rows_a_tile;
    bool far; /* no unit has read these keys and values just before, or they are too many to stay near */
} edges;

typedef struct ahead {
    const elem *value, *key;
    int64_t value_stride, key_stride, values, keys; /* strides and numbers of rows */
    edges *edge;
    int64_t D, Dv;
    bool apart; /* rows do not follow one another */
    const real *const *bias;
    const uint8_t *const *mask;
    int64_t bias_begin, bias_end, mask_begin, mask_end; /* keys */
    int64_t lanes, lanes_a_tile;
} ahead;

enum { LINE = 64 / sizeof(elem), NEAR_BYTES = 1 << 20 };

AF_INLINE void fetch_line(const elem *at, const int write)
{
    if (write) __builtin_prefetch(at, 1, 2);
    else __builtin_prefetch(at, 0, 2);
}

/* Where rows do not follow one another, also the line that it ends in: else the next row begins there. */
AF_INLINE void fetch_row(const elem *row, int64_t n, const int write, bool apart)
{
    for (int64_t c = 0; c < n; c += LINE) fetch_line(row + c, write);
    if (apart && n) fetch_line(row + n - 1, write);
}

/* Every line that holds some of these bytes. */
AF_INLINE void fetch_bytes(const void *from, int64_t bytes)
{
    const uintptr_t end = (uintptr_t)from + (uintptr_t)bytes;
    for (uintptr_t line = (uintptr_t)from & ~(uintptr_t)63; line < end; line += 64)
        __builtin_prefetch((const void *)line, 0, 2);
}

AF_INLINE void fetch_edges(edges *e, const ahead *a)
{
    int64_t rows = e->rows_a_tile;
    for (; rows > 0 && e->outputs > 0; rows--) fetch_row(e->output_row[--e->outputs], a->Dv, 1, a->apart);
    for (; rows > 0 && e->queries > 0; rows--) fetch_row(e->query_row[--e->queries], a->D, 0, a->apart);
    for (; rows > 0 && e->keys > 0; rows--, e->keys--, e->key += a->key_stride) fetch_row(e->key, a->D, 0, a->apart);
    for (; rows > 0 && e->values > 0; rows--, e->values--, e->value += a->value_stride)
        fetch_row(e->value, a->Dv, 0, a->apart);
}

static __attribute__((noinline)) void fetch_ahead(const ahead *a, int64_t row)
{
    for (int64_t r = row; a->Dv > a->D && r < row + AF_MR && r < a->values; r++)
        fetch_row(a->value + r * a->value_stride + a->D, a->Dv - a->D, 0, a->apart);
    if (a->edge) fetch_edges(a->edge, a);
    if (!a->lanes) return;
    const int64_t lane = row / AF_MR * a->lanes_a_tile;
    for (int64_t r = lane; r < lane + a->lanes_a_tile && r < a->lanes; r++) {
        if (a->bias) fetch_bytes(a->bias[r] + a->bias_begin, (a->bias_end - a->bias_begin) * (int)sizeof(real));
        if (a->mask) fetch_bytes(a->mask[r] + a->mask_begin, a->mask_end - a->mask_begin);
    }
}

/* Rows that are left to fetch, a line at a time. */
typedef struct line_queue {
    const elem *row;
    int64_t rows, stride, width, column;
} line_queue;

AF_INLINE void fetch_next_line(line_queue *queue)
{
    if (!queue->rows) return;
    fetch_line(queue->row + queue->column, 0);
    queue->column += LINE;
    if (queue->column < queue->width) return;
    queue->column = 0;
    queue->row += queue->stride;
    queue->rows--;
}

/* Whether rows come with the tile at `row`. */
AF_INLINE bool has_lines(const ahead *a, int64_t row) { return row < a->values || row < a->keys; }

/* The line of a row of n columns that column c begins; after the last of them the one that the row ends in. */
AF_INLINE void fetch_column(const elem *row, int64_t n, int64_t c, bool apart)
{
    fetch_line(row + c, 0);
    if (apart && c + LINE >= n) fetch_line(row + n - 1, 0);
}

/* The lines of these rows from column c on. */
AF_INLINE void fetch_lines(const ahead *a, int64_t row, int64_t c)
{
    for (int64_t r = row; c < a->Dv && r < row + AF_MR && r < a->values; r++)
        fetch_column(a->value + r * a->value_stride, a->Dv, c, a->apart);
    for (int64_t r = row; r < row + AF_MR && r < a->keys; r++)
        fetch_column(a->key + r * a->key_stride, a->D, c, a->apart);
}

#endif

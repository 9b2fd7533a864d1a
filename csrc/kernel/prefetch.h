/* Prefetching into the second-level cache, a little with every tile of scores. The hardware does not foresee these
 * reads: values are read a few columns at a time, queries and outputs a block at a time. Lines that an earlier unit has
 * brought near are left out, because asking for them costs more than it gains. Requests beyond some 24 lines in flight
 * are dropped, so they are spread over the tiles.
 *
 *   while tile j .. j + 8 of a block is computed, one line per row every few columns:
 *       rows j .. j + 8 of this block's values, and of the next block's keys
 *   before each tile, some rows of
 *       outputs of this unit, queries, keys and values of the next unit
 *       the bias of this block of keys, the mask of the next */
#ifndef AF_PREFETCH_H
#define AF_PREFETCH_H

#include "kernel/types.h"

/* Rows that are still to be prefetched. */
typedef struct row_queue {
    const elem *row;
    int64_t rows, stride, width;
    bool write;
} row_queue;

enum { MOST_QUEUES = 8 };

/* What a unit writes at its end and what the next unit reads at its beginning: an equal number of rows with every
 * tile. */
typedef struct edges {
    elem *output_row[AF_NR], *query_row[AF_NR];
    int64_t outputs, queries;
    row_queue queue[MOST_QUEUES];
    int queues;
    int64_t rows_a_tile;
    bool far; /* the unit before has not read these keys and values, or they are too many to stay in the cache */
} edges;

typedef struct prefetch {
    const elem *value, *key;
    int64_t value_stride, key_stride, values, keys; /* strides and numbers of rows */
    edges *edge;
    int64_t D, Dv;
    bool apart; /* rows are not contiguous */
    const real *const *bias;
    const uint8_t *const *mask;
    int64_t bias_begin, bias_end, mask_begin, mask_end; /* keys */
    int64_t lanes, lanes_a_tile;
} prefetch;

/* Keys and values of more than NEAR_BYTES, the second-level cache, are prefetched by every unit: with 16 queries and
 * 4096 keys x 128 that is 1 % faster on one thread and 9 % on two, long prefill is the same (Zen 4). */
enum { LINE_ELEMS = 64 / sizeof(elem), NEAR_BYTES = 1 << 20 };

AF_INLINE void prefetch_line(const elem *at, const int write)
{
    if (write) __builtin_prefetch(at, 1, 2);
    else __builtin_prefetch(at, 0, 2);
}

/* Where rows are not contiguous, also the line in which the row ends: otherwise the next row begins there. */
AF_INLINE void prefetch_row(const elem *row, int64_t n, const int write, bool apart)
{
    for (int64_t c = 0; c < n; c += LINE_ELEMS) prefetch_line(row + c, write);
    if (apart && n) prefetch_line(row + n - 1, write);
}

/* Every line that holds some of these bytes. */
AF_INLINE void prefetch_bytes(const void *from, int64_t bytes)
{
    const uintptr_t end = (uintptr_t)from + (uintptr_t)bytes;
    for (uintptr_t line = (uintptr_t)from & ~(uintptr_t)63; line < end; line += 64)
        __builtin_prefetch((const void *)line, 0, 2);
}

AF_INLINE void prefetch_edges(edges *e, const prefetch *a)
{
    int64_t rows = e->rows_a_tile;
    for (; rows > 0 && e->outputs > 0; rows--) prefetch_row(e->output_row[--e->outputs], a->Dv, 1, a->apart);
    for (; rows > 0 && e->queries > 0; rows--) prefetch_row(e->query_row[--e->queries], a->D, 0, a->apart);
    for (row_queue *q = e->queue; q < e->queue + e->queues; q++)
        for (; rows > 0 && q->rows > 0; rows--, q->rows--, q->row += q->stride) {
            if (q->write) prefetch_row(q->row, q->width, 1, q->stride != q->width);
            else prefetch_row(q->row, q->width, 0, q->stride != q->width);
        }
    if (rows > 0) e->rows_a_tile = 0; /* all are prefetched */
}

static __attribute__((noinline)) void prefetch_with_tile(const prefetch *a, int64_t row)
{
    for (int64_t r = row; a->Dv > a->D && r < row + AF_MR && r < a->values; r++)
        prefetch_row(a->value + r * a->value_stride + a->D, a->Dv - a->D, 0, a->apart);
    prefetch_edges(a->edge, a);
    if (!a->lanes) return;
    const int64_t lane = row / AF_MR * a->lanes_a_tile;
    for (int64_t r = lane; r < lane + a->lanes_a_tile && r < a->lanes; r++) {
        if (a->bias) prefetch_bytes(a->bias[r] + a->bias_begin, (a->bias_end - a->bias_begin) * (int)sizeof(real));
        if (a->mask) prefetch_bytes(a->mask[r] + a->mask_begin, a->mask_end - a->mask_begin);
    }
}

AF_INLINE void queue_rows(edges *e, row_queue rows)
{
    if (rows.rows > 0) e->queue[e->queues++] = rows;
}

/* With every one of so many tiles. */
static void spread_edges(edges *e, int64_t tiles)
{
    int64_t rows = e->outputs + e->queries;
    for (int k = 0; k < e->queues; k++) rows += e->queue[k].rows;
    e->rows_a_tile = (rows + tiles - 1) / tiles;
}

/* Before the tile at `row`. Most tiles have nothing to prefetch here. */
AF_INLINE void prefetch_ahead(const prefetch *a, int64_t row)
{
    if (a->edge->rows_a_tile || a->lanes || (a->Dv > a->D && row < a->values)) prefetch_with_tile(a, row);
}

/* Rows that are still to be prefetched, one line at a time. */
typedef struct line_queue {
    const char *row;
    int64_t rows, stride, width, column; /* in bytes */
} line_queue;

AF_INLINE void prefetch_next_line(line_queue *queue)
{
    if (!queue->rows) return;
    __builtin_prefetch(queue->row + queue->column, 0, 2);
    queue->column += 64;
    if (queue->column < queue->width) return;
    queue->column = 0;
    queue->row += queue->stride;
    queue->rows--;
}

/* Whether there are lines to prefetch with the tile at `row`. */
AF_INLINE bool has_lines(const prefetch *a, int64_t row) { return row < a->values || row < a->keys; }

/* The line of a row of n columns that begins at column c; with the last of these also the line in which the row
 * ends. */
AF_INLINE void prefetch_column(const elem *row, int64_t n, int64_t c, bool apart)
{
    prefetch_line(row + c, 0);
    if (apart && c + LINE_ELEMS >= n) prefetch_line(row + n - 1, 0);
}

/* The lines of these rows from column c on. */
AF_INLINE void prefetch_lines(const prefetch *a, int64_t row, int64_t c)
{
    for (int64_t r = row; c < a->Dv && r < row + AF_MR && r < a->values; r++)
        prefetch_column(a->value + r * a->value_stride, a->Dv, c, a->apart);
    for (int64_t r = row; r < row + AF_MR && r < a->keys; r++)
        prefetch_column(a->key + r * a->key_stride, a->D, c, a->apart);
}

#endif

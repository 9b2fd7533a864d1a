/* The keys or values of one head as rows. Whoever wants rows, or the address of one, asks for them here: as reals, in
 * place or widened here; or as elements where they are stored, for those who widen them in registers.
 *
 * 16-bit rows are widened into `copy`, which holds `room` rows from row `base` on; of these, begin .. end are there.
 * Blocks of queries that go through the keys together ask for rows near each other: each row is then widened once for
 * all of them. */
#ifndef AF_ROWS_H
#define AF_ROWS_H

#include "kernel/types.h"
#include "plan/visibility.h"

typedef struct af_rows {
    const elem *first; /* row 0 */
    int64_t stride, width;
    real *copy;
    int64_t room, base, begin, end;
} af_rows;

/* `copy` has room for so many rows, and is not used where elements are reals. A request may be for at most `room`. */
static af_rows open_rows(const af_tensor *t, const af_visibility *vis, int64_t width, real *copy, int64_t room)
{
    const int64_t at = t->data ? af_offset(t, vis->b, vis->hk, 0) : 0;
    return (af_rows){.first = (const elem *)t->data + at, .stride = t->i, .width = width, .copy = copy, .room = room};
}

AF_INLINE const elem *row_address(const af_rows *rows, int64_t j) { return rows->first + j * rows->stride; }

/* The rows from row j on as elements, where they are stored. */
AF_INLINE elem_rows rows_in_place(const af_rows *rows, int64_t j)
{
    return (elem_rows){row_address(rows, j), rows->stride};
}

/* From now on rows before row j are not asked for. */
static void forget_rows_before(af_rows *rows, int64_t j)
{
    if (AF_HALF) rows->base = rows->begin = rows->end = j;
}

#if AF_HALF
static void widen_rows(const af_rows *rows, int64_t begin, int64_t end)
{
    const int64_t width = rows->width;
    for (int64_t j = begin; j < end; j++) {
        const elem *from = row_address(rows, j);
        real *to = rows->copy + (j - rows->base) * width;
        int64_t c = 0;
        for (; c + VL <= width; c += VL) v_store(to + c, e_load(from + c));
        if (c < width) v_store_n(to + c, e_load_n(from + c, (int)(width - c)), (int)(width - c));
    }
}
#endif

/* Rows j .. j + n. */
static matrix rows_at(af_rows *rows, int64_t j, int64_t n)
{
#if AF_HALF
    const int64_t end = j + n;
    if (j < rows->base || end > rows->base + rows->room) forget_rows_before(rows, j);
    if (j > rows->end || end < rows->begin || rows->begin == rows->end) rows->begin = rows->end = j;
    if (j < rows->begin) widen_rows(rows, j, rows->begin);
    if (end > rows->end) widen_rows(rows, rows->end, end);
    rows->begin = af_min(rows->begin, j);
    rows->end = af_max(rows->end, end);
    return (matrix){rows->copy + (j - rows->base) * rows->width, rows->width};
#else
    (void)n;
    return (matrix){row_address(rows, j), rows->stride};
#endif
}

#endif

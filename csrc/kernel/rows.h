/* The keys or values of one head as rows. Whoever wants rows, or the address of one, asks for them here: as reals, in
 * place or copied here; or as elements where they are stored, for those who widen them in registers. Rows of bytes are
 * read by kernel/bytes.h.
 *
 * 16-bit rows and bytes are widened into `copy`, and rows that pages keep apart are copied to it. It holds `room` rows
 * from row `base` on; of these, begin .. end are there. Blocks of queries that go through the keys together ask for
 * rows near each other: each row is then copied once for all of them. Decoding copies a few rows at a time, and only
 * where a page ends among them. */
#ifndef AF_ROWS_H
#define AF_ROWS_H

#include "kernel/prefetch.h"
#include "kernels.h"
#include "plan/visibility.h"

typedef struct af_rows {
    const af_byte_kernels *bytes; /* NULL: rows are elements; else they are `stored`, and `first` is not there */
    af_byte_rows stored;
    const elem *first; /* row 0, or that of page 0 */
    int64_t stride, width;
    int64_t apart;        /* of rows in columns: how far these are apart, which is never 0; else 0 */
    const int64_t *pages; /* the page of each page_size rows; NULL: all rows are `stride` apart */
    int64_t page_size, page_stride;
    real *copy;
    int64_t room, base, begin, end;
} af_rows;

/* The groups of a head, in place of those of a call. */
static af_groups head_groups(const af_groups *groups, bool paged, const af_visibility *vis)
{
    af_groups g = *groups;
    if (g.at.data) g.at.data = (float *)g.at.data + af_offset(&g.at, paged ? 0 : vis->b, vis->hk, 0);
    return g;
}

enum { KEYS, VALUES };

static void open_bytes(af_rows *rows, const af_call *call, const af_plan *plan, const int which,
                       const af_visibility *vis)
{
    const af_operands *p = &call->operands;
    const af_tensor *t = which == KEYS ? &p->key : &p->value;
    const int64_t at = t->data ? af_offset(t, rows->pages ? 0 : vis->b, vis->hk, 0) : 0;
    rows->bytes = plan->bytes;
    rows->stored = (af_byte_rows){.storage = p->storage, .stride = t->i, .width = rows->width, .pages = rows->pages};
    rows->stored.before = call->subset.first_key;
    rows->stored.first = (const uint8_t *)t->data + at;
    rows->stored.page_size = rows->page_size;
    rows->stored.page_stride = rows->page_stride;
    rows->stored.scale = head_groups(which == KEYS ? &p->key_scale : &p->value_scale, rows->pages, vis);
    rows->stored.zero = head_groups(which == KEYS ? &p->key_zero : &p->value_zero, rows->pages, vis);
    rows->stored.copy = (float *)rows->copy;
    rows->stored.room = rows->room;
}

static const elem *first_row(const af_tensor *t, int64_t b, int64_t hk)
{
    return (const elem *)t->data + (t->data ? af_offset(t, b, hk, 0) : 0);
}

/* The keys or values of a head. `copy` has room for so many rows, and is not used where elements are reals in one
 * array; behind them it has two rows more for bytes. A request may be for at most `room`. Every unit opens rows, so
 * `stored`, which is large, is left as it is where there are no bytes. */
static void open_rows(af_rows *rows, const af_call *call, const af_plan *plan, const int which,
                      const af_visibility *vis, real *copy, int64_t room)
{
    const af_operands *p = &call->operands;
    const af_tensor *t = which == KEYS ? &p->key : &p->value;
    rows->bytes = NULL;
    rows->first = NULL;
    rows->stride = t->i;
    rows->width = which == KEYS ? call->D : call->Dv;
    rows->apart = af_in_columns(t, rows->width) ? t->j : 0;
    rows->pages = NULL;
    rows->page_size = rows->page_stride = 0;
    rows->copy = copy;
    rows->room = room;
    rows->base = rows->begin = rows->end = 0;
    if (p->block_table) {
        rows->pages = p->block_table + vis->b * p->blocks;
        rows->page_size = p->page_size;
        rows->page_stride = t->b;
    }
    if (p->storage) open_bytes(rows, call, plan, which, vis);
    else rows->first = first_row(t, rows->pages ? 0 : vis->b, vis->hk);
}

AF_INLINE const elem *row_address(const af_rows *rows, int64_t j)
{
    if (!rows->pages) return rows->first + j * rows->stride;
    return rows->first + rows->pages[j / rows->page_size] * rows->page_stride + j % rows->page_size * rows->stride;
}

/* How many of n rows from row j on are `stride` apart. */
AF_INLINE int64_t rows_in_line(const af_rows *rows, int64_t j, int64_t n)
{
    return rows->pages ? af_min(n, rows->page_size - j % rows->page_size) : n;
}

/* The rows from row j on as elements, where they are stored: up to the end of the page. */
AF_INLINE elem_rows rows_in_place(const af_rows *rows, int64_t j)
{
    return (elem_rows){row_address(rows, j), rows->stride};
}

/* Columns from row j on. */
AF_INLINE elem_rows columns_at(const af_rows *rows, int64_t j) { return (elem_rows){rows->first + j, rows->apart}; }

/* How many rows of keys or values stay in the first-level cache while they are read again: a divisor of 64. 4 KiB,
 * reasoned and not measured, are an eighth of the 32 KiB that most processors have; queries, weights and outputs take
 * their part of it. At most 16, which are a page: where a page ends among them, rows are copied. With 32 rows of 64
 * float16 or of 32 float32 pages of 16 took 3.5 times as long; one array 0 to 10 % longer (Zen 5, AVX-512). */
AF_INLINE int near_rows(int64_t width)
{
    int n = 16;
    while (n > 8 && n * width * (int)sizeof(elem) > 4096) n /= 2;
    return n;
}

/* From now on rows before row j are not asked for. */
static void forget_rows_before(af_rows *rows, int64_t j) { rows->base = rows->begin = rows->end = j; }

/* Gathers rows begin .. end as reals. */
static void gather_rows(const af_rows *rows, int64_t begin, int64_t end)
{
    const int64_t width = rows->width;
    if (rows->bytes) {
        rows->bytes->widen(&rows->stored, begin, end - begin, (float *)rows->copy + (begin - rows->base) * width);
        return;
    }
    for (int64_t j = begin; j < end; j++) {
        const elem *from = row_address(rows, j);
        real *to = rows->copy + (j - rows->base) * width;
        int64_t c = 0;
        for (; c + VL <= width; c += VL) v_store(to + c, e_load(from + c));
        if (c < width) v_store_n(to + c, e_load_n(from + c, (int)(width - c)), (int)(width - c));
    }
}

/* Rows j .. j + n of the copy, which are made unless they are there. */
static __attribute__((noinline)) matrix copied_rows(af_rows *rows, int64_t j, int64_t n)
{
    const int64_t end = j + n;
    if (j < rows->base || end > rows->base + rows->room) forget_rows_before(rows, j);
    if (j > rows->end || end < rows->begin || rows->begin == rows->end) rows->begin = rows->end = j;
    if (j < rows->begin) gather_rows(rows, j, rows->begin);
    if (end > rows->end) gather_rows(rows, rows->end, end);
    rows->begin = af_min(rows->begin, j);
    rows->end = af_max(rows->end, end);
    return (matrix){rows->copy + (j - rows->base) * rows->width, rows->width};
}

/* Rows j .. j + n. */
AF_INLINE matrix rows_at(af_rows *rows, int64_t j, int64_t n)
{
#if AF_HALF
    return copied_rows(rows, j, n);
#else
    if (rows->bytes || rows_in_line(rows, j, n) < n) return copied_rows(rows, j, n);
    return (matrix){row_address(rows, j), rows->stride};
#endif
}

/* Rows j .. j + n of a head in pages, as elements side by side; n is at most `room`. */
static __attribute__((noinline)) elem_rows copied_elems(const af_rows *rows, int64_t j, int64_t n)
{
    elem *to = (elem *)rows->copy;
    for (int64_t i = 0; i < n; i++)
        memcpy(to + i * rows->width, row_address(rows, j + i), (size_t)rows->width * sizeof(elem));
    return (elem_rows){to, rows->width};
}

/* The same of any rows: where they are stored, unless a page ends among them. */
AF_INLINE elem_rows elems_at(const af_rows *rows, int64_t j, int64_t n)
{
    return rows_in_line(rows, j, n) < n ? copied_elems(rows, j, n) : rows_in_place(rows, j);
}

#endif

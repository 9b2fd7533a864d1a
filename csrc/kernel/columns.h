/* Rows that lie in columns, as in arrays (B, H, D, L): element d of rows j, j + 1 ... side by side. */
#ifndef AF_KERNEL_COLUMNS_H
#define AF_KERNEL_COLUMNS_H

#include "kernel/types.h"

/* Requests what is read `distance` bytes on, which may belong to no array at all, into the first-level cache or, near =
 * false, the second. */
AF_INLINE void request_column(const bool near, const elem *at, int64_t distance)
{
    const void *line = (const void *)((uintptr_t)at + (uintptr_t)distance);
    if (near) __builtin_prefetch(line, 0, 3);
    else __builtin_prefetch(line, 0, 2);
}

/* x[i]: VL columns of value i of VL. */
AF_INLINE void column_square(elem_rows value, int64_t distance, v x[VL])
{
    UNROLL(l, VL) {
        x[l] = e_load(value.at + l * value.ld);
        request_column(false, value.at + l * value.ld, distance);
    }
    v_transpose(x);
}

/* The same of so many columns and n values; others are 0. */
static __attribute__((noinline)) void part_of_square(int n, int columns, elem_rows value, int64_t distance, v x[VL])
{
    for (int l = 0; l < VL; l++) {
        x[l] = v_zero();
        if (l >= columns) continue;
        x[l] = e_load_n(value.at + l * value.ld, n);
        request_column(false, value.at + l * value.ld, distance);
    }
    v_transpose(x);
}

/* Rows of a column that are copied before the next VL columns are. */
enum { COPY_ROWS = 512 };

/* to[j * ld + d] = from[d * apart + j] for `rows` rows of `width` elements. */
static void copy_columns(const void *from, int64_t apart, void *to, int64_t ld, int64_t rows, int64_t width)
{
    for (int64_t first = 0; first < rows; first += COPY_ROWS)
        for (int64_t d = 0; d < width; d += VL) {
            const int columns = width - d < VL ? (int)(width - d) : VL;
            const int64_t end = rows - first < COPY_ROWS ? rows : first + COPY_ROWS;
            const int64_t distance = (columns == VL ? VL * apart : COPY_ROWS - d * apart) * (int)sizeof(elem);
            for (int64_t j = first; j < end; j += VL) {
                v x[VL];
                const elem_rows square = {(const elem *)from + d * apart + j, apart};
                elem *row = (elem *)to + j * ld + d;
                const int n = end - j < VL ? (int)(end - j) : VL;
                if (columns == VL && n == VL) {
                    column_square(square, distance, x);
                    UNROLL(i, VL) e_store(row + i * ld, x[i]);
                    continue;
                }
                part_of_square(n, columns, square, distance, x);
                for (int i = 0; i < n; i++) e_store_n(row + i * ld, x[i], columns);
            }
        }
}

#endif

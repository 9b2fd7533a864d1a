/* Rotary embedding of one row. Elements of a pair (x, y) become (x cos - y sin, y cos + x sin): products that are
 * rounded before they are added, so that a pair has the same bits in both conventions and wherever it is in a vector.
 * `to` may be `from`. */
#ifndef AF_ROTATE_H
#define AF_ROTATE_H

#include "kernel/types.h"

/* Pairs (d, d + n), d < n. */
static void rotate_halves(const void *row, void *result, const void *cos_row, const void *sin_row, int64_t n)
{
    const elem *from = row;
    elem *to = result;
    const real *cosine = cos_row, *sine = sin_row;
    int64_t d = 0;
    for (; d + VL <= n; d += VL) {
        const v x = e_load(from + d), y = e_load(from + n + d), c = v_load(cosine + d), s = v_load(sine + d);
        e_store(to + d, v_sub(v_mul(x, c), v_mul(y, s)));
        e_store(to + n + d, v_add(v_mul(y, c), v_mul(x, s)));
    }
    const int rest = (int)(n - d);
    if (rest == 0) return;
    const v x = e_load_n(from + d, rest), y = e_load_n(from + n + d, rest);
    const v c = v_load_n(cosine + d, rest), s = v_load_n(sine + d, rest);
    e_store_n(to + d, v_sub(v_mul(x, c), v_mul(y, s)), rest);
    e_store_n(to + n + d, v_add(v_mul(y, c), v_mul(x, s)), rest);
}

/* Pairs (2 d, 2 d + 1), 2 d < n. The tables have n entries: cos twice, and -sin beside sin. */
static void rotate_neighbours(const void *row, void *result, const void *cos_row, const void *sin_row, int64_t n)
{
    const elem *from = row;
    elem *to = result;
    const real *cosine = cos_row, *sine = sin_row;
    int64_t d = 0;
    for (; d + VL <= n; d += VL) {
        const v x = e_load(from + d);
        e_store(to + d, v_add(v_mul(x, v_load(cosine + d)), v_mul(v_swap_pairs(x), v_load(sine + d))));
    }
    const int rest = (int)(n - d);
    if (rest == 0) return;
    const v x = e_load_n(from + d, rest), c = v_load_n(cosine + d, rest), s = v_load_n(sine + d, rest);
    e_store_n(to + d, v_add(v_mul(x, c), v_mul(v_swap_pairs(x), s)), rest);
}

#endif

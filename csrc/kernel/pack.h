/* Between rows in memory (one query or key each) and query lanes: transposes, with the conversion of 16-bit types. */
#ifndef AF_PACK_H
#define AF_PACK_H

#include "kernel/types.h"

/* lanes[width][NR] = scale * rows', zero in the lanes past n. */
static void rows_to_lanes(int n, int nv, int64_t width, elem *const rows[AF_NR], real scale, real *lanes)
{
    const v factor = v_set1(scale);
    for (int j = 0; j < nv; j++) {
        elem *const *group = rows + j * VL;
        const int lanes_here = n - j * VL < VL ? n - j * VL : VL;
        int64_t c = 0;
        for (; lanes_here == VL && c + VL <= width; c += VL) {
            v x[VL];
            UNROLL(r, VL) x[r] = e_load(group[r] + c);
            v_transpose(x);
            UNROLL(r, VL) v_store(lanes + (c + r) * AF_NR + j * VL, v_mul(x[r], factor));
        }
        for (; c < width; c += VL) {
            const int here = width - c < VL ? (int)(width - c) : VL;
            v x[VL];
            UNROLL(r, VL) x[r] = r < lanes_here ? e_load_n(group[r] + c, here) : v_zero();
            v_transpose(x);
            UNROLL(r, VL)
                if (r < here) v_store(lanes + (c + r) * AF_NR + j * VL, v_mul(x[r], factor));
        }
    }
}

/* rows[lane][0 .. width) = factor[lane] * lanes', for n lanes; with `keep`, plus keep[lane] times the old row, and
 * rows that are NULL are skipped. A sum that is zero has no sign: where its terms vanish, the sign
 * depends on hidden values. */
static void lanes_to_rows(int n, int nv, int64_t width, const real *lanes, const real *factor, const real *keep,
                          elem *const rows[AF_NR])
{
    for (int j = 0; j < nv; j++) {
        elem *const *group = rows + j * VL;
        const int lanes_here = n - j * VL < VL ? n - j * VL : VL;
        const v scale = v_load(factor + j * VL);
        for (int64_t c = 0; c < width; c += VL) {
            const int here = width - c < VL ? (int)(width - c) : VL;
            v x[VL];
            UNROLL(r, VL) x[r] = r < here ? v_fma(v_load(lanes + (c + r) * AF_NR + j * VL), scale, v_zero()) : v_zero();
            v_transpose(x);
            if (keep) {
                UNROLL(r, VL)
                    if (r < lanes_here && group[r])
                        e_store_n(group[r] + c, v_fma(e_load_n(group[r] + c, here), v_set1(keep[j * VL + r]), x[r]),
                                  here);
            } else if (lanes_here == VL && here == VL) {
                UNROLL(r, VL) e_store(group[r] + c, x[r]);
            } else {
                UNROLL(r, VL)
                    if (r < lanes_here) e_store_n(group[r] + c, x[r], here);
            }
        }
    }
}

static void widen(const void *elems, void *reals, int64_t n)
{
    const elem *from = elems;
    real *to = reals;
    int64_t i = 0;
    for (; i + VL <= n; i += VL) v_store(to + i, e_load(from + i));
    if (i < n) v_store_n(to + i, e_load_n(from + i, (int)(n - i)), (int)(n - i));
}

static void narrow(const void *reals, void *elems, int64_t n)
{
    const real *from = reals;
    elem *to = elems;
    int64_t i = 0;
    for (; i + VL <= n; i += VL) e_store(to + i, v_load(from + i));
    if (i < n) e_store_n(to + i, v_load_n(from + i, (int)(n - i)), (int)(n - i));
}

#endif

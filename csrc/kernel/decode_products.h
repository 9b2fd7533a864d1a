/* The two products of attention for a few query rows, with D in the lanes:
 *
 *   s[r][j] = q[r] . K[j]      acc[r] += p[r][j] V[j]
 *
 * Memory runs at full speed only if lines are loaded in the order of their addresses, because the hardware prefetches
 * only what it foresees. So keys and values are read row by row, and the compiler is kept from mixing the loads of
 * different rows. With more query rows than the registers hold, a few rows of keys are read again while they are in the
 * first-level cache. What the hardware does not foresee is prefetched: rows that are not contiguous, and the next
 * pages. For more query rows, and for queries that do not stay in registers, see decode_interleaved.h. */
#ifndef AF_DECODE_PRODUCTS_H
#define AF_DECODE_PRODUCTS_H

#include "kernel/prefetch.h"

/* The compiler moves no load or store across this. */
#define KEEP_ORDER() __asm__ volatile("" ::: "memory")

/* A pointer that the compiler must keep in a register of its own: with one offset for each load of several rows it
 * runs out of registers, and the loads wait for their addresses out of order. */
AF_INLINE const elem *hold(const elem *p)
{
    __asm__("" : "+r"(p));
    return p;
}

/* The hardware does not prefetch beyond a page, and the first line of the next page waits for the translation of its
 * address as well. Prefetching a line this many bytes ahead brings the translation. Where rows are contiguous, the
 * line may belong to the next unit, or to no array at all. */
AF_INLINE uintptr_t page_distance(int64_t stride, int64_t width) { return stride == width ? 1 << 15 : 0; }

AF_INLINE void prefetch_page(const elem *row, uintptr_t distance)
{
    __builtin_prefetch((const void *)((uintptr_t)row + distance), 0, 2);
}

/* How many rows of keys or values stay in the first-level cache while they are read again: a divisor of 64. */
AF_INLINE int near_rows(int64_t width)
{
    int n = 64;
    while (n > 8 && n * width * (int)sizeof(elem) > 4096) n /= 2;
    return n;
}

/* s[r][j] from sums that are still spread over lanes. They are added up in the same way for every nk, so that a
 * score has the same bits wherever its key is in a block. */
AF_INLINE void dot_sums(const int nr, const int nk, v acc[AF_DECODE_KEYS][4], real *s, int64_t lds)
{
    UNROLL(r, nr) {
        real sum[4];
        v_hsum4(acc[0][r], acc[1 % nk][r], acc[2 % nk][r], acc[3 % nk][r], sum);
        UNROLL(j, nk) s[r * lds + j] = sum[j];
    }
}

/* nr rows and nk keys, both constants; nk is 1 or AF_DECODE_KEYS. */
AF_INLINE void dot_tile(const int nr, const int nk, int64_t D, const real *query, const elem *key, int64_t ldk, real *s,
                        int64_t lds)
{
    v acc[AF_DECODE_KEYS][4];
    UNROLL(j, nk) {
        UNROLL(r, nr) acc[j][r] = v_zero();
        const elem *row = hold(key + j * ldk);
        int64_t d = 0;
        for (; d + VL <= D; d += VL) {
            const v x = e_load(row + d);
            KEEP_ORDER();
            UNROLL(r, nr) acc[j][r] = v_fma(v_load(query + r * D + d), x, acc[j][r]);
        }
        const int rest = (int)(D - d);
        if (!rest) continue;
        const v x = e_load_n(row + d, rest);
        KEEP_ORDER();
        UNROLL(r, nr) acc[j][r] = v_fma(v_load_n(query + r * D + d, rest), x, acc[j][r]);
    }
    dot_sums(nr, nk, acc, s, lds);
}

/* The same with a query of nc vectors kept in registers. */
AF_INLINE void dot_tile_of(const int nr, const int nk, const int nc, v q[2][AF_DECODE_COLUMNS], const elem *key,
                           int64_t ldk, real *s, int64_t lds)
{
    v acc[AF_DECODE_KEYS][4];
    UNROLL(j, nk) {
        UNROLL(r, nr) acc[j][r] = v_zero();
        const elem *row = hold(key + j * ldk);
        UNROLL(c, nc) {
            const v x = e_load(row + c * VL);
            KEEP_ORDER();
            UNROLL(r, nr) acc[j][r] = v_fma(q[r][c], x, acc[j][r]);
        }
    }
    dot_sums(nr, nk, acc, s, lds);
}

AF_INLINE void dot_rows_of(const int nr, const int nc, int n, const real *query, const elem *key, int64_t ldk, real *s,
                           int64_t lds)
{
    v q[2][AF_DECODE_COLUMNS];
    UNROLL(r, nr)
        UNROLL(c, nc) q[r][c] = v_load(query + (r * nc + c) * VL);
    const uintptr_t pages = page_distance(ldk, nc * VL);
    int j = 0;
    for (; j + AF_DECODE_KEYS <= n; j += AF_DECODE_KEYS, key += AF_DECODE_KEYS * ldk) {
        prefetch_page(key, pages);
        dot_tile_of(nr, AF_DECODE_KEYS, nc, q, key, ldk, s + j, lds);
    }
    for (; j < n; j++, key += ldk) dot_tile_of(nr, 1, nc, q, key, ldk, s + j, lds);
}

enum { DECODE_PREFETCH_ROWS = 8 };

/* Prefetches rows that the hardware does not foresee: those DECODE_PREFETCH_ROWS after the n rows from here, if rows
 * are not contiguous. */
AF_INLINE void prefetch_apart(int n, int left, const elem *row, int64_t stride, int64_t width)
{
    if (stride == width) return;
    for (int j = DECODE_PREFETCH_ROWS; j < n + DECODE_PREFETCH_ROWS && j < left; j++)
        prefetch_row(row + j * stride, width, 0, true);
}

/* s[r][j] for nr rows and n keys, one function for each nr. */
#define DOT_ROWS(nr)                                                                                                   \
    static __attribute__((noinline)) void dot_##nr(int n, int64_t D, const real *query, const elem *key, int64_t ldk,  \
                                                   real *s, int64_t lds)                                               \
    {                                                                                                                  \
        int j = 0;                                                                                                     \
        if (nr <= 2 && D == AF_DECODE_COLUMNS * VL) {                                                                  \
            dot_rows_of(nr, AF_DECODE_COLUMNS, n, query, key, ldk, s, lds);                                            \
            return;                                                                                                    \
        }                                                                                                              \
        if (nr <= 2 && D == AF_DECODE_COLUMNS / 2 * VL) {                                                              \
            dot_rows_of(nr, AF_DECODE_COLUMNS / 2, n, query, key, ldk, s, lds);                                        \
            return;                                                                                                    \
        }                                                                                                              \
        const uintptr_t pages = page_distance(ldk, D);                                                                 \
        for (; j + AF_DECODE_KEYS <= n; j += AF_DECODE_KEYS, key += AF_DECODE_KEYS * ldk) {                            \
            prefetch_page(key, pages);                                                                                 \
            dot_tile(nr, AF_DECODE_KEYS, D, query, key, ldk, s + j, lds);                                              \
        }                                                                                                              \
        for (; j < n; j++, key += ldk) dot_tile(nr, 1, D, query, key, ldk, s + j, lds);                                \
    }
DOT_ROWS(1)
DOT_ROWS(2)
DOT_ROWS(3)
DOT_ROWS(4)
#undef DOT_ROWS

/* Query rows that are computed together: two where they stay in registers. */
AF_INLINE int dot_group(int64_t D) { return D == AF_DECODE_COLUMNS * VL || D == AF_DECODE_COLUMNS / 2 * VL ? 2 : 4; }

static void decode_scores(int rows, int n, int64_t D, const real *query, const elem *key, int64_t ldk, real *s,
                          int64_t lds)
{
    const int group = dot_group(D);
    for (; rows > 0; rows -= group, query += group * D, s += group * lds) {
        const int here = rows < group ? rows : group;
        if (here == 1) dot_1(n, D, query, key, ldk, s, lds);
        else if (here == 2) dot_2(n, D, query, key, ldk, s, lds);
        else if (here == 3) dot_3(n, D, query, key, ldk, s, lds);
        else dot_4(n, D, query, key, ldk, s, lds);
    }
}

AF_INLINE void add_vector(const bool whole, int last, real *to, v x)
{
    if (whole) v_store(to, v_add(v_load(to), x));
    else v_store_n(to, v_add(v_load_n(to, last), x), last);
}

/* acc[r][d ..] += sum_j p[r][j] V[j][d ..] for nr rows and nc vectors of columns, both constants; the last vector
 * has `last` elements. nan_safe (one row): only the keys whose bit is set in `word` enter. */
AF_INLINE void axpy_tile(const int nr, const int nc, const bool whole, const bool nan_safe, int last, int n,
                         const real *p, int64_t ldp, uint64_t word, const elem *value, int64_t ldv, real *acc,
                         int64_t Dv)
{
    v sum[2][2 * AF_DECODE_COLUMNS];
    UNROLL(r, nr)
        UNROLL(c, nc) sum[r][c] = v_zero();
    for (int j = 0; j < n; j++, value += ldv) {
        if (nan_safe && !(word >> j & 1)) continue;
        v w[2];
        UNROLL(r, nr) w[r] = v_set1(p[r * ldp + j]);
        UNROLL(c, nc) {
            const v x = whole ? e_load(value + c * VL) : e_load_n(value + c * VL, last);
            KEEP_ORDER();
            UNROLL(r, nr) sum[r][c] = v_fma(w[r], x, sum[r][c]);
        }
    }
    UNROLL(r, nr)
        UNROLL(c, nc) add_vector(whole, last, acc + r * Dv + c * VL, sum[r][c]);
}

/* Whether the hardware foresees the lines of a few rows of values: the first pass reads whole rows or, with one
 * query row, most of each. */
AF_INLINE bool in_order(int rows, int64_t Dv)
{
    const int64_t columns = AF_DECODE_COLUMNS * VL;
    if (Dv == columns || Dv == columns / 2 || Dv <= VL) return true;
    return rows == 1 && (Dv == 2 * columns || (Dv <= 4 * columns && Dv * (int)sizeof(elem) <= 512));
}

AF_INLINE void axpy_rows(const int nr, const bool nan_safe, int n, const real *p, int64_t ldp, uint64_t word,
                         const elem *value, int64_t ldv, real *acc, int64_t Dv)
{
    int64_t d = 0;
#define COLUMNS(nc)                                                                                                    \
    for (; d + (nc) * VL <= Dv; d += (nc) * VL)                                                                        \
    axpy_tile(nr, nc, true, nan_safe, 0, n, p, ldp, word, value + d, ldv, acc + d, Dv)
    if (nr == 1 && in_order(nr, Dv)) {
        COLUMNS(2 * AF_DECODE_COLUMNS);
    }
    COLUMNS(AF_DECODE_COLUMNS);
    COLUMNS(AF_DECODE_COLUMNS / 2);
    COLUMNS(1);
#undef COLUMNS
    if (d < Dv) axpy_tile(nr, 1, false, nan_safe, (int)(Dv - d), n, p, ldp, word, value + d, ldv, acc + d, Dv);
}

/* One load from every line of some rows. */
AF_INLINE void touch_rows(int n, const elem *rows, int64_t stride, int64_t width)
{
    for (int j = 0; j < n; j++)
        for (int64_t d = 0; d < width; d += 64 / (int)sizeof(elem))
            (void)*(const volatile elem *)(rows + j * stride + d);
}

#define AXPY_ROWS(nr)                                                                                                  \
    static __attribute__((noinline)) void axpy_##nr(int n, const real *p, int64_t ldp, const elem *value, int64_t ldv, \
                                                    real *acc, int64_t Dv)                                             \
    {                                                                                                                  \
        axpy_rows(nr, false, n, p, ldp, 0, value, ldv, acc, Dv);                                                       \
    }
AXPY_ROWS(1)
AXPY_ROWS(2)
#undef AXPY_ROWS

static void axpy_few(int rows, int n, const real *p, int64_t ldp, const elem *value, int64_t ldv, real *acc, int64_t Dv)
{
    for (; rows >= 2; rows -= 2, p += 2 * ldp, acc += 2 * Dv) axpy_2(n, p, ldp, value, ldv, acc, Dv);
    if (rows) axpy_1(n, p, ldp, value, ldv, acc, Dv);
}

/* n rows of values, at most near_rows: the first pass over them reads memory, in order if it reads all columns. */
static void decode_values(int rows, int n, const real *p, int64_t ldp, const elem *value, int64_t ldv, real *acc,
                          int64_t Dv)
{
    if (!in_order(rows, Dv)) touch_rows(n, value, ldv, Dv);
    axpy_few(rows, n, p, ldp, value, ldv, acc, Dv);
}

/* The same without the (row, key) pairs whose score was -inf: bit `at` of the words is that of the first key. */
static void decode_values_nan_safe(int rows, int n, const real *p, int64_t ldp, const uint64_t *words, int at,
                                   const elem *value, int64_t ldv, real *acc, int64_t Dv)
{
    for (int r = 0; r < rows; r++)
        axpy_rows(1, true, n, p + r * ldp, ldp, words[r] >> at, value, ldv, acc + r * Dv, Dv);
}

#endif

/* The two products of attention for a few query rows, with D in the lanes:
 *
 *   s[r][j] = q[r] . K[j]      acc[r] += p[r][j] V[j]
 *
 * Memory runs at full speed only if lines are loaded in the order of their addresses, because the hardware prefetches
 * only lines that follow those before them. So keys and values are read row by row, and KEEP_ORDER keeps the compiler
 * from mixing the loads of different rows. Query rows are computed two at a time; the next two read the same few rows
 * of keys again while these are in the first-level cache. Rows that are not contiguous, and the next pages, are
 * prefetched explicitly; where plan->request_bytes says so, each line is. More query rows, and queries that do not stay
 * in registers: decode_interleaved.h. */
#ifndef AF_DECODE_PRODUCTS_H
#define AF_DECODE_PRODUCTS_H

#include "kernel/prefetch.h"

/* What a product requests while it reads rows, as distances in bytes from what it reads; 0: nothing. */
typedef struct requests {
    int64_t page; /* one line, with every few rows */
    int64_t line; /* each line */
} requests;

/* The compiler moves no load or store across this. */
#define KEEP_ORDER() __asm__ volatile("" ::: "memory")

/* Rows of scores, weights or sums, as elem_rows are of keys or values. Two words, which calls pass in registers: a
 * struct of three went through memory, which took 13 % more time with one query row (Zen 4). */
typedef struct score_rows {
    real *at;
    int64_t ld;
} score_rows;

AF_INLINE elem_rows rows_from(elem_rows rows, int64_t j) { return (elem_rows){rows.at + j * rows.ld, rows.ld}; }
AF_INLINE elem_rows columns_from(elem_rows rows, int64_t d) { return (elem_rows){rows.at + d, rows.ld}; }
AF_INLINE score_rows score_rows_from(score_rows rows, int r) { return (score_rows){rows.at + r * rows.ld, rows.ld}; }
AF_INLINE score_rows score_columns_from(score_rows rows, int64_t j) { return (score_rows){rows.at + j, rows.ld}; }

/* A pointer that the compiler must keep in a register of its own: with one offset for each load of several rows it
 * runs out of registers, and the loads wait for their addresses out of order. */
AF_INLINE const elem *hold(const elem *p)
{
    __asm__("" : "+r"(p));
    return p;
}

/* The hardware does not prefetch beyond a page, and the first line of the next page waits for the translation of its
 * address as well. Prefetching a line this many bytes ahead of contiguous rows brings the translation. The line may
 * belong to the next unit, or to no array at all. */
enum { PAGE_BYTES_AHEAD = 1 << 15 };

AF_INLINE void prefetch_page(elem_rows rows, int64_t distance)
{
    __builtin_prefetch((const void *)((uintptr_t)rows.at + (uintptr_t)distance), 0, 2);
}

/* Requests the line of column c, where one begins there; but not for vectors of 16 bytes, which arithmetic limits. */
AF_INLINE void request_line(const elem *row, int c, int64_t distance)
{
    const bool wide = VL * sizeof(real) > 16;
    if (wide && distance && c % LINE_ELEMS == 0) __builtin_prefetch((const char *)(row + c) + distance, 0, 3);
}

/* Reasoned, not measured: rows of 128 float32 are 4 KiB then, an eighth of the first-level cache. */
enum { DECODE_PREFETCH_ROWS = 8 };

/* For rows that are read in order, where each line is requested `bytes` ahead: plan->request_bytes. */
AF_INLINE requests requests_for(elem_rows rows, int64_t width, int64_t bytes)
{
    if (rows.ld == width) return (requests){PAGE_BYTES_AHEAD, bytes};
    const int64_t row = width * (int)sizeof(elem);
    return (requests){0, bytes && row ? (bytes + row - 1) / row * rows.ld * (int)sizeof(elem) : 0};
}

/* Prefetches rows that are not contiguous, and whose lines are not requested one by one: those DECODE_PREFETCH_ROWS
 * after the first n of `left` rows. */
AF_INLINE void prefetch_apart(int n, int left, elem_rows rows, int64_t width, requests ask)
{
    if (rows.ld == width || ask.line) return;
    for (int j = DECODE_PREFETCH_ROWS; j < n + DECODE_PREFETCH_ROWS && j < left; j++)
        prefetch_row(rows.at + j * rows.ld, width, 0, true);
}

/* Query rows that are computed together: two where they stay in registers. */
AF_INLINE int dot_group(int64_t D) { return D == AF_DECODE_COLUMNS * VL || D == AF_DECODE_COLUMNS / 2 * VL ? 2 : 4; }

/* s[r][j] from sums that are still spread over lanes. They are added up in the same way for every nk, so that a
 * score has the same bits wherever its key is in a block. */
AF_INLINE void dot_sums(const int nr, const int nk, v acc[AF_DECODE_KEYS][4], score_rows s)
{
    UNROLL(r, nr) {
        real sum[4];
        v_hsum4(acc[0][r], acc[1 % nk][r], acc[2 % nk][r], acc[3 % nk][r], sum);
        UNROLL(j, nk) s.at[r * s.ld + j] = sum[j];
    }
}

/* nr query rows, D apart, and nk keys, both constants; nk is 1 or AF_DECODE_KEYS. */
AF_INLINE void dot_tile(const int nr, const int nk, const real *query, elem_rows key, score_rows s, int64_t D,
                        int64_t line)
{
    v acc[AF_DECODE_KEYS][4];
    UNROLL(j, nk) {
        UNROLL(r, nr) acc[j][r] = v_zero();
        const elem *row = hold(key.at + j * key.ld);
        int64_t d = 0;
        for (; d + VL <= D; d += VL) {
            const v x = e_load(row + d);
            request_line(row, (int)d, line);
            KEEP_ORDER();
            UNROLL(r, nr) acc[j][r] = v_fma(v_load(query + r * D + d), x, acc[j][r]);
        }
        const int rest = (int)(D - d);
        if (!rest) continue;
        const v x = e_load_n(row + d, rest);
        KEEP_ORDER();
        UNROLL(r, nr) acc[j][r] = v_fma(v_load_n(query + r * D + d, rest), x, acc[j][r]);
    }
    dot_sums(nr, nk, acc, s);
}

/* The lines in which nk rows end, if dot_tile has not requested them: of contiguous rows the next one has. A function
 * of its own: within dot_tile it took 5 to 8 % more time with contiguous rows of 160 (Zen 5, AVX-512). */
AF_INLINE void request_ends(const int nk, elem_rows key, int64_t D, int64_t line)
{
    if (!line || key.ld == D || D % VL == 0) return;
    UNROLL(j, nk) request_line(key.at + j * key.ld + D / VL * VL, 0, line);
}

/* The same with a query of nc vectors kept in registers. */
AF_INLINE void dot_tile_of(const int nr, const int nk, const int nc, v q[2][AF_DECODE_COLUMNS], elem_rows key,
                           score_rows s, int64_t line)
{
    v acc[AF_DECODE_KEYS][4];
    UNROLL(j, nk) {
        UNROLL(r, nr) acc[j][r] = v_zero();
        const elem *row = hold(key.at + j * key.ld);
        UNROLL(c, nc) {
            const v x = e_load(row + c * VL);
            request_line(row, c * VL, line);
            KEEP_ORDER();
            UNROLL(r, nr) acc[j][r] = v_fma(q[r][c], x, acc[j][r]);
        }
    }
    dot_sums(nr, nk, acc, s);
}

AF_INLINE void dot_rows_of(const int nr, const int nc, int n, const real *query, elem_rows key, score_rows s,
                           requests ask)
{
    v q[2][AF_DECODE_COLUMNS];
    UNROLL(r, nr)
        UNROLL(c, nc) q[r][c] = v_load(query + (r * nc + c) * VL);
    int j = 0;
    for (; j + AF_DECODE_KEYS <= n; j += AF_DECODE_KEYS) {
        prefetch_page(key, ask.page);
        dot_tile_of(nr, AF_DECODE_KEYS, nc, q, key, score_columns_from(s, j), ask.line);
        key = rows_from(key, AF_DECODE_KEYS);
    }
    for (; j < n; j++, key = rows_from(key, 1)) dot_tile_of(nr, 1, nc, q, key, score_columns_from(s, j), ask.line);
}

/* s[r][j] for nr rows and n keys, one function for each nr. `requested` is a pointer, as no register is left for it: a
 * copy on the stack is written in two parts and read as one, which has to wait. */
#define DOT_ROWS(nr)                                                                                                   \
    static __attribute__((noinline)) void dot_##nr(int n, const real *query, elem_rows key, score_rows s, int64_t D,   \
                                                   const requests *requested)                                          \
    {                                                                                                                  \
        const requests ask = *requested;                                                                               \
        int j = 0;                                                                                                     \
        if (D == AF_DECODE_COLUMNS * VL) {                                                                             \
            dot_rows_of(nr, AF_DECODE_COLUMNS, n, query, key, s, ask);                                                 \
            return;                                                                                                    \
        }                                                                                                              \
        if (D == AF_DECODE_COLUMNS / 2 * VL) {                                                                         \
            dot_rows_of(nr, AF_DECODE_COLUMNS / 2, n, query, key, s, ask);                                             \
            return;                                                                                                    \
        }                                                                                                              \
        for (; j + AF_DECODE_KEYS <= n; j += AF_DECODE_KEYS) {                                                         \
            prefetch_page(key, ask.page);                                                                              \
            dot_tile(nr, AF_DECODE_KEYS, query, key, score_columns_from(s, j), D, ask.line);                           \
            request_ends(AF_DECODE_KEYS, key, D, ask.line);                                                            \
            key = rows_from(key, AF_DECODE_KEYS);                                                                      \
        }                                                                                                              \
        for (; j < n; j++, key = rows_from(key, 1))                                                                    \
            dot_tile(nr, 1, query, key, score_columns_from(s, j), D, ask.line);                                        \
    }
DOT_ROWS(1)
DOT_ROWS(2)
#undef DOT_ROWS

/* Scores of `rows` queries and n keys. */
AF_INLINE void decode_scores(int rows, int n, const real *query, elem_rows key, score_rows s, int64_t D,
                             const requests *ask)
{
    for (; rows >= 2; rows -= 2, query += 2 * D, s = score_rows_from(s, 2)) dot_2(n, query, key, s, D, ask);
    if (rows) dot_1(n, query, key, s, D, ask);
}

AF_INLINE void add_vector(const bool whole, int last, real *to, v x)
{
    if (whole) v_store(to, v_add(v_load(to), x));
    else v_store_n(to, v_add(v_load_n(to, last), x), last);
}

/* acc[r][..] += sum_j p[r][j] V[j][..] for nr rows and the first nc vectors of columns, both constants; nc = 0: for one
 * vector of `last` columns. only (or NULL, a constant): the keys, as bits, that enter. The lines `ahead` elements on
 * are prefetched: by three and four rows (decode_interleaved.h) into the second-level cache, else, unless it is 0, into
 * the first. */
AF_INLINE void axpy_tile(const int nr, const int nc, int last, int n, score_rows p, elem_rows value, score_rows acc,
                         const uint64_t *only, int64_t ahead)
{
    const bool whole = nc > 0;
    const int vectors = whole ? nc : 1;
    v sum[4][2 * AF_DECODE_COLUMNS];
    UNROLL(r, nr)
        UNROLL(c, vectors) sum[r][c] = v_zero();
    for (int j = 0; j < n; j++, value.at += value.ld) {
        if (only && !(*only >> j & 1)) continue;
        v w[4];
        for (int c = 0; nr > 2 && c < vectors * VL; c += LINE_ELEMS) prefetch_line(value.at + ahead + c, 0);
        UNROLL(r, nr) w[r] = v_set1(p.at[r * p.ld + j]);
        UNROLL(c, vectors) {
            const v x = whole ? e_load(value.at + c * VL) : e_load_n(value.at + c * VL, last);
            if (nr <= 2) request_line(value.at, c * VL, ahead * (int)sizeof(elem));
            KEEP_ORDER();
            UNROLL(r, nr) sum[r][c] = v_fma(w[r], x, sum[r][c]);
        }
    }
    UNROLL(r, nr)
        UNROLL(c, vectors) add_vector(whole, last, acc.at + r * acc.ld + c * VL, sum[r][c]);
}

/* Whether a few rows of values are read in the order of their addresses: the first pass reads whole rows or, with one
 * query row, most of each. */
AF_INLINE bool in_order(int rows, int64_t Dv)
{
    const int64_t columns = AF_DECODE_COLUMNS * VL;
    if (Dv == columns || Dv == columns / 2 || Dv <= VL) return true;
    return rows == 1 &&
           (Dv == 2 * columns || Dv == columns / 2 * 3 || (Dv <= 4 * columns && Dv * (int)sizeof(elem) <= 512));
}

/* All Dv columns. */
AF_INLINE void axpy_rows(const int nr, int n, score_rows p, elem_rows value, score_rows acc, const uint64_t *only,
                         int64_t ahead)
{
    const int64_t Dv = acc.ld;
    int64_t d = 0;
#define TILE(nc, last) axpy_tile(nr, nc, last, n, p, columns_from(value, d), score_columns_from(acc, d), only, ahead)
#define COLUMNS(nc)                                                                                                    \
    for (; d + (nc) * VL <= Dv; d += (nc) * VL) TILE(nc, 0)
    if (nr == 1 && in_order(nr, Dv)) {
        COLUMNS(2 * AF_DECODE_COLUMNS);
        COLUMNS(3 * AF_DECODE_COLUMNS / 2);
    }
    if (nr <= 2) {
        COLUMNS(AF_DECODE_COLUMNS);
        COLUMNS(AF_DECODE_COLUMNS / 2);
    } else {
        COLUMNS(2);
    }
    COLUMNS(1);
    if (d < Dv) TILE(0, (int)(Dv - d));
#undef COLUMNS
#undef TILE
}

/* One load from every line of some rows. */
AF_INLINE void touch_rows(int n, elem_rows rows, int64_t width)
{
    for (int j = 0; j < n; j++)
        for (int64_t d = 0; d < width; d += LINE_ELEMS) (void)*(const volatile elem *)(rows.at + j * rows.ld + d);
}

/* One function for each number of query rows. */
#define AXPY_ROWS(nr)                                                                                                  \
    static __attribute__((noinline)) void axpy_##nr(int n, score_rows p, elem_rows value, real *acc, int64_t Dv,       \
                                                    int64_t ahead)                                                     \
    {                                                                                                                  \
        axpy_rows(nr, n, p, value, (score_rows){acc, Dv}, NULL, ahead);                                                \
    }
AXPY_ROWS(1)
AXPY_ROWS(2)
AXPY_ROWS(3)
AXPY_ROWS(4)
#undef AXPY_ROWS

AF_INLINE void axpy_few(int rows, int n, score_rows p, elem_rows value, real *acc, int64_t Dv, int64_t ahead)
{
    for (; rows >= 2; rows -= 2, p = score_rows_from(p, 2), acc += 2 * Dv) axpy_2(n, p, value, acc, Dv, ahead);
    if (rows) axpy_1(n, p, value, acc, Dv, ahead);
}

/* n rows of values, at most near_rows: the first pass over them reads memory, in order if it reads all columns. */
AF_INLINE void decode_values(int rows, int n, score_rows p, elem_rows value, real *acc, int64_t Dv, requests ask)
{
    if (!in_order(rows, Dv)) touch_rows(n, value, Dv);
    axpy_few(rows, n, p, value, acc, Dv, ask.line / (int)sizeof(elem));
}

#endif

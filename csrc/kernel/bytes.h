/* Keys and values that are stored in bytes: int8, uint8, and the two kinds of float8. The real number is
 * (stored - zero) * scale.
 *
 * A block of them is widened once for all query blocks that meet it. Few query rows read them where they are: one scale
 * for a whole row of keys multiplies its score, and one for a row of values its weight. Where rows have several scales,
 * a few rows at a time are widened into the first-level cache. */
#ifndef AF_BYTES_H
#define AF_BYTES_H

#include "kernel/decode_interleaved.h"
#include "kernels.h"
#include "plan/intervals.h"

AF_INLINE v byte_load(const af_storage kind, const uint8_t *p)
{
    if (kind == AF_INT8) return b_int8(p);
    if (kind == AF_UINT8) return b_uint8(p);
    return kind == AF_FLOAT8_E5M2 ? b_e5m2(p) : b_e4m3fn(p);
}

AF_INLINE v byte_load_n(const af_storage kind, const uint8_t *p, int n)
{
    uint8_t t[VL] = {0};
    for (int i = 0; i < n; i++) t[i] = p[i];
    return byte_load(kind, t);
}

AF_INLINE int64_t page_of(const af_byte_rows *rows, int64_t j)
{
    return rows->pages ? rows->pages[j / rows->page_size] : 0;
}
AF_INLINE int64_t row_in_page(const af_byte_rows *rows, int64_t j) { return rows->pages ? j % rows->page_size : j; }

AF_INLINE const uint8_t *byte_row(const af_byte_rows *rows, int64_t j)
{
    return rows->first + page_of(rows, j) * rows->page_stride + row_in_page(rows, j) * rows->stride;
}

/* Loads of float8_e4m3fn give 2^-8 times the number, so that scales are multiplied and zeros divided by this. */
AF_INLINE float byte_factor(const af_storage kind) { return kind == AF_FLOAT8_E4M3FN ? 256 : 1; }

/* How many of n rows from row j on are `stride` apart. */
AF_INLINE int64_t bytes_in_line(const af_byte_rows *rows, int64_t j, int64_t n)
{
    return rows->pages ? af_min(n, rows->page_size - row_in_page(rows, j)) : n;
}

/* The numbers of the groups of row j; NULL where there are none. */
AF_INLINE const float *group_row(const af_byte_rows *rows, const af_groups *g, int64_t j)
{
    if (!g->at.data) return NULL;
    return (const float *)g->at.data + (rows->pages ? page_of(rows, j) * g->at.b : 0) +
           (rows->before + row_in_page(rows, j)) / g->rows * g->at.i;
}

/* Whether each row has one number. */
AF_INLINE bool by_row(const af_groups *g) { return !g->at.data || g->at.j == 0; }

/* Whether no vector has elements of two groups. */
AF_INLINE bool by_vector(const af_groups *g) { return by_row(g) || g->columns % VL == 0; }

/* The groups of a row one after the other: the number of the present one, and where it ends. Without divisions, which
 * took longer than all else with groups of 16. */
typedef struct group_walk {
    const float *at; /* NULL: `absent` for the whole row */
    float absent;
    int64_t end, columns, step;
} group_walk;

AF_INLINE group_walk walk_groups(const af_groups *g, const float *row, float absent, int64_t width)
{
    const bool one = by_row(g);
    return (group_walk){row, absent, one ? width : g->columns, one ? width : g->columns, one ? 0 : g->at.j};
}

/* The number of the group that holds column d, which is not before the one that was asked for last. */
AF_INLINE float group_number(group_walk *w, int64_t d)
{
    if (d == w->end) {
        w->at += w->step;
        w->end += w->columns;
    }
    return w->at ? *w->at : w->absent;
}

/* A number for each element of a row, times a factor. */
static void expand_groups(group_walk groups, float factor, int64_t width, float *to)
{
    for (int64_t d = 0; d < width;) {
        const float x = group_number(&groups, d) * factor;
        for (const int64_t end = af_min(width, groups.end); d < end; d++) to[d] = x;
    }
}

/* A row whose groups have whole vectors. */
AF_INLINE void widen_vectors(const af_storage kind, const uint8_t *from, int64_t width, group_walk scales,
                             group_walk zeros, float *to)
{
    const float factor = byte_factor(kind);
    for (int64_t c = 0; c < width;) {
        const v scale = v_set1(group_number(&scales, c) * factor), zero = v_set1(group_number(&zeros, c) / factor);
        const int64_t end = af_min(width, af_min(scales.end, zeros.end));
        for (; c + VL <= end; c += VL) v_store(to + c, v_mul(v_sub(byte_load(kind, from + c), zero), scale));
        const int n = (int)(end - c);
        if (n) v_store_n(to + c, v_mul(v_sub(byte_load_n(kind, from + c, n), zero), scale), n);
        c = end;
    }
}

/* A row, by a scale and a zero for each element. */
AF_INLINE void widen_elements(const af_storage kind, int64_t width, const float *scale, const float *zero,
                              const uint8_t *from, float *to)
{
    int64_t c = 0;
    for (; c + VL <= width; c += VL)
        v_store(to + c, v_mul(v_sub(byte_load(kind, from + c), v_load(zero + c)), v_load(scale + c)));
    const int n = (int)(width - c);
    if (n)
        v_store_n(to + c, v_mul(v_sub(byte_load_n(kind, from + c, n), v_load_n(zero + c, n)), v_load_n(scale + c, n)),
                  n);
}

AF_INLINE void widen_kind(const af_storage kind, const af_byte_rows *rows, int64_t j, int64_t n, float *to)
{
    const float factor = byte_factor(kind);
    const int64_t width = rows->width;
    const bool vectors = by_vector(&rows->scale) && by_vector(&rows->zero);
    float *scale = rows->copy + rows->room * width, *zero = scale + width;
    const float *last_scale = NULL, *last_zero = NULL;
    for (int64_t i = 0; i < n; i++, to += width) {
        const uint8_t *row = byte_row(rows, j + i);
        const group_walk scales = walk_groups(&rows->scale, group_row(rows, &rows->scale, j + i), 1, width);
        const group_walk zeros = walk_groups(&rows->zero, group_row(rows, &rows->zero, j + i), 0, width);
        if (vectors) {
            widen_vectors(kind, row, width, scales, zeros, to);
            continue;
        }
        if (i == 0 || scales.at != last_scale) expand_groups(scales, factor, width, scale);
        if (i == 0 || zeros.at != last_zero) expand_groups(zeros, 1 / factor, width, zero);
        last_scale = scales.at;
        last_zero = zeros.at;
        widen_elements(kind, width, scale, zero, row, to);
    }
}

static void widen_bytes(const af_byte_rows *rows, int64_t j, int64_t n, float *to)
{
    if (rows->storage == AF_INT8) widen_kind(AF_INT8, rows, j, n, to);
    else if (rows->storage == AF_UINT8) widen_kind(AF_UINT8, rows, j, n, to);
    else if (rows->storage == AF_FLOAT8_E5M2) widen_kind(AF_FLOAT8_E5M2, rows, j, n, to);
    else widen_kind(AF_FLOAT8_E4M3FN, rows, j, n, to);
}

/* Rows j .. j + n as floats in the first-level cache, n at most near_rows. */
static elem_rows near_bytes(const af_byte_rows *rows, int64_t j, int64_t n)
{
    widen_bytes(rows, j, n, rows->copy);
    return (elem_rows){rows->copy, rows->width};
}

static void widened_scores(const af_byte_rows *rows, af_byte_product p, const float *query)
{
    const int few = near_rows(rows->width);
    for (int i = 0; i < p.n; i += few) {
        const int here = p.n - i < few ? p.n - i : few;
        const elem_rows key = near_bytes(rows, p.j + i, here);
        const score_rows to = {p.s + i, p.lds};
        if (interleaves(p.count, rows->width, false)) interleaved_scores(p.count, here, 0, query, key, to, rows->width);
        else decode_scores(p.count, here, query, key, to, rows->width, &(requests){0});
    }
}

/* The next 64 rows from row i of a product on that enter for query row r, as bits. */
AF_INLINE uint64_t rows_that_enter(const af_byte_product *p, int i, int r)
{
    const int at = p->first + i;
    const uint64_t *word = p->words + at / 64 * p->words_ld + r;
    return at % 64 ? word[0] >> at % 64 | word[p->words_ld] << (64 - at % 64) : word[0];
}

static void widened_output(const af_byte_rows *rows, af_byte_product p, float *acc)
{
    const int few = near_rows(rows->width);
    const int64_t Dv = rows->width;
    for (int i = 0; i < p.n; i += few) {
        const int here = p.n - i < few ? p.n - i : few;
        const elem_rows value = near_bytes(rows, p.j + i, here);
        const score_rows s = {p.s + i, p.lds};
        if (p.words)
            for (int r = 0; r < p.count; r++) {
                const uint64_t word = rows_that_enter(&p, i, r);
                axpy_rows(1, here, score_rows_from(s, r), value, (score_rows){acc + r * Dv, Dv}, &word, 0);
            }
        else if (interleaves(p.count, Dv, false)) interleaved_values(p.count, here, 0, s, value, acc, Dv);
        else decode_values(p.count, here, s, value, acc, Dv, (requests){0});
    }
}

/* ---- bytes where they are, widened in registers ---- */

/* Whether rows are read in place: each has one scale, and one zero if they are uint8, which mostly have one. float8
 * takes long to widen where each number is by itself, so that registers do not pay. */
static bool in_place(const af_byte_rows *rows)
{
    if (!AF_BYTE_VECTORS && rows->storage != AF_INT8 && rows->storage != AF_UINT8) return false;
    return by_row(&rows->scale) && by_row(&rows->zero) && (rows->storage == AF_UINT8 || !rows->zero.at.data);
}

/* Rows that are read while their bytes are in the first-level cache: 8 KiB of 128 columns. A divisor of 64. */
enum { BYTE_ROWS = 64 };

/* Some rows in a line, and what their numbers are. */
typedef struct byte_run {
    const uint8_t *at;
    int64_t ld, width, ahead; /* lines are prefetched `ahead` bytes on, if `near` into the first-level cache */
    bool near;
    int n;
    float scale[BYTE_ROWS], zero[BYTE_ROWS];
} byte_run;

static void find_numbers(const af_byte_rows *rows, const af_groups *g, int64_t j, int n, float absent, float *to)
{
    if (g->at.data && g->rows == 1 && g->at.i == 1) {
        memcpy(to, group_row(rows, g, j), (size_t)n * sizeof *to);
        return;
    }
    for (int i = 0; i < n; i++) {
        const float *x = group_row(rows, g, j + i);
        to[i] = x ? *x : absent;
    }
}

/* Rows from row i of a product on, up to the end of a page or to the next multiple of BYTE_ROWS. */
static void find_run(const af_byte_rows *rows, const af_byte_product *p, int i, byte_run *run)
{
    const int64_t most = p->n - i, j = p->j + i;
    run->n = (int)bytes_in_line(rows, j, af_min(most, BYTE_ROWS - i % BYTE_ROWS));
    run->at = byte_row(rows, j);
    run->ld = rows->stride;
    run->width = rows->width;
    run->ahead = p->ahead ? p->ahead : (1 + FAR_BYTES / (1 + rows->width)) * rows->stride;
    run->near = p->near;
    find_numbers(rows, &rows->scale, j, run->n, 1, run->scale);
    for (int k = 0; rows->storage == AF_FLOAT8_E4M3FN && k < run->n; k++)
        run->scale[k] *= byte_factor(AF_FLOAT8_E4M3FN);
    if (rows->storage == AF_UINT8) find_numbers(rows, &rows->zero, j, run->n, 0, run->zero);
}

/* The rows, as bits, that hold a NaN of float8_e4m3fn, which registers widen as if it were a number: NaN is rare, and
 * to find it takes less time than to make it of every byte that is one. */
static uint64_t rows_of_nan(const byte_run *run)
{
    uint64_t found = 0;
    if (run->ld == run->width && !b_has_nan(run->at, run->n * run->width)) return 0;
    for (int i = 0; i < run->n; i++) found |= (uint64_t)b_has_nan(run->at + i * run->ld, run->width) << i;
    return found;
}

AF_INLINE void request_byte_line(const bool near, const byte_run *run, const uint8_t *p)
{
    if (near && run->near) __builtin_prefetch(p + run->ahead, 0, 3);
    else __builtin_prefetch(p + run->ahead, 0, 2);
}

/* How bytes are made floats. e4m3fn, its NaN too, by a table where instructions look up 64 bytes at a time and the
 * width of a row is a multiple of 64. */
typedef struct byte_way {
    af_storage kind;
    bool table;
} byte_way;

AF_INLINE v run_load(const byte_way way, const uint8_t *p, float zero)
{
    if (way.kind == AF_UINT8) return v_sub(b_uint8(p), v_set1(zero));
    return way.kind == AF_FLOAT8_E4M3FN ? b_e4m3fn_finite(p) : byte_load(way.kind, p);
}

AF_INLINE void run_load_four(const byte_way way, const uint8_t *p, float zero, v x[4])
{
#if AF_LOOKS_UP
    if (way.table) {
        b_e4m3fn_by_table(p, x);
        return;
    }
#endif
    UNROLL(c, 4) x[c] = run_load(way, p + c * VL, zero);
}

AF_INLINE v run_load_n(const byte_way way, const uint8_t *p, int n, float zero)
{
    uint8_t t[VL] = {0};
    for (int i = 0; i < n; i++) t[i] = p[i];
    return run_load(way, t, zero);
}

/* nk scores of nr query rows: the products with rows i .. i + nk of a run. */
AF_INLINE void dot_bytes(const byte_way way, const int nr, const int nk, const byte_run *run, int i, const float *query,
                         score_rows s)
{
    const int64_t width = run->width;
    v acc[4][4];
    const uint8_t *row[4];
    float zero[4];
    UNROLL(j, nk) {
        UNROLL(r, nr) acc[j][r] = v_zero();
        row[j] = run->at + (i + j) * run->ld;
        zero[j] = way.kind == AF_UINT8 ? run->zero[i + j] : 0;
    }
#define DOT(load, from)                                                                                                \
    do {                                                                                                               \
        v k[4];                                                                                                        \
        UNROLL(j, nk) k[j] = load;                                                                                     \
        UNROLL(r, nr) {                                                                                                \
            const v q = from;                                                                                          \
            UNROLL(j, nk) acc[j][r] = v_fma(q, k[j], acc[j][r]);                                                       \
        }                                                                                                              \
    } while (0)
    int64_t d = 0;
    for (; d + 4 * VL <= width; d += 4 * VL) {
        if (d % 64 == 0)
            UNROLL(j, nk) request_byte_line(way.table, run, row[j] + d);
        if (way.table)
            UNROLL(j, nk) {
                v x[4];
                run_load_four(way, row[j] + d, zero[j], x);
                UNROLL(c, 4)
                    UNROLL(r, nr) acc[j][r] = v_fma(v_load(query + r * width + d + c * VL), x[c], acc[j][r]);
            }
        else
            UNROLL(c, 4) DOT(run_load(way, row[j] + d + c * VL, zero[j]), v_load(query + r * width + d + c * VL));
    }
    for (; !way.table && d + VL <= width; d += VL)
        DOT(run_load(way, row[j] + d, zero[j]), v_load(query + r * width + d));
    const int rest = way.table ? 0 : (int)(width - d);
    if (rest) DOT(run_load_n(way, row[j] + d, rest, zero[j]), v_load_n(query + r * width + d, rest));
#undef DOT
    dot_sums(nr, nk, acc, s);
}

AF_INLINE void dot_run(const byte_way way, const int nr, const byte_run *run, const float *query, score_rows s)
{
    const int nk = nr > 2 ? AF_DECODE_KEYS : 4;
    int i = 0;
    for (; i + nk <= run->n; i += nk) dot_bytes(way, nr, nk, run, i, query, score_columns_from(s, i));
    for (; i < run->n; i++) dot_bytes(way, nr, 1, run, i, query, score_columns_from(s, i));
    UNROLL(r, nr)
        for (i = 0; i < run->n; i += VL) {
            const int here = run->n - i < VL ? run->n - i : VL;
            real *to = s.at + r * s.ld + i;
            v_store_n(to, v_mul(v_load_n(to, here), v_load_n(run->scale + i, here)), here);
        }
}

/* acc[r][..] += sum_j w[r][j] V[j][..] for nc vectors of columns from d on, or, if nc is 0, the last few. only (or
 * NULL, a constant): the rows, as bits, that enter. */
AF_INLINE void axpy_bytes(const byte_way way, const int nr, const int nc, const byte_run *run, int64_t d,
                          const float *weight, score_rows acc, const uint64_t *only)
{
    const int last = (int)(run->width - d);
    const bool whole = nc > 0, ahead = d % 64 == 0;
    const int vectors = whole ? nc : 1;
    v sum[4][2 * AF_DECODE_COLUMNS];
    UNROLL(r, nr)
        UNROLL(c, vectors) sum[r][c] = v_zero();
    const uint8_t *row = run->at + d;
    for (int j = 0; j < run->n; j++, row += run->ld) {
        if (only && !(*only >> j & 1)) continue;
        v w[4];
        for (int c = 0; ahead && c < vectors * VL; c += 64) request_byte_line(way.table, run, row + c);
        UNROLL(r, nr) w[r] = v_set1(weight[r * BYTE_ROWS + j]);
        const float zero = way.kind == AF_UINT8 ? run->zero[j] : 0;
        if (vectors % 4 == 0)
            for (int c = 0; c < vectors; c += 4) {
                v x[4];
                run_load_four(way, row + c * VL, zero, x);
                UNROLL(f, 4)
                    UNROLL(r, nr) sum[r][c + f] = v_fma(w[r], x[f], sum[r][c + f]);
            }
        else
            UNROLL(c, vectors) {
                const v x = whole ? run_load(way, row + c * VL, zero) : run_load_n(way, row + c * VL, last, zero);
                UNROLL(r, nr) sum[r][c] = v_fma(w[r], x, sum[r][c]);
            }
    }
    UNROLL(r, nr)
        UNROLL(c, vectors) add_vector(whole, last, acc.at + r * acc.ld + d + c * VL, sum[r][c]);
}

AF_INLINE void axpy_run(const byte_way way, const int nr, const byte_run *run, score_rows p, score_rows acc,
                        const uint64_t *only)
{
    float weight[4 * BYTE_ROWS];
    UNROLL(r, nr)
        for (int j = 0; j < run->n; j++) weight[r * BYTE_ROWS + j] = p.at[r * p.ld + j] * run->scale[j];
    const int all = nr == 1 ? 2 * AF_DECODE_COLUMNS : nr == 2 ? AF_DECODE_COLUMNS : AF_DECODE_COLUMNS / 2;
    const int most = way.table && nr < 3 ? all / 2 : all;
    int64_t d = 0;
    for (; d + most * VL <= run->width; d += most * VL) axpy_bytes(way, nr, most, run, d, weight, acc, only);
    for (; nr < (way.table ? 2 : 3) && d + most / 2 * VL <= run->width; d += most / 2 * VL)
        axpy_bytes(way, nr, most / 2, run, d, weight, acc, only);
    if (way.table) return;
    for (; d + VL <= run->width; d += VL) axpy_bytes(way, nr, 1, run, d, weight, acc, only);
    if (d < run->width) axpy_bytes(way, nr, 0, run, d, weight, acc, only);
}

/* One function for each kind of bytes and each way to make them floats. Up to four query rows share what is made; the
 * next ones read the bytes of a run from the first-level cache. */
#define BYTE_KIND(name, ...)                                                                                           \
    static const byte_way name##_way = {__VA_ARGS__};                                                                  \
    static __attribute__((noinline)) void name##_scores(const byte_run *run, int rows, const float *query,             \
                                                        score_rows s)                                                  \
    {                                                                                                                  \
        for (; rows >= 4; rows -= 4, query += 4 * run->width, s = score_rows_from(s, 4))                               \
            dot_run(name##_way, 4, run, query, s);                                                                     \
        if (rows == 3) dot_run(name##_way, 3, run, query, s);                                                          \
        else if (rows == 2) dot_run(name##_way, 2, run, query, s);                                                     \
        else if (rows) dot_run(name##_way, 1, run, query, s);                                                          \
    }                                                                                                                  \
    static __attribute__((noinline)) void name##_output(const byte_run *run, int rows, score_rows p, score_rows acc)   \
    {                                                                                                                  \
        for (; rows >= 4; rows -= 4, p = score_rows_from(p, 4), acc = score_rows_from(acc, 4))                         \
            axpy_run(name##_way, 4, run, p, acc, NULL);                                                                \
        if (rows == 3) axpy_run(name##_way, 3, run, p, acc, NULL);                                                     \
        else if (rows == 2) axpy_run(name##_way, 2, run, p, acc, NULL);                                                \
        else if (rows) axpy_run(name##_way, 1, run, p, acc, NULL);                                                     \
    }                                                                                                                  \
    static __attribute__((noinline)) void name##_visible(const byte_run *run, uint64_t word, score_rows p,             \
                                                         score_rows acc)                                               \
    {                                                                                                                  \
        axpy_run(name##_way, 1, run, p, acc, &word);                                                                   \
    }
BYTE_KIND(int8, AF_INT8, false)
BYTE_KIND(uint8, AF_UINT8, false)
BYTE_KIND(e4m3fn, AF_FLOAT8_E4M3FN, false)
BYTE_KIND(e5m2, AF_FLOAT8_E5M2, false)
#if AF_LOOKS_UP
BYTE_KIND(e4m3fn_by_table, AF_FLOAT8_E4M3FN, true)
#else
#define e4m3fn_by_table_scores e4m3fn_scores
#define e4m3fn_by_table_output e4m3fn_output
#define e4m3fn_by_table_visible e4m3fn_visible
#endif
#undef BYTE_KIND

#define OF_STORAGE(storage, by_table, what, ...)                                                                       \
    do {                                                                                                               \
        if ((storage) == AF_INT8) int8_##what(__VA_ARGS__);                                                            \
        else if (!AF_BYTE_VECTORS || (storage) == AF_UINT8) uint8_##what(__VA_ARGS__);                                 \
        else if ((storage) == AF_FLOAT8_E5M2) e5m2_##what(__VA_ARGS__);                                                \
        else if (by_table) e4m3fn_by_table_##what(__VA_ARGS__);                                                        \
        else e4m3fn_##what(__VA_ARGS__);                                                                               \
    } while (0)

AF_INLINE void scores_of_bytes(const bool look_up, const af_byte_rows *rows, af_byte_product p, const float *query)
{
    const bool by_table = look_up && rows->width % 64 == 0;
    byte_run run;
    if (!in_place(rows)) {
        widened_scores(rows, p, query);
        return;
    }
    for (int i = 0; i < p.n; i += run.n) {
        find_run(rows, &p, i, &run);
        OF_STORAGE(rows->storage, by_table, scores, &run, p.count, query, ((score_rows){p.s + i, p.lds}));
        uint64_t bad = !by_table && rows->storage == AF_FLOAT8_E4M3FN ? rows_of_nan(&run) : 0;
        for (; bad; bad &= bad - 1)
            for (int r = 0; r < p.count; r++) p.s[r * p.lds + i + __builtin_ctzll(bad)] = NAN;
    }
}

/* NaN of float8_e4m3fn in rows of values: those of `word` for one query row. */
static void add_nan(const byte_run *run, uint64_t word, float *acc)
{
    for (; word; word &= word - 1) {
        const uint8_t *row = run->at + __builtin_ctzll(word) * run->ld;
        for (int64_t d = 0; d < run->width; d++)
            if ((row[d] & 0x7f) == 0x7f) acc[d] = NAN;
    }
}

AF_INLINE void output_of_bytes(const bool look_up, const af_byte_rows *rows, af_byte_product p, float *acc)
{
    const bool by_table = look_up && rows->width % 64 == 0;
    byte_run run;
    if (!in_place(rows)) {
        widened_output(rows, p, acc);
        return;
    }
    for (int i = 0; i < p.n; i += run.n) {
        const score_rows s = {p.s + i, p.lds}, to = {acc, rows->width};
        find_run(rows, &p, i, &run);
        if (!p.words) OF_STORAGE(rows->storage, by_table, output, &run, p.count, s, to);
        const bool look = rows->storage == AF_FLOAT8_E4M3FN && (p.words || !by_table);
        const uint64_t bad = look ? rows_of_nan(&run) : 0;
        for (int r = 0; (p.words || bad) && r < p.count; r++) {
            const uint64_t word = p.words ? rows_that_enter(&p, i, r) : ~(uint64_t)0;
            if (p.words)
                OF_STORAGE(rows->storage, false, visible, &run, word, score_rows_from(s, r), score_rows_from(to, r));
            add_nan(&run, bad & word, acc + r * rows->width);
        }
    }
}
#undef OF_STORAGE

#define BYTE_TABLE(name, by_table)                                                                                     \
    static void name##_scores(const af_byte_rows *rows, af_byte_product p, const float *query)                         \
    {                                                                                                                  \
        scores_of_bytes(by_table, rows, p, query);                                                                     \
    }                                                                                                                  \
    static void name##_output(const af_byte_rows *rows, af_byte_product p, float *acc)                                 \
    {                                                                                                                  \
        output_of_bytes(by_table, rows, p, acc);                                                                       \
    }                                                                                                                  \
    static const af_byte_kernels name##_kernels = {widen_bytes, name##_scores, name##_output};
BYTE_TABLE(byte, false)
#if AF_LOOKS_UP
BYTE_TABLE(by_table, true)
#endif
#undef BYTE_TABLE

#endif

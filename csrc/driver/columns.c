#include "driver/columns.h"

#include <string.h>

#include "driver/arena.h"
#include "driver/passes.h"
#include "plan/intervals.h"

/* A tile is read column by column, as it lies in memory, and written row by row: columns are often a multiple of a page
 * apart, and what is read across them shares one set of a cache. A thread takes TASK_ROWS at a time. */
enum { TILE_ROWS = 64, TILE_COLUMNS = 16, SQUARES_COLUMNS = 32, TASK_ROWS = 2048 };

typedef uint16_t __attribute__((may_alias)) bits_16;
typedef uint32_t __attribute__((may_alias)) bits_32;
typedef uint64_t __attribute__((may_alias)) bits_64;

typedef bits_32 four __attribute__((vector_size(16), aligned(4), may_alias));

typedef struct copying {
    af_tensor from, to;
    int64_t B, H, rows, width, size; /* size: bytes of an element */
} copying;

#define COPY_TILES(type)                                                                                               \
    do {                                                                                                               \
        const type *from = (const type *)c->from.data + af_offset(&c->from, b, h, first);                              \
        type *to = (type *)c->to.data + af_offset(&c->to, b, h, first), tile[TILE_ROWS][TILE_COLUMNS];                 \
        for (int64_t row = 0; row < rows; row += TILE_ROWS)                                                            \
            for (int64_t column = 0; column < c->width; column += TILE_COLUMNS) {                                      \
                const int64_t n = af_min(TILE_ROWS, rows - row), columns = af_min(TILE_COLUMNS, c->width - column);    \
                const type *at = from + row * c->from.i + column * c->from.j;                                          \
                for (int64_t d = 0; d < columns; d++)                                                                  \
                    for (int64_t i = 0; i < n; i++) tile[i][d] = at[i * c->from.i + d * c->from.j];                    \
                for (int64_t i = 0; i < n; i++)                                                                        \
                    memcpy(to + (row + i) * c->to.i + column, tile[i], (size_t)columns * sizeof(type));                \
            }                                                                                                          \
    } while (0)

/* Four elements of each of four columns that are `apart`, as parts of four rows. */
static void copy_square(const bits_32 *from, int64_t apart, bits_32 *to, int64_t width)
{
    const four a = *(const four *)from, b = *(const four *)(from + apart), c = *(const four *)(from + 2 * apart),
               d = *(const four *)(from + 3 * apart);
    const four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5),
               AB = __builtin_shufflevector(a, b, 2, 6, 3, 7), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(four *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(four *)(to + width) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    *(four *)(to + 2 * width) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
    *(four *)(to + 3 * width) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}

/* COPY_TILES for whole squares of 32-bit elements whose columns are contiguous: three times as fast. */
static void copy_squares(const copying *c, int64_t rows, const bits_32 *from, bits_32 *to)
{
    for (int64_t row = 0; row < rows; row += TILE_ROWS)
        for (int64_t column = 0; column < c->width; column += SQUARES_COLUMNS) {
            const int64_t end = af_min(row + TILE_ROWS, rows), last = af_min(column + SQUARES_COLUMNS, c->width);
            for (int64_t d = column; d < last; d += 4)
                for (int64_t i = row; i < end; i += 4)
                    copy_square(from + i + d * c->from.j, c->from.j, to + i * c->to.i + d, c->to.i);
        }
}

static void copy_some_rows(void *context, int64_t index, void *scratch)
{
    const copying *c = context;
    const int64_t tasks = (c->rows + TASK_ROWS - 1) / TASK_ROWS, first = index % tasks * TASK_ROWS;
    const int64_t rows = af_min(TASK_ROWS, c->rows - first), h = index / tasks % c->H, b = index / tasks / c->H;
    (void)scratch;
    if (c->size == 4 && c->from.i == 1 && rows % 4 == 0 && c->width % 4 == 0)
        copy_squares(c, rows, (const bits_32 *)c->from.data + af_offset(&c->from, b, h, first),
                     (bits_32 *)c->to.data + af_offset(&c->to, b, h, first));
    else if (c->size == 2) COPY_TILES(bits_16);
    else if (c->size == 4) COPY_TILES(bits_32);
    else COPY_TILES(bits_64);
}

/* The same tensor with contiguous rows; axes that repeat themselves are copied once. */
static af_status copy_rows(af_tensor *t, copying c, const af_run *run, af_watch *watch, af_arena *arena)
{
    if (!t->data || c.width < 2 || t->j == 1) return AF_OK;
    c.from = *t;
    if (!t->batch && !t->b) c.B = af_min(c.B, 1);
    if (!t->h) c.H = af_min(c.H, 1);
    if (!t->i) c.rows = af_min(c.rows, 1);
    if ((double)c.B * (double)c.H * (double)c.rows * (double)c.width > 0x1p56) return AF_NO_MEMORY;
    c.to = (af_tensor){.i = c.rows > 1 ? c.width : 0, .j = 1};
    c.to.h = c.H > 1 ? c.rows * c.width : 0;
    c.to.b = c.B > 1 ? c.H * c.rows * c.width : 0;
    c.to.data = af_take(arena, c.B * c.H * c.rows * c.width, (size_t)c.size);
    if (!c.to.data) return AF_NO_MEMORY;
    *t = c.to;
    const int64_t count = c.B * c.H * ((c.rows + TASK_ROWS - 1) / TASK_ROWS);
    const bool worth_threads = af_worth_threads((double)count * TASK_ROWS * (double)c.width);
    const af_work work = {.unit = copy_some_rows, .context = &c, .count = count, .share = 1};
    return af_run_work(&work, watch, af_threads_for(run->threads, count, worth_threads));
}

static af_status run_part(af_call call, const af_run *run, af_watch *watch,
                          af_status (*part)(af_call *, const af_run *, af_watch *))
{
    af_arena arena = {0};
    copying c = {.B = call.B, .H = call.Hk, .rows = call.Lk, .width = call.D, .size = af_elem_bytes(call.dtype)};
    af_status status = copy_rows(&call.operands.key, c, run, watch, &arena);
    c.width = call.Dv;
    if (status == AF_OK) status = copy_rows(&call.operands.value, c, run, watch, &arena);
    if (status == AF_OK) status = part(&call, run, watch);
    af_give_back(&arena);
    return status;
}

/* Of one head. */
static double copied_bytes(const af_call *call, const af_tensor *t, int64_t width)
{
    if (!t->data || width < 2 || t->j == 1) return 0;
    return (double)af_elem_bytes(call->dtype) * (double)width * (double)(t->i ? call->Lk : 1);
}

af_status af_run_rows(const af_call *call, const af_run *run, af_watch *watch,
                      af_status (*part)(af_call *call, const af_run *run, af_watch *watch))
{
    const double head =
        copied_bytes(call, &call->operands.key, call->D) + copied_bytes(call, &call->operands.value, call->Dv);
    const double fit = (double)af_memory_for(run) / (head + 1);
    const int64_t heads = fit < 1 ? 1 : fit < (double)call->Hk ? (int64_t)fit : call->Hk;
    const double fit_rows = fit / (double)call->Hk;
    const int64_t rows = fit_rows < 1 ? 1 : fit_rows < (double)call->B ? (int64_t)fit_rows : call->B;
    const int64_t group = call->H / af_max(1, call->Hk);
    af_status status = AF_OK;
    for (int64_t b = 0; b < call->B && status == AF_OK; b += rows)
        for (int64_t hk = 0; hk < call->Hk && status == AF_OK; hk += heads) {
            af_part p = af_whole_part(call);
            p.row = p.b = b;
            p.B = af_min(rows, call->B - b);
            p.h = hk * group;
            p.H = af_min(heads, call->Hk - hk) * group;
            status = run_part(af_cut_call(call, p), run, watch, part);
        }
    return status;
}

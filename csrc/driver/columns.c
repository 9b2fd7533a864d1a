#include "driver/columns.h"

#include <string.h>

#include "driver/arena.h"
#include "driver/attention.h"
#include "driver/passes.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "plan/plan.h"
#include "runtime/dispatch.h"

/* A tile is read column by column, as it lies in memory, and written row by row: columns are often a multiple of a page
 * apart, and what is read across them shares one set of a cache. A thread takes TASK_ROWS at a time. */
enum { TILE_ROWS = 64, TILE_COLUMNS = 16, TASK_ROWS = 2048 };

typedef uint16_t __attribute__((may_alias)) bits_16;
typedef uint32_t __attribute__((may_alias)) bits_32;
typedef uint64_t __attribute__((may_alias)) bits_64;

typedef struct copying {
    af_tensor from, to;
    int64_t B, H, rows, width, size; /* size: bytes of an element */
    const af_kernels *kernels;
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

static void copy_some_rows(void *context, int64_t index, void *scratch)
{
    const copying *c = context;
    const int64_t tasks = (c->rows + TASK_ROWS - 1) / TASK_ROWS, first = index % tasks * TASK_ROWS;
    const int64_t rows = af_min(TASK_ROWS, c->rows - first), h = index / tasks % c->H, b = index / tasks / c->H;
    (void)scratch;
    if (c->from.i == 1)
        c->kernels->copy_columns((const char *)c->from.data + af_offset(&c->from, b, h, first) * c->size, c->from.j,
                                 (char *)c->to.data + af_offset(&c->to, b, h, first) * c->size, c->to.i, rows,
                                 c->width);
    else if (c->size == 2) COPY_TILES(bits_16);
    else if (c->size == 4) COPY_TILES(bits_32);
    else COPY_TILES(bits_64);
}

/* Whether the rows of a tensor have to be copied. */
static bool is_copied(const af_call *call, const af_tensor *t, int64_t width)
{
    if (!af_in_columns(t, width)) return false;
    return t->i != 1 || t->j == 0 || !af_is_plain(call) || !af_reads_columns(call, af_kernels_for(call->dtype));
}

bool af_copies_columns(const af_call *call)
{
    const af_operands *p = &call->operands;
    return af_has_columns(call) && (is_copied(call, &p->key, call->D) || is_copied(call, &p->value, call->Dv));
}

/* The same tensor with contiguous rows; axes that repeat themselves are copied once. */
static af_status copy_rows(af_tensor *t, copying c, const af_run *run, af_watch *watch, af_arena *arena)
{
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
    c.kernels = af_kernels_for(call.dtype);
    af_status status = AF_OK;
    if (is_copied(&call, &call.operands.key, call.D)) status = copy_rows(&call.operands.key, c, run, watch, &arena);
    c.width = call.Dv;
    if (status == AF_OK && is_copied(&call, &call.operands.value, call.Dv))
        status = copy_rows(&call.operands.value, c, run, watch, &arena);
    if (status == AF_OK) status = part(&call, run, watch);
    af_give_back(&arena);
    return status;
}

/* Of one head. */
static double copied_bytes(const af_call *call, const af_tensor *t, int64_t width)
{
    if (!is_copied(call, t, width)) return 0;
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

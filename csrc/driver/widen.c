#include "driver/widen.h"

#include "driver/arena.h"
#include "driver/passes.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "runtime/dispatch.h"

/* Elements that a thread converts at a time. */
enum { SHARE_ELEMENTS = 1 << 14 };

/* Where memory comes from, and how loops run. */
typedef struct means {
    const af_run *run;
    af_watch *watch;
    af_arena *arena;
} means;

/* Rows of one dtype that become rows of another. */
typedef struct conversion {
    const af_kernels *kernels;
    af_tensor wide, narrow;
    int64_t B, H, rows, width;
    const af_call *pages; /* the call whose pages the narrow rows are in, or NULL */
} conversion;

/* Whether a row is padding in pages, which is never read. */
static bool is_nowhere(const conversion *c, int64_t b, int64_t i)
{
    if (!c->pages) return false;
    const af_visible *v = &c->pages->visible;
    return (v->kv_start && i < v->kv_start[b]) || (v->kv_length && i >= v->kv_length[b]);
}

static int64_t narrow_offset(const conversion *c, int64_t b, int64_t h, int64_t i)
{
    if (!c->pages) return af_offset(&c->narrow, b, h, i);
    const af_operands *p = &c->pages->operands;
    const int64_t page = p->block_table[b * p->blocks + i / p->page_size];
    return af_offset(&c->narrow, page, h, i % p->page_size);
}

static void widen_row(void *context, int64_t index, void *scratch)
{
    const conversion *c = context;
    const int64_t i = index % c->rows, h = index / c->rows % c->H, b = index / c->rows / c->H;
    (void)scratch;
    if (is_nowhere(c, b, i)) return;
    c->kernels->widen((const uint16_t *)c->narrow.data + narrow_offset(c, b, h, i),
                      (float *)c->wide.data + af_offset(&c->wide, b, h, i), c->width);
}

static void narrow_row(void *context, int64_t index, void *scratch)
{
    const conversion *c = context;
    const int64_t i = index % c->rows, h = index / c->rows % c->H, b = index / c->rows / c->H;
    (void)scratch;
    c->kernels->narrow((const float *)c->wide.data + af_offset(&c->wide, b, h, i),
                       (uint16_t *)c->narrow.data + af_offset(&c->narrow, b, h, i), c->width);
}

static af_status convert(conversion *c, void (*row)(void *, int64_t, void *), const means *m)
{
    const int64_t count = c->B * c->H * c->rows;
    const af_work work = {.unit = row, .context = c, .count = count, .share = 1 + SHARE_ELEMENTS / (1 + c->width)};
    const bool worth_threads = af_worth_threads((double)count * (double)c->width);
    return af_run_work(&work, m->watch, af_threads_for(m->run->threads, count, worth_threads));
}

/* Memory for [B][H][rows][width] reals, of which axes that repeat themselves are there once. */
static bool take_wide(conversion *c, const af_tensor *like, af_arena *arena)
{
    if (!like->batch && !like->b) c->B = af_min(c->B, 1);
    if (!like->h) c->H = af_min(c->H, 1);
    if (!like->i) c->rows = af_min(c->rows, 1);
    if ((double)c->B * (double)c->H * (double)c->rows * (double)c->width > 0x1p56) return false;
    c->wide = (af_tensor){.data = af_take(arena, c->B * c->H * c->rows * c->width, sizeof(float)), .j = 1};
    c->wide.b = c->B > 1 ? c->H * c->rows * c->width : 0;
    c->wide.h = c->H > 1 ? c->rows * c->width : 0;
    c->wide.i = c->rows > 1 ? c->width : 0;
    return c->wide.data != NULL;
}

static af_status widen(af_dtype dtype, af_tensor *t, conversion c, const means *m)
{
    if (!t->data) return AF_OK;
    c.kernels = af_kernels_for(dtype);
    c.narrow = *t;
    const af_tensor rows = {.b = 1, .h = t->h, .i = 1}; /* of pages, each row is another one */
    if (!take_wide(&c, c.pages ? &rows : t, m->arena)) return AF_NO_MEMORY;
    *t = c.wide;
    return convert(&c, widen_row, m);
}

static af_status run_part(const af_call *narrow, const means *m, af_status (*part)(void *, const af_call *),
                          void *context)
{
    const conversion queries = {.B = narrow->B, .H = narrow->H, .rows = narrow->Lq, .width = narrow->D},
                     keys = {.B = narrow->B,
                             .H = narrow->Hk,
                             .rows = narrow->Lk,
                             .width = narrow->D,
                             .pages = narrow->operands.block_table ? narrow : NULL};
    conversion values = keys, output = queries;
    values.width = output.width = narrow->Dv;
    output.kernels = af_kernels_for(narrow->dtype);
    output.narrow = narrow->results.output;
    af_call wide = *narrow;
    wide.dtype = AF_F32;
    af_status status = widen(narrow->dtype, &wide.operands.query, queries, m);
    if (!narrow->operands.storage) {
        if (status == AF_OK) status = widen(narrow->dtype, &wide.operands.key, keys, m);
        if (status == AF_OK) status = widen(narrow->dtype, &wide.operands.value, values, m);
        wide.operands.block_table = NULL;
    }
    if (status == AF_OK && output.narrow.data) {
        if (!take_wide(&output, &(af_tensor){.b = 1, .h = 1, .i = 1}, m->arena)) return AF_NO_MEMORY;
        wide.results.output = output.wide;
    }
    if (status == AF_OK) status = part(context, &wide);
    if (status != AF_OK || !output.narrow.data) return status;
    return convert(&output, narrow_row, m);
}

af_status af_run_wide(const af_call *call, const af_run *run, af_watch *watch,
                      af_status (*part)(void *context, const af_call *wide), void *context)
{
    const int64_t group = call->H / call->Hk;
    const double keys = call->operands.storage ? 0 : (double)call->Lk;
    const double head = 4 * (double)(call->D + call->Dv) * ((double)group * (double)call->Lq + keys);
    const double fit = (double)af_memory_for(run) / (head + 1);
    const int64_t heads = fit < 1 ? 1 : fit < (double)call->Hk ? (int64_t)fit : call->Hk;
    const double fit_rows = fit / (double)call->Hk;
    const int64_t rows = fit_rows < 1 ? 1 : fit_rows < (double)call->B ? (int64_t)fit_rows : call->B;
    for (int64_t b = 0; b < call->B; b += rows)
        for (int64_t hk = 0; hk < call->Hk; hk += heads) {
            af_arena arena = {0};
            const means m = {run, watch, &arena};
            af_part p = af_whole_part(call);
            p.row = p.b = b;
            p.B = af_min(rows, call->B - b);
            p.h = hk * group;
            p.H = af_min(heads, call->Hk - hk) * group;
            const af_call narrow = af_cut_call(call, p);
            const af_status status = run_part(&narrow, &m, part, context);
            af_give_back(&arena);
            if (status != AF_OK) return status;
        }
    return AF_OK;
}

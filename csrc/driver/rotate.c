/* A unit is a few rows of one batch row, of all heads: cos and sin of their positions are computed once for all heads
 * and stay in the first-level cache. Nothing of the size of a table of all positions exists. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "driver/arena.h"
#include "driver/passes.h"
#include "kernels.h"
#include "plan/intervals.h"
#include "plan/legal.h"
#include "runtime/dispatch.h"

/* Bytes of cos and sin in a unit, and the most rows: 16 of D = 128. */
enum { TABLE_BYTES = 16 << 10, MOST_ROWS = 16, CACHE_LINE = 64 };

/* What a pair costs in flops of a call of attention: cos and sin, and its share in each head. */
static const double FLOPS_OF_ANGLE = 100, FLOPS_OF_PAIR = 16;

typedef struct rotating {
    const af_rotation *r;
    const af_kernels *kernels;
    int64_t rows, chunks; /* of a unit; units of a batch row */
    size_t row_bytes;     /* of a table */
    double *frequency;    /* of each pair, where there are no tables */
} rotating;

static double entry(const rotating *w, const af_tensor *table, int64_t position, int64_t d)
{
    const int64_t at = position * table->i + d * table->j;
    return w->r->dtype == AF_F64 ? ((const double *)table->data)[at] : (double)((const float *)table->data)[at];
}

static void put(const rotating *w, char *table, int64_t d, double x)
{
    if (w->r->dtype == AF_F64) ((double *)table)[d] = x;
    else ((float *)table)[d] = (float)x;
}

/* The tables of one row, as the kernel of its convention takes them. */
static void fill_row(const rotating *w, int64_t position, char *cosine, char *sine)
{
    const af_rotation *r = w->r;
    for (int64_t d = 0; d < r->pairs; d++) {
        const double angle = w->frequency ? (double)position * w->frequency[d] : 0;
        const double c = w->frequency ? cos(angle) : entry(w, &r->cosine, position, d);
        const double s = w->frequency ? sin(angle) : entry(w, &r->sine, position, d);
        const int64_t at = r->interleaved ? 2 * d : d;
        put(w, cosine, at, c);
        put(w, sine, at, r->interleaved ? -s : s);
        if (!r->interleaved) continue;
        put(w, cosine, at + 1, c);
        put(w, sine, at + 1, s);
    }
}

static void rotate_row(const rotating *w, const char *from, char *to, const char *cosine, const char *sine)
{
    const af_rotation *r = w->r;
    const int64_t rotated = 2 * r->pairs * af_elem_bytes(r->dtype), all = r->D * af_elem_bytes(r->dtype);
    if (r->interleaved) w->kernels->rotate_neighbours(from, to, cosine, sine, 2 * r->pairs);
    else w->kernels->rotate_halves(from, to, cosine, sine, r->pairs);
    if (to != from && all > rotated) memcpy(to + rotated, from + rotated, (size_t)(all - rotated));
}

static void rotate_unit(void *context, int64_t index, void *scratch)
{
    const rotating *w = context;
    const af_rotation *r = w->r;
    const int64_t b = index / w->chunks, first = index % w->chunks * w->rows;
    const int64_t n = af_min(w->rows, r->L - first), size = af_elem_bytes(r->dtype);
    const int64_t *position = r->position.data;
    char *cosine = scratch, *sine = cosine + (size_t)w->rows * w->row_bytes;
    for (int64_t i = 0; i < n; i++)
        fill_row(w, position[af_offset(&r->position, b, 0, first + i)], cosine + (size_t)i * w->row_bytes,
                 sine + (size_t)i * w->row_bytes);
    for (int64_t h = 0; h < r->H; h++)
        for (int64_t i = 0; i < n; i++)
            rotate_row(w, (const char *)r->from.data + af_offset(&r->from, b, h, first + i) * size,
                       (char *)r->to.data + af_offset(&r->to, b, h, first + i) * size,
                       cosine + (size_t)i * w->row_bytes, sine + (size_t)i * w->row_bytes);
}

static af_status run(rotating *w, const af_run *how, af_arena *arena)
{
    const af_rotation *r = w->r;
    const int64_t count = r->B * w->chunks;
    const double angles = (double)r->B * (double)r->L * (double)r->pairs;
    const double flops = angles * (FLOPS_OF_ANGLE + FLOPS_OF_PAIR * (double)r->H);
    const int threads = af_threads_for(how->threads, count, af_worth_threads(flops));
    af_work work = {.unit = rotate_unit, .context = w, .count = count, .share = af_share_of(flops, count)};
    if (!r->cosine.data) {
        w->frequency = af_take(arena, r->pairs, sizeof(double));
        if (!w->frequency) return AF_NO_MEMORY;
        for (int64_t d = 0; d < r->pairs; d++) w->frequency[d] = pow(r->base, -(double)d / (double)r->pairs);
    }
    work.scratch_bytes = 2 * (size_t)w->rows * w->row_bytes;
    work.scratch = af_take(arena, threads, work.scratch_bytes);
    if (!work.scratch) return AF_NO_MEMORY;
    af_watch watch = af_start_watch(how);
    return af_run_work(&work, &watch, threads);
}

af_status af_rotate(const af_rotation *rotation, const af_run *how)
{
    af_rotation r = {.base = 10000};
    memcpy(&r, rotation, af_min((int64_t)rotation->size, (int64_t)sizeof r));
    assert(af_rotation_is_legal(&r));
    if (r.B == 0 || r.H == 0 || r.L == 0 || r.D == 0) return AF_OK;
    rotating w = {.r = &r, .kernels = af_kernels_for(r.dtype)};
    const int64_t entries = r.interleaved ? 2 * r.pairs : r.pairs;
    w.row_bytes = ((size_t)(entries + 1) * (size_t)af_real_bytes(r.dtype) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    w.rows = af_max(1, af_min(af_min(MOST_ROWS, r.L), TABLE_BYTES / 2 / (int64_t)w.row_bytes));
    w.chunks = (r.L + w.rows - 1) / w.rows;
    af_arena arena = {0};
    const af_status status = run(&w, af_or_default_run(how), &arena);
    af_give_back(&arena);
    return status;
}

/* A block of query rows: its rows, and the scratch memory of the kernels. What the rows see is in plan/visibility.h. */
#ifndef AF_BLOCK_H
#define AF_BLOCK_H

#include "kernel/types.h"
#include "plan/visibility.h"

typedef struct query_block {
    af_visibility vis;
    int n, nv;                   /* rows, and the vectors that hold them */
    bool hides;                  /* something in the span may be hidden from some row */
    int v0, v1;                  /* vectors of lanes in use, see take_keys */
    const real *bias_row[AF_NR]; /* where there is a bias or a mask, their rows */
    const uint8_t *mask_row[AF_NR];
} query_block;

/* The offsets of the rows of a block in a tensor that has one row for every query of every head. */
static void row_offsets(const af_tensor *t, const af_visibility *vis, int64_t offset[AF_NR])
{
    const int64_t base = af_offset(t, vis->b, 0, 0);
    if (vis->successive) {
        const int64_t first = base + vis->head[0] * t->h + vis->query[0] * t->i;
        for (int lane = 0; lane < vis->n; lane++) offset[lane] = first + lane * t->i;
    } else {
        for (int lane = 0; lane < vis->n; lane++)
            offset[lane] = base + vis->head[lane] * t->h + vis->query[lane] * t->i;
    }
}

static void find_rows(const af_tensor *t, const af_visibility *vis, elem *rows[AF_NR])
{
    int64_t offset[AF_NR];
    row_offsets(t, vis, offset);
    for (int lane = 0; lane < vis->n; lane++) rows[lane] = (elem *)t->data + offset[lane];
}

static void make_block(query_block *block, const af_call *call, const af_plan *plan, af_unit unit)
{
    int64_t offset[AF_NR];
    af_visibility *vis = &block->vis;
    af_find_visibility(vis, call, plan, unit, plan->decode ? AF_MAX_ROWS : VL);
    block->n = unit.rows;
    block->v0 = 0;
    block->v1 = block->nv = (unit.rows + VL - 1) / VL;
    block->hides = call->visible.mask.data || call->score.bias.data || af_has_pattern(call) ||
                   vis->inner.begin > vis->span.begin || vis->inner.end < vis->span.end;
    if (call->score.bias.data) row_offsets(&call->score.bias, vis, offset);
    for (int lane = 0; call->score.bias.data && lane < block->n; lane++)
        block->bias_row[lane] = (const real *)call->score.bias.data + offset[lane];
    if (call->visible.mask.data) row_offsets(&call->visible.mask, vis, offset);
    for (int lane = 0; call->visible.mask.data && lane < block->n; lane++)
        block->mask_row[lane] = (const uint8_t *)call->visible.mask.data + offset[lane];
}

/* Takes the next piece of keys, from j on; returns its length. No vector is in use if no row sees any of these keys. */
static int64_t take_keys(query_block *block, const af_call *call, int64_t j, int64_t most)
{
    const af_piece piece = af_next_piece(&block->vis, call, block->vis.span, j, most);
    block->v0 = piece.first;
    block->v1 = piece.last;
    return piece.keys;
}

typedef struct scratch {
    real *query;       /* [D][NR], or [rows][D] in decode */
    real *s;           /* [key_block][NR], or [rows][key_block] */
    real *o;           /* [Dv][NR], or [rows][Dv] in decode */
    real *m, *l;       /* [NR] running maximum and sum */
    real *key, *value; /* widened 16-bit keys and values */
    uint64_t *words;   /* [key_block + 1], or [key_block / 64][DECODE_ROWS] in decode */
    /* Additive scores: [D][NR], [key_block][D], [D / DEPTH]; the lanes and keys beyond AF_TANH_RANGE. */
    real *query_exp, *key_exp, *start;
    uint64_t *overflow;
    uint8_t *key_overflow;
    real *top, *top_key; /* [topk][NR] */
    real *sums, *totals; /* importance: [chunk_keys][VL] */
} scratch;

/* Elements of O. */
static int64_t output_size(const af_call *call, const af_plan *plan)
{
    return call->Dv * (plan->decode ? plan->block_rows : AF_NR);
}

/* Lays out the scratch memory from `base`, unless that is NULL; returns its size. */
static size_t carve(scratch *s, const af_call *call, const af_plan *plan, char *base)
{
    size_t size = 0;
#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        (s)->field = base ? (void *)(base + size) : NULL;                                                              \
        size += ((size_t)(count) * sizeof *(s)->field + 63) & ~(size_t)63;                                             \
    } while (0)
    const int64_t keys = plan->key_block;
    TAKE(query, call->D * AF_NR);
    TAKE(s, keys * (plan->decode ? plan->block_rows : AF_NR));
    TAKE(o, output_size(call, plan));
    TAKE(m, AF_NR);
    TAKE(l, AF_NR);
    TAKE(key, AF_HALF && !plan->decode ? keys * call->D : 0);
    TAKE(value, AF_HALF && !plan->decode ? keys * call->Dv : 0);
    TAKE(words, keys + 1);
    const bool exps = call->score.additive && !plan->decode;
    TAKE(query_exp, exps ? call->D * AF_NR : 0);
    TAKE(key_exp, exps ? keys * call->D : 0);
    TAKE(start, exps ? call->D : 0);
    TAKE(overflow, exps);
    TAKE(key_overflow, exps ? keys : 0);
    TAKE(top, call->results.topk * AF_NR);
    TAKE(top_key, call->results.topk * AF_NR);
    TAKE(sums, call->results.importance ? plan->chunk_keys * VL : 0);
    TAKE(totals, call->results.importance ? plan->chunk_keys * VL : 0);
#undef TAKE
    return size;
}

static size_t scratch_bytes(const af_call *call, const af_plan *plan)
{
    scratch s;
    return carve(&s, call, plan, NULL);
}

/* The running state before any key: nothing seen. A finite maximum keeps -inf - m defined. */
static void reset_state(const scratch *s)
{
    for (int j = 0; j < AF_NR; j++) {
        s->m[j] = -AF_LARGEST;
        s->l[j] = 0;
    }
}

static void zero_output(const af_call *call, const af_plan *plan, const scratch *s)
{
    const int64_t size = output_size(call, plan);
    for (int64_t i = 0; i < size; i++) s->o[i] = 0;
}

#endif

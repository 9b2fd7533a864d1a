/* A block of query rows: who the lanes are, and the scratch memory of the kernels. What they see is view.h's. */
#ifndef AF_BLOCK_H
#define AF_BLOCK_H

#include "view.h"

typedef struct block {
    af_view view;
    int n, nv;                   /* rows, and the vectors that hold them */
    bool hides;                  /* something in the span may be hidden from some row */
    int v0, v1;                  /* vectors of lanes in use, see take_keys */
    const real *bias_row[AF_NR]; /* where there is a bias or a mask, their rows */
    const uint8_t *mask_row[AF_NR];
} block;

/* Where the rows of a view begin in a tensor that has one row for every query of every head. */
static void row_offsets(const af_tensor *t, const af_view *w, int64_t offset[AF_NR])
{
    const int64_t base = af_offset(t, w->b, 0, 0);
    if (w->successive) {
        const int64_t first = base + w->head[0] * t->h + w->query[0] * t->i;
        for (int lane = 0; lane < w->n; lane++) offset[lane] = first + lane * t->i;
    } else {
        for (int lane = 0; lane < w->n; lane++) offset[lane] = base + w->head[lane] * t->h + w->query[lane] * t->i;
    }
}

static void find_rows(const af_tensor *t, const af_view *w, elem *rows[AF_NR])
{
    int64_t offset[AF_NR];
    row_offsets(t, w, offset);
    for (int lane = 0; lane < w->n; lane++) rows[lane] = (elem *)t->data + offset[lane];
}

static void make_block(block *k, const af_problem *p, const af_plan *plan, af_unit unit)
{
    int64_t offset[AF_NR];
    af_view *w = &k->view;
    af_look(w, p, plan, unit, plan->decode ? AF_MOST_ROWS : VL);
    k->n = unit.rows;
    k->v0 = 0;
    k->v1 = k->nv = (unit.rows + VL - 1) / VL;
    k->hides = p->mask.data || p->bias.data || af_has_pattern(p) || w->inner.begin > w->span.begin ||
               w->inner.end < w->span.end;
    if (p->bias.data) row_offsets(&p->bias, w, offset);
    for (int lane = 0; p->bias.data && lane < k->n; lane++)
        k->bias_row[lane] = (const real *)p->bias.data + offset[lane];
    if (p->mask.data) row_offsets(&p->mask, w, offset);
    for (int lane = 0; p->mask.data && lane < k->n; lane++)
        k->mask_row[lane] = (const uint8_t *)p->mask.data + offset[lane];
}

/* Puts the next keys, from j on, into use; returns how many. No vector is in use if no row sees them. */
static int64_t take_keys(block *k, const af_problem *p, int64_t j, int64_t most)
{
    const af_piece piece = af_next_piece(&k->view, p, k->view.span, j, most);
    k->v0 = piece.first;
    k->v1 = piece.last;
    return piece.keys;
}

typedef struct scratch {
    real *query;       /* [D][NR], or [rows][D] in decode */
    real *s;           /* [key_block][NR], or [rows][key_block] */
    real *o;           /* [Dv][NR], or [rows][Dv] in decode */
    real *m, *l;       /* [NR] running maximum and sum */
    real *key, *value; /* widened 16-bit keys and values */
    uint64_t *words;   /* [key_block + 1], or [key_block / 64][DECODE_ROWS] in decode */
    /* Additive scores: [D][NR], [key_block][D], [D / DEPTH]; the lanes and keys beyond AF_TAME. */
    real *query_exp, *key_exp, *start;
    uint64_t *wild;
    uint8_t *key_wild;
    real *top, *top_key; /* [topk][NR] */
    real *sums, *totals; /* importance: [chunk_keys][VL] */
} scratch;

/* Elements of O. */
static int64_t output_size(const af_problem *p, const af_plan *plan)
{
    return p->Dv * (plan->decode ? plan->block_rows : AF_NR);
}

/* Lays the scratch memory out from `base`, unless that is NULL; returns its size. */
static size_t carve(scratch *s, const af_problem *p, const af_plan *plan, char *base)
{
    size_t size = 0;
#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        (s)->field = base ? (void *)(base + size) : NULL;                                                              \
        size += ((size_t)(count) * sizeof *(s)->field + 63) & ~(size_t)63;                                             \
    } while (0)
    const int64_t keys = plan->key_block;
    TAKE(query, p->D * AF_NR);
    TAKE(s, keys * (plan->decode ? plan->block_rows : AF_NR));
    TAKE(o, output_size(p, plan));
    TAKE(m, AF_NR);
    TAKE(l, AF_NR);
    TAKE(key, AF_HALF && !plan->decode ? keys * p->D : 0);
    TAKE(value, AF_HALF && !plan->decode ? keys * p->Dv : 0);
    TAKE(words, keys + 1);
    const bool exps = p->additive && !plan->decode;
    TAKE(query_exp, exps ? p->D * AF_NR : 0);
    TAKE(key_exp, exps ? keys * p->D : 0);
    TAKE(start, exps ? p->D : 0);
    TAKE(wild, exps);
    TAKE(key_wild, exps ? keys : 0);
    TAKE(top, p->topk * AF_NR);
    TAKE(top_key, p->topk * AF_NR);
    TAKE(sums, p->importance ? plan->chunk_keys * VL : 0);
    TAKE(totals, p->importance ? plan->chunk_keys * VL : 0);
#undef TAKE
    return size;
}

static size_t scratch_bytes(const af_problem *p, const af_plan *plan)
{
    scratch s;
    return carve(&s, p, plan, NULL);
}

/* The running state before any key: nothing seen. A finite maximum keeps -inf - m defined. */
static void reset_state(const scratch *s)
{
    for (int j = 0; j < AF_NR; j++) {
        s->m[j] = -AF_LARGEST;
        s->l[j] = 0;
    }
}

static void zero_output(const af_problem *p, const af_plan *plan, const scratch *s)
{
    const int64_t size = output_size(p, plan);
    for (int64_t i = 0; i < size; i++) s->o[i] = 0;
}

#endif

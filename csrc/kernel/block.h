/* A block of query rows: who the lanes are, which keys they can see, and the scratch memory of the kernels.
 *
 * The G heads that share a key/value head are interleaved: row r is query i = r / G of head hk * G + r % G, so that a
 * block is a short run of queries and its keys are read once for the whole group. */
#ifndef AF_BLOCK_H
#define AF_BLOCK_H

typedef struct block {
    af_unit unit;
    int n, nv; /* rows, and the vectors that hold them */
    int64_t b, hk;
    af_span span;        /* keys that any row sees */
    af_span inner;       /* keys that every row sees */
    bool hides;          /* something in span may be hidden from some row */
    const uint8_t *mask; /* the mask over the keys, if all rows have the same one */
    int v0, v1;          /* vectors of lanes in use, see take_keys */
    af_span vector_span[AF_NV];
    af_span visible[AF_NR];
    int64_t query[AF_NR], head[AF_NR];
    const real *bias_row[AF_NR]; /* where there is a bias or a mask, their rows */
    const uint8_t *mask_row[AF_NR];
} block;

/* Where the rows of a unit begin in a tensor that has one row for every query of every head. */
static void row_offsets(const af_tensor *t, int64_t group, af_unit unit, int64_t offset[AF_NR])
{
    int64_t g = unit.row % group, at = af_offset(t, unit.b, unit.hk * group + g, unit.row / group);
    for (int lane = 0; lane < unit.rows; lane++) {
        offset[lane] = at;
        at += t->h;
        if (++g < group) continue;
        g = 0;
        at += t->i - group * t->h;
    }
}

static void find_rows(const af_tensor *t, int64_t group, af_unit unit, elem *rows[AF_NR])
{
    int64_t offset[AF_NR];
    row_offsets(t, group, unit, offset);
    for (int lane = 0; lane < unit.rows; lane++) rows[lane] = (elem *)t->data + offset[lane];
}

/* No row sees more keys than another, as far as positions and lengths decide it. */
static bool rows_see_alike(const af_problem *p) { return p->left >= AF_FAR && p->right >= AF_FAR && !p->q_length; }

static void make_block(block *k, const af_problem *p, const af_plan *plan, af_unit unit)
{
    int64_t i = unit.row / plan->group, g = unit.row % plan->group, offset[AF_NR];
    const af_span first = af_visible_keys(p, unit.b, i);
    const bool alike = rows_see_alike(p);
    *k = (block){.unit = unit, .n = unit.rows, .nv = (unit.rows + VL - 1) / VL, .b = unit.b, .hk = unit.hk};
    k->span = k->inner = first;
    k->v1 = k->nv;
    for (int c = 0; alike && c < k->nv; c++) k->vector_span[c] = first;
    for (int lane = 0; lane < unit.rows; lane++) {
        const af_span seen = alike ? first : lane > 0 && g > 0 ? k->visible[lane - 1] : af_visible_keys(p, unit.b, i);
        k->visible[lane] = seen;
        k->query[lane] = i;
        k->head[lane] = unit.hk * plan->group + g;
        if (!alike) {
            k->vector_span[lane / VL] = af_join(k->vector_span[lane / VL], seen);
            k->span = af_join(k->span, seen);
            k->inner = (af_span){af_max(k->inner.begin, seen.begin), af_min(k->inner.end, seen.end)};
        }
        if (++g == plan->group) {
            g = 0;
            i++;
        }
    }
    if (p->bias.data) row_offsets(&p->bias, plan->group, unit, offset);
    for (int lane = 0; p->bias.data && lane < k->n; lane++)
        k->bias_row[lane] = (const real *)p->bias.data + offset[lane];
    if (p->mask.data) row_offsets(&p->mask, plan->group, unit, offset);
    for (int lane = 0; p->mask.data && lane < k->n; lane++)
        k->mask_row[lane] = (const uint8_t *)p->mask.data + offset[lane];
    k->mask = af_key_mask(p, k->b, k->hk);
    k->span = af_trim(k->mask, k->span);
    k->hides = p->mask.data || p->bias.data || k->inner.begin > k->span.begin || k->inner.end < k->span.end;
}

/* Puts the next keys, from j on, into use; returns how many. */
static int take_keys(block *k, int64_t j, int64_t most)
{
    const af_piece piece = af_take_keys(k->vector_span, k->nv, k->span, k->mask, j, most);
    k->v0 = piece.first;
    k->v1 = piece.last;
    return (int)piece.keys;
}

typedef struct scratch {
    real *query;       /* [D][NR], or [rows][D] in decode */
    real *s;           /* [key_block][NR], or [rows][key_block] */
    real *o;           /* [Dv][NR] */
    real *rows;        /* decode: [rows][Dv] */
    real *m, *l;       /* [NR] running maximum and sum */
    real *key, *value; /* widened 16-bit keys and values */
    uint64_t *words;   /* [key_block + 1], or [key_block / 64][DECODE_ROWS] in decode */
} scratch;

/* Lays the scratch memory out from `base`; returns its end. */
static char *carve(scratch *s, const af_problem *p, const af_plan *plan, char *base)
{
    char *end = base;
#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        (s)->field = (void *)end;                                                                                      \
        end += ((size_t)(count) * sizeof *(s)->field + 63) & ~(size_t)63;                                              \
    } while (0)
    const int64_t keys = plan->key_block;
    TAKE(query, p->D * AF_NR);
    TAKE(s, keys * (plan->decode ? plan->block_rows : AF_NR));
    TAKE(o, p->Dv * AF_NR);
    TAKE(rows, plan->decode ? plan->block_rows * p->Dv : 0);
    TAKE(m, AF_NR);
    TAKE(l, AF_NR);
    TAKE(key, AF_HALF && !plan->decode ? keys * p->D : 0);
    TAKE(value, AF_HALF && !plan->decode ? keys * p->Dv : 0);
    TAKE(words, keys + 1);
#undef TAKE
    return end;
}

static size_t scratch_bytes(const af_problem *p, const af_plan *plan)
{
    scratch s;
    return (size_t)(carve(&s, p, plan, NULL) - (char *)NULL);
}

/* The running state before any key: nothing seen. A finite maximum keeps -inf - m defined. */
static void reset_state(const scratch *s)
{
    for (int j = 0; j < AF_NR; j++) {
        s->m[j] = -AF_LARGEST;
        s->l[j] = 0;
    }
}

static void zero_output(const scratch *s, int64_t Dv)
{
    for (int64_t j = 0; j < Dv * AF_NR; j++) s->o[j] = 0;
}

#endif

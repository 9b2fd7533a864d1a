/* A block of query rows: its rows, and the scratch memory of the kernels. What the rows see is in plan/visibility.h. */
#ifndef AF_BLOCK_H
#define AF_BLOCK_H

#include "kernel/prefetch.h"
#include "kernel/rows.h"
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

/* The same for one row: of few rows each is found when it is taken. */
AF_INLINE elem *find_row(const af_tensor *t, const af_visibility *vis, int lane)
{
    return (elem *)t->data + af_offset(t, vis->b, vis->head[lane], vis->query[lane]);
}

/* Block g of a unit of one batch row; without rows where the unit has fewer blocks. */
static af_unit block_of_unit(const af_plan *plan, af_unit unit, int g)
{
    if (plan->decode) {
        unit.hg += g;
        return unit;
    }
    const int before = g * plan->block_rows;
    unit.row += before;
    unit.rows = (int)af_max(0, af_min(plan->block_rows, unit.rows - before));
    return unit;
}

static void open_bias_rows(query_block *block, const af_call *call)
{
    int64_t offset[AF_NR];
    if (!call->score.bias.data) return;
    row_offsets(&call->score.bias, &block->vis, offset);
    for (int lane = 0; lane < block->n; lane++)
        block->bias_row[lane] = (const real *)call->score.bias.data + offset[lane];
}

static void open_mask_rows(query_block *block, const af_call *call)
{
    int64_t offset[AF_NR];
    if (!call->visible.mask.data) return;
    row_offsets(&call->visible.mask, &block->vis, offset);
    for (int lane = 0; lane < block->n; lane++)
        block->mask_row[lane] = (const uint8_t *)call->visible.mask.data + offset[lane];
}

static void make_block(query_block *block, const af_call *call, const af_plan *plan, af_unit unit)
{
    af_visibility *vis = &block->vis;
    af_find_visibility(vis, call, plan, unit, plan->decode ? AF_MAX_ROWS : VL);
    block->n = unit.rows;
    block->v0 = 0;
    block->v1 = block->nv = (unit.rows + VL - 1) / VL;
    block->hides = call->visible.mask.data || call->score.bias.data || af_has_pattern(call) ||
                   vis->inner.begin > vis->span.begin || vis->inner.end < vis->span.end;
    open_bias_rows(block, call);
    open_mask_rows(block, call);
}

/* The same for the rows of another head group that sees the same keys. */
static void move_block(query_block *block, const af_call *call, const af_plan *plan, af_unit unit)
{
    af_visibility *vis = &block->vis;
    const int64_t heads = unit.hg * plan->group - vis->head[0];
    vis->b = unit.b;
    vis->hk = af_key_head(call, plan, unit);
    const af_tensor *bias = &call->score.bias;
    for (int lane = 0; lane < block->n; lane++) {
        vis->head[lane] += heads;
        const int64_t at = af_offset(bias, vis->b, vis->head[lane], vis->query[lane]);
        if (bias->data) block->bias_row[lane] = (const real *)bias->data + at;
    }
}

/* Takes the next piece of keys, from j on; returns its length. No vector is in use if no row sees any of these keys. */
static int64_t take_keys(query_block *block, const af_call *call, int64_t j, int64_t most)
{
    const af_piece piece = af_next_piece(&block->vis, call, block->vis.span, j, most);
    block->v0 = piece.first;
    block->v1 = piece.last;
    return piece.keys;
}

/* What additive scores are made of, see additive.h. */
typedef struct additive_terms {
    real *query_exp;       /* [D][NR] */
    real *start;           /* [D / DEPTH] */
    real *key_exp;         /* [key_block][D] */
    uint64_t *overflow;    /* the lanes beyond AF_TANH_RANGE */
    uint8_t *key_overflow; /* [key_block]: the keys beyond it */
} additive_terms;

/* Scores of keys in columns, which are read whole where a block of decode has only part of them. */
typedef struct keys_ahead {
    int64_t begin, end, last; /* these have scores; the unit's keys end at `last` */
    real *score;
} keys_ahead;

/* The memory of a unit. Where a unit has several blocks, each has its own part of some fields, see carve_block. */
typedef struct scratch {
    real *query;                 /* [D][NR], or [rows][D] in decode */
    real *s;                     /* [key_block][NR], or [rows][key_block] */
    real *o;                     /* [Dv][NR], or [rows][Dv] in decode */
    real *m, *l;                 /* [NR] running maximum and sum */
    af_rows *keys, *values;      /* those of the unit's key/value head */
    real *key_copy, *value_copy; /* see rows.h */
    real *clean;                 /* [key_block][CLEAN_COLUMNS]: values without what is not finite */
    uint64_t *words;             /* [key_block + 1], or [key_block / 64][DECODE_ROWS] in decode */
    additive_terms additive;
    real *top, *top_key; /* [topk][NR] */
    real *sums, *totals; /* importance: [chunk_keys][VL] */
    real *column_sums;   /* see decode_columns.h */
    keys_ahead *scored;  /* or NULL */
} scratch;

/* What dropout needs of each row, see dropout.h. */
typedef struct drop_rows {
    uint32_t a[AF_NR], b[AF_NR];
} drop_rows;

/* A block of rows on its way through the keys. */
typedef struct block_run {
    query_block block;
    scratch s;          /* the unit's, with the block's own query, o, m and l */
    int64_t next;       /* the first key that has not been taken yet */
    bool packed, empty; /* the query is packed; nothing is in O yet */
    bool nan_safe;
    drop_rows drop;
    edges edge;
} block_run;

/* Columns of values that are cleaned at a time: a multiple of VL. */
enum { CLEAN_COLUMNS = 64 };

static bool met_infinity(const af_plan *plan)
{
    return plan->met_infinity && atomic_load_explicit(plan->met_infinity, memory_order_relaxed);
}

/* Query rows that decode takes at most: twice the four that one pass over keys and values takes (decode_products.h). */
enum { DECODE_ROWS = AF_NR < 8 ? AF_NR : 8 };

/* Keys times query rows whose scores are made together where keys are in columns and rows are several: as many as have
 * their sums in a first-level cache of 32 KiB, of 16 bits twice as many. At least DECODE_ROWS * VL. */
enum { SHARED_SUMS = (32 << 10) / (VL * (int)sizeof(elem)) };

/* The most heads that take turns: TURN_ROWS of plan.c. */
enum { TURN_HEADS = 32 };

/* A block of decode on its way through the keys. */
typedef struct decode_run {
    query_block block;
    scratch s;        /* the unit's, with the block's own query, s, o, m, l, words, keys and values */
    int64_t j0, next; /* the keys that it has taken begin and end here ... */
    int n;            /* ... and are so many; 0: there are no more */
    bool any;         /* it may see some of them */
} decode_run;

/* Elements of O. */
static int64_t output_size(const af_call *call, const af_plan *plan)
{
    return call->Dv * (plan->decode ? plan->block_rows : AF_NR);
}

/* The most keys, or values, of this width of which there are copies at a time. */
static int64_t copy_room(const af_call *call, const af_plan *plan, int64_t width)
{
    if (!af_copies_keys(call)) return 0;
    if (plan->decode) return call->operands.block_table || call->operands.storage ? near_rows(width) : 0;
    return plan->key_block * (plan->unit_blocks > 1 ? 2 : 1);
}

/* Elements of a block's query, and of its words. */
static int64_t query_size(const af_call *call, const af_plan *plan)
{
    return call->D * (plan->decode ? plan->block_rows : AF_NR);
}
static int64_t word_count(const af_plan *plan)
{
    return plan->decode ? (plan->key_block / 64 + 1) * DECODE_ROWS : plan->key_block + 1;
}

/* Keys in columns times query rows whose scores are made together. */
static int64_t column_keys(const af_call *call, const af_plan *plan)
{
    if (!plan->decode || !af_in_columns(&call->operands.key, call->D)) return 0;
    if (plan->block_rows > 1) return SHARED_SUMS;
    return (af_min(call->Lk, AF_COLUMN_KEYS) + VL - 1) / VL * VL;
}

/* Lays out the scratch memory from `base`, unless that is NULL; returns its size. It begins with the blocks of a unit,
 * block_run[unit_blocks], or decode_run[unit_blocks]. */
static size_t carve(scratch *s, const af_call *call, const af_plan *plan, char *base)
{
    size_t size = (size_t)plan->unit_blocks * (plan->decode ? sizeof(decode_run) : sizeof(block_run));
    size = (size + 63) & ~(size_t)63;
#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        (s)->field = base ? (void *)(base + size) : NULL;                                                              \
        size += ((size_t)(count) * sizeof *(s)->field + 63) & ~(size_t)63;                                             \
    } while (0)
    const int64_t keys = plan->key_block, blocks = plan->unit_blocks, heads = plan->decode ? blocks : 1;
    TAKE(query, blocks * query_size(call, plan));
    TAKE(s, plan->decode ? blocks * keys * plan->block_rows : keys * AF_NR);
    TAKE(o, blocks * output_size(call, plan));
    TAKE(m, blocks * AF_NR);
    TAKE(l, blocks * AF_NR);
    TAKE(keys, heads);
    TAKE(values, heads);
    const int64_t expanded = call->operands.storage ? 2 : 0; /* rows of scales and zeros, see bytes.h */
    TAKE(key_copy, (copy_room(call, plan, call->D) + expanded) * call->D);
    TAKE(value_copy, (copy_room(call, plan, call->Dv) + expanded) * call->Dv);
    TAKE(clean, plan->decode || !call->operands.value.data ? 0 : keys * CLEAN_COLUMNS);
    TAKE(words, heads * word_count(plan));
    const bool exps = call->score.additive && !plan->decode;
    TAKE(additive.query_exp, exps ? call->D * AF_NR : 0);
    TAKE(additive.start, exps ? call->D : 0);
    TAKE(additive.key_exp, exps ? keys * call->D : 0);
    TAKE(additive.overflow, exps);
    TAKE(additive.key_overflow, exps ? keys : 0);
    TAKE(top, call->results.topk * AF_NR);
    TAKE(top_key, call->results.topk * AF_NR);
    TAKE(sums, call->results.importance ? plan->chunk_keys * VL : 0);
    TAKE(totals, call->results.importance ? plan->chunk_keys * VL : 0);
    const int64_t columns = column_keys(call, plan);
    TAKE(column_sums, VL * columns);
    const bool ahead = columns > keys && plan->block_rows == 1 && blocks == 1;
    TAKE(scored, ahead);
    if (base && !ahead) s->scored = NULL;
    if (base && ahead) s->scored->score = (real *)(base + size);
    size += ahead ? (size_t)columns * sizeof(real) : 0;
#undef TAKE
    return size;
}

/* The memory of block g of a unit. */
static void carve_block(scratch *s, const scratch *unit, const af_call *call, const af_plan *plan, int g)
{
    *s = *unit;
    s->query += g * query_size(call, plan);
    s->o += g * output_size(call, plan);
    s->m += g * AF_NR;
    s->l += g * AF_NR;
    if (!plan->decode) return;
    s->s += g * plan->key_block * plan->block_rows;
    s->words += g * word_count(plan);
    s->keys += g;
    s->values += g;
}

/* The keys and values of a block's head. Copies have the room that carve gives them. */
static void open_key_rows(const scratch *s, const af_call *call, const af_plan *plan, const af_visibility *vis)
{
    open_rows(s->keys, call, plan, KEYS, vis, s->key_copy, copy_room(call, plan, call->D));
    open_rows(s->values, call, plan, VALUES, vis, s->value_copy, copy_room(call, plan, call->Dv));
}

static size_t scratch_bytes(const af_call *call, const af_plan *plan)
{
    scratch s;
    return carve(&s, call, plan, NULL);
}

/* The running state before any key: nothing seen. A finite maximum keeps -inf - m defined. */
static void reset_state(const scratch *s)
{
    for (int c = 0; c < AF_NV; c++) {
        v_store(s->m + c * VL, v_set1(-AF_LARGEST));
        v_store(s->l + c * VL, v_zero());
    }
}

static void zero_output(const af_call *call, const af_plan *plan, const scratch *s)
{
    const int64_t size = output_size(call, plan);
    int64_t i = 0;
    for (; i + VL <= size; i += VL) v_store(s->o + i, v_zero());
    if (i < size) v_store_n(s->o + i, v_zero(), (int)(size - i));
}

#endif

/* What the passes of gradients share: their memory, blocks of query rows as lanes, and the tiles S and dP of a piece of
 * keys. */
#ifndef AF_BACKWARD_BLOCK_H
#define AF_BACKWARD_BLOCK_H

#include "kernel/additive.h"
#include "kernel/dropout.h"
#include "kernel/forward.h"
#include "kernel/recompute.h"
#include "plan/backward.h"

/* dK and dV are summed in registers over so many rows, whose P and dS wait in the second-level cache: 96
 * KiB of float32. Reasoned, not measured: two blocks of 48 lanes, and whole blocks with every instruction set. */
enum { GROUP_ROWS = 96, GROUP_BLOCKS = GROUP_ROWS / AF_NR };
/* Keys whose sums over the lanes are kept at a time: 32 KiB of vectors at most. */
enum { TURN_KEYS = 32 };

/* Additive scores have elements in the lanes for so few rows of a block: 400 keys x 256, of 1 row 6.9 ms for 12.1 in 16
 * calls (AVX-512) and 10.1 for 15.2 (AVX2), of 4 rows 10.8 and 16.3 (Zen 4). */
enum { FEW_ROWS = 3 };

_Static_assert(GROUP_ROWS % AF_NR == 0, "a group is whole blocks");

typedef struct backward_block {
    query_block block;
    row_softmax softmax;
    real delta[AF_NR];
    uint64_t overflow; /* of additive scores, see additive_terms */
    drop_rows drop;
    bool finite; /* all elements of its rows of scale * Q and dO */
} backward_block;

/* A panel of query rows, as all ranges of keys take it. */
typedef struct backward_panel {
    backward_block *blocks;     /* [panel_blocks] */
    real *query, *grad;         /* [panel_blocks][D or Dv][NR]: scale * Q and dO, rows in the lanes */
    real *query_row, *grad_row; /* [panel_rows][D or Dv, padded]: the same by rows */
    real *query_exp, *start; /* of additive scores: [panel_blocks][D][NR] and [panel_blocks][D], see additive_terms */
} backward_panel;

typedef struct backward_scratch {
    backward_panel panel;
    backward_block *blocks;     /* [panel_blocks]: those of the panel that the unit takes */
    real *s, *dp, *slope;       /* [key_block][NR]: S, dP, and the derivative of the softcap */
    real *p, *ds;               /* [key_block][GROUP_ROWS] */
    real *dk, *dv;              /* [key_block][D or Dv, padded]: sums over the panel */
    uint64_t *words;            /* [key_block + 1] */
    uint64_t *seen;             /* [GROUP_BLOCKS][key_block]: lanes that see a key */
    real *lane_sums;            /* [TURN_KEYS][VL][VL], for additive scores */
    real *few_query, *few_sums; /* of few rows: q + b, [FEW_ROWS][D], and sums, [2][D, padded] */
    real *few_s;                /* [FEW_ROWS][key_block] */
    additive_terms additive;    /* the same: of a block of keys */
    elem *empty;                /* [D or Dv] zeros: the row of a query that sees nothing */
    af_rows keys, values;
    prefetch ahead; /* with tiles of scores; without an edge, none */
} backward_scratch;

/* Elements of a row that is whole vectors. */
AF_INLINE int64_t padded(int64_t width) { return (width + VL - 1) / VL * VL; }

#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        s->field = base ? (void *)(base + size) : NULL;                                                                \
        size += ((size_t)(count) * sizeof *s->field + 63) & ~(size_t)63;                                               \
    } while (0)

/* Lays out a panel from `base`, unless that is NULL; returns its size. */
static size_t carve_panel(backward_panel *s, const af_backward *w, char *base)
{
    const int64_t blocks = w->panel_blocks, D = w->call->D, Dv = w->call->Dv, exps = w->call->score.additive ? D : 0;
    size_t size = 0;
    TAKE(blocks, blocks);
    TAKE(query, blocks * D * AF_NR);
    TAKE(grad, blocks * Dv * AF_NR);
    TAKE(query_row, w->panel_rows * padded(D));
    TAKE(grad_row, w->panel_rows * padded(Dv));
    TAKE(query_exp, blocks * exps * AF_NR);
    TAKE(start, blocks * exps);
    return size;
}

static size_t panel_bytes(const af_backward *w)
{
    backward_panel panel;
    return carve_panel(&panel, w, NULL);
}

/* Lays out the scratch memory from `base`, unless that is NULL; returns its size. */
static size_t carve_backward(backward_scratch *s, const af_backward *w, char *base)
{
    const af_call *call = w->call;
    const int64_t keys = w->plan.key_block, blocks = w->panel_blocks, D = call->D, Dv = call->Dv;
    size_t size = 0;
    TAKE(blocks, blocks);
    TAKE(s, keys * AF_NR);
    TAKE(dp, keys * AF_NR);
    TAKE(slope, call->score.softcap != 0 ? keys * AF_NR : 0);
    TAKE(p, keys * GROUP_ROWS);
    TAKE(ds, keys * GROUP_ROWS);
    TAKE(dk, keys * padded(D));
    TAKE(dv, keys * padded(Dv));
    TAKE(words, keys + 1);
    TAKE(seen, GROUP_BLOCKS * keys);
    const bool is_additive = call->score.additive; /* even where D is 0, rows have scores */
    const int64_t exps = is_additive ? D : 0;
    TAKE(lane_sums, is_additive ? TURN_KEYS * VL * VL : 0);
    TAKE(few_query, FEW_ROWS * exps);
    TAKE(few_sums, 2 * padded(exps));
    TAKE(few_s, is_additive ? FEW_ROWS * keys : 0);
    TAKE(additive.key_exp, keys * exps);
    TAKE(additive.key_overflow, is_additive ? keys : 0);
    TAKE(empty, af_max(D, Dv));
    return size;
}

#undef TAKE

static size_t backward_bytes(const af_backward *w)
{
    backward_scratch s;
    return carve_backward(&s, w, NULL);
}

/* The memory of a unit with nothing in it yet, and its panel. */
static void open_backward(backward_scratch *s, const af_backward *w, void *panel, void *memory)
{
    s->ahead = (prefetch){0};
    carve_panel(&s->panel, w, panel);
    carve_backward(s, w, memory);
    memset(s->empty, 0, (size_t)af_max(w->call->D, w->call->Dv) * sizeof(elem));
}

static void open_backward_keys(backward_scratch *s, const af_backward *w, const af_visibility *vis)
{
    open_rows(&s->keys, w->call, &w->plan, KEYS, vis, NULL, 0);
    open_rows(&s->values, w->call, &w->plan, VALUES, vis, NULL, 0);
}

AF_INLINE const prefetch *tiles_prefetch(const backward_scratch *s) { return s->ahead.edge ? &s->ahead : NULL; }

/* The rows of a block in a tensor; those of queries that see nothing are zeros, whatever is stored there. */
static void find_seeing_rows(const af_tensor *t, const query_block *block, elem *empty, elem *rows[AF_NR])
{
    for (int lane = 0; lane < AF_NR; lane++) rows[lane] = empty;
    find_rows(t, &block->vis, rows);
    for (int lane = 0; lane < block->n; lane++)
        if (block->vis.visible[lane].begin == block->vis.visible[lane].end) rows[lane] = empty;
}

/* Block g of a panel against keys of the scratch memory. */
static additive_terms terms_of_block(const af_call *call, const backward_scratch *s, int64_t g)
{
    if (!call->score.additive) return (additive_terms){0};
    return (additive_terms){.query_exp = s->panel.query_exp + g * call->D * AF_NR,
                            .start = s->panel.start + g * call->D,
                            .key_exp = s->additive.key_exp,
                            .overflow = &s->panel.blocks[g].overflow,
                            .key_overflow = s->additive.key_overflow};
}

/* Whether any block needs exponentials of keys. */
AF_INLINE bool takes_exps(const af_backward *w) { return w->call->score.additive && w->plan.block_rows > FEW_ROWS; }

/* The elements of row `lane` of [D][NR]. */
static void lane_to_row(const real *lanes, int lane, int64_t D, real *row)
{
    for (int64_t d = 0; d < D; d++) row[d] = lanes[d * AF_NR + lane];
}

/* S[n][NR] of few rows, as decoding has it. */
static void few_scores(const af_call *call, const query_block *block, const backward_scratch *s, matrix key,
                       const real *query, int n)
{
    for (int r = 0; r < block->n; r++) lane_to_row(query, r, call->D, s->few_query + r * call->D);
    additive_rows(call, block, n, s->few_query, key.at, s->few_s, n);
    for (int j = 0; j < n; j++)
        for (int lane = 0; lane < AF_NR; lane++) s->s[j * AF_NR + lane] = lane < block->n ? s->few_s[lane * n + j] : 0;
}

/* S of a piece after modifiers and masks; with a softcap also its derivative 1 - (capped / softcap)^2. The keys of
 * `terms` are those of the piece. */
static void backward_scores(const af_call *call, const query_block *block, const backward_scratch *s, matrix key,
                            const real *query, const additive_terms *terms, key_piece piece)
{
    const int at = block->v0 * VL;
    if (call->score.additive && block->n <= FEW_ROWS) few_scores(call, block, s, key, query, piece.n);
    else if (call->score.additive) additive_product(call, block, query, terms, piece.n, key, s->s);
    else score_product(block->v1 - block->v0, piece.n, call->D, key, query + at, s->s + at, tiles_prefetch(s));
    if (call->score.softcap != 0) {
        const v inverse = v_set1((real)(1 / call->score.softcap)), one = v_set1(1);
        softcap_tile(call, block, piece.n, s->s);
        for (int j = 0; j < piece.n; j++)
            for (int c = block->v0; c < block->v1; c++) {
                const v t = v_mul(v_load(s->s + j * AF_NR + c * VL), inverse);
                v_store(s->slope + j * AF_NR + c * VL, v_mul(v_sub(one, t), v_add(one, t)));
            }
    }
    add_to_scores(call, block, piece.j0, piece.n, s->s);
    if (piece.seen == SEES_SOME) hide_scores(block, piece.n, s->words, s->s);
}

/* tile[j][lane] += rows[lane][j0 + j] for a square of up to VL x VL. */
static void add_square(int lanes, int keys, elem *const rows[VL], int64_t j0, real *tile)
{
    v x[VL];
    UNROLL(r, VL) x[r] = r >= lanes ? v_zero() : keys == VL ? e_load(rows[r] + j0) : e_load_n(rows[r] + j0, keys);
    v_transpose(x);
    UNROLL(r, VL)
        if (r < keys) v_store(tile + r * AF_NR, v_add(v_load(tile + r * AF_NR), x[r]));
}

static void add_grad_weights(const af_backward *w, const query_block *block, const backward_scratch *s, key_piece piece)
{
    elem *rows[AF_NR] = {0};
    find_rows(&w->gradients->grad_weights, &block->vis, rows);
    for (int c = block->v0; c < block->v1; c++)
        for (int j = 0; j < piece.n; j += VL)
            add_square(block->n - c * VL < VL ? block->n - c * VL : VL, piece.n - j < VL ? piece.n - j : VL,
                       rows + c * VL, piece.j0 + j, s->dp + j * AF_NR + c * VL);
}

/* dP of a piece: V dO', what the loss takes from the weights themselves, and how these fade around centers. */
static void weight_gradient(const af_backward *w, const query_block *block, const drop_rows *drop,
                            const backward_scratch *s, matrix value, const real *grad, key_piece piece)
{
    const int at = block->v0 * VL;
    score_product(block->v1 - block->v0, piece.n, w->call->Dv, value, grad + at, s->dp + at, tiles_prefetch(s));
    if (w->call->score.dropout > 0) drop_tile(w->call, block, drop, piece.j0, piece.n, s->dp, AF_NR);
    if (w->gradients->grad_weights.data) add_grad_weights(w, block, s, piece);
    if (w->call->score.gaussian > 0) gaussian_tile(w->call, block, piece.j0, piece.n, s->dp, AF_NR);
}

/* The next piece of some keys from j on, and how much of it is visible: with nothing, no tile is wanted. */
static key_piece next_piece(const af_backward *w, query_block *block, const backward_scratch *s, af_interval keys,
                            int64_t j)
{
    const af_piece piece = af_next_piece(&block->vis, w->call, keys, j, w->plan.key_block);
    block->v0 = piece.first;
    block->v1 = piece.last;
    const int n = (int)piece.keys;
    if (piece.first == piece.last) return (key_piece){j, n, SEES_NOTHING};
    return (key_piece){j, n, visible_words(w->call, block, j, n, s->words)};
}

#endif

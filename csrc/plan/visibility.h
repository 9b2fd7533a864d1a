/* What a block of query rows sees of the keys, and the pieces into which its keys are cut. The kernels compute these
 * pieces, and driver/describe.c counts them.
 *
 * The G heads of a plan's head group are interleaved: row r is query i = r / G of head hg * G + r % G. A block is then
 * a short run of queries, and its keys are read once for the whole group. Where the call has an order of queries, i is
 * the i-th query in that order. The vectors of a block hold VL rows each; a piece is computed by the vectors that see
 * any of it. */
#ifndef AF_VISIBILITY_H
#define AF_VISIBILITY_H

#include "plan/plan.h"
#include "plan/intervals.h"

enum { AF_MAX_ROWS = 64, AF_MAX_VECTORS = 8 };

/* A row of a block mask, and the vectors whose rows have it, as bits. */
typedef struct af_block_row {
    const uint8_t *row;
    uint32_t vectors;
} af_block_row;

typedef struct af_visibility {
    int64_t b, hk; /* batch row, key/value head */
    int n, vectors, vector_rows;
    bool successive;         /* rows are successive queries of one head */
    af_interval span;        /* keys that any row sees */
    af_interval inner;       /* keys that every row sees, as far as positions and lengths decide it */
    const uint8_t *mask;     /* the mask over the keys, if all rows have the same one */
    const uint8_t *global;   /* the global tokens */
    af_interval excluded;    /* keys in here may be in the excluded window of some row */
    uint64_t global_rows;    /* rows at the position of a global token */
    uint32_t global_vectors; /* and their vectors */
    int block_rows;          /* entries of block_row */
    af_block_row block_row[AF_MAX_ROWS];
    af_interval vector_span[AF_MAX_VECTORS];
    af_interval visible[AF_MAX_ROWS];
    int64_t query[AF_MAX_ROWS], head[AF_MAX_ROWS];
} af_visibility;

/* The mask's row over the keys, if every row of a head group has the same one; else NULL. */
static inline const uint8_t *af_key_mask(const af_call *call, const af_plan *plan, af_unit unit)
{
    const af_tensor *t = &call->visible.mask;
    if (!t->data || t->j != 1 || (t->i && call->Lq > 1) || (t->h && plan->group > 1)) return NULL;
    return (const uint8_t *)t->data + af_offset(t, unit.b, unit.hg * plan->group, 0);
}

/* Whether all rows see the same keys, as far as positions and lengths decide it. */
static inline bool af_rows_see_alike(const af_call *call)
{
    return call->visible.left >= AF_FAR && call->visible.right >= AF_FAR && !call->visible.causal &&
           !call->visible.q_length;
}

/* In a block mask: the block of a query, the block of a key, and the first key after a block. */

static inline int64_t af_block_of_query(const af_call *call, int64_t b, int64_t i)
{
    return (call->subset.class_step ? call->subset.class_query[b] + i * call->subset.class_step : i) /
           call->visible.block_q;
}

static inline int64_t af_block_of_key(const af_call *call, int64_t b, int64_t j)
{
    return (call->subset.class_step ? call->subset.class_key[b] + j * call->subset.class_step : j) /
           call->visible.block_k;
}

static inline int64_t af_block_end(const af_call *call, int64_t b, int64_t column)
{
    const int64_t end = (column + 1) * call->visible.block_k;
    return call->subset.class_step
               ? (end - call->subset.class_key[b] + call->subset.class_step - 1) / call->subset.class_step
               : end;
}

/* The key/value head of a unit's rows. */
static inline int64_t af_key_head(const af_call *call, const af_plan *plan, af_unit unit)
{
    return plan->group * call->Hk == call->H ? unit.hg : unit.hg * plan->group / (call->H / call->Hk);
}

/* The head and query of each row of a block. */
static inline void af_find_rows(af_visibility *vis, const af_call *call, const af_plan *plan, af_unit unit)
{
    if (plan->group == 1) {
        for (int r = 0; r < unit.rows; r++) {
            vis->head[r] = unit.hg;
            vis->query[r] = unit.row + r;
        }
    } else {
        int64_t i = unit.row / plan->group, g = unit.row % plan->group;
        for (int r = 0; r < unit.rows; r++) {
            vis->head[r] = unit.hg * plan->group + g;
            vis->query[r] = i;
            if (++g < plan->group) continue;
            g = 0;
            i++;
        }
    }
    const int64_t *order = call->subset.query_order.data;
    vis->successive = plan->group == 1 && !order;
    for (int r = 0; order && r < unit.rows; r++)
        vis->query[r] = order[af_offset(&call->subset.query_order, unit.b, vis->head[r], vis->query[r])];
}

static inline void af_find_block_rows(af_visibility *vis, const af_call *call)
{
    af_block_row *last = NULL;
    vis->block_rows = 0;
    for (int r = 0; r < vis->n; r++) {
        const int64_t at =
            af_offset(&call->visible.blocks, vis->b, vis->head[r], af_block_of_query(call, vis->b, vis->query[r]));
        const uint8_t *row = (const uint8_t *)call->visible.blocks.data + at;
        const uint32_t vector = (uint32_t)1 << r / vis->vector_rows;
        if (!last || row != last->row) {
            last = &vis->block_row[vis->block_rows++];
            *last = (af_block_row){row, 0};
        }
        last->vectors |= vector;
    }
}

static inline void af_find_global_rows(af_visibility *vis, const af_call *call)
{
    vis->global = call->subset.global + vis->b * call->Lk;
    for (int r = 0; r < vis->n; r++) {
        const int64_t position = af_position(call, vis->b, vis->query[r]);
        if (position < 0 || position >= call->Lk || !vis->global[position]) continue;
        vis->global_rows |= (uint64_t)1 << r;
        vis->global_vectors |= (uint32_t)1 << r / vis->vector_rows;
    }
}

static inline void af_find_excluded(af_visibility *vis, const af_call *call)
{
    vis->excluded = (af_interval){0, 0};
    for (int r = 0; r < vis->n; r++) {
        const int64_t position = af_position(call, vis->b, vis->query[r]), step = call->visible.dilation[vis->head[r]];
        /* Where a bound times the step may overflow, the excluded window counts as unbounded. */
        const bool far = step > AF_FAR / (call->subset.excluded_left + call->subset.excluded_right + 1);
        const af_interval own = {far ? -AF_FAR : position - call->subset.excluded_left * step,
                                 far ? AF_FAR : position + call->subset.excluded_right * step + 1};
        vis->excluded = r ? af_hull(vis->excluded, own) : own;
    }
}

/* What the rows of a unit see, `vector_rows` rows to a vector. */
static inline void af_find_visibility(af_visibility *vis, const af_call *call, const af_plan *plan, af_unit unit,
                                      int vector_rows)
{
    const bool alike = af_rows_see_alike(call);
    vis->b = unit.b;
    vis->hk = af_key_head(call, plan, unit);
    vis->n = unit.rows;
    vis->vector_rows = vector_rows;
    vis->vectors = (unit.rows + vector_rows - 1) / vector_rows;
    vis->global = NULL;
    vis->global_rows = 0;
    vis->global_vectors = 0;
    vis->block_rows = 0;
    af_find_rows(vis, call, plan, unit);
    af_interval seen = {0, 0}, span = {0, 0}, inner = {0, AF_FAR};
    for (int c = 0; c < vis->vectors; c++) vis->vector_span[c] = seen;
    for (int r = 0; r < vis->n; r++) {
        const bool same = r > 0 && (alike || (vis->query[r] == vis->query[r - 1] && !call->visible.center.h));
        if (!same) seen = af_visible_keys(call, vis->b, vis->head[r], vis->query[r]);
        vis->visible[r] = seen;
        if (alike) continue;
        vis->vector_span[r / vector_rows] = af_hull(vis->vector_span[r / vector_rows], seen);
        span = af_hull(span, seen);
        inner = (af_interval){af_max(inner.begin, seen.begin), af_min(inner.end, seen.end)};
    }
    if (alike) {
        span = inner = seen;
        for (int c = 0; c < vis->vectors; c++) vis->vector_span[c] = seen;
    }
    vis->mask = af_key_mask(call, plan, unit);
    vis->span = af_trim(vis->mask, span);
    vis->inner = inner;
    if (call->visible.blocks.data) af_find_block_rows(vis, call);
    if (call->subset.global) af_find_global_rows(vis, call);
    if (call->subset.key_position) af_find_excluded(vis, call);
}

/* Whether row r sees key j of its interval. */
static inline bool af_pair_is_visible(const af_call *call, const af_visibility *vis, int r, int64_t j)
{
    const af_tensor *mask = &call->visible.mask, *blocks = &call->visible.blocks;
    const int64_t b = vis->b, h = vis->head[r], i = vis->query[r];
    if (mask->data && !((const uint8_t *)mask->data)[af_offset(mask, b, h, i) + j * mask->j]) return false;
    if (blocks->data) {
        const int64_t at = af_offset(blocks, b, h, af_block_of_query(call, b, i));
        if (!((const uint8_t *)blocks->data)[at + af_block_of_key(call, b, j) * blocks->j]) return false;
    }
    if (!call->subset.global && !call->subset.key_position) return true;
    if (call->subset.global && !vis->global[j] && !(vis->global_rows >> r & 1)) return false;
    const int64_t step = call->visible.dilation[h], key = call->subset.key_position ? call->subset.key_position[j] : j;
    const int64_t distance = key - af_position(call, b, i), t = distance / step;
    return t * step != distance || t < -call->subset.excluded_left || t > call->subset.excluded_right;
}

/* Whether more than positions, lengths and a mask over the keys decides what is visible. */
static inline bool af_has_pattern(const af_call *call)
{
    return call->visible.blocks.data || call->subset.global || call->subset.key_position;
}

/* Keys that are computed together, and the vectors [first, last) that see any of them; none if first == last. */
typedef struct af_piece {
    int64_t keys;
    int first, last;
} af_piece;

/* Cutting a piece skips hidden pairs, but each piece has a cost of its own: in the forward kernel a piece of one key
 * costs as much as 2.7 keys of a long one (Zen 4, AVX-512). So vectors that see other keys cut no piece shorter than
 * AF_LEAST_KEYS, and hidden keys cut one only if there are AF_LEAST_HIDDEN in a row: blocks of 64 rows and 2 keys of
 * which half are hidden take 34 ms with pieces cut at every change, 24 so (8 x 1024 x 64). */
enum { AF_LEAST_KEYS = 16, AF_LEAST_HIDDEN = 4 };

/* How many of n keys make one piece under a mask: hidden ones up to the first visible key, or visible ones up to a
 * run of AF_LEAST_HIDDEN hidden keys. */
static inline int64_t af_cut_keys(const uint8_t *mask, int64_t n)
{
    int64_t end = af_hidden_run(mask, n);
    if (end) return end;
    for (int64_t hidden = 0;; end += hidden) {
        end += af_visible_run(mask + end, n - end);
        hidden = af_hidden_run(mask + end, n - end);
        if (hidden >= AF_LEAST_HIDDEN || end + hidden == n) return end;
    }
}

/* The vectors that see a column of a block mask. */
static inline uint32_t af_column_vectors(const af_visibility *vis, const af_call *call, int64_t column)
{
    uint32_t vectors = 0;
    for (int k = 0; k < vis->block_rows; k++)
        if (vis->block_row[k].row[column * call->visible.blocks.j]) vectors |= vis->block_row[k].vectors;
    return vectors;
}

/* The first global token from key j on; Lk if there is none. */
static inline int64_t af_next_global(const af_call *call, int64_t b, int64_t j)
{
    const int64_t *tokens = call->subset.global_keys + call->subset.global_starts[b],
                  n = call->subset.global_starts[b + 1] - call->subset.global_starts[b];
    const int64_t before = af_count_below(tokens, n, j);
    return before < n ? tokens[before] : call->Lk;
}

/* af_cut_blocks, af_cut_globals and af_cut_windows: each shortens the keys [j, *end) to where the set of vectors that
 * see them changes, the first two to `most` keys if any vector does, and returns these vectors. */

/* The keys of a column, from key j on, and of the columns behind it that the same vectors see; of up to AF_LEAST_KEYS
 * keys, and none from `end` on. */
static inline int64_t af_like_columns(const af_visibility *vis, const af_call *call, int64_t column, int64_t j,
                                      int64_t end)
{
    const uint32_t vectors = af_column_vectors(vis, call, column);
    int64_t next = af_block_end(call, vis->b, column);
    while (next < end && next - j < AF_LEAST_KEYS && af_column_vectors(vis, call, ++column) == vectors)
        next = af_block_end(call, vis->b, column);
    return af_min(next, end) - j;
}

/* Whether a piece of n keys ends before a run of keys that other vectors see, or none. */
static inline bool af_ends_piece(int64_t n, int64_t run, bool hidden)
{
    if (n < AF_LEAST_KEYS) return hidden && run >= AF_LEAST_KEYS;
    return run >= (hidden ? AF_LEAST_HIDDEN : AF_LEAST_KEYS);
}

static inline uint32_t af_cut_blocks(const af_visibility *vis, const af_call *call, int64_t j, int64_t most,
                                     int64_t *end)
{
    const int64_t column = af_block_of_key(call, vis->b, j);
    uint32_t vectors = af_column_vectors(vis, call, column);
    if (vectors) *end = af_min(*end, j + most);
    int64_t next = af_block_end(call, vis->b, column);
    while (next < *end) {
        const int64_t here = af_block_of_key(call, vis->b, next);
        const uint32_t others = af_column_vectors(vis, call, here);
        if (!vectors && others) break;
        const int64_t run = af_like_columns(vis, call, here, next, *end);
        if (others != vectors && af_ends_piece(next - j, run, !others)) break;
        vectors |= others;
        next += run;
    }
    *end = af_min(*end, next);
    return vectors;
}

static inline uint32_t af_cut_globals(const af_visibility *vis, const af_call *call, int64_t j, int64_t most,
                                      int64_t *end)
{
    const bool global = vis->global[j];
    if (!global && !vis->global_vectors) {
        *end = af_min(*end, af_next_global(call, vis->b, j));
        return 0;
    }
    *end = af_min(*end, j + most);
    const int64_t n = *end - j;
    if (!vis->global_vectors) *end = j + af_cut_keys(vis->global + j, n);
    else *end = j + (global ? af_visible_run(vis->global + j, n) : af_hidden_run(vis->global + j, n));
    return global ? ~(uint32_t)0 : vis->global_vectors;
}

/* There may be keys between the windows around centers that no row sees. */
static inline uint32_t af_cut_windows(const af_visibility *vis, int64_t j, int64_t *end)
{
    int64_t next = *end, reach = j;
    for (int r = 0; r < vis->n; r++) {
        const af_interval seen = vis->visible[r];
        if (seen.end <= j || seen.begin == seen.end) continue;
        if (seen.begin <= j) reach = af_max(reach, seen.end);
        else next = af_min(next, seen.begin);
    }
    *end = af_min(*end, reach > j ? reach : next);
    return reach > j ? ~(uint32_t)0 : 0;
}

/* The next piece of `span` from j on: at most `most` keys unless no row sees them. Where rows see shifted intervals
 * (causality, windows) the corners are cut off in steps, so that a vector skips keys that none of its rows sees. */
static inline af_piece af_next_piece(const af_visibility *vis, const af_call *call, af_interval span, int64_t j,
                                     int64_t most)
{
    uint32_t vectors = ~(uint32_t)0;
    int64_t end = span.end;
    if (call->visible.blocks.data) vectors &= af_cut_blocks(vis, call, j, most, &end);
    if (call->subset.global) vectors &= af_cut_globals(vis, call, j, most, &end);
    if (call->visible.center.data) vectors &= af_cut_windows(vis, j, &end);
    if (!vectors) return (af_piece){.keys = end - j};
    end = af_min(end, j + most);
    for (int c = 0; c < vis->vectors; c++) {
        if (vis->vector_span[c].begin >= j + AF_LEAST_KEYS && vis->vector_span[c].begin < end)
            end = vis->vector_span[c].begin;
        if (vis->vector_span[c].end >= j + AF_LEAST_KEYS && vis->vector_span[c].end < end)
            end = vis->vector_span[c].end;
    }
    af_piece piece = {.keys = end - j};
    if (vis->mask) {
        piece.keys = af_cut_keys(vis->mask + j, end - j);
        if (!vis->mask[j]) return piece;
        end = j + piece.keys;
    }
    for (int c = 0; c < vis->vectors; c++) {
        if (!(vectors >> c & 1) || vis->vector_span[c].begin >= end || vis->vector_span[c].end <= j) continue;
        if (piece.last == 0) piece.first = c;
        piece.last = c + 1;
    }
    return piece;
}

#endif

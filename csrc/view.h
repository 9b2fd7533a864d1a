/* What a block of query rows sees of the keys, and the pieces in which its keys are walked. The kernels walk as this
 * says, and the plan counts by it.
 *
 * The G heads of a plan's head group are interleaved: row r is query i = r / G of head hg * G + r % G, so that a block
 * is a short run of queries and its keys are read once for the whole group. Where the problem gives an order, i is the
 * i-th query in that order. Rows lie in parts, the vectors of lanes, and a piece is done by the parts that see any of
 * it. */
#ifndef AF_VIEW_H
#define AF_VIEW_H

#include "plan.h"
#include "span.h"

enum { AF_MOST_ROWS = 64, AF_MOST_PARTS = 8 };

/* Rows of a block mask that some parts have, as a set of bits. */
typedef struct af_block_row {
    const uint8_t *row;
    uint32_t parts;
} af_block_row;

typedef struct af_view {
    int64_t b, hk; /* batch row, key/value head */
    int n, parts, part_rows;
    bool successive;       /* rows are successive queries of one head */
    af_span span;          /* keys that any row sees */
    af_span inner;         /* keys that every row sees, as far as positions and lengths decide it */
    const uint8_t *mask;   /* the mask over the keys, if all rows have the same one */
    const uint8_t *global; /* the global tokens */
    af_span hole;          /* where gathered keys may lie in the hole of some row */
    uint64_t global_rows;  /* rows that are at the position of one */
    uint32_t global_parts; /* and the parts they lie in */
    int block_rows;        /* how many of these: */
    af_block_row block_row[AF_MOST_ROWS];
    af_span part_span[AF_MOST_PARTS];
    af_span visible[AF_MOST_ROWS];
    int64_t query[AF_MOST_ROWS], head[AF_MOST_ROWS];
} af_view;

/* The mask's row over the keys, if every row of a head group has the same one; else NULL. */
static inline const uint8_t *af_key_mask(const af_problem *p, const af_plan *plan, af_unit unit)
{
    const af_tensor *t = &p->mask;
    if (!t->data || t->j != 1 || (t->i && p->Lq > 1) || (t->h && plan->group > 1)) return NULL;
    return (const uint8_t *)t->data + af_offset(t, unit.b, unit.hg * plan->group, 0);
}

/* No row sees more keys than another, as far as positions and lengths decide it. */
static inline bool af_rows_see_alike(const af_problem *p)
{
    return p->left >= AF_FAR && p->right >= AF_FAR && !p->causal && !p->q_length;
}

/* Blocks of a block mask: of a query, of a key, and the first key after one. */

static inline int64_t af_block_of_query(const af_problem *p, int64_t b, int64_t i)
{
    return (p->block_step ? p->block_first_query[b] + i * p->block_step : i) / p->block_q;
}

static inline int64_t af_block_of_key(const af_problem *p, int64_t b, int64_t j)
{
    return (p->block_step ? p->block_first_key[b] + j * p->block_step : j) / p->block_k;
}

static inline int64_t af_block_end(const af_problem *p, int64_t b, int64_t column)
{
    const int64_t end = (column + 1) * p->block_k;
    return p->block_step ? (end - p->block_first_key[b] + p->block_step - 1) / p->block_step : end;
}

/* The key/value head of a unit's rows. */
static inline int64_t af_key_head(const af_problem *p, const af_plan *plan, af_unit unit)
{
    return plan->group * p->Hk == p->H ? unit.hg : unit.hg * plan->group / (p->H / p->Hk);
}

/* Which rows the view is of. */
static inline void af_find_rows(af_view *w, const af_problem *p, const af_plan *plan, af_unit unit)
{
    if (plan->group == 1) {
        for (int r = 0; r < unit.rows; r++) {
            w->head[r] = unit.hg;
            w->query[r] = unit.row + r;
        }
    } else {
        int64_t i = unit.row / plan->group, g = unit.row % plan->group;
        for (int r = 0; r < unit.rows; r++) {
            w->head[r] = unit.hg * plan->group + g;
            w->query[r] = i;
            if (++g < plan->group) continue;
            g = 0;
            i++;
        }
    }
    const int64_t *order = p->order.data;
    w->successive = plan->group == 1 && !order;
    for (int r = 0; order && r < unit.rows; r++)
        w->query[r] = order[af_offset(&p->order, unit.b, w->head[r], w->query[r])];
}

static inline void af_find_block_rows(af_view *w, const af_problem *p)
{
    af_block_row *last = NULL;
    w->block_rows = 0;
    for (int r = 0; r < w->n; r++) {
        const int64_t at = af_offset(&p->blocks, w->b, w->head[r], af_block_of_query(p, w->b, w->query[r]));
        const uint8_t *row = (const uint8_t *)p->blocks.data + at;
        const uint32_t part = (uint32_t)1 << r / w->part_rows;
        if (!last || row != last->row) {
            last = &w->block_row[w->block_rows++];
            *last = (af_block_row){row, 0};
        }
        last->parts |= part;
    }
}

static inline void af_find_global_rows(af_view *w, const af_problem *p)
{
    w->global = p->global + w->b * p->Lk;
    for (int r = 0; r < w->n; r++) {
        const int64_t position = af_position(p, w->b, w->query[r]);
        if (position < 0 || position >= p->Lk || !w->global[position]) continue;
        w->global_rows |= (uint64_t)1 << r;
        w->global_parts |= (uint32_t)1 << r / w->part_rows;
    }
}

static inline void af_find_hole(af_view *w, const af_problem *p)
{
    w->hole = (af_span){0, 0};
    for (int r = 0; r < w->n; r++) {
        const int64_t position = af_position(p, w->b, w->query[r]), step = p->dilation[w->head[r]];
        const bool far = step > AF_FAR / (p->hole_left + p->hole_right + 1); /* or bounds, in product */
        const af_span own = {far ? -AF_FAR : position - p->hole_left * step,
                             far ? AF_FAR : position + p->hole_right * step + 1};
        w->hole = r ? af_join(w->hole, own) : own;
    }
}

/* The view of a unit's rows, part_rows of them to a part. */
static inline void af_look(af_view *w, const af_problem *p, const af_plan *plan, af_unit unit, int part_rows)
{
    const bool alike = af_rows_see_alike(p);
    w->b = unit.b;
    w->hk = af_key_head(p, plan, unit);
    w->n = unit.rows;
    w->part_rows = part_rows;
    w->parts = (unit.rows + part_rows - 1) / part_rows;
    w->global = NULL;
    w->global_rows = 0;
    w->global_parts = 0;
    w->block_rows = 0;
    af_find_rows(w, p, plan, unit);
    af_span seen = {0, 0};
    w->span = seen;
    w->inner = (af_span){0, AF_FAR};
    for (int c = 0; c < w->parts; c++) w->part_span[c] = seen;
    for (int r = 0; r < w->n; r++) {
        const bool same = r > 0 && (alike || (w->query[r] == w->query[r - 1] && !p->center.h));
        if (!same) seen = af_visible_keys(p, w->b, w->head[r], w->query[r]);
        w->visible[r] = seen;
        if (alike) continue;
        w->part_span[r / part_rows] = af_join(w->part_span[r / part_rows], seen);
        w->span = af_join(w->span, seen);
        w->inner = (af_span){af_max(w->inner.begin, seen.begin), af_min(w->inner.end, seen.end)};
    }
    if (alike) {
        w->span = w->inner = seen;
        for (int c = 0; c < w->parts; c++) w->part_span[c] = seen;
    }
    w->mask = af_key_mask(p, plan, unit);
    w->span = af_trim(w->mask, w->span);
    if (p->blocks.data) af_find_block_rows(w, p);
    if (p->global) af_find_global_rows(w, p);
    if (p->place) af_find_hole(w, p);
}

/* Whether more than positions, lengths and a mask over the keys decides what is visible. */
static inline bool af_has_pattern(const af_problem *p) { return p->blocks.data || p->global || p->place; }

/* Keys that are done together, and the parts [first, last) that see any of them; none if first == last. */
typedef struct af_piece {
    int64_t keys;
    int first, last;
} af_piece;

/* A corner is not cut off a piece shorter than this, nor is a piece cut for fewer hidden keys: in the forward kernel a
 * piece of one key costs as much as 2.7 keys of a long one. */
enum { AF_LEAST_KEYS = 16, AF_LEAST_HIDDEN = 4 };

/* How many of n keys make one piece under a mask: hidden ones up to the first visible, or visible ones up to so many
 * hidden ones that they are better left out. */
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

/* The parts that see a column of a block mask. */
static inline uint32_t af_column_parts(const af_view *w, const af_problem *p, int64_t column)
{
    uint32_t parts = 0;
    for (int k = 0; k < w->block_rows; k++)
        if (w->block_row[k].row[column * p->blocks.j]) parts |= w->block_row[k].parts;
    return parts;
}

/* The first global token from key j on; Lk if there is none. */
static inline int64_t af_next_global(const af_problem *p, int64_t b, int64_t j)
{
    const int64_t *places = p->global_places + p->global_starts[b], n = p->global_starts[b + 1] - p->global_starts[b];
    const int64_t before = af_count_below(places, n, j);
    return before < n ? places[before] : p->Lk;
}

/* Each of these cuts the keys [j, end) where the parts that see them change, and to `most` if any part does; returns
 * those parts. */

static inline uint32_t af_cut_blocks(const af_view *w, const af_problem *p, int64_t j, int64_t most, int64_t *end)
{
    int64_t column = af_block_of_key(p, w->b, j);
    uint32_t parts = af_column_parts(w, p, column);
    if (parts) *end = af_min(*end, j + most);
    int64_t next = af_block_end(p, w->b, column);
    while (next < *end) {
        column = af_block_of_key(p, w->b, next);
        const uint32_t others = af_column_parts(w, p, column);
        if (others != parts && (!parts || next - j >= AF_LEAST_KEYS)) break;
        parts |= others;
        next = af_block_end(p, w->b, column);
    }
    *end = af_min(*end, next);
    return parts;
}

static inline uint32_t af_cut_globals(const af_view *w, const af_problem *p, int64_t j, int64_t most, int64_t *end)
{
    const bool global = w->global[j];
    if (!global && !w->global_parts) {
        *end = af_min(*end, af_next_global(p, w->b, j));
        return 0;
    }
    *end = af_min(*end, j + most);
    const int64_t n = *end - j;
    if (!w->global_parts) *end = j + af_cut_keys(w->global + j, n);
    else *end = j + (global ? af_visible_run(w->global + j, n) : af_hidden_run(w->global + j, n));
    return global ? ~(uint32_t)0 : w->global_parts;
}

/* Windows with centers of their own may leave keys between them that no row sees. */
static inline uint32_t af_cut_windows(const af_view *w, int64_t j, int64_t *end)
{
    int64_t next = *end, reach = j;
    for (int r = 0; r < w->n; r++) {
        const af_span seen = w->visible[r];
        if (seen.end <= j || seen.begin == seen.end) continue;
        if (seen.begin <= j) reach = af_max(reach, seen.end);
        else next = af_min(next, seen.begin);
    }
    *end = af_min(*end, reach > j ? reach : next);
    return reach > j ? ~(uint32_t)0 : 0;
}

/* The next piece of `span` from j on, at most `most` keys unless no row sees them. Where rows see shifted intervals
 * (causal, windows) the corners are cut off in steps, so that a part does not go through keys that none of its rows
 * sees. */
static inline af_piece af_next_piece(const af_view *w, const af_problem *p, af_span span, int64_t j, int64_t most)
{
    uint32_t parts = ~(uint32_t)0;
    int64_t end = span.end;
    if (p->blocks.data) parts &= af_cut_blocks(w, p, j, most, &end);
    if (p->global) parts &= af_cut_globals(w, p, j, most, &end);
    if (p->center.data) parts &= af_cut_windows(w, j, &end);
    if (!parts) return (af_piece){.keys = end - j};
    end = af_min(end, j + most);
    for (int c = 0; c < w->parts; c++) {
        if (w->part_span[c].begin >= j + AF_LEAST_KEYS && w->part_span[c].begin < end) end = w->part_span[c].begin;
        if (w->part_span[c].end >= j + AF_LEAST_KEYS && w->part_span[c].end < end) end = w->part_span[c].end;
    }
    af_piece piece = {.keys = end - j};
    if (w->mask) {
        piece.keys = af_cut_keys(w->mask + j, end - j);
        if (!w->mask[j]) return piece;
        end = j + piece.keys;
    }
    for (int c = 0; c < w->parts; c++) {
        if (!(parts >> c & 1) || w->part_span[c].begin >= end || w->part_span[c].end <= j) continue;
        if (piece.last == 0) piece.first = c;
        piece.last = c + 1;
    }
    return piece;
}

#endif

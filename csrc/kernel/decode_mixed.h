/* Decoding where the rows of heads are mixed, as in (B, L, H, D), but in no pages: the heads of a unit take turns as in
 * decode_pages.h, at a few keys each, so that memory is read nearly in the order of its addresses. Turns are short, so
 * that what a turn costs besides its products counts: where lines are requested is found once for a block of keys. */
#ifndef AF_DECODE_MIXED_H
#define AF_DECODE_MIXED_H

#include "kernel/block.h"
#include "kernel/decode_interleaved.h"

/* Keys of a turn: short turns read memory nearly in order. A turn of values has all the rows that are added up
 * together. */
enum { MIXED_KEYS = 4 };

/* The turns of a block of keys, or of its values. */
typedef struct mixed_turns {
    int few;                    /* rows of a turn */
    int64_t stride;             /* elements from a row to the next */
    int64_t later;              /* how many rows later the rows are that a turn requests, at most */
    const elem *at[TURN_HEADS]; /* the first row of the block in each head */
    int64_t ahead[TURN_HEADS];  /* how far ahead a head requests lines, in bytes */
    int64_t last[TURN_HEADS];   /* the same beyond the end: the first rows of what is read next */
} mixed_turns;

AF_INLINE const elem *mixed_row(const af_rows *rows, int64_t j) { return rows->first + j * rows->stride; }

AF_INLINE int64_t bytes_between(const elem *from, const elem *to) { return (int64_t)((uintptr_t)to - (uintptr_t)from); }

/* n rows from row j on. After keys their values are read, if there are any, then the next keys. */
static void find_turns(mixed_turns *t, const decode_run *runs, int count, int few, int64_t j, int n, const int which)
{
    const af_rows *rows = which == KEYS ? runs->s.keys : runs->s.values;
    const bool values_next = which == KEYS && runs->s.values->first;
    const af_rows *next = values_next ? runs->s.values : runs->s.keys;
    const int64_t next_j = values_next ? j : j + n;
    const int64_t turn = few * af_max(1, rows->width) * (int)sizeof(elem);
    const int turns = (int)af_max(1, FAR_BYTES / turn);
    int64_t later = turns / count * few;
    int other = turns % count;
    t->few = few;
    t->stride = rows->stride;
    t->later = later + few;
    for (int g = 0; g < count; g++) t->at[g] = mixed_row(rows + g, j);
    for (int g = 0; g < count; g++) {
        t->ahead[g] = bytes_between(t->at[g], t->at[other] + later * rows->stride);
        t->last[g] = bytes_between(t->at[g] + n * rows->stride, mixed_row(next + other, next_j) + later * next->stride);
        if (++other < count) continue;
        other = 0;
        later += few;
    }
}

static void mixed_scores(const af_plan *plan, const decode_run *runs, int count, int64_t j0, int n)
{
    mixed_turns t;
    const scratch *s = &runs->s;
    const int nr = runs->block.n;
    const int64_t D = s->keys->width, queries = plan->block_rows * D, scores = plan->block_rows * plan->key_block;
    const bool interleave = interleaves(nr, D, true);
    find_turns(&t, runs, count, MIXED_KEYS, j0, n, KEYS);
    for (int j = 0; j < n; j += MIXED_KEYS) {
        const int here = n - j < MIXED_KEYS ? n - j : MIXED_KEYS;
        const int64_t *ahead = j + t.later < n ? t.ahead : t.last;
        for (int g = 0; g < count; g++) {
            const elem_rows key = {t.at[g] + j * t.stride, t.stride};
            const score_rows to = {s->s + g * scores + j, plan->key_block};
            const real *query = s->query + g * queries;
            if (interleave) interleaved_scores(nr, here, ahead[g] / (int)sizeof(elem), query, key, to, D);
            else decode_scores(nr, here, query, key, to, D, &(requests){.line = ahead[g]});
        }
    }
}

static void mixed_output(const af_plan *plan, const decode_run *runs, int count, int64_t j0, int n)
{
    mixed_turns t;
    const scratch *s = &runs->s;
    const int nr = runs->block.n;
    const int64_t Dv = s->values->width, outputs = plan->block_rows * Dv, scores = plan->block_rows * plan->key_block;
    const bool interleave = interleaves(nr, Dv, true);
    find_turns(&t, runs, count, near_rows(Dv), j0, n, VALUES);
    for (int j = 0; j < n; j += t.few) {
        const int here = n - j < t.few ? n - j : t.few;
        const int64_t *ahead = j + t.later < n ? t.ahead : t.last;
        for (int g = 0; g < count; g++) {
            if (!runs[g].any) continue;
            const elem_rows value = {t.at[g] + j * t.stride, t.stride};
            const score_rows p = {s->s + g * scores + j, plan->key_block};
            real *o = s->o + g * outputs;
            if (interleave) interleaved_values(nr, here, ahead[g] / (int)sizeof(elem), p, value, o, Dv);
            else decode_values(nr, here, p, value, o, Dv, (requests){.line = ahead[g]});
        }
    }
}

#endif

/* Decoding where keys and values are in pages. Memory is fastest in long runs, and a head has only some rows of each
 * page: so the heads of a unit take turns, and a page that holds the rows of all heads side by side is read from its
 * beginning to its end. What a head computes, and in which order, is the same as without pages; of bytes, sums end
 * where pages do. */
#ifndef AF_DECODE_PAGES_H
#define AF_DECODE_PAGES_H

#include "kernel/block.h"
#include "kernel/decode_interleaved.h"

/* Where a turn ends that begins at row j: whole groups of `few` rows that lie in one page, or one group that does not.
 * Heads whose rows are mixed take turns after every group. */
static int64_t end_of_turn(const af_rows *rows, int64_t j, int64_t end, int few)
{
    const int64_t line = rows_in_line(rows, j, end - j);
    if (rows->stride > rows->width || line < few) return af_min(end, j + few);
    return line == end - j ? end : j + line / few * few;
}

/* Rows of one head that it takes in its turn: n from row j on. */
typedef struct turn {
    int64_t j, n;
    const elem *at;     /* row j; NULL: a page ends among the rows */
    int64_t far, later; /* where lines are requested: so many rows on, or beyond
                           the turn `later` bytes on */
} turn;

/* How much is read between a request for lines and their use. Three and four query rows request every line, others one
 * here and there, and leave the rest to the hardware, which looks as far as the end of a page of memory: with a request
 * for every line heads 32/32 x 128 had 18 GB/s instead of 25 (Zen 4, AVX-512). */
AF_INLINE int64_t bytes_ahead(const af_plan *plan, const decode_run *run, bool bytes)
{
    return bytes || run->block.n > 2 || plan->request_bytes ? FAR_BYTES : PAGE_BYTES_AHEAD;
}

/* The distance in bytes at which lines are requested from row i of a turn on.
 */
AF_INLINE int64_t turn_distance(const af_rows *rows, turn t, int64_t i)
{
    const int64_t row = rows->stride * (int)sizeof(elem);
    if (i + t.far < t.n) return t.far * row;
    return t.n > t.far && t.later ? t.later + (t.far - t.n) * row : t.later;
}

AF_INLINE elem_rows rows_of_turn(const af_rows *rows, turn t, int i, int n)
{
    return t.at ? rows_from((elem_rows){t.at, rows->stride}, i) : copied_elems(rows, t.j + i, n);
}

/* The part of a block of keys from key j0 on that one head computes in its turn. */
static void turn_scores(const af_plan *plan, const decode_run *run, int64_t j0, turn t)
{
    const int nr = run->block.n;
    const scratch *s = &run->s;
    const int64_t D = s->keys->width;
    const bool each = plan->request_bytes > 0;
    const int few = near_rows(D);
    for (int i = 0; i < t.n; i += few) {
        const int here = (int)af_min(few, t.n - i);
        const score_rows to = {s->s + (t.j - j0 + i), plan->key_block};
        const elem_rows key = rows_of_turn(s->keys, t, i, here);
        const int64_t ahead = turn_distance(s->keys, t, i);
        if (nr > 2 && (!each || interleaves(nr, D, true)))
            interleaved_scores(nr, here, ahead / (int)sizeof(elem), s->query, key, to, D);
        else decode_scores(nr, here, s->query, key, to, D, &(requests){each ? 0 : ahead, each ? ahead : 0});
    }
}

static void turn_output(const af_plan *plan, const decode_run *run, int64_t j0, turn t)
{
    const int nr = run->block.n;
    const scratch *s = &run->s;
    const int64_t Dv = s->values->width;
    const bool each = plan->request_bytes > 0;
    const int few = near_rows(Dv);
    for (int i = 0; i < t.n; i += few) {
        const int here = (int)af_min(few, t.n - i);
        const score_rows p = {s->s + (t.j - j0 + i), plan->key_block};
        const elem_rows value = rows_of_turn(s->values, t, i, here);
        const int64_t ahead = turn_distance(s->values, t, i);
        if (nr > 2 && (!each || interleaves(nr, Dv, true)))
            interleaved_values(nr, here, ahead / (int)sizeof(elem), p, value, s->o, Dv);
        else {
            for (int line = 0; line < 4 && !each; line++) prefetch_page(rows_from(value, line * here / 4), ahead);
            decode_values(nr, here, p, value, s->o, Dv, (requests){.line = each ? ahead : 0});
        }
    }
}

/* The same for rows of bytes, which need not be in pages. */
static void byte_scores_of(const af_plan *plan, const decode_run *run, int64_t j0, turn t)
{
    const scratch *s = &run->s;
    const af_byte_product p = {.j = t.j,
                               .n = (int)t.n,
                               .count = run->block.n,
                               .s = (float *)s->s + (t.j - j0),
                               .lds = plan->key_block,
                               .ahead = t.later,
                               .near = plan->request_bytes > 0};
    s->keys->bytes->scores(&s->keys->stored, p, (const float *)s->query);
}

static void byte_output_of(const af_plan *plan, const decode_run *run, int64_t j0, turn t, const uint64_t *words)
{
    const scratch *s = &run->s;
    af_byte_product p = {.j = t.j, .n = (int)t.n, .count = run->block.n, .s = (float *)s->s + (t.j - j0)};
    p.lds = plan->key_block;
    p.words = words;
    p.words_ld = DECODE_ROWS;
    p.first = (int)(t.j - j0);
    p.ahead = t.later;
    p.near = plan->request_bytes > 0;
    s->values->bytes->output(&s->values->stored, p, (float *)s->o);
}

/* Row j, in bytes from row 0 or from that of page 0; the same for all heads. */
static int64_t offset_of(const af_rows *rows, int64_t j)
{
    const int64_t size = rows->bytes ? 1 : (int)sizeof(elem);
    if (!rows->pages) return j * rows->stride * size;
    const int64_t block = j / rows->page_size;
    return (rows->pages[block] * rows->page_stride + (j - block * rows->page_size) * rows->stride) * size;
}

AF_INLINE const char *address_of(const af_rows *rows, int64_t offset)
{
    return (rows->bytes ? (const char *)rows->stored.first : (const char *)rows->first) + offset;
}

/* n keys from j0 on, in the order in which pages hold them: their scores, or their values. Divisions wait for each
 * other, and loads for addresses: so they are made once for all heads. words (or NULL): the values that enter, which
 * must be bytes; they are added up in the same groups as without. */
static void read_pages(const af_plan *plan, const decode_run *runs, int count, int64_t j0, int n, const int which,
                       const uint64_t *words)
{
    const af_rows *first = which == KEYS ? runs->s.keys : runs->s.values;
    const bool bytes = first->bytes != NULL;
    const int64_t end = j0 + n, width = af_max(1, first->width * (bytes ? 1 : (int)sizeof(elem)));
    const int64_t ahead = bytes_ahead(plan, runs, bytes), far = ahead / width;
    const int few = near_rows(first->width);
    for (int64_t j = j0, next; j < end; j = next) {
        next = end_of_turn(first, j, end, few);
        const int64_t rows = next - j, turns = af_max(1, far / rows), rounds = turns / count;
        const int64_t here = offset_of(first, j), last = j + (rounds + 1) * rows;
        const int64_t soon = last - rows < end ? offset_of(first, last - rows) : here;
        const int64_t later = last < end ? offset_of(first, last) : here;
        const bool in_line = rows_in_line(first, j, rows) == rows;
        int other = (int)(turns - rounds * count);
        for (int g = 0; g < count; g++, other++) {
            const decode_run *run = &runs[g], *next_run = &runs[other < count ? other : other - count];
            const af_rows *own = which == KEYS ? run->s.keys : run->s.values;
            turn t = {j, rows, NULL, far, 0};
            const char *at = address_of(own, here);
            if (in_line) t.at = (const elem *)at;
            t.later =
                address_of(which == KEYS ? next_run->s.keys : next_run->s.values, other < count ? soon : later) - at;
            if (which == KEYS && bytes) byte_scores_of(plan, run, j0, t);
            else if (which == KEYS) turn_scores(plan, run, j0, t);
            else if (run->any && bytes) byte_output_of(plan, run, j0, t, words);
            else if (run->any) turn_output(plan, run, j0, t);
        }
    }
}

#endif

#include "survey.h"

#include "kernels.h"
#include "view.h"

/* Pairs of rows [first, last) of a view with keys [j0, j1) that may attend. */
static int64_t visible_in(const af_view *w, const af_problem *p, int first, int last, int64_t j0, int64_t j1)
{
    const uint8_t *mask = p->mask.data, *blocks = p->blocks.data;
    int64_t seen = 0;
    for (int r = first; r < last; r++) {
        const af_span keys = af_common(w->visible[r], (af_span){j0, j1});
        if (mask) {
            mask = (const uint8_t *)p->mask.data + af_offset(&p->mask, w->b, w->head[r], w->query[r]);
            for (int64_t j = keys.begin; j < keys.end; j++) seen += mask[j * p->mask.j] != 0;
        } else if (blocks) {
            blocks = (const uint8_t *)p->blocks.data;
            blocks += af_offset(&p->blocks, w->b, w->head[r], af_block_of_query(p, w->b, w->query[r]));
            for (int64_t j = keys.begin, end; j < keys.end; j = end) {
                const int64_t column = af_block_of_key(p, w->b, j);
                end = af_min(keys.end, af_block_end(p, w->b, column));
                if (blocks[column * p->blocks.j]) seen += end - j;
            }
        } else seen += keys.end - keys.begin;
    }
    return seen;
}

typedef struct survey {
    const af_plan *plan;
    const af_problem *problem;
    af_report *report;
    af_rectangle *rectangles;
    int64_t room;
    af_watch *watch;
    unsigned pieces;
} survey;

static void add_rectangle(survey *s, const af_rectangle *rectangle)
{
    if (rectangle->first_key == rectangle->end_key) return;
    if (s->report->rectangles < s->room) s->rectangles[s->report->rectangles] = *rectangle;
    s->report->rectangles++;
}

/* Walks the pieces of keys as kernel/forward.h and kernel/decode.h do. */
static af_status survey_block(survey *s, af_unit unit)
{
    const af_plan *plan = s->plan;
    const af_problem *p = s->problem;
    const int part_rows = plan->decode ? AF_MOST_ROWS : plan->kernels->vl;
    af_rectangle wide = {.b = unit.b};
    af_view w;
    if (af_ask(s->watch) == AF_INTERRUPTED) return AF_INTERRUPTED; /* a block may have no piece */
    af_look(&w, p, plan, unit, part_rows);
    wide.hk = w.hk;
    for (int64_t split = 0; split < plan->splits; split++) {
        const af_span span = af_split(w.span, split, plan->split_keys);
        for (int64_t j = span.begin, n; j < span.end; j += n) {
            const af_piece piece = af_next_piece(&w, p, span, j, plan->key_block);
            n = piece.keys;
            if (++s->pieces % 64 == 0 && af_ask(s->watch) == AF_INTERRUPTED) return AF_INTERRUPTED;
            const int first = piece.first * part_rows, last = (int)af_min(w.n, piece.last * part_rows);
            const int64_t seen = first < last ? visible_in(&w, p, first, last, j, j + n) : 0;
            s->report->visible_pairs += seen;
            if (first >= last || (!seen && !plan->decode)) continue;
            s->report->visited_pairs += n * (last - first);
            const int64_t i = w.query[first], end = w.query[last - 1] + 1;
            if (wide.end_key != j || wide.first_query != i || wide.end_query != end) {
                add_rectangle(s, &wide);
                wide.first_query = i;
                wide.end_query = end;
                wide.first_key = j;
            }
            wide.end_key = j + n;
        }
    }
    add_rectangle(s, &wide);
    return AF_OK;
}

/* Heads and batch rows that cannot differ are counted once, unless every rectangle is asked for. */
af_status af_survey(const af_plan *plan, const af_problem *p, af_watch *watch, af_report *report,
                    af_rectangle *rectangles, int64_t room)
{
    survey s = {plan, p, report, rectangles, room, watch, 0};
    const bool same_heads = !rectangles && !p->mask.h && !p->blocks.h && !p->center.data && !p->order.data;
    const bool same_rows = same_heads && !p->mask.b && !p->mask.batch && !p->blocks.b && !p->blocks.batch &&
                           !p->q_offset && !p->q_length && !p->kv_length && !p->global;
    const int64_t rows = same_rows ? 1 : p->B, heads = same_heads ? 1 : plan->head_groups;
    report->visible_pairs = report->visited_pairs = report->rectangles = 0;
    for (int64_t b = 0; b < rows; b++)
        for (int64_t hg = 0; hg < heads; hg++)
            for (int64_t block = 0; block < plan->blocks; block++) {
                const int64_t row = block * plan->block_rows;
                const int here = (int)af_min(plan->block_rows, plan->rows - row);
                const af_unit unit = {.b = b, .hg = hg, .row = row, .rows = here};
                if (survey_block(&s, unit) == AF_INTERRUPTED) return AF_INTERRUPTED;
            }
    const int64_t times = (p->B / rows) * (plan->head_groups / heads);
    report->visible_pairs *= times;
    report->visited_pairs *= times;
    report->rectangles *= times;
    return AF_OK;
}

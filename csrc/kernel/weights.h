/* Scores and weights themselves, [rows][keys], for callers who ask for them.
 *
 * Stages: SCORES and CAPPED hold every pair, BIASED has -inf where a key is hidden, WEIGHTS are exp(score - m) / l with
 * the m and 1 / l that forward or decode left for each row; hidden keys weigh 0. The tile is transposed on its way out.
 */
#ifndef AF_WEIGHTS_H
#define AF_WEIGHTS_H

typedef struct weight_rows {
    elem *row[AF_NR];
    real m[AF_NR], inverse[AF_NR], one[AF_NR];
} weight_rows;

static void tile_to_weights(const af_problem *p, const af_plan *plan, const block *k, const weight_rows *w, int64_t j0,
                            int n, real *s)
{
    for (int j = 0; p->stage == AF_WEIGHTS && j < n; j++)
        for (int c = 0; c < k->nv; c++) {
            real *x = s + j * AF_NR + c * VL;
            const v score = v_load(x), p_unscaled = exp_difference(plan->base2, v_sub(score, v_load(w->m + c * VL)));
            const v weight = v_mul(p_unscaled, v_load(w->inverse + c * VL));
            v_store(x, v_select(vm_ne(score, v_set1(-AF_INFINITY)), weight, v_zero()));
        }
    if (p->fading > 0) fade_tile(p, k, j0, n, s);
    elem *rows[AF_NR];
    for (int lane = 0; lane < k->n; lane++) rows[lane] = w->row[lane] + j0;
    lanes_to_rows(k->n, k->nv, n, s, w->one, NULL, rows);
}

static void fill_weights(const block *k, const weight_rows *w, int64_t begin, int64_t end, real x)
{
    for (int lane = 0; lane < k->n; lane++) {
        int64_t j = begin;
        for (; j + VL <= end; j += VL) e_store(w->row[lane] + j, v_set1(x));
        if (j < end) e_store_n(w->row[lane] + j, v_set1(x), (int)(end - j));
    }
}

/* The few rows of a decode plan, whose scores are computed as decode.h does: m and 1 / l fit no others. */
static void decode_weights(const af_problem *p, const af_plan *plan, const block *k, const scratch *s,
                           const weight_rows *w, af_span span)
{
    const int64_t lds = plan->key_block;
    decode_query(p, plan, k, s->query);
    for (int64_t j0 = span.begin; j0 < span.end; j0 += lds) {
        const int n = (int)af_min(lds, span.end - j0);
        decode_block(p, plan, k, s, j0, n);
        for (int r = 0; r < k->n; r++) {
            real *row = s->s + r * lds;
            for (int j = 0; p->stage == AF_WEIGHTS && j < n; j += VL) {
                const int here = n - j < VL ? n - j : VL;
                v x = v_load_n(row + j, here);
                const vm seen = vm_ne(x, v_set1(-AF_INFINITY));
                x = v_mul(exp_difference(plan->base2, v_sub(x, v_set1(w->m[r]))), v_set1(w->inverse[r]));
                v_store_n(row + j, v_select(seen, x, v_zero()), here);
            }
            if (p->fading > 0) fade_row(p, k, r, j0, n, row);
            for (int j = 0; j < n; j += VL) {
                const int here = n - j < VL ? n - j : VL;
                e_store_n(w->row[r] + j0 + j, v_load_n(row + j, here), here);
            }
        }
    }
}

static void weights(const af_problem *p, const af_plan *plan, af_unit unit, void *memory)
{
    block k;
    scratch s;
    weight_rows w;
    make_block(&k, p, plan, unit);
    carve(&s, p, plan, memory);
    for (int lane = 0; lane < AF_NR; lane++) w.m[lane] = w.inverse[lane] = 0, w.one[lane] = 1;
    find_rows(&p->weights, &k.view, w.row);
    for (int lane = 0; lane < k.n; lane++) {
        if (!plan->row_max) continue;
        const int64_t row = row_number(p, &k.view, lane);
        w.m[lane] = ((const real *)plan->row_max)[row];
        w.inverse[lane] = ((const real *)plan->row_inverse)[row];
    }
    const bool all_pairs = p->stage <= AF_CAPPED;
    const real hidden = p->stage == AF_WEIGHTS ? 0 : -AF_INFINITY;
    const af_span chunk = af_split((af_span){0, p->Lk}, unit.split, plan->chunk_keys);
    af_span span = all_pairs ? chunk : af_common(chunk, k.view.span);
    if (span.begin == span.end) span = (af_span){chunk.end, chunk.end};
    fill_weights(&k, &w, chunk.begin, span.begin, hidden);
    fill_weights(&k, &w, span.end, chunk.end, hidden);
    if (span.begin == span.end) return;
    if (plan->decode) {
        decode_weights(p, plan, &k, &s, &w, span);
        return;
    }
    pack_query(p, plan, &k, &s);
    for (int64_t j0 = span.begin; j0 < span.end; j0 += plan->key_block) {
        const int n = (int)af_min(plan->key_block, span.end - j0);
        const int seen = all_pairs ? SEES_ALL : visible_words(p, &k, j0, n, s.words);
        if (seen == SEES_NOTHING) {
            fill_weights(&k, &w, j0, j0 + n, hidden);
            continue;
        }
        const ahead next = {0};
        score_block(p, &k, &s, j0, n, &next);
        if (seen == SEES_SOME) hide_scores(&k, n, s.words, s.s);
        tile_to_weights(p, plan, &k, &w, j0, n, s.s);
    }
}

#endif

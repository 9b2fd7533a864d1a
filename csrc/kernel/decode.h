/* Attention of a few query rows (decoding): D in the lanes, so that keys and values are read once for all rows at the
 * speed of memory and no lane is wasted on queries that are not there; the products are in narrow.h and mixed.h.
 *
 * Memory is fastest when it is read in long stretches, so a block is many keys: first all of them, then their values.
 * Rows are the queries of all heads that share the key/value head. Of the state that comes out m and l are in query
 * lanes as those of forward.h, O is by rows. */
#ifndef AF_DECODE_H
#define AF_DECODE_H

#include "mixed.h"

enum { DECODE_ROWS = AF_NR < 8 ? AF_NR : 8 };

static void decode_query(const af_problem *p, const af_plan *plan, const block *k, real *query)
{
    const v scale = v_set1((real)plan->query_scale);
    elem *rows[AF_NR];
    const real *bias = p->additive ? head_row(&p->score_bias, k) : NULL;
    find_rows(&p->query, &k->view, rows);
    for (int r = 0; r < k->n; r++, query += p->D) {
        const elem *row = rows[r];
        int64_t d = 0;
        for (; d + VL <= p->D; d += VL) v_store(query + d, v_mul(e_load(row + d), scale));
        const int rest = (int)(p->D - d);
        if (rest) v_store_n(query + d, v_mul(e_load_n(row + d, rest), scale), rest);
        for (d = 0; bias && d < p->D; d++) query[d] += bias[d];
    }
}

/* Modifiers and masks on one row of scores, s[0 .. n), n <= 64. Returns the keys whose score is not -inf. */
static uint64_t decode_modify(const af_problem *p, const block *k, int r, int64_t j0, int n, real *s)
{
    const bool all_pairs = p->stage <= AF_CAPPED;
    const af_span seen = all_pairs ? (af_span){0, p->Lk} : k->view.visible[r];
    uint64_t word = low_bits(seen.end - j0) & ~low_bits(seen.begin - j0) & low_bits(n), left = 0;
    if ((p->mask.data || af_has_pattern(p)) && word && !all_pairs) word &= row_word(p, k, r, j0, n);
    const real *bias = p->bias.data ? k->bias_row[r] : NULL;
    const real distance = (real)(af_position(p, k->view.b, k->view.query[r]) - j0);
    real lane[VL];
    for (int i = 0; i < VL; i++) lane[i] = (real)i;
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        v x = v_load_n(s + j, here);
        if (p->softcap != 0) x = softcap_value(x, (real)p->softcap);
        if (p->alibi && !all_pairs)
            x = alibi_value(x, v_set1(lane_slope(p, k, r)), v_sub(v_set1(distance - (real)j), v_load(lane)));
        if (bias && !all_pairs) x = bias_value(x, p->bias.j ? v_load_n(bias + j0 + j, here) : v_set1(*bias));
        x = v_select(vm_bits(word >> j), x, v_set1(-AF_INFINITY));
        left |= (vm_word(vm_ne(x, v_set1(-AF_INFINITY))) & low_bits(here)) << j;
        v_store_n(s + j, x, here);
    }
    return left;
}

/* One online softmax step of one row; see softmax.h. Memory would have nothing to do in the meantime: lines are fetched
 * that come next. */
static void decode_softmax(bool base2, int n, int64_t Dv, real *s, real *m, real *l, real *acc, line_queue *next)
{
    const v low = v_set1(-AF_INFINITY);
    v top = low, sum = v_zero();
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        top = v_max(here == VL ? v_load(s + j) : v_select(vm_first(here), v_load_n(s + j, here), low), top);
    }
    const real high = v_hmax(top);
    if (high > *m + (base2 ? SLACK : SLACK * AF_LN2)) {
        real factor[VL];
        v_store(factor, exp_difference(base2, v_set1(*m - high)));
        *m = high;
        *l *= factor[0];
        for (int64_t d = 0; d < Dv; d++) acc[d] *= factor[0];
    }
    const v shift = v_set1(*m);
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        v x = exp_difference(base2, v_sub(v_load_n(s + j, here), shift));
        x = v_select(vm_first(here), x, v_zero());
        v_store_n(s + j, x, here);
        sum = v_add(sum, x);
        UNROLL(line, 2) fetch_next_line(next);
    }
    *l += v_hsum(sum);
}

/* Scores of one block of keys after modifiers and masks. words[j / 64][r]: the keys whose score is not -inf, where
 * something may be hidden. Returns whether there are any; where nothing can be hidden, true. */
static bool decode_block(const af_problem *p, const af_plan *plan, const block *k, const scratch *s, int64_t j0, int n)
{
    const int64_t lds = plan->key_block;
    const elem *key = (const elem *)p->key.data + af_offset(&p->key, k->view.b, k->view.hk, j0);
    const bool mix = mixes(k->n, p->D);
    const int few = k->n <= dot_group(p->D) && p->key.i == p->D ? n : near_rows(p->D);
    if (p->additive) additive_rows(p, k, n, s->query, key, s->s, lds);
    else
        for (int j = 0; j < n; j += few, key += few * p->key.i) {
            const int here = n - j < few ? n - j : few;
            if (mix) mixed_scores(k->n, here, n - j, p->D, s->query, key, p->key.i, s->s + j, lds);
            else {
                fetch_apart(few, n - j, key, p->key.i, p->D);
                decode_scores(k->n, here, p->D, s->query, key, p->key.i, s->s + j, lds);
            }
        }
    if (!k->hides && p->softcap == 0 && !p->alibi) return true;
    uint64_t any = 0;
    for (int j = 0; j < n; j += 64)
        for (int r = 0; r < k->n; r++)
            any |= s->words[j / 64 * DECODE_ROWS + r] =
                decode_modify(p, k, r, j0 + j, n - j < 64 ? n - j : 64, s->s + r * lds + j);
    return any;
}

/* Adds the values of one block of keys, each times its weight. */
static void decode_output(const block *k, const scratch *s, int64_t lds, int n, const elem *value, int64_t stride,
                          int64_t Dv, bool careful)
{
    const bool mix = !careful && mixes(k->n, Dv);
    const int few = near_rows(Dv);
    for (int j = 0; j < n; j += few, value += few * stride) {
        const int here = n - j < few ? n - j : few;
        const uint64_t *words = s->words + j / 64 * DECODE_ROWS;
        if (mix) {
            mixed_values(k->n, here, n - j, s->s + j, lds, value, stride, s->o, Dv);
            continue;
        }
        fetch_apart(few, n - j, value, stride, Dv);
        fetch_page(value, page_distance(stride, Dv));
        if (!careful) decode_values(k->n, here, s->s + j, lds, value, stride, s->o, Dv);
        else decode_values_carefully(k->n, here, s->s + j, lds, words, j % 64, value, stride, s->o, Dv);
    }
}

static void decode_keys(const af_problem *p, const af_plan *plan, const block *k, const scratch *s, bool careful)
{
    const int64_t lds = plan->key_block, Dv = p->value.data ? p->Dv : 0;
    reset_state(s);
    if (Dv) zero_output(p, plan, s);
    const af_span span = k->view.span;
    for (int64_t j0 = span.begin, keys; j0 < span.end; j0 += keys) {
        const af_piece piece = af_next_piece(&k->view, p, span, j0, plan->key_block);
        keys = piece.keys;
        if (piece.first == piece.last) continue;
        const int n = (int)keys;
        if (!decode_block(p, plan, k, s, j0, n)) continue;
        const elem *value = Dv ? (const elem *)p->value.data + af_offset(&p->value, k->view.b, k->view.hk, j0) : NULL;
        line_queue next = {value, Dv ? n : 0, p->value.i, Dv, 0};
        for (int r = 0; r < k->n; r++) {
            decode_softmax(plan->base2, n, Dv, s->s + r * lds, s->m + r, s->l + r, s->o + r * Dv, &next);
            if (p->fading > 0) fade_row(p, k, r, j0, n, s->s + r * lds);
        }
        if (Dv) decode_output(k, s, lds, n, value, p->value.i, Dv, careful);
    }
}

static bool finite_rows(int rows, int64_t Dv, const real *o)
{
    const int64_t n = rows * Dv;
    v poison = v_zero(); /* x - x is 0, or NaN where x is not finite */
    for (int64_t i = 0; i < n; i += VL) {
        const v x = n - i < VL ? v_load_n(o + i, (int)(n - i)) : v_load(o + i);
        poison = v_add(poison, v_sub(x, x));
    }
    return !vm_word(vm_ne(poison, v_zero()));
}

static void decode(const af_problem *p, const af_plan *plan, af_unit unit, void *memory, void *partial)
{
    block k;
    scratch s;
    make_block(&k, p, plan, unit);
    carve(&s, p, plan, memory);
    k.view.span = af_split(k.view.span, unit.split, plan->split_keys);
    if (k.view.span.begin < k.view.span.end) decode_query(p, plan, &k, s.query);
    decode_keys(p, plan, &k, &s, false);
    if (p->value.data && k.hides && !finite_rows(k.n, p->Dv, s.o)) decode_keys(p, plan, &k, &s, true);
    if (plan->splits > 1) save_partial(p, plan, &s, partial);
    else finish(p, plan, &k, &s);
}

#endif

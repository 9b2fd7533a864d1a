/* Attention of a block of query rows, queries in the lanes: O[i] = sum_j softmax_j(S[j, i]) V[j], S = K Q'.
 *
 *   pack Q once:  Qt[D][NR], scale folded in
 *   for each block of keys in the span:   S = K Qt    modifiers, masks    online softmax    O += V' P
 *   finish:  O / l transposed to the output's rows, lse
 *
 * Cost: 2 (D + Dv) NR flops a key; memory: the few tiles of block.h, all in cache. A hidden key gets P = 0, and 0 * V
 * is 0 unless V holds NaN or inf. So a block whose output is not finite although something was hidden from it is done
 * again carefully: V enters only the lanes that see the key. Where V is finite both ways give the same bits. */
#ifndef AF_FORWARD_H
#define AF_FORWARD_H

static void pack_query(const af_problem *p, const af_plan *plan, const block *k, const scratch *s)
{
    if (p->additive) {
        pack_additive_query(p, k, s);
        return;
    }
    elem *rows[AF_NR] = {0};
    find_rows(&p->query, &k->view, rows);
    rows_to_lanes(k->n, k->nv, p->D, rows, (real)plan->query_scale, s->query);
}

static void find_next_edges(edges *e, const af_problem *p, const af_plan *plan, const block *k, af_unit unit)
{
    const af_unit own = unit;
    if (!af_next_block(plan, p, &unit)) return;
    e->queries = unit.rows;
    af_view next; /* of which only the rows are wanted */
    next.b = unit.b;
    next.n = unit.rows;
    af_find_rows(&next, p, plan, unit);
    find_rows(&p->query, &next, e->query_row);
    const bool same = own.b == unit.b && own.hg == unit.hg;
    const int64_t hk = af_key_head(p, plan, unit);
    af_span seen = af_visible_keys(p, unit.b, 0, next.query[0]);
    if (same) seen.end = af_min(seen.end, k->view.span.begin);
    e->keys = af_max(0, af_min(plan->key_block, seen.end - seen.begin));
    e->key = (const elem *)p->key.data + af_offset(&p->key, unit.b, hk, seen.begin);
    if (!same || !p->value.data) return;
    e->values = e->keys;
    e->value = (const elem *)p->value.data + af_offset(&p->value, unit.b, hk, seen.begin);
}

static void find_edges(edges *e, const af_problem *p, const af_plan *plan, const block *k, af_unit unit)
{
    const bool in_turn = !p->order.data && !p->center.data && !p->global && !p->place; /* the next sees keys nearby */
    const int64_t keys = af_max(0, k->view.span.end - k->view.span.begin);
    e->outputs = p->value.data && plan->splits == 1 ? k->n : 0;
    if (e->outputs) find_rows(&p->output, &k->view, e->output_row);
    e->far = !in_turn || unit.row + unit.rows == plan->rows ||
             (double)keys * (double)(p->D + p->Dv) * (double)sizeof(elem) > NEAR_BYTES;
    e->queries = e->keys = e->values = 0;
    if (in_turn) find_next_edges(e, p, plan, k, unit);
    const int64_t tiles = af_max(1, keys / AF_MR);
    e->rows_a_tile = (e->outputs + e->queries + e->keys + e->values + tiles - 1) / tiles;
}

/* O[d][lane] += P[j][lane] V[j][d] for the lanes that see key j, and no other. */
static void careful_values(const block *k, int n, int64_t Dv, const real *value, int64_t ldv, const uint64_t *words,
                           const real *p, real *o)
{
    for (int64_t d = 0; d < Dv; d++)
        for (int c = k->v0; c < k->v1; c++) {
            v sum = v_zero();
            for (int j = 0; j < n; j++) {
                const v more = v_fma(v_set1(value[j * ldv + d]), v_load(p + j * AF_NR + c * VL), sum);
                sum = v_select(vm_bits(words[j] >> c * VL), more, sum);
            }
            v_store(o + d * AF_NR + c * VL, v_add(v_load(o + d * AF_NR + c * VL), sum));
        }
}

static bool finite_output(const block *k, int64_t Dv, const real *o)
{
    v poison = v_zero(); /* x - x is 0, or NaN where x is not finite */
    uint64_t bad = 0;
    for (int c = 0; c < k->nv; c++, poison = v_zero()) {
        for (int64_t d = 0; d < Dv; d++) {
            const v x = v_load(o + d * AF_NR + c * VL);
            poison = v_add(poison, v_sub(x, x));
        }
        bad |= vm_word(vm_ne(poison, v_zero())) << c * VL;
    }
    return !(bad & low_bits(k->n));
}

/* The values of this block of keys, wanted after its scores, and the keys of the next. */
static ahead values_and_next_keys(const af_problem *p, const af_plan *plan, const block *k, int64_t j0, int n, edges *e)
{
    const int64_t next = j0 + n;
    ahead a = {.edge = e, .value_stride = p->value.i, .key_stride = p->key.i, .D = p->D, .Dv = p->Dv};
    a.apart = p->key.i != p->D;
    if (!e->far) return a;
    if (p->value.data) {
        a.value = (const elem *)p->value.data + af_offset(&p->value, k->view.b, k->view.hk, j0);
        a.values = n;
    }
    if (next < k->view.span.end) {
        a.key = (const elem *)p->key.data + af_offset(&p->key, k->view.b, k->view.hk, next);
        a.keys = af_min(plan->key_block, k->view.span.end - next);
    }
    return a;
}

/* The rows of a bias over this block of keys and of a mask over the next, unless there is but one of them. */
static void fetch_lanes(ahead *a, const af_problem *p, const af_plan *plan, const block *k, int64_t j0, int n)
{
    const bool bias = p->bias.data && p->bias.j && k->bias_row[0] != k->bias_row[k->n - 1];
    const bool mask = p->mask.data && p->mask.j && !k->view.mask && j0 + n < k->view.span.end;
    if (!bias && !mask) return;
    a->lanes = k->n;
    a->lanes_a_tile = k->n / (n / AF_MR + 1) + 1;
    a->bias = bias ? k->bias_row : NULL;
    a->bias_begin = j0;
    a->bias_end = j0 + n;
    a->mask = mask ? k->mask_row : NULL;
    a->mask_begin = j0 + n;
    a->mask_end = af_min(k->view.span.end, j0 + n + plan->key_block);
}

static const real *key_rows(const af_problem *p, const block *k, const scratch *s, int64_t j0, int n, int64_t *ldk)
{
    const elem *key = (const elem *)p->key.data + af_offset(&p->key, k->view.b, k->view.hk, j0);
    return real_rows(key, p->key.i, n, p->D, s->key, ldk);
}

/* Scores of one block of keys after modifiers; the block is at least partly visible. */
static void score_block(const af_problem *p, const block *k, const scratch *s, int64_t j0, int n, const ahead *next)
{
    int64_t ldk;
    const real *rows = key_rows(p, k, s, j0, n, &ldk);
    if (p->additive) additive_product(p, k, s, n, rows, ldk, s->s);
    else score_product(k->v1 - k->v0, n, p->D, rows, ldk, s->query + k->v0 * VL, s->s + k->v0 * VL, next);
    modify_scores(p, k, j0, n, s->s);
}

/* The weights of one block of keys whose scores nothing modifies, see weigh.h. */
static bool weigh_block(const af_problem *p, const block *k, const scratch *s, int64_t j0, int n, int seen,
                        bool careful, const ahead *next, real *factor)
{
    weighing w;
    const int nv = k->v1 - k->v0;
    start_weighing(&w, s, seen == SEES_SOME ? s->words : NULL, k->v0, factor);
#if AF_TILE_WEIGHS
    if (!careful) {
        int64_t ldk;
        const real *rows = key_rows(p, k, s, j0, n, &ldk);
        weigh_product(&w, nv, n, p->D, rows, ldk, s->query + k->v0 * VL, next);
        return end_weighing(&w, nv);
    }
#endif
    const int few = weighed_keys(n);
    score_block(p, k, s, j0, n, next);
    if (seen == SEES_SOME) hide_scores(k, n, s->words, s->s);
    if (careful) words_of_scores(k, n, s->s, s->words);
    for (int j = 0; j < n; j += few) weigh_stored(&w, nv, j, n - j < few ? n - j : few);
    return end_weighing(&w, nv);
}

/* The weights of one block of keys, of which something is seen; returns whether a maximum moved, by which factors. */
static bool block_weights(const af_problem *p, const af_plan *plan, const block *k, const scratch *s, int64_t j0, int n,
                          int seen, bool careful, const ahead *next, real *factor)
{
    if (plan->base2) return weigh_block(p, k, s, j0, n, seen, careful, next, factor);
    const int at = k->v0 * VL;
    score_block(p, k, s, j0, n, next);
    if (seen == SEES_SOME && (careful || p->topk)) hide_scores(k, n, s->words, s->s);
    if (careful) words_of_scores(k, n, s->s, s->words);
    if (p->topk) update_top(p, k, s, j0, n);
    const uint64_t *words = seen == SEES_SOME && !careful && !p->topk ? s->words : NULL;
    return softmax_step(k->v1 - k->v0, n, s->s + at, words, k->v0, s->m + at, s->l + at, factor);
}

/* O += V' P for one block of keys. */
static void value_block(const af_problem *p, const block *k, const scratch *s, int64_t j0, int n, bool accumulate,
                        bool careful)
{
    const elem *value = (const elem *)p->value.data + af_offset(&p->value, k->view.b, k->view.hk, j0);
    int64_t ldv;
    const real *rows = real_rows(value, p->value.i, n, p->Dv, s->value, &ldv);
    if (careful) careful_values(k, n, p->Dv, rows, ldv, s->words, s->s, s->o);
    else value_product(k->v1 - k->v0, accumulate, n, p->Dv, rows, ldv, s->s + k->v0 * VL, s->o + k->v0 * VL);
}

static void run_keys(const af_problem *p, const af_plan *plan, block *k, const scratch *s, edges *edge, bool careful)
{
    real factor[AF_NR];
    bool first = true, empty = true; /* no block done yet, nothing in O yet */
    reset_state(s);
    if (p->topk) reset_top(p, s);
    for (int64_t j0 = k->view.span.begin, n; j0 < k->view.span.end; j0 += n) {
        n = take_keys(k, p, j0, plan->key_block);
        const int seen = k->v0 == k->v1 ? SEES_NOTHING : visible_words(p, k, j0, (int)n, s->words);
        if (seen == SEES_NOTHING) continue;
        ahead next = values_and_next_keys(p, plan, k, j0, (int)n, edge);
        if (first && !careful) pack_query(p, plan, k, s);
        fetch_lanes(&next, p, plan, k, j0, (int)n);
        first = false;
        const bool moved = block_weights(p, plan, k, s, j0, (int)n, seen, careful, &next, factor);
        if (!p->value.data) continue;
        if (p->fading > 0) fade_tile(p, k, j0, (int)n, s->s);
        if (empty && (careful || k->v1 - k->v0 < k->nv)) {
            zero_output(p, plan, s);
            empty = false;
        }
        if (moved && !empty) rescale(k->v1 - k->v0, p->Dv, factor, s->o + k->v0 * VL);
        value_block(p, k, s, j0, (int)n, !empty, careful);
        empty = false;
    }
    if (empty && p->value.data) zero_output(p, plan, s);
    k->v0 = 0;
    k->v1 = k->nv;
}

static void forward(const af_problem *p, const af_plan *plan, af_unit unit, void *memory, void *partial)
{
    block k;
    scratch s;
    make_block(&k, p, plan, unit);
    carve(&s, p, plan, memory);
    k.view.span = af_split(k.view.span, unit.split, plan->split_keys);
    edges edge;
    find_edges(&edge, p, plan, &k, unit);
    run_keys(p, plan, &k, &s, &edge, false);
    if (p->value.data && k.hides && !finite_output(&k, p->Dv, s.o)) run_keys(p, plan, &k, &s, &edge, true);
    if (plan->splits > 1) save_partial(p, plan, &s, partial);
    else finish(p, plan, &k, &s);
}

#endif

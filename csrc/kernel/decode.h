/* Attention of a few query rows (decoding): D in the lanes, so that keys and values are read once for all rows at the
 * speed of memory and no lane is wasted on queries that are not there.
 *
 *   s[r][j] = q[r] . K[j]      acc[r] += p[r][j] V[j]
 *
 * Rows are the queries of all heads that share the key/value head. The state that comes out (m, l, O in query lanes)
 * is the one of forward.h, so finishing and merging are shared. */
#ifndef AF_DECODE_H
#define AF_DECODE_H

enum { DECODE_ROWS = AF_NR < 8 ? AF_NR : 8 };

static void decode_query(const af_problem *p, const af_plan *plan, const block *k, real *query)
{
    const v scale = v_set1((real)plan->query_scale);
    for (int r = 0; r < k->n; r++, query += p->D) {
        const elem *row = (const elem *)p->query.data + lane_offset(&p->query, k, r);
        int64_t d = 0;
        for (; d + VL <= p->D; d += VL) v_store(query + d, v_mul(e_load(row + d), scale));
        const int rest = (int)(p->D - d);
        if (rest) v_store_n(query + d, v_mul(e_load_n(row + d, rest), scale), rest);
    }
}

/* s[r][j] for nr rows and nk keys, both constants; nk is 1 or AF_DECODE_KEYS. */
AF_INLINE void dot_tile(const int nr, const int nk, int64_t D, const real *query, const elem *key, int64_t ldk, real *s,
                        int64_t lds)
{
    v acc[4][AF_DECODE_KEYS];
    UNROLL(r, nr)
        UNROLL(j, nk) acc[r][j] = v_zero();
    int64_t d = 0;
    for (; d + VL <= D; d += VL) {
        v x[AF_DECODE_KEYS];
        UNROLL(j, nk) x[j] = e_load(key + j * ldk + d);
        UNROLL(r, nr) {
            const v q = v_load(query + r * D + d);
            UNROLL(j, nk) acc[r][j] = v_fma(q, x[j], acc[r][j]);
        }
    }
    const int rest = (int)(D - d);
    if (rest) {
        UNROLL(j, nk) {
            const v x = e_load_n(key + j * ldk + d, rest);
            UNROLL(r, nr) acc[r][j] = v_fma(v_load_n(query + r * D + d, rest), x, acc[r][j]);
        }
    }
    /* One way of adding up whatever nk is: a score has the same bits wherever its key stands in a block. */
    UNROLL(r, nr) {
        real sum[4];
        v_hsum4(acc[r][0], acc[r][1 % nk], acc[r][2 % nk], acc[r][3 % nk], sum);
        UNROLL(j, nk) s[r * lds + j] = sum[j];
    }
}

AF_INLINE void dot_rows(const int nr, int n, int64_t D, const real *query, const elem *key, int64_t ldk, real *s,
                        int64_t lds, const ahead *next)
{
    int j = 0;
    for (; j + AF_DECODE_KEYS <= n; j += AF_DECODE_KEYS) {
        fetch_ahead(next, j, AF_DECODE_KEYS);
        dot_tile(nr, AF_DECODE_KEYS, D, query, key + j * ldk, ldk, s + j, lds);
    }
    for (; j < n; j++) dot_tile(nr, 1, D, query, key + j * ldk, ldk, s + j, lds);
}

static void decode_scores(int rows, int n, int64_t D, const real *query, const elem *key, int64_t ldk, real *s,
                          int64_t lds, const ahead *next)
{
    for (; rows >= 4; rows -= 4, query += 4 * D, s += 4 * lds) dot_rows(4, n, D, query, key, ldk, s, lds, next);
    if (rows == 3) dot_rows(3, n, D, query, key, ldk, s, lds, next);
    else if (rows == 2) dot_rows(2, n, D, query, key, ldk, s, lds, next);
    else if (rows == 1) dot_rows(1, n, D, query, key, ldk, s, lds, next);
}

/* acc[r][d ..] += sum_j p[r][j] V[j][d ..] for nr rows and nc vectors of columns, both constants; the last of the
 * columns has `last` elements. Carefully (one row): only the keys whose bit is set in `word` enter. */
AF_INLINE void axpy_tile(const int nr, const int nc, const bool whole, const bool careful, int last, int n,
                         const real *p, int64_t ldp, uint64_t word, const elem *value, int64_t ldv, real *acc,
                         int64_t Dv)
{
    v sum[4][AF_DECODE_COLUMNS];
    UNROLL(r, nr)
        UNROLL(c, nc) sum[r][c] = v_zero();
    for (int j = 0; j < n; j++, value += ldv) {
        if (careful && !(word >> j & 1)) continue;
        v x[AF_DECODE_COLUMNS];
        UNROLL(c, nc) x[c] = whole ? e_load(value + c * VL) : e_load_n(value + c * VL, last);
        UNROLL(r, nr) {
            const v w = v_set1(p[r * ldp + j]);
            UNROLL(c, nc) sum[r][c] = v_fma(w, x[c], sum[r][c]);
        }
    }
    UNROLL(r, nr)
        UNROLL(c, nc) {
            real *to = acc + r * Dv + c * VL;
            if (whole) v_store(to, v_add(v_load(to), sum[r][c]));
            else v_store_n(to, v_add(v_load_n(to, last), sum[r][c]), last);
        }
}

AF_INLINE void axpy_rows(const int nr, const bool careful, int n, const real *p, int64_t ldp, uint64_t word,
                         const elem *value, int64_t ldv, real *acc, int64_t Dv)
{
    enum { COLUMNS = AF_DECODE_COLUMNS * VL };
    int64_t d = 0;
    for (; d + COLUMNS <= Dv; d += COLUMNS)
        axpy_tile(nr, AF_DECODE_COLUMNS, true, careful, 0, n, p, ldp, word, value + d, ldv, acc + d, Dv);
    for (; d + VL <= Dv; d += VL) axpy_tile(nr, 1, true, careful, 0, n, p, ldp, word, value + d, ldv, acc + d, Dv);
    if (d < Dv) axpy_tile(nr, 1, false, careful, (int)(Dv - d), n, p, ldp, word, value + d, ldv, acc + d, Dv);
}

static void decode_values(int rows, int n, const real *p, int64_t ldp, const elem *value, int64_t ldv, real *acc,
                          int64_t Dv)
{
    for (; rows >= 4; rows -= 4, p += 4 * ldp, acc += 4 * Dv) axpy_rows(4, false, n, p, ldp, 0, value, ldv, acc, Dv);
    if (rows == 3) axpy_rows(3, false, n, p, ldp, 0, value, ldv, acc, Dv);
    else if (rows == 2) axpy_rows(2, false, n, p, ldp, 0, value, ldv, acc, Dv);
    else if (rows == 1) axpy_rows(1, false, n, p, ldp, 0, value, ldv, acc, Dv);
}

/* The same, leaving out the (row, key) pairs whose score was -inf. */
static void decode_values_carefully(int rows, int n, const real *p, int64_t ldp, const uint64_t *words,
                                    const elem *value, int64_t ldv, real *acc, int64_t Dv)
{
    for (int r = 0; r < rows; r++) axpy_rows(1, true, n, p + r * ldp, ldp, words[r], value, ldv, acc + r * Dv, Dv);
}

/* Modifiers and masks on one row of scores, s[0 .. n), n <= 64. Returns the keys whose score is not -inf. */
static uint64_t decode_modify(const af_problem *p, const block *k, int r, int64_t j0, int n, real *s)
{
    const bool all_pairs = p->stage <= AF_CAPPED;
    const af_span seen = all_pairs ? (af_span){0, p->Lk} : k->visible[r];
    uint64_t word = low_bits(seen.end - j0) & ~low_bits(seen.begin - j0) & low_bits(n), left = 0;
    if (p->mask.data && word && !all_pairs)
        word &= dense_word(&p->mask, (const uint8_t *)p->mask.data + lane_offset(&p->mask, k, r), j0, n);
    const real *bias = p->bias.data ? (const real *)p->bias.data + lane_offset(&p->bias, k, r) : NULL;
    const real distance = (real)(af_position(p, k->b, k->query[r]) - j0);
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

/* One online softmax step of one row; see softmax.h. */
static void decode_softmax(bool base2, int n, int64_t Dv, real *s, real *m, real *l, real *acc)
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
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        v x = exp_difference(base2, v_sub(v_load_n(s + j, here), v_set1(*m)));
        x = v_select(vm_first(here), x, v_zero());
        v_store_n(s + j, x, here);
        sum = v_add(sum, x);
    }
    *l += v_hsum(sum);
}

static void decode_keys(const af_problem *p, const af_plan *plan, const block *k, const scratch *s, bool careful)
{
    const int64_t lds = plan->key_block, Dv = p->value.data ? p->Dv : 0;
    reset_state(s);
    for (int64_t i = 0; i < k->n * Dv; i++) s->rows[i] = 0;
    for (int64_t j0 = k->span.begin; j0 < k->span.end; j0 += plan->key_block) {
        const int n = (int)af_min(plan->key_block, k->span.end - j0);
        const elem *key = (const elem *)p->key.data + af_offset(&p->key, k->b, k->hk, j0);
        const ahead next = values_and_next_keys(p, plan, k, j0, n);
        decode_scores(k->n, n, p->D, s->query, key, p->key.i, s->s, lds, &next);
        uint64_t words[DECODE_ROWS], any = 0;
        for (int r = 0; r < k->n; r++) any |= words[r] = decode_modify(p, k, r, j0, n, s->s + r * lds);
        if (!any) continue;
        for (int r = 0; r < k->n; r++)
            decode_softmax(plan->base2, n, Dv, s->s + r * lds, s->m + r, s->l + r, s->rows + r * Dv);
        if (!Dv) continue;
        const elem *value = (const elem *)p->value.data + af_offset(&p->value, k->b, k->hk, j0);
        if (careful) decode_values_carefully(k->n, n, s->s, lds, words, value, p->value.i, s->rows, Dv);
        else decode_values(k->n, n, s->s, lds, value, p->value.i, s->rows, Dv);
    }
    for (int r = 0; r < k->n; r++)
        for (int64_t d = 0; d < Dv; d++) s->o[d * AF_NR + r] = s->rows[r * Dv + d];
}

static void decode(const af_problem *p, const af_plan *plan, af_unit unit, void *memory, void *partial)
{
    block k;
    scratch s;
    make_block(&k, p, plan, unit);
    carve(&s, p, plan, memory);
    k.span = af_split(k.span, unit.split, plan->split_keys);
    if (k.span.begin < k.span.end) decode_query(p, plan, &k, s.query);
    if (p->value.data) zero_output(&s, p->Dv);
    decode_keys(p, plan, &k, &s, false);
    if (p->value.data && k.hides && !finite_output(&k, p->Dv, s.o)) decode_keys(p, plan, &k, &s, true);
    if (plan->splits > 1) save_partial(p, &s, partial);
    else finish(p, plan, &k, &s);
}

#endif

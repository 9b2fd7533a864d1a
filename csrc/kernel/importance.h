/* The total weight that each key receives: importance[j] = sum_i exp(S[j, i] - m_i) / l_i, with the m and 1 / l that
 * forward left for each row. A unit has one stretch of keys and goes through a long stretch of the queries of one head;
 * the next stretch comes when all units are done, so that sums are made in one order. Each key's is kept in a vector of
 * partial sums. Cost: 2 D flops and an exp a pair, on top of what
 * the first pass costs. */
#ifndef AF_IMPORTANCE_H
#define AF_IMPORTANCE_H

/* Whether a block of rows, of one head, may see any of some keys, at a glance. */
static bool may_see(const af_problem *p, af_unit unit, af_span keys)
{
    if (p->q_length && unit.row >= p->q_length[unit.b]) return false;
    const int64_t first = af_position(p, unit.b, unit.row);
    const int64_t last = af_position(p, unit.b, unit.row + unit.rows - 1);
    return first - p->left < keys.end && last + p->right >= keys.begin;
}

static void add_weights(const af_plan *plan, const block *k, int n, const real *s, const real *m, const real *inverse,
                        real *sums)
{
    for (int j = 0; j < n; j++) {
        v sum = v_load(sums + j * VL);
        for (int c = k->v0; c < k->v1; c++) {
            const v score = v_load(s + j * AF_NR + c * VL);
            const v raw = exp_difference(plan->base2, v_sub(score, v_load(m + c * VL)));
            const v one = v_load(inverse + c * VL); /* 0 for lanes without a row, or whose row sees nothing */
            const v seen = v_select(vm_ne(score, v_set1(-AF_INFINITY)), v_mul(raw, one), v_zero());
            sum = v_add(sum, v_select(vm_ne(one, v_zero()), seen, v_zero()));
        }
        v_store(sums + j * VL, sum);
    }
}

static void block_importance(const af_problem *p, const af_plan *plan, af_unit unit, af_span keys, const scratch *s)
{
    block k;
    real m[AF_NR] = {0}, inverse[AF_NR] = {0};
    make_block(&k, p, plan, unit);
    k.view.span = af_common(k.view.span, keys);
    bool packed = false;
    for (int64_t j = k.view.span.begin, n; j < k.view.span.end; j += n) {
        n = take_keys(&k, p, j, plan->key_block);
        const int seen = k.v0 == k.v1 ? SEES_NOTHING : visible_words(p, &k, j, (int)n, s->words);
        if (seen == SEES_NOTHING) continue;
        for (int lane = 0; !packed && lane < k.n; lane++) {
            const int64_t row = row_number(p, &k.view, lane);
            m[lane] = ((const real *)plan->row_max)[row];
            inverse[lane] = ((const real *)plan->row_inverse)[row];
        }
        if (!packed) pack_query(p, plan, &k, s);
        packed = true;
        score_block(p, &k, s, j, (int)n, &(ahead){0});
        if (seen == SEES_SOME) hide_scores(&k, (int)n, s->words, s->s);
        add_weights(plan, &k, (int)n, s->s, m, inverse, s->sums + (j - keys.begin) * VL);
    }
}

/* So many blocks are added up by themselves: a long sum made of short ones rounds less. */
enum { SUMMED_BLOCKS = 64 };

static void flush_sums(const scratch *s, int64_t n)
{
    for (int64_t i = 0; i < n * VL; i++) {
        s->totals[i] += s->sums[i];
        s->sums[i] = 0;
    }
}

static void importance(const af_problem *p, const af_plan *plan, af_unit unit, void *memory)
{
    scratch s;
    carve(&s, p, plan, memory);
    const af_span keys = af_split((af_span){0, p->Lk}, unit.split, plan->chunk_keys);
    const int64_t n = keys.end - keys.begin;
    for (int64_t i = 0; i < n * VL; i++) s.sums[i] = s.totals[i] = 0;
    const int64_t first = unit.row, end = unit.row + unit.rows;
    int blocks = 0;
    for (unit.row = first; unit.row < end; unit.row += plan->block_rows) {
        unit.rows = (int)af_min(plan->block_rows, end - unit.row);
        if (!may_see(p, unit, keys)) continue;
        block_importance(p, plan, unit, keys, &s);
        if (++blocks % SUMMED_BLOCKS == 0) flush_sums(&s, n);
    }
    flush_sums(&s, n);
    real *out = (real *)p->importance + (unit.b * p->H + unit.hg * plan->group) * p->Lk + keys.begin;
    for (int64_t j = 0; j < n; j++) out[j] = (first ? out[j] : 0) + v_hsum(v_load(s.totals + j * VL));
}

#endif

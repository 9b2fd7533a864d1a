/* Attention of a few query rows (decoding): D is in the lanes, so that keys and values are read once for all rows at
 * the speed of memory, and no lane is empty. The products are in decode_products.h and decode_interleaved.h.
 *
 * Memory is fastest when it is read in long runs, so a block has many keys: first all keys, then all values. Rows are
 * the queries of all heads that share the key/value head. The resulting m and l are in query lanes as in forward.h, O
 * is stored by rows. */
#ifndef AF_DECODE_H
#define AF_DECODE_H

#include "kernel/additive.h"
#include "kernel/decode_interleaved.h"
#include "kernel/finish.h"
#include "kernel/mask.h"
#include "kernel/score.h"
#include "kernel/softmax.h"

enum { DECODE_ROWS = AF_NR < 8 ? AF_NR : 8 };

static void decode_query(const af_call *call, const af_plan *plan, const query_block *block, real *query)
{
    const v scale = v_set1((real)plan->query_scale);
    elem *rows[AF_NR];
    const real *bias = call->score.additive ? head_row(&call->score.score_bias, block) : NULL;
    find_rows(&call->operands.query, &block->vis, rows);
    for (int r = 0; r < block->n; r++, query += call->D) {
        const elem *row = rows[r];
        int64_t d = 0;
        for (; d + VL <= call->D; d += VL) v_store(query + d, v_mul(e_load(row + d), scale));
        const int rest = (int)(call->D - d);
        if (rest) v_store_n(query + d, v_mul(e_load_n(row + d, rest), scale), rest);
        for (d = 0; bias && d < call->D; d++) query[d] += bias[d];
    }
}

/* Modifiers and masks on one row of scores, s[0 .. n), n <= 64. Returns the keys whose score is not -inf. */
static uint64_t decode_modify(const af_call *call, const query_block *block, int r, int64_t j0, int n, real *s)
{
    const bool all_pairs = call->results.stage <= AF_CAPPED;
    const af_interval seen = all_pairs ? (af_interval){0, call->Lk} : block->vis.visible[r];
    uint64_t word = low_bits(seen.end - j0) & ~low_bits(seen.begin - j0) & low_bits(n), left = 0;
    if ((call->visible.mask.data || af_has_pattern(call)) && word && !all_pairs)
        word &= row_word(call, block, r, j0, n);
    const real *bias = call->score.bias.data ? block->bias_row[r] : NULL;
    const real distance = (real)(af_position(call, block->vis.b, block->vis.query[r]) - j0);
    real lane[VL];
    for (int i = 0; i < VL; i++) lane[i] = (real)i;
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        v x = v_load_n(s + j, here);
        if (call->score.softcap != 0) x = softcap_value(x, (real)call->score.softcap);
        if (call->score.alibi && !all_pairs)
            x = alibi_value(x, v_set1(lane_slope(call, block, r)), v_sub(v_set1(distance - (real)j), v_load(lane)));
        if (bias && !all_pairs) x = bias_value(x, call->score.bias.j ? v_load_n(bias + j0 + j, here) : v_set1(*bias));
        x = v_select(vm_bits(word >> j), x, v_set1(-AF_INFINITY));
        left |= (vm_word(vm_ne(x, v_set1(-AF_INFINITY))) & low_bits(here)) << j;
        v_store_n(s + j, x, here);
    }
    return left;
}

/* One online softmax step of one row; see softmax.h. Memory is idle in the meantime, so the next lines are
 * prefetched. */
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
        UNROLL(line, 2) prefetch_next_line(next);
    }
    *l += v_hsum(sum);
}

/* Scores of one block of keys after modifiers and masks. words[j / 64][r]: the keys whose score is not -inf, where
 * something may be hidden. Returns whether there are any; where nothing can be hidden, true. */
static bool decode_block(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s,
                         int64_t j0, int n)
{
    const int64_t lds = plan->key_block;
    const elem *key =
        (const elem *)call->operands.key.data + af_offset(&call->operands.key, block->vis.b, block->vis.hk, j0);
    const bool interleave = interleaves(block->n, call->D);
    const int few = block->n <= dot_group(call->D) && call->operands.key.i == call->D ? n : near_rows(call->D);
    if (call->score.additive) additive_rows(call, block, n, s->query, key, s->s, lds);
    else
        for (int j = 0; j < n; j += few, key += few * call->operands.key.i) {
            const int here = n - j < few ? n - j : few;
            if (interleave)
                interleaved_scores(block->n, here, n - j, call->D, s->query, key, call->operands.key.i, s->s + j, lds);
            else {
                prefetch_apart(few, n - j, key, call->operands.key.i, call->D);
                decode_scores(block->n, here, call->D, s->query, key, call->operands.key.i, s->s + j, lds);
            }
        }
    if (!block->hides && call->score.softcap == 0 && !call->score.alibi) return true;
    uint64_t any = 0;
    for (int j = 0; j < n; j += 64)
        for (int r = 0; r < block->n; r++)
            any |= s->words[j / 64 * DECODE_ROWS + r] =
                decode_modify(call, block, r, j0 + j, n - j < 64 ? n - j : 64, s->s + r * lds + j);
    return any;
}

/* Adds the values of one block of keys, each times its weight. */
static void decode_output(const query_block *block, const scratch *s, int64_t lds, int n, const elem *value,
                          int64_t stride, int64_t Dv, bool nan_safe)
{
    const bool interleave = !nan_safe && interleaves(block->n, Dv);
    const int few = near_rows(Dv);
    for (int j = 0; j < n; j += few, value += few * stride) {
        const int here = n - j < few ? n - j : few;
        const uint64_t *words = s->words + j / 64 * DECODE_ROWS;
        if (interleave) {
            interleaved_values(block->n, here, n - j, s->s + j, lds, value, stride, s->o, Dv);
            continue;
        }
        prefetch_apart(few, n - j, value, stride, Dv);
        prefetch_page(value, page_distance(stride, Dv));
        if (!nan_safe) decode_values(block->n, here, s->s + j, lds, value, stride, s->o, Dv);
        else decode_values_nan_safe(block->n, here, s->s + j, lds, words, j % 64, value, stride, s->o, Dv);
    }
}

static void decode_keys(const af_call *call, const af_plan *plan, const query_block *block, const scratch *s,
                        bool nan_safe)
{
    const int64_t lds = plan->key_block, Dv = call->operands.value.data ? call->Dv : 0;
    reset_state(s);
    if (Dv) zero_output(call, plan, s);
    const af_interval span = block->vis.span;
    for (int64_t j0 = span.begin, keys; j0 < span.end; j0 += keys) {
        const af_piece piece = af_next_piece(&block->vis, call, span, j0, plan->key_block);
        keys = piece.keys;
        if (piece.first == piece.last) continue;
        const int n = (int)keys;
        if (!decode_block(call, plan, block, s, j0, n)) continue;
        const elem *value = Dv ? (const elem *)call->operands.value.data +
                                     af_offset(&call->operands.value, block->vis.b, block->vis.hk, j0)
                               : NULL;
        line_queue next = {value, Dv ? n : 0, call->operands.value.i, Dv, 0};
        for (int r = 0; r < block->n; r++) {
            decode_softmax(plan->base2, n, Dv, s->s + r * lds, s->m + r, s->l + r, s->o + r * Dv, &next);
            if (call->score.gaussian > 0) gaussian_row(call, block, r, j0, n, s->s + r * lds);
        }
        if (Dv) decode_output(block, s, lds, n, value, call->operands.value.i, Dv, nan_safe);
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

static void decode(const af_call *call, const af_plan *plan, af_unit unit, void *memory, void *partial)
{
    query_block block;
    scratch s;
    make_block(&block, call, plan, unit);
    carve(&s, call, plan, memory);
    block.vis.span = af_split(block.vis.span, unit.split, plan->split_keys);
    if (block.vis.span.begin < block.vis.span.end) decode_query(call, plan, &block, s.query);
    decode_keys(call, plan, &block, &s, false);
    if (call->operands.value.data && block.hides && !finite_rows(block.n, call->Dv, s.o))
        decode_keys(call, plan, &block, &s, true);
    if (plan->splits > 1) save_partial(call, plan, &s, partial);
    else finish(call, plan, &block, &s);
}

#endif

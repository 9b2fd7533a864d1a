/* The k heaviest keys of each query: the k largest scores of each lane, in falling order, and their keys.
 *
 *   top[k][NR] scores, top_key[k][NR] the bits of keys
 *
 * A key enters its lane's list if its score is above the last entry. Few do after the first blocks, so a row of scores
 * costs one comparison per vector. An insertion moves all lanes of a vector at once and costs k steps. Equal scores
 * stay in the order of their keys. A score of -inf, a hidden key, enters no list. NaN ranks as +inf, and its weight is
 * NaN. */
#ifndef AF_TOPK_H
#define AF_TOPK_H

#include "kernel/block.h"
#include "kernel/pack.h"
#include "kernel/softmax.h"

/* A key's number as the bits of a real: it is only moved and selected, never computed with. */
#if AF_DOUBLE
typedef uint64_t key_bits;
#else
typedef uint32_t key_bits;
#endif

AF_INLINE v key_vector(int64_t key)
{
    key_bits bits[VL];
    real x[VL];
    for (int i = 0; i < VL; i++) bits[i] = (key_bits)key;
    memcpy(x, bits, sizeof x);
    return v_load(x);
}

AF_INLINE int64_t real_to_key(const real *x)
{
    key_bits bits;
    memcpy(&bits, x, sizeof bits);
    return (int64_t)bits;
}

static void reset_topk(const af_call *call, const scratch *s)
{
    for (int64_t i = 0; i < call->results.topk * AF_NR; i++) {
        s->top[i] = -AF_INFINITY;
        s->top_key[i] = 0;
    }
}

/* Inserts a score and its key into the lists of those lanes of a vector where it is above the last entry. */
static void insert_topk(int64_t k, v score, v key, real *top, real *top_key)
{
    v here = v_load(top + (k - 1) * AF_NR), here_key = v_load(top_key + (k - 1) * AF_NR);
    for (int64_t t = k - 1; t >= 0; t--) {
        const vm enters = vm_gt(score, here);
        v x = v_select(enters, score, here), x_key = v_select(enters, key, here_key);
        if (t > 0) {
            const v above = v_load(top + (t - 1) * AF_NR), above_key = v_load(top_key + (t - 1) * AF_NR);
            const vm passes = vm_gt(score, above);
            x = v_select(passes, above, x);
            x_key = v_select(passes, above_key, x_key);
            here = above;
            here_key = above_key;
        }
        v_store(top + t * AF_NR, x);
        v_store(top_key + t * AF_NR, x_key);
    }
}

/* n keys from j0 on, with scores s[n][NR]; hidden ones are -inf. */
static void update_topk(const af_call *call, const query_block *block, const scratch *s, int64_t j0, int n)
{
    const int64_t last = (call->results.topk - 1) * AF_NR;
    for (int c = block->v0; c < block->v1; c++) {
        v least = v_load(s->top + last + c * VL);
        for (int j = 0; j < n; j++) {
            const v score = v_min(v_load(s->s + j * AF_NR + c * VL), v_set1(AF_INFINITY)); /* NaN counts as +inf */
            if (!vm_word(vm_gt(score, least))) continue;
            insert_topk(call->results.topk, score, key_vector(j0 + j), s->top + c * VL, s->top_key + c * VL);
            least = v_load(s->top + last + c * VL);
        }
    }
}

/* Merges in the lists of a split; splits must come in the order of their keys. */
static void join_topk(const af_call *call, int nv, const scratch *s, const real *top, const real *top_key)
{
    for (int64_t t = 0; t < call->results.topk; t++)
        for (int c = 0; c < nv; c++)
            insert_topk(call->results.topk, v_load(top + t * AF_NR + c * VL), v_load(top_key + t * AF_NR + c * VL),
                        s->top + c * VL, s->top_key + c * VL);
}

/* Writes weights exp(score - m) * inverse and keys to the results; entries past the visible keys are 0 and -1. */
static void finish_topk(const af_call *call, const query_block *block, const scratch *s, const real *inverse,
                        bool base2)
{
    real one[AF_NR];
    elem *rows[AF_NR] = {0};
    int64_t offset[AF_NR];
    row_offsets(&call->results.top_index, &block->vis, offset);
    for (int lane = 0; lane < block->n; lane++)
        for (int64_t t = 0; t < call->results.topk; t++) {
            const int64_t at = t * AF_NR + lane;
            const bool there = s->top[at] != -AF_INFINITY;
            ((int64_t *)call->results.top_index.data)[offset[lane] + t] = there ? real_to_key(s->top_key + at) : -1;
        }
    for (int64_t t = 0; t < call->results.topk; t++)
        for (int c = 0; c < block->nv; c++) {
            real *x = s->top + t * AF_NR + c * VL;
            const v score = v_load(x), raw = exp_difference(base2, v_sub(score, v_load(s->m + c * VL)));
            const v weight = v_mul(raw, v_load(inverse + c * VL));
            v_store(x, v_select(vm_ne(score, v_set1(-AF_INFINITY)), weight, v_zero()));
        }
    for (int lane = 0; lane < AF_NR; lane++) one[lane] = 1;
    find_rows(&call->results.top_weight, &block->vis, rows);
    lanes_to_rows(block->n, block->nv, call->results.topk, s->top, one, NULL, rows);
}

#endif

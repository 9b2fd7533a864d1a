/* Dropout: weights after the softmax times 0 or 1 / (1 - dropout), see plan/dropout.h. A pass over weights that are in
 * the first-level cache, between the sums of the softmax, which count all of them, and the product with the values. */
#ifndef AF_KERNEL_DROPOUT_H
#define AF_KERNEL_DROPOUT_H

#include "kernel/block.h"
#include "plan/dropout.h"

/* VL words, and what a comparison of them gives, 0 or -1; the compiler has the instructions for each instruction set.
 */
typedef uint32_t words __attribute__((vector_size(4 * VL)));
typedef int32_t truths __attribute__((vector_size(4 * VL)));
typedef real reals __attribute__((vector_size(VL * sizeof(real))));

/* The halves of af_dropout_query of each row. */
static void find_drop_rows(const af_call *call, const query_block *block, drop_rows *rows)
{
    for (int lane = 0; lane < AF_NR; lane++) rows->a[lane] = rows->b[lane] = 0;
    for (int lane = 0; lane < block->n; lane++) {
        const uint64_t both = af_dropout_query(call, block->vis.b, block->vis.head[lane], block->vis.query[lane]);
        rows->a[lane] = (uint32_t)both;
        rows->b[lane] = (uint32_t)(both >> 32);
    }
}

AF_INLINE words load_words(const uint32_t *from)
{
    words x;
    memcpy(&x, from, sizeof x);
    return x;
}

/* `scale` where a weight is kept, else 0. */
AF_INLINE v drop_factor(words key, words a, words b, uint32_t threshold, real scale)
{
    words x = (key ^ a) * AF_DROPOUT_M1;
    x ^= b;
    x = (x ^ (x >> AF_DROPOUT_SHIFT1)) * AF_DROPOUT_M2;
    x = (x ^ (x >> AF_DROPOUT_SHIFT2)) * AF_DROPOUT_M3;
    const truths kept = (truths)(x >= threshold);
    return v_mul((v) __builtin_convertvector(kept, reals), v_set1(-scale));
}

AF_INLINE real drop_scale(const af_call *call) { return (real)(1 / (1 - call->score.dropout)); }

/* P[n] of lanes, rows ld apart, for keys from j0 on. */
static __attribute__((noinline)) void drop_tile(const af_call *call, const query_block *block, const drop_rows *rows,
                                                int64_t j0, int n, real *p, int64_t ld)
{
    const uint32_t threshold = af_dropout_threshold(call);
    const real scale = drop_scale(call);
    for (int j = 0; j < n; j++) {
        const words key = (words){0} + af_dropout_key(call, block->vis.b, j0 + j);
        for (int c = block->v0; c < block->v1; c++) {
            real *x = p + j * ld + c * VL;
            const words a = load_words(rows->a + c * VL), b = load_words(rows->b + c * VL);
            v_store(x, v_mul(v_load(x), drop_factor(key, a, b, threshold, scale)));
        }
    }
}

/* P of row r, keys in the lanes. */
static __attribute__((noinline)) void drop_row(const af_call *call, const query_block *block, int r, int64_t j0, int n,
                                               real *p)
{
    const uint64_t both = af_dropout_query(call, block->vis.b, block->vis.head[r], block->vis.query[r]);
    const words a = (words){0} + (uint32_t)both, b = (words){0} + (uint32_t)(both >> 32);
    const uint32_t threshold = af_dropout_threshold(call);
    const real scale = drop_scale(call);
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        uint32_t key[VL] = {0};
        for (int i = 0; i < here; i++) key[i] = af_dropout_key(call, block->vis.b, j0 + j + i);
        v_store_n(p + j, v_mul(v_load_n(p + j, here), drop_factor(load_words(key), a, b, threshold, scale)), here);
    }
}

#endif

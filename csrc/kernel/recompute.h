/* The weights of scores whose softmax is known: P = exp(S - m) / l, or exp(S - lse). Everything that needs weights
 * after the softmax takes them from here. With m and l apart weights are as exact as those of the softmax itself; lse
 * alone is rounded, which costs |lse| eps. */
#ifndef AF_RECOMPUTE_H
#define AF_RECOMPUTE_H

#include "kernel/block.h"
#include "kernel/softmax.h"

/* P = exp(S - shift) * factor for each lane; a factor of 0 for lanes without a row and rows that see no key. */
typedef struct row_softmax {
    real shift[AF_NR], factor[AF_NR];
} row_softmax;

/* A row's place in what is kept of each row. */
AF_INLINE int64_t row_number(const af_call *call, const af_visibility *vis, int lane)
{
    return (vis->b * call->H + vis->head[lane]) * call->Lq + vis->query[lane];
}

static void load_row_softmax(const af_call *call, const query_block *block, row_softmax *rows)
{
    const af_tensor *t = &call->subset.row_lse;
    const af_visibility *vis = &block->vis;
    for (int lane = 0; lane < AF_NR; lane++) rows->shift[lane] = rows->factor[lane] = 0;
    for (int lane = 0; lane < block->n; lane++) {
        if (t->data) {
            const real lse = ((const real *)t->data)[af_offset(t, vis->b, vis->head[lane], vis->query[lane])];
            if (lse == -AF_INFINITY) continue;
            rows->shift[lane] = lse; /* scores are in natural units: base2 needs a softmax of the pass itself */
            rows->factor[lane] = 1;
        } else {
            rows->shift[lane] = ((const real *)call->subset.row_max)[row_number(call, vis, lane)];
            rows->factor[lane] = ((const real *)call->subset.row_inverse)[row_number(call, vis, lane)];
        }
    }
}

/* A weight; 0 where the key is hidden, whatever the row is, and where there is no row, whatever the score is. */
AF_INLINE v recompute_weight(const bool base2, v score, v shift, v factor)
{
    const v weight = v_mul(exp_difference(base2, v_sub(score, shift)), factor);
    const v seen = v_select(vm_ne(score, v_set1(-AF_INFINITY)), weight, v_zero());
    return v_select(vm_ne(factor, v_zero()), seen, v_zero());
}

#endif

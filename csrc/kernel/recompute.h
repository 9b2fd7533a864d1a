/* Weights from scores, once the softmax is done: P = exp(S - m) / l, or exp(S - lse). Every pass after the softmax
 * recomputes its weights here. With m and l they are as exact as those of the softmax; lse is one rounded number, which
 * adds a relative error of |lse| eps. */
#ifndef AF_RECOMPUTE_H
#define AF_RECOMPUTE_H

#include "kernel/block.h"
#include "kernel/softmax.h"

/* P = exp(S - shift) * factor in each lane. Lanes without a row and rows that see no key have a factor of 0. */
typedef struct row_softmax {
    real shift[AF_NR], factor[AF_NR];
} row_softmax;

/* Index of a row in row_max and row_inverse, which are [B][H][Lq]. */
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

/* The weight of a score. A hidden key (score -inf) has weight 0 even if shift is infinite, and a lane without a row
 * (factor 0) even if the score is NaN. */
AF_INLINE v recompute_weight(const bool base2, v score, v shift, v factor)
{
    const v weight = v_mul(exp_difference(base2, v_sub(score, shift)), factor);
    const v seen = v_select(vm_ne(score, v_set1(-AF_INFINITY)), weight, v_zero());
    return v_select(vm_ne(factor, v_zero()), seen, v_zero());
}

#endif

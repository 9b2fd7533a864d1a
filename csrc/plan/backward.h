/* How gradients are cut into units: by panel of query rows of a head, and by key range, so that one unit owns the sums
 * of its keys. A head here is a batch row and a group of query heads that share keys. For each panel:
 *
 *   units of some rows: rows of Q and dO laid out for the products, and what the softmax was
 *   units of a key range: adds to dK and dV of its keys; dQ of the panel over its keys is a part of its own
 *   units of some rows: parts added up in the order of the ranges, and added to dQ
 *
 * With one range the three are one unit, for the caches. The shape alone fixes ranges and panels, and the panels of a
 * head add to the sums of a key in their order, so bits do not depend on what is computed at the same time. */
#ifndef AF_BACKWARD_PLAN_H
#define AF_BACKWARD_PLAN_H

#include "plan/intervals.h"
#include "plan/plan.h"

/* exp(S - lse) is off by |lse| eps / 2: beyond it, that is more than the rounding of a softmax. */
#define AF_LARGE_LSE 64

/* Sums of a row beside its dQ: further rows of a part. After them, where the weights or the bias of additive scores
 * have gradients, sums for the weights, [D][NR]. */
enum { AF_ALIBI_SUM, AF_BIAS_SUM, AF_CENTER_SUM, AF_ROW_SUMS };

/* Sums of a block of rows for the weights and the bias of additive scores. */
enum { AF_WEIGHT_SUM, AF_QUERY_SUM, AF_VECTOR_SUMS };

typedef struct af_backward {
    const af_call *call;
    const af_gradients *gradients; /* the call's */
    af_plan plan;
    int64_t range_keys, ranges;
    int64_t parts; /* the most ranges that a panel sees any keys of, as far as windows decide it */
    int64_t panel_rows, panel_blocks;
    int64_t block_part;  /* reals of a block of rows in a part of dQ */
    size_t part_bytes;   /* of a part: all blocks of a panel, then a byte for each, whether there is anything in it */
    size_t panel_bytes;  /* of a panel that is laid out */
    void *delta;         /* real [B][H][Lq]: sum of P dP over the keys, less grad_lse; NULL where nobody asks */
    double *row_sums;    /* [AF_ROW_SUMS][B][H][Lq], or NULL where none is wanted */
    double *vector_sums; /* [AF_VECTOR_SUMS][B][H][blocks][D]: of each block of rows, or NULL */
    bool by_weight;      /* parts have sums for the weights of additive scores */
    bool scores;         /* gradients of scores are wanted, not only that of the value */
} af_backward;

void af_plan_backward(af_backward *backward, const af_call *call, const af_kernels *kernels);

/* The numbers of the ranges that some rows of a head see any keys of, as far as windows decide it: at most `parts`. For
 * rows further on, neither end is smaller. */
af_interval af_seen_ranges(const af_backward *backward, int64_t b, int64_t row, int64_t rows);

#endif

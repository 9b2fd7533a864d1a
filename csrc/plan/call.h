/* A call as the library computes it: the parts of the caller's problem, and what only a driver adds to them. */
#ifndef AF_CALL_H
#define AF_CALL_H

#include "attnfast.h"

/* Which of the pairs of a problem a call computes, in which order, and what it does with results that are there. */
typedef struct af_subset {
    bool accumulate;       /* output and lse hold the result over other keys, to which the call adds its own */
    bool visible_weights;  /* of the weights only those of visible pairs are written, not the zeros of the others */
    af_tensor row_lse;     /* real, no j: the known lse of each row over all keys, from which weights are recomputed */
    void *row_max;         /* real [B][H][Lq]: kept for that instead, in the units of scores: the maximum ... */
    void *row_inverse;     /* ... and 1 / sum of each row; or NULL */
    af_tensor query_order; /* int64_t, no j: queries in the order in which blocks take them, if not that of memory */

    /* A query sees only those keys that are global, or every key if it is at the position of one; less the keys
     * j = p + t * dilation[h], -excluded_left <= t <= excluded_right, which another call computes. */
    const uint8_t *global;        /* [B][Lk] or NULL */
    const int64_t *global_keys;   /* the same as sorted keys, one batch row after the other, then Lk */
    const int64_t *global_starts; /* [B + 1]: where those of a batch row begin */
    int64_t excluded_left, excluded_right;

    /* Gathered keys: key_position[j] is the original position of key j, for windows, lengths (which must be given) and
     * the excluded window; nothing else may depend on it. [Lk] of rising positions, B = 1; or NULL. */
    const int64_t *key_position;

    /* Residue classes of a dilation: each is a batch row, whose query i is query class_query[b] + i * class_step of the
     * original batch row b / classes, and whose key j is key class_key[b] + j * class_step. Block masks go by these. */
    int64_t classes, class_step; /* 0: there are none */
    const int64_t *class_query, *class_key;

    int64_t first_b,
        first_hk; /* of a part of a call: the batch row and key/value head of the whole that are its first */
} af_subset;

typedef struct af_call {
    af_dtype dtype;
    int64_t B, H, Hk, Lq, Lk, D, Dv;
    af_operands operands;
    af_visible visible; /* with no dilation, no global tokens; `causal` only beside centers: else it is in `right` */
    af_score score;
    af_results results;
    af_subset subset;
} af_call;

/* Bytes of what is stored and of what is computed in. */
static inline int64_t af_real_bytes(af_dtype dtype) { return dtype == AF_F64 ? 8 : 4; }
static inline int64_t af_elem_bytes(af_dtype dtype) { return dtype <= AF_F64 ? af_real_bytes(dtype) : 2; }

/* The parts of a problem as a call. */
void af_open_call(af_call *call, const af_problem *problem);

/* Whether there is anything to write to. */
bool af_has_results(const af_call *call);

/* The tensor from one row of one head on; elements have `size` bytes. */
void af_move_tensor(af_tensor *tensor, int64_t b, int64_t h, int64_t i, int64_t size);

#endif

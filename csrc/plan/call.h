/* A call as the library computes it: the parts of the caller's problem, and what only a driver adds to them. */
#ifndef AF_CALL_H
#define AF_CALL_H

#include "attnfast.h"

/* Numbers of a row: the maximum of scores, and of exp(S - max) and exp(S - max) dP the sums. */
enum { AF_ROW_MAX, AF_ROW_EXP, AF_ROW_PRODUCT, AF_COLLECTED };

/* Which of the pairs of a problem a call computes, in which order, and what it does with results that are there. */
typedef struct af_subset {
    bool accumulate;      /* output and lse hold the result over other keys, to which the call adds its own */
    bool visible_weights; /* of the weights only those of visible pairs are written, not the zeros of the others */
    bool natural, tiles; /* scores in units of the natural log, and made by tiles: they have the same bits as those from
                          * which a stage, or visible_weights, is recomputed */
    af_tensor row_lse;   /* real, no j: the known lse of each row over all keys, from which weights are recomputed */
    void *row_max;       /* real [B][H][Lq]: kept for that instead, in the units of scores: the maximum ... */
    void *row_inverse;   /* ... and 1 / sum of each row; or NULL */
    af_tensor collected; /* real, no j: where gradients are several calls, AF_COLLECTED numbers of each row over all
                          * keys, for rows whose lse does not do ... */
    bool collects;       /* ... which the call adds to, and does nothing else */
    af_tensor query_order; /* int64_t, no j: queries in the order in which blocks take them, if not that of memory */

    /* A query sees only those keys that are global, or every key if it is at the position of one; less the keys
     * j = p + t * dilation[h], -excluded_left <= t <= excluded_right, which another call computes. */
    const uint8_t *global;        /* [B][Lk] or NULL */
    const int64_t *global_keys;   /* the same as sorted keys, one batch row after the other, then Lk */
    const int64_t *global_starts; /* [B + 1]: where those of a batch row begin */
    int64_t excluded_left, excluded_right;

    /* Gathered keys: key_position[j] is the original position of key j, for windows, starts, lengths (which must be
     * given) and the excluded window; nothing else may depend on it. [Lk] of rising positions, B = 1; or NULL. */
    const int64_t *key_position;

    /* Residue classes of a dilation: each is a batch row, whose query i is query class_query[b] + i * class_step of the
     * original batch row b / classes, and whose key j is key class_key[b] + j * class_step. Block masks go by these. */
    int64_t classes, class_step; /* 0: there are none */
    const int64_t *class_query, *class_key;

    /* Of a part of a call: the batch row, head, key/value head and key of the whole that are its first. */
    int64_t first_b, first_h, first_hk, first_key;
} af_subset;

typedef struct af_call {
    af_dtype dtype;
    int64_t B, H, Hk, Lq, Lk, D, Dv;
    af_operands operands;
    af_visible visible; /* with no dilation, no global tokens; `causal` only beside centers: else it is in `right` */
    af_score score;
    af_results results;
    af_gradients gradients; /* of a call for gradients, which has no results but which are wanted */
    af_subset subset;
} af_call;

/* Bytes of what is stored and of what is computed in. */
static inline int64_t af_real_bytes(af_dtype dtype) { return dtype == AF_F64 ? 8 : 4; }
static inline int64_t af_elem_bytes(af_dtype dtype) { return dtype <= AF_F64 ? af_real_bytes(dtype) : 2; }

static inline int64_t af_key_bytes(const af_call *call)
{
    return call->operands.storage ? 1 : af_elem_bytes(call->dtype);
}

/* Whether blocks of keys and values are copied as reals side by side before tiles read them. */
static inline bool af_copies_keys(const af_call *call)
{
    return call->dtype > AF_F64 || call->operands.block_table || call->operands.storage;
}

/* Whether a tensor is the same for all heads of all batch rows. */
static inline bool af_is_shared(const af_tensor *t) { return !t->data || (!t->batch && !t->b && !t->h); }

/* Whether the elements of a row of `width` are apart. */
static inline bool af_in_columns(const af_tensor *t, int64_t width) { return t->data && width > 1 && t->j != 1; }

/* The same of keys or values. */
bool af_has_columns(const af_call *call);

/* The parts of a problem as a call. Without an output it has no value, without weights no stage but the last. */
void af_open_call(af_call *call, const af_problem *problem);

/* Whether there is anything to write to. */
bool af_has_results(const af_call *call);

/* A problem and its gradients as a call. */
void af_open_gradients(af_call *call, const af_problem *problem, const af_gradients *gradients);

/* Whether some head's window has gaps. */
bool af_is_dilated(const af_call *call);

/* A part of a call: batch rows [b, b + B), heads [h, h + H), queries [i, i + Lq) and keys [j, j + Lk); in pages, the
 * keys of a row are always from the first on, and j is where they are in what has a column for each key. `row` is the
 * first of its entries in what has one for each batch row: b, or the number of a packed sequence. Heads begin and end
 * with those of a key/value head, or are some of one. Of several batch rows, a part with global tokens or importance
 * has all heads and keys. */
typedef struct af_part {
    int64_t row, b, B, h, H, i, Lq, j, Lk;
} af_part;

/* All of a call. */
af_part af_whole_part(const af_call *call);

/* Sequence s of packed ones. */
af_part af_packed_part(const af_call *whole, const af_packing *packing, int64_t s);

/* The part as a call of its own, in which queries, keys and positions count from its own first ones. If it is not the
 * beginning of its batch row, its positions and lengths are for the caller to move, and a block mask stays where it is:
 * `classes` can tell it. */
af_call af_cut_call(const af_call *whole, af_part part);

#endif

/* Whole calls of the C library from a short description: what attnfast/_core.pyx lets through, and what else
 * csrc/attnfast.h says is legal. */
#ifndef CALL_H
#define CALL_H

#include "array.h"

/* What is asked for, as the functions of the package do: attention, attention_weights, attention_topk, key_importance,
 * the lse alone, attention_varlen, local_attention with dilation and global tokens. FREE is everything that is legal,
 * and so is PACKED of packed sequences. GRADIENTS and PACKED_GRADIENTS are a step of training: output and lse, and of
 * these the gradients. */
typedef enum kind { ATTEND, WEIGHTS, TOP, IMPORTANCE, SUMS, PACKED, LOCAL, FREE, GRADIENTS, PACKED_GRADIENTS } kind;
enum { KINDS = PACKED_GRADIENTS + 1 };

typedef struct wish {
    kind kind;
    af_dtype dtype;
    int64_t B, H, Hk, Lq, Lk, D, Dv;
    bool lse, weights;                /* beside the output */
    bool no_output, list, importance; /* of FREE and PACKED; list: whether topk counts */
    af_stage stage;
    int64_t topk, sequences;
    bool additive, score_bias;
    double scale, softcap;
    bool bias, alibi, sink, mask;
    bool q_offset, q_length, kv_length, kv_start;
    bool far;            /* positions beyond all keys, dilations beyond all lengths */
    bool window, causal; /* no window: all keys */
    int64_t left, right; /* -1: unbounded */
    bool center;
    double gaussian, dropout;
    int64_t dilation;                  /* the largest of any head; 0: none is given */
    bool global;                       /* global tokens */
    bool loss_lse, loss_weights;       /* the loss depends on them too */
    int unwanted;                      /* gradients that are left out: 1 << (D_QUERY - FIRST_GRADIENT) and so on */
    int64_t block_q, block_k;          /* block_q 0: no block mask */
    double amplitude;                  /* of query and key */
    double density;                    /* of what masks, block masks and global tokens show */
    int poison;                        /* one in so many keys or values overflows or is NaN; 0: none */
    bool layouts;                      /* arrays in any layout ... */
    int order;                         /* ... or all in this one of array.h */
    int64_t page_size;                 /* of keys and values; 0: no pages */
    af_storage storage;                /* AF_INT8 or AF_UINT8: of keys and values in bytes */
    int64_t group_rows, group_columns; /* of scales and zeros; 0: one for all */
    uint64_t seed;                     /* of all numbers */
} wish;

#define SHAPE(h, hk, lq, lk, d, dv) .H = h, .Hk = hk, .Lq = lq, .Lk = lk, .D = d, .Dv = dv

enum { QUERY, KEY, VALUE, BIAS, MASK, BLOCKS, CENTER, SCORE_WEIGHT, SCORE_BIAS, BY_OUTPUT, BY_LSE, BY_WEIGHTS, INPUTS };
enum { OUTPUT, LSE, STAGE, TOP_INDEX, TOP_WEIGHT, IMPORTANCES, FIRST_GRADIENT, RESULTS = FIRST_GRADIENT + 9 };
enum { D_QUERY = FIRST_GRADIENT, D_KEY, D_VALUE, D_BIAS, D_ALIBI, D_SINK, D_SCORE_WEIGHT, D_SCORE_BIAS, D_CENTER };

typedef struct call {
    wish wish;
    chance chance;
    af_operands operands;
    af_visible visible;
    af_score score;
    af_gradients loss; /* derivatives of the loss by what a call returns, and nothing else */
    array inputs[INPUTS];
    int64_t *first_query, *first_key; /* of packed sequences */
    array pools[2], bytes[2];         /* key and value in pages, in bytes */
    array groups[4];                  /* scales and zeros of both */
    void *owned[16];
    int owned_count;
} call;

typedef struct results {
    af_results part;
    af_gradients gradients;
    array arrays[RESULTS];
    int fill;
} results;

/* Sizes and options that do not go together are mended, so that every wish makes a legal call. */
void make_call(call *c, const wish *w);
bool is_packed(const wish *w);
bool has_gradients(const wish *w);
void free_call(call *c);

/* Memory for results, filled with a byte. */
void new_results(results *r, const call *c, int fill);
void free_results(results *r);

/* The problem of a call that writes to `r`, as long as both stay where they are. */
af_problem problem_of(const call *c, const results *r);

af_status run_call(const call *c, const results *r, const af_run *run);
af_status describe_call(const call *c, const results *r, af_report *report, af_rectangle *rectangles, int64_t room);

/* Overwrites the weights outside of packed sequences, which no call writes. */
void blank_beside_sequences(const call *c, results *r);

const char *result_name(int which);
/* The name of the first result in which two runs of one call differ, and where; NULL if they have the same bits. */
const char *differ(const results *a, const results *b, int64_t at[4]);
/* The name of the first result beside whose elements memory was written; NULL if none. Overwrites the results. */
const char *spilled(results *r);

#endif

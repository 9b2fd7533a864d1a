/* A call from XLA as a problem. Its arguments are, in this order:
 *
 *     query, key, value                 (batch ..., H, L, D), or (batch ..., L, H, D) if `tokens_first`
 *     those of xla_option that `given` has a bit for
 *
 * Batch axes are as many in all of them, and broadcast. Attributes are 64-bit integers and doubles. */
#ifndef AF_XLA_CALL_H
#define AF_XLA_CALL_H

#include "attnfast.h"
#include "driver/arena.h"
#include "xla/ffi.h"

enum { XLA_MOST_AXES = 16 };

typedef enum xla_option {
    XLA_MASK,     /* (batch ..., H or 1, Lq or 1, Lk or 1), bool */
    XLA_BLOCKS,   /* the same for blocks of block_q x block_k pairs */
    XLA_BIAS,     /* the same, real */
    XLA_Q_OFFSET, /* (batch ...), integers, and so are the next three */
    XLA_Q_LENGTH,
    XLA_KV_LENGTH,
    XLA_KV_START,
    XLA_ALIBI,        /* (batch ..., H), real */
    XLA_SINK,         /* (H), real */
    XLA_SCORE_WEIGHT, /* (H or 1, D), in the reals that C computes in; scores are additive if it is given */
    XLA_SCORE_BIAS,   /* the same */
    XLA_SEED,         /* (2), the upper and the lower half */
    XLA_OPTIONS
} xla_option;

typedef struct xla_call {
    const xla_frame *frame;
    af_arena arena;
    int64_t next_argument, next_result;
    int code; /* of the first error, 0: none */
    char message[240];
    bool tokens_first;
    int batch_axes;
    int64_t batch[XLA_MOST_AXES];
    const xla_buffer *query, *key, *value, *options[XLA_OPTIONS];
    af_problem problem;
    af_operands operands;
    af_visible visible;
    af_score score;
    af_results results;
} xla_call;

/* Two steps, as every argument and result has a say in the batch axes: first all are taken, then strides are known. */
void xla_take_operands(xla_call *call, const xla_frame *frame);
void xla_take_options(xla_call *call);
void xla_fill_problem(xla_call *call);

/* The next argument or result, which has `axes` besides those of the batch; or -axes, and none of the batch. */
const xla_buffer *xla_next_argument(xla_call *call, int axes);
const xla_buffer *xla_next_result(xla_call *call, int axes);

int64_t xla_integer(xla_call *call, const char *name);

/* A buffer over (batch ..., heads, rows, elements), over the first of these axes, or NULL, which is absent. */
af_tensor xla_pairs(xla_call *call, const xla_buffer *buffer, int axes);
/* The same where heads and rows may be exchanged: operands, results and what has one number for each query. */
af_tensor xla_rows(xla_call *call, const xla_buffer *buffer, int axes);

void xla_fail(xla_call *call, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
#define XLA_NO_MEMORY(call) xla_fail(call, XLA_RESOURCE_EXHAUSTED, "attnfast could not allocate its working memory")

#endif

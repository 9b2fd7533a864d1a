/* What XLA calls: each is given a frame, and returns NULL or an error that XLA destroys. */
#ifndef AF_XLA_HANDLERS_H
#define AF_XLA_HANDLERS_H

#include "xla/ffi.h"

/* Results: the output, and those of XLA_LSE (batch ..., H, Lq) and XLA_WEIGHTS (batch ..., H, Lq, Lk) that `wanted` has
 * a bit for. */
xla_error *xla_attention(const xla_frame *frame);

/* Arguments: those of the call, then its output and lse, the gradient of the output, and of the other two where
 * `losses` has a bit for them. Results: one for each bit of `wanted`, in the order of xla_gradient, shaped like its
 * operand. */
xla_error *xla_attention_backward(const xla_frame *frame);

/* The minor version of the interface that handlers say they speak, which must be that of the program, one of those in
 * xla/ffi.h. Before they are registered. */
void xla_speak(int minor);

enum { XLA_LSE, XLA_WEIGHTS };
typedef enum xla_gradient {
    XLA_OF_QUERY,
    XLA_OF_KEY,
    XLA_OF_VALUE,
    XLA_OF_BIAS,
    XLA_OF_SINK,
    XLA_OF_ALIBI,
    XLA_OF_SCORE_WEIGHT,
    XLA_OF_SCORE_BIAS,
    XLA_GRADIENTS
} xla_gradient;

#endif

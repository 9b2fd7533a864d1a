/* Batch rows as heads: where the rows of all heads of all batch rows lie side by side, as in (L, B, H, D), decoding
 * reads memory in long runs if heads of several batch rows take turns. No result depends on whether they are joined. */
#ifndef AF_JOINED_BATCH_H
#define AF_JOINED_BATCH_H

#include "plan/call.h"

/* The call as one with B * H heads and one batch row; false, and no call, where batch rows differ in more than where
 * their rows are, or rows of a head are side by side. */
bool af_join_batch(af_call *joined, const af_call *call);

#endif

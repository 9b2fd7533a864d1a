/* Rows of weights that several calls write together, each those of its own pairs. */
#ifndef AF_WEIGHT_ROWS_H
#define AF_WEIGHT_ROWS_H

#include "plan/call.h"
#include "runtime/parallel.h"

/* Zeros, which stay where no call writes. */
af_status af_clear_weights(const af_call *call, const af_run *run, af_watch *watch);

/* Whether the lse of some row is rounded by more than 1: exp(S - lse) may then overflow, or be 0 for all keys. */
af_status af_find_rough_lse(const af_call *call, af_watch *watch, bool *found);

/* Copies the lse of all other rows. */
af_status af_copy_fine_lse(const af_call *from, const af_call *to, af_watch *watch);

/* Weights exp(S - lse) over their sum. lse is rounded, which puts a factor of up to exp(|lse| eps) on all weights of a
 * row; the sum has the same factor. */
af_status af_normalise_weights(const af_call *call, const af_run *run, af_watch *watch);

#endif

/* The heaviest keys of each query, where they are too many for the lists of kernel/topk.h. */
#ifndef AF_DRIVER_TOPK_H
#define AF_DRIVER_TOPK_H

#include "plan/call.h"
#include "runtime/parallel.h"

/* The kernels keep lists of so many keys: an insertion costs as many steps as the list is long. Of 4096 keys x 64,
 * lists of 32, 48 and 64 take 20, 26 and 33 ms where whole rows take 41 for 65 (AVX-512), 20, 25, 32 and 46 with AVX2
 * (Zen 4, 8 x 256 queries). */
enum { AF_LISTED_KEYS = 64 };

/* Chooses keys from whole rows of scores, some rows at a time. */
af_status af_run_long_topk(const af_call *call, const af_run *run, af_watch *watch);

#endif

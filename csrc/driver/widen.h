/* 16-bit calls with float32 operands, for algorithms whose intermediate results must not be rounded. */
#ifndef AF_WIDEN_H
#define AF_WIDEN_H

#include "plan/call.h"
#include "runtime/parallel.h"

/* Runs a 16-bit call part by part: as many batch rows and key/value heads at a time as have float32 copies of
 * af_memory_for(), at least one head. `part` gets such a part: query, key and value are
 * float32, and so is the output, which is rounded afterwards. lse and lists of keys are written where the caller wants
 * them. Keys and values in bytes are not copied; those in pages become plain rows, of which padding is undefined. */
af_status af_run_wide(const af_call *call, const af_run *run, af_watch *watch,
                      af_status (*part)(void *context, const af_call *wide), void *context);

#endif

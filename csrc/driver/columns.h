/* Keys and values whose rows are not contiguous, as in arrays (B, H, D, L): copied part by part, unless the kernel of
 * few query rows reads them where they are (kernel/decode_columns.h). */
#ifndef AF_COLUMNS_H
#define AF_COLUMNS_H

#include "plan/call.h"
#include "runtime/parallel.h"

/* Whether there are any that are copied. */
bool af_copies_columns(const af_call *call);

/* Runs a call part by part: as many batch rows and key/value heads at a time as have copies of af_memory_for(), at
 * least one head. `part` gets such a part without them. There must be no global tokens and no
 * importance, which need all heads at once. */
af_status af_run_rows(const af_call *call, const af_run *run, af_watch *watch,
                      af_status (*part)(af_call *call, const af_run *run, af_watch *watch));

#endif

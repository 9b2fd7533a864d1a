/* Which algorithm a call takes. */
#ifndef AF_ATTENTION_H
#define AF_ATTENTION_H

#include "plan/call.h"
#include "runtime/parallel.h"

/* Whether a call is what the passes compute; else it takes an algorithm that makes several calls of it, or changes the
 * order of its queries. */
bool af_is_plain(const af_call *call);

/* Runs any legal call, and changes it on the way. */
af_status af_run_any(af_call *call, const af_run *run, af_watch *watch);

#endif

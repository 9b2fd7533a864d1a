/* Local attention: windows with dilation, global tokens, windows about centers. */
#ifndef AF_LOCAL_H
#define AF_LOCAL_H

#include "plan/call.h"
#include "runtime/parallel.h"

/* Runs a call whose windows may be of any kind, and changes it on the way. */
af_status af_run_local(af_call *call, const af_run *run, af_watch *watch);

/* What it would do, added to a report. */
af_status af_describe_local(const af_call *call, const af_run *run, af_watch *watch, af_report *report,
                            af_rectangle *rectangles, int64_t room);

#endif

/* Local attention: windows with dilation, global tokens, windows about centers. */
#ifndef AF_LOCAL_H
#define AF_LOCAL_H

#include "plan/call.h"
#include "runtime/parallel.h"

/* Runs a call with windows of any kind. What is computed first may be written to `call`: it is of no use afterwards. */
af_status af_run_local(af_call *call, const af_run *run, af_watch *watch);

/* Adds to a report what af_run_local would do. */
af_status af_describe_local(const af_call *call, const af_run *run, af_watch *watch, af_report *report,
                            af_rectangle *rectangles, int64_t room);

#endif

/* Local attention: windows with dilation, global tokens, windows about centers. */
#ifndef AF_LOCAL_H
#define AF_LOCAL_H

#include "driver/arena.h"
#include "driver/describe.h"
#include "driver/sink.h"

/* Bytes of copies that wait for calls of gradients; the same for any number of threads, as the order of sums depends on
 * it. */
enum { AF_GRADIENT_COPIES = 8 << 20 };

/* Runs a call with windows of any kind. What is computed first may be written to `call`: it is of no use afterwards. */
af_status af_run_local(af_call *call, const af_run *run, af_watch *watch);

/* The same for gradients, of a call with the causality that its caller gave. */
af_status af_run_local_backward(af_call *call, const af_run *run, af_watch *watch);

/* Prepares a call: causality as a window, an order for its centers, no global tokens where there are none. `several`:
 * whether it is several calls, or one. */
af_status af_prepare_local(af_call *call, bool *causal, bool *several, af_watch *watch, af_arena *arena);

/* Makes the calls that several are. */
af_status af_call_pairs(const af_call *call, bool causal, af_sink *sink);

/* Describes what af_run_local would do. */
af_status af_describe_local(af_describer *d, const af_call *call);

#endif

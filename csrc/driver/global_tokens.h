/* The pairs of global tokens that no window holds: calls that add their results to those of the windows. */
#ifndef AF_GLOBAL_TOKENS_H
#define AF_GLOBAL_TOKENS_H

#include "driver/sink.h"

/* `causal`: whether causality holds for them too. The calls do not depend on one another. */
af_status af_call_global_tokens(const af_call *call, bool causal, af_sink *sink);

#endif

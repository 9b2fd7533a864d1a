/* Windows with dilation as plain windows: one call for each run of heads of one dilation. */
#ifndef AF_DILATION_H
#define AF_DILATION_H

#include "driver/sink.h"

/* The windows of a call, without its global tokens. Ends with a barrier. */
af_status af_call_windows(const af_call *call, af_sink *sink);

#endif

/* Windows with dilation as plain windows: one call for each run of heads of one dilation. */
#ifndef AF_DILATION_H
#define AF_DILATION_H

#include "driver/arena.h"
#include "driver/sink.h"

/* The windows of a call, without its global tokens. Memory of the calls that are made is the arena's. */
af_status af_call_windows(const af_call *call, af_sink *sink, af_arena *arena);

#endif

/* Where a driver's algorithm puts the calls that it makes of one: they are run, or described. */
#ifndef AF_SINK_H
#define AF_SINK_H

#include "plan/call.h"
#include "runtime/parallel.h"

typedef struct af_sink {
    /* Calls between two barriers do not depend on one another. */
    af_status (*call)(struct af_sink *sink, const af_call *call);
    /* Returns when all calls before it are done. */
    af_status (*barrier)(struct af_sink *sink);
    const af_run *run; /* how the algorithm runs loops of its own */
    af_watch *watch;
    int64_t memory; /* bytes of copies that the algorithm may hold at a time */
    bool dry;       /* calls are described: no result is read or written */
} af_sink;

#endif

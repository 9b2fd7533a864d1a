/* Calls that do not depend on one another. The units of many small ones make one parallel loop: one loop each would
 * spend its time on waking threads. The bits are those of each call alone. */
#ifndef AF_QUEUE_H
#define AF_QUEUE_H

#include "driver/passes.h"

enum { AF_QUEUED_CALLS = 256 };

typedef struct af_queued {
    af_call call;
    af_schedule schedule;
    int64_t end; /* the number of its last unit plus 1 */
} af_queued;

typedef struct af_queue {
    const af_run *run;
    af_watch *watch;
    int64_t count;
    double flops;
    size_t scratch_bytes;
    af_queued *queued; /* [AF_QUEUED_CALLS] */
} af_queue;

/* False if there is no memory. */
bool af_open_queue(af_queue *queue, const af_run *run, af_watch *watch, af_arena *arena);

/* Runs a call, now or together with later ones. */
af_status af_enqueue(af_queue *queue, const af_call *call);

/* Runs what is left. */
af_status af_flush_queue(af_queue *queue);

#endif

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
    int64_t count, room; /* calls that wait; calls for which there is memory */
    double flops;
    size_t scratch_bytes;
    af_arena *arena;
    af_queued *queued[AF_QUEUED_CALLS]; /* they point into themselves and must not move */
} af_queue;

/* The arena must outlive the queue. */
void af_open_queue(af_queue *queue, const af_run *run, af_watch *watch, af_arena *arena);

/* Runs a call, now or together with later ones. */
af_status af_enqueue(af_queue *queue, const af_call *call);

/* Runs what is left. */
af_status af_flush_queue(af_queue *queue);

#endif

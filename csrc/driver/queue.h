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

/* Calls whose units make one loop. */
typedef struct af_group {
    int64_t calls, units;
    double flops;
    size_t scratch_bytes; /* for each thread */
} af_group;

/* Adds a call; false if it must run alone, because it has several passes or its units need joining. */
bool af_add_to_group(af_group *group, const af_schedule *schedule);

/* Threads of its loop. */
int af_threads_of_group(const af_group *group, const af_run *run);

typedef struct af_queue {
    const af_run *run;
    af_watch *watch;
    af_group group; /* calls that wait */
    int64_t room;   /* calls for which there is memory */
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

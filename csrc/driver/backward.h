/* How gradients are run: what their plan, the threads and memory for each are. */
#ifndef AF_BACKWARD_DRIVER_H
#define AF_BACKWARD_DRIVER_H

#include "plan/backward.h"
#include "runtime/parallel.h"

typedef struct af_backward_schedule {
    af_backward backward;
    int threads;
    int64_t blocks;       /* of rows, in all heads: units of the pass over them */
    int64_t panels;       /* of the rows of a head */
    int64_t most_heads;   /* in a round */
    size_t scratch_bytes; /* for each thread */
    bool row_sums;        /* wanted of each row, for gradients of a bias without keys or of slopes */
} af_backward_schedule;

/* Pure: what would be run. `call` must outlive the schedule. */
void af_schedule_backward(af_backward_schedule *schedule, const af_call *call, const af_run *run);

/* Bytes of memory that a schedule takes. */
double af_backward_memory(const af_backward_schedule *schedule);

/* Gradients of a call that is one: plain, with windows about centers, or one of several. */
af_status af_run_backward(const af_call *call, const af_run *run, af_watch *watch);

#endif

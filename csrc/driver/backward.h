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

/* The call whose result was gradients->output, as the passes take it. */
af_call af_open_backward(const af_problem *problem, const af_gradients *gradients);

/* Pure: what would be run. `call` and `gradients` must outlive the schedule. */
void af_schedule_backward(af_backward_schedule *schedule, const af_call *call, const af_gradients *gradients,
                          const af_run *run);

/* Bytes of memory that a schedule takes. */
double af_backward_memory(const af_backward_schedule *schedule);

#endif

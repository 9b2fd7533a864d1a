/* How gradients are run: what their plan, the threads and memory for each are. */
#ifndef AF_BACKWARD_DRIVER_H
#define AF_BACKWARD_DRIVER_H

#include "driver/arena.h"
#include "driver/backward_order.h"
#include "runtime/parallel.h"

/* The most rows of a unit that opens or finishes a panel. */
enum { AF_OPEN_ROWS = 192, AF_FINISH_ROWS = 384 };

typedef struct af_backward_schedule {
    af_backward backward;
    af_panel_order order;
    double flops;
    int64_t panels;                                       /* of all heads */
    int64_t open_units, finish_units, panel_units, units; /* of a panel, and all */
    int threads;
    int64_t slots;        /* panels in flight; 0 if a panel is one unit, whose scratch memory holds it */
    size_t scratch_bytes; /* for each thread */
    bool row_sums;        /* wanted of each row, for gradients of a bias without keys or of slopes */
} af_backward_schedule;

/* Pure: what would be run. `call` must outlive the schedule. */
void af_schedule_backward(af_backward_schedule *schedule, const af_call *call, const af_run *run);

/* The same on so many threads. */
void af_share_schedule(af_backward_schedule *schedule, int threads);

/* How many blocks so many rows are, at least 1. */
int64_t af_blocks_of_rows(const af_backward *backward, int64_t rows);

/* How many panels may be in flight that take so much memory each. */
int64_t af_panels_that_fit(size_t bytes, int64_t threads);

/* Bytes of what a schedule hands on to the end of the call. */
double af_sums_memory(const af_backward_schedule *schedule);

/* Memory for what is handed on; false if there is too little. */
bool af_take_sums(af_backward_schedule *schedule, af_arena *arena);

/* Adds what was handed on to gradients of slopes, sinks, biases and weights. */
void af_add_sums(const af_backward_schedule *schedule);

/* Gradients of a call that is one: plain, with windows about centers, or one of several. */
af_status af_run_backward(const af_call *call, const af_run *run, af_watch *watch);

#endif

/* Running numbered units of work on a team of threads. */
#ifndef AF_PARALLEL_H
#define AF_PARALLEL_H

#include <stdatomic.h>

#include "attnfast.h"

typedef struct af_work {
    void (*unit)(void *context, int64_t index, void *scratch);
    void *context;
    int64_t count, share; /* units, and the most that a thread takes at a time */
    char *scratch;        /* scratch_bytes for each thread; or NULL */
    size_t scratch_bytes;
} af_work;

/* When signals were last checked: one clock for a whole call, however many loops it runs. */
typedef struct af_watch {
    const af_run *run;
    double due;
} af_watch;

/* A caller's own run, or for NULL the default: any number of threads, never interrupted. */
const af_run *af_or_default_run(const af_run *run);

af_watch af_start_watch(const af_run *run);

/* Checks for signals if that is due, about every 50 ms: asks run->interrupted. */
af_status af_check_signals(af_watch *watch);

/* Runs every unit once, in parallel if threads > 1, in order of their numbers as far as threads allow. */
af_status af_run_work(const af_work *work, af_watch *watch, int threads);

/* Waits until a counter is at least so large. A unit may wait for what units of lesser numbers count: these have been
 * taken, and the least of those that are not done waits for none. What they wrote before is then seen. */
void af_wait_for(const _Atomic int64_t *counter, int64_t least);

#endif

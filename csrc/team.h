/* Running numbered units of work on a team of threads. */
#ifndef AF_TEAM_H
#define AF_TEAM_H

#include "attnfast.h"

typedef struct af_work {
    void (*unit)(void *context, int64_t index, void *scratch);
    void *context;
    int64_t count, chunk; /* units, and the most that a thread takes at a time */
    char *scratch;        /* scratch_bytes for each thread */
    size_t scratch_bytes;
} af_work;

/* Runs every unit once, in parallel if threads > 1, in order of their numbers as far as threads allow. Asks
 * run->interrupted between stretches of work. */
af_status af_run_work(const af_work *work, const af_run *run, int threads);

#endif

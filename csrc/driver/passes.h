/* A call's work is a list of passes over its pairs, one after the other:
 *
 *   attend       scores, softmax and weighted sum, block by block of rows; parts of split rows are merged
 *   weights      the weights, recomputed from scores and lse, for callers who ask for them
 *   importance   their sums for each key
 *
 * A pass is many units of work, which threads take in turn. */
#ifndef AF_PASSES_H
#define AF_PASSES_H

#include "driver/arena.h"
#include "plan/call.h"
#include "plan/plan.h"
#include "runtime/parallel.h"

typedef struct af_pass {
    void (*unit)(const struct af_pass *pass, int64_t index, void *scratch);
    const af_call *call;
    const af_plan *plan;
    int64_t units, round; /* `round` units are one parallel loop; the next round begins when all of them are done */
    int64_t share;        /* the most that a thread takes at a time */
    /* Partial results of attend, where rows are split over their keys. */
    char *partials;         /* [rows of a round's units][unit_blocks][splits] */
    _Atomic int *remaining; /* [rows of a round's units]: splits still to come */
} af_pass;

enum { AF_MAX_PASSES = 2 };

/* The passes of a call: `passes` receives them, the plan and memory live as long as they do. */
typedef struct af_schedule {
    af_plan plan;
    int count;
    af_pass pass[AF_MAX_PASSES];
    int64_t most_units; /* of a pass */
    double flops;
    bool worth_threads;
    _Atomic int met_infinity; /* see af_plan */
    size_t scratch_bytes;     /* for each thread */
} af_schedule;

/* Pure: what would be run by so many threads, 0: af_threads(). `call` must outlive the schedule. */
void af_schedule_call(af_schedule *schedule, const af_call *call, int threads);

/* The same as af_run_call runs it. Returns true if that is as another call, `joined`, which must outlive the schedule
 * instead. */
bool af_schedule_joined(af_schedule *schedule, af_call *joined, const af_call *call, int threads);

/* Bytes of memory that so many threads need for a schedule. */
double af_working_memory(const af_schedule *schedule, int threads);

/* Threads of a loop of units: `threads`, or the default where that is 0, but no more than units. */
int af_threads_for(int threads, int64_t units, bool worth_threads);

/* Bytes of copies that an algorithm may hold at a time: 2 MB for each thread. */
int64_t af_memory_for(const af_run *run);

/* The most units that a thread takes at a time, where all units are about `flops` together. */
int64_t af_share_of(double flops, int64_t units);

/* Whether so much work is worth more than the calling thread. */
bool af_worth_threads(double flops);

/* The unit of an attend pass without splits: what packs units of several calls into one loop. */
void af_attend_unit(const af_pass *pass, int64_t index, void *scratch);

/* Runs a call from beginning to end; meanwhile the sums of its rows are noted in it. */
af_status af_run_call(af_call *call, const af_run *run, af_watch *watch);

#endif

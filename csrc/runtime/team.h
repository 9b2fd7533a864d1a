/* How many threads are worth waking: fewer while the machine has no time for them. */
#ifndef AF_TEAM_H
#define AF_TEAM_H

/* What a parallel region took: from its begin to its end, and the processor time of all its threads together. */
typedef struct af_region_time {
    double end, wall, busy; /* seconds; `end` by the clock that af_team_size is asked with */
    int threads, wanted;
} af_region_time;

/* Threads for the next region of the calling thread, at most as many as are wanted. */
int af_team_size(int wanted, double now);

/* Notes what a region with more than one thread took. */
void af_judge_team(const af_region_time *region);

#endif

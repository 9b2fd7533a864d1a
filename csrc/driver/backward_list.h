/* Gradients of calls that do not depend on one another, as one parallel loop. The bits are those of each call alone. */
#ifndef AF_BACKWARD_LIST_H
#define AF_BACKWARD_LIST_H

#include "driver/arena.h"
#include "driver/backward.h"

enum { AF_LISTED_CALLS = 256 };

typedef struct af_listed {
    af_call call;
    af_backward_schedule schedule;
    int64_t end;            /* the number of its last unit plus 1 */
    int64_t first_panel;    /* the number of its first panel that takes a slot */
    _Atomic int64_t *turns; /* [streams][ranges + 1]: what the panels of a stream have done to each range, and to dQ */
} af_listed;

/* Memory of a panel in flight: a panel and the parts of its dQ. `done` counts the units of the panels that have it, one
 * panel after the other. */
typedef struct af_slot {
    _Atomic int64_t done;
    char *panel, *parts;
} af_slot;

typedef struct af_backward_list {
    const af_run *run;
    af_watch *watch;
    af_arena *arena;
    int64_t count, room;                /* calls that wait; calls for which there is memory */
    af_listed *listed[AF_LISTED_CALLS]; /* they point into themselves and must not move */
    int threads;
    int64_t ahead; /* the unit that a thread probably takes next comes so many later */
    int64_t slots;
    af_slot *slot;
    size_t scratch_bytes, panel_bytes, parts_bytes; /* for each thread; for each slot */
    af_report *report;                              /* or NULL: calls are added to it, not run */
} af_backward_list;

/* The arena must outlive the list. */
void af_open_backward_list(af_backward_list *list, const af_run *run, af_watch *watch, af_arena *arena);

/* Computes the gradients of a call, or adds its loop to the report, now or together with those of later ones. */
af_status af_list_backward(af_backward_list *list, const af_call *call);

/* The same for those that are left. */
af_status af_flush_backward_list(af_backward_list *list);

#endif

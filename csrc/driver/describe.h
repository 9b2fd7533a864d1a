/* What the passes of calls visit, counted without computing anything. */
#ifndef AF_DESCRIBE_H
#define AF_DESCRIBE_H

#include "driver/queue.h"
#include "driver/sink.h"

/* What calls are added to. */
typedef struct af_describer {
    af_sink sink; /* takes calls as af_describe_queued does */
    af_report *report;
    af_rectangle *rectangles; /* those that calls visit, or NULL */
    int64_t room;             /* for rectangles */
    af_group group;           /* calls whose common loop is not in the report yet */
} af_describer;

/* A report without calls. */
void af_open_describer(af_describer *d, const af_call *call, const af_run *run, af_watch *watch, af_report *report);

/* Any legal call, as af_run_any would run it; a call that is one, as af_run_call would; and one that af_enqueue would
 * run together with others. */
af_status af_describe_any(af_describer *d, const af_call *call);
af_status af_describe_call(af_describer *d, const af_call *call);
af_status af_describe_queued(af_describer *d, const af_call *call);

/* The loop of the calls that were queued: af_flush_queue. */
void af_describe_group(af_describer *d);

/* The pairs of a call of gradients, whose plan is given. */
af_status af_describe_pieces(af_describer *d, const af_call *call, const af_plan *plan);

/* A loop of units. */
void af_describe_loop(af_report *report, int threads, double memory);

/* Rectangles of one sequence, from number `first` on, in the rows of all. */
void af_move_rectangles(af_describer *d, int64_t first, af_part sequence);

/* The totals of a report. */
void af_end_report(const af_call *call, af_report *report);

#endif

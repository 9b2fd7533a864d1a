/* What the passes of a call visit, counted without computing anything. */
#ifndef AF_DESCRIBE_H
#define AF_DESCRIBE_H

#include "plan/call.h"
#include "plan/plan.h"
#include "runtime/parallel.h"

/* Adds any legal call to a report, as af_run_any would run it. */
af_status af_describe_any(const af_call *call, const af_run *run, af_watch *watch, af_report *report,
                          af_rectangle *rectangles, int64_t room);

/* Adds a plain call to a report; `rectangles` (or NULL) receives the rectangles that it visits, at most `room` in all.
 */
af_status af_describe_call(const af_call *call, const af_run *run, af_watch *watch, af_report *report,
                           af_rectangle *rectangles, int64_t room);

/* Adds the pairs of a call of gradients, whose plan is given. */
af_status af_describe_pieces(const af_call *call, const af_plan *plan, af_watch *watch, af_report *report,
                             af_rectangle *rectangles, int64_t room);

/* Rectangles of one sequence, from number `first` on, in the rows of all. */
void af_move_rectangles(af_rectangle *rectangles, int64_t first, int64_t end, af_part sequence);

/* A report before the first call is added, and its totals after the last. */
void af_begin_report(const af_call *call, af_report *report);
void af_end_report(const af_call *call, af_report *report);

#endif

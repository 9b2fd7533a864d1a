/* What a plan visits, without computing it. */
#ifndef AF_SURVEY_H
#define AF_SURVEY_H

#include "plan.h"
#include "team.h"

/* Fills visible_pairs, visited_pairs and rectangles of the report, and at most `room` rectangles. */
af_status af_survey(const af_plan *plan, const af_problem *problem, af_watch *watch, af_report *report,
                    af_rectangle *rectangles, int64_t room);

#endif

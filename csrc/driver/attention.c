#include "driver/attention.h"

#include <assert.h>

#include "driver/columns.h"
#include "driver/local.h"
#include "driver/topk.h"
#include "plan/intervals.h"
#include "plan/legal.h"

bool af_is_plain(const af_call *call)
{
    const af_visible *v = &call->visible;
    return !v->center.data && !v->global && !af_is_dilated(call) && call->results.topk <= AF_LISTED_KEYS;
}

/* Long lists of keys are made from whole rows of scores, the other results as if no list were wanted. */
af_status af_run_any(af_call *call, const af_run *run, af_watch *watch)
{
    if (af_copies_columns(call)) return af_run_rows(call, run, watch, af_run_any);
    if (call->results.topk <= AF_LISTED_KEYS) return af_run_local(call, run, watch);
    af_call others = *call;
    others.results.topk = 0;
    const af_status status = af_run_local(&others, run, watch);
    if (status != AF_OK) return status;
    af_causality_as_window(&call->visible);
    return af_run_long_topk(call, run, watch);
}

af_status af_attention(const af_problem *problem, const af_run *run)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_call call;
    af_open_call(&call, problem);
    assert(af_is_legal(&call));
    return af_run_any(&call, run, &watch);
}

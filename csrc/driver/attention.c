/* The entry of a call: which algorithm its problem takes. */
#include "attnfast.h"
#include "driver/local.h"
#include "driver/topk.h"
#include "plan/intervals.h"

af_status af_attention(const af_problem *problem, const af_run *run)
{
    af_watch watch = af_start_watch(run);
    af_call call;
    af_open_call(&call, problem);
    if (call.results.topk <= AF_LISTED_KEYS) return af_run_local(&call, run, &watch);
    af_causality_as_window(&call.visible);
    return af_run_long_topk(&call, run, &watch);
}

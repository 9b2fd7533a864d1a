/* Calls of call.h: run, and described. */
#include "call.h"

af_problem problem_of(const call *c, const results *r)
{
    const wish *w = &c->wish;
    return (af_problem){.size = sizeof(af_problem),
                        .dtype = w->dtype,
                        .B = w->B,
                        .H = w->H,
                        .Hk = w->Hk,
                        .Lq = w->Lq,
                        .Lk = w->Lk,
                        .D = w->D,
                        .Dv = w->Dv,
                        .operands = &c->operands,
                        .visible = &c->visible,
                        .score = &c->score,
                        .results = &r->part};
}

static af_packing packing_of(const call *c) { return (af_packing){c->wish.sequences, c->first_query, c->first_key}; }

af_status run_call(const call *c, const results *r, const af_run *run)
{
    const af_problem problem = problem_of(c, r);
    const af_packing packing = packing_of(c);
    const bool packed = is_packed(&c->wish);
    const af_status status = packed ? af_attention_packed(&problem, &packing, run) : af_attention(&problem, run);
    if (status != AF_OK || !has_gradients(&c->wish)) return status;
    return packed ? af_attention_packed_backward(&problem, &packing, &r->gradients, run)
                  : af_attention_backward(&problem, &r->gradients, run);
}

af_status describe_call(const call *c, const results *r, af_report *report, af_rectangle *rectangles, int64_t room)
{
    const af_problem problem = problem_of(c, r);
    const af_packing packing = packing_of(c);
    if (!has_gradients(&c->wish))
        return is_packed(&c->wish) ? af_describe_packed(&problem, &packing, NULL, report, rectangles, room)
                                   : af_describe(&problem, NULL, report, rectangles, room);
    return is_packed(&c->wish)
               ? af_describe_packed_backward(&problem, &packing, &r->gradients, NULL, report, rectangles, room)
               : af_describe_backward(&problem, &r->gradients, NULL, report, rectangles, room);
}

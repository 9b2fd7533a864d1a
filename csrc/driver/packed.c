/* Sequences packed one after the other: a call for each. */
#include "driver/describe.h"
#include "driver/queue.h"
#include "plan/intervals.h"

/* Signals are looked at after so many sequences, which may all be empty. */
enum { SEQUENCES_A_LOOK = 4096 };

static void skip_rows(af_tensor *t, int64_t rows, int64_t size)
{
    if (t->data) t->data = (char *)t->data + rows * t->i * size;
}

static af_call cut_out(const af_call *whole, int64_t s, const int64_t *first_query, const int64_t *first_key)
{
    const int64_t size = af_elem_bytes(whole->dtype);
    af_call call = *whole;
    call.Lq = first_query[s + 1] - first_query[s];
    call.Lk = first_key[s + 1] - first_key[s];
    skip_rows(&call.operands.query, first_query[s], size);
    skip_rows(&call.results.output, first_query[s], size);
    skip_rows(&call.results.lse, first_query[s], af_real_bytes(whole->dtype));
    skip_rows(&call.operands.key, first_key[s], size);
    skip_rows(&call.operands.value, first_key[s], size);
    if (call.visible.q_offset) call.visible.q_offset += s;
    if (call.score.alibi) call.score.alibi += s * call.score.alibi_b;
    return call;
}

af_status af_attention_packed(const af_problem *problem, int64_t sequences, const int64_t *first_query,
                              const int64_t *first_key, const af_run *run)
{
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    af_arena arena = {0};
    af_queue queue;
    af_call whole;
    af_open_call(&whole, problem);
    af_causality_as_window(&whole.visible);
    if (!af_open_queue(&queue, run, &watch, &arena)) status = AF_NO_MEMORY;
    for (int64_t s = 0; s < sequences && status == AF_OK; s++) {
        if (s % SEQUENCES_A_LOOK == SEQUENCES_A_LOOK - 1) status = af_check_signals(&watch);
        const af_call call = cut_out(&whole, s, first_query, first_key);
        if (status == AF_OK) status = af_enqueue(&queue, &call);
    }
    if (status == AF_OK) status = af_flush_queue(&queue);
    af_give_back(&arena);
    return status;
}

/* Rectangles of one sequence in the rows of all. */
static void move_rectangles(af_rectangle *rectangles, int64_t count, int64_t s, int64_t query, int64_t key)
{
    for (int64_t n = 0; n < count; n++) {
        af_rectangle *r = &rectangles[n];
        r->b = s;
        r->first_query += query;
        r->end_query += query;
        r->first_key += key;
        r->end_key += key;
    }
}

af_status af_describe_packed(const af_problem *problem, int64_t sequences, const int64_t *first_query,
                             const int64_t *first_key, const af_run *run, af_report *report, af_rectangle *rectangles,
                             int64_t room)
{
    af_watch watch = af_start_watch(run);
    af_status status = AF_OK;
    af_call whole;
    af_open_call(&whole, problem);
    af_begin_report(&whole, report);
    af_causality_as_window(&whole.visible);
    for (int64_t s = 0; s < sequences && status == AF_OK; s++) {
        const af_call call = cut_out(&whole, s, first_query, first_key);
        const int64_t before = af_min(report->rectangles, room);
        status = af_describe_call(&call, run, &watch, report, rectangles, room);
        if (rectangles)
            move_rectangles(rectangles + before, af_min(report->rectangles, room) - before, s, first_query[s],
                            first_key[s]);
    }
    af_end_report(&whole, report);
    return status;
}

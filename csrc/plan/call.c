#include "plan/call.h"

#include <string.h>

/* A part as far as its writer knew it; the rest is zero. Inlined, so that the usual copy is of a constant size. */
static inline __attribute__((always_inline)) void open_part(void *part, const size_t size, const void *from)
{
    size_t known = 0;
    if (from) memcpy(&known, from, sizeof known);
    if (known >= size) {
        memcpy(part, from, size);
        return;
    }
    if (known) memcpy(part, from, known);
    memset((char *)part + known, 0, size - known);
}

void af_open_call(af_call *call, const af_problem *problem)
{
    af_problem p;
    open_part(&p, sizeof p, problem);
    call->dtype = p.dtype;
    call->B = p.B;
    call->H = p.H;
    call->Hk = p.Hk;
    call->Lq = p.Lq;
    call->Lk = p.Lk;
    call->D = p.D;
    call->Dv = p.Dv;
    call->subset = (af_subset){0};
    open_part(&call->operands, sizeof call->operands, p.operands);
    open_part(&call->visible, sizeof call->visible, p.visible);
    open_part(&call->score, sizeof call->score, p.score);
    open_part(&call->results, sizeof call->results, p.results);
    if (!p.visible) call->visible.left = call->visible.right = AF_FAR;
    if (!p.score) call->score.scale = 1;
    if (!call->results.weights.data) call->results.stage = AF_WEIGHTS; /* what lse and output need */
}

bool af_has_results(const af_call *call)
{
    if (call->B == 0 || call->H == 0 || call->Lq == 0) return false;
    if ((call->operands.value.data && call->Dv > 0) || call->results.lse.data) return true;
    return call->results.topk || ((call->results.weights.data || call->results.importance) && call->Lk > 0);
}

void af_move_tensor(af_tensor *tensor, int64_t b, int64_t h, int64_t i, int64_t size)
{
    if (!tensor->data) return;
    const int64_t row = tensor->batch ? tensor->batch[b] : b * tensor->b;
    tensor->data = (char *)tensor->data + (row + h * tensor->h + i * tensor->i) * size;
    tensor->batch = NULL;
}

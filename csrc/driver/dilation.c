/* A window of dilation d is a plain window among the queries and keys of one residue class mod d. The classes become
 * batch rows whose strides are d times as long, so the kernels need not know. */
#include "driver/dilation.h"

#include "driver/classes.h"
#include "plan/intervals.h"

/* Where the calls of all windows go, and the memory of those that wait. */
typedef struct windows {
    af_sink *sink;
    af_arena arena;
    double waiting; /* bytes of copied columns in it */
} windows;

static af_status call_classes(af_classes *c)
{
    af_call call;
    const bool has_gradients = c->whole->gradients.size > 0;
    af_split_call(c, &call);
    if (has_gradients && c->status == AF_OK) af_split_gradients(c, &call);
    if (c->status == AF_OK) c->status = c->sink->call(c->sink, &call);
    if (has_gradients && c->status == AF_OK && !c->sink->dry && !call.subset.collects) af_join_gradients(c, &call);
    return c->status;
}

static int64_t at_most(double fit, int64_t most) { return fit < 1 ? 1 : fit < (double)most ? (int64_t)fit : most; }

/* Runs the calls that wait once they hold too much memory. */
static af_status bound_memory(windows *w)
{
    if (w->waiting < (double)w->sink->memory) return AF_OK;
    const af_status status = w->sink->barrier(w->sink);
    af_give_back(&w->arena);
    w->waiting = 0;
    return status;
}

/* How many classes, at most `count`, and batch rows become one call: as many as have copied columns of the memory that
 * there is for them, at least one. */
static void fit_classes(const af_classes *c, const af_call *whole, int64_t memory, int64_t *count, int64_t *rows)
{
    const int64_t real = af_real_bytes(whole->dtype);
    const struct {
        const af_tensor *tensor;
        int64_t size;
    } copied[] = {{&whole->visible.mask, 1},
                  {&whole->score.bias, real},
                  {&whole->gradients.bias, real},
                  {&whole->gradients.grad_weights, real}};
    double bytes = 0;
    bool share = true;
    for (size_t n = 0; n < sizeof copied / sizeof *copied; n++) {
        const double own = af_copied_bytes(c, whole, copied[n].tensor, copied[n].size);
        share = share && (own == 0 || af_rows_share_copies(whole, copied[n].tensor, c->step));
        bytes += own;
    }
    const double fit = (double)memory / (bytes + 1);
    *rows = share ? whole->B : at_most(fit / (double)*count, whole->B);
    if (bytes > 0) *count = at_most(fit, *count);
}

/* The classes of the residues [first, end). All must have equally many queries, as the classes of one call do. */
static af_status call_residues(const af_call *whole, int64_t step, int64_t first, int64_t end, windows *w)
{
    af_classes c = {.step = step, .sink = w->sink, .arena = &w->arena};
    c.Lq = af_floor_div(whole->Lq - first + step - 1, step);
    c.Lk = af_floor_div(whole->Lk + step - 1, step);
    if (c.Lq <= 0 || first == end) return AF_OK;
    int64_t most = end - first, rows;
    fit_classes(&c, whole, w->sink->memory, &most, &rows);
    af_status status = AF_OK;
    for (int64_t b = 0; b < whole->B && status == AF_OK; b += rows)
        for (c.first = first; c.first < end && status == AF_OK; c.first += most) {
            af_part part = af_whole_part(whole);
            part.row = part.b = b;
            part.B = af_min(rows, whole->B - b);
            const af_call call = af_cut_call(whole, part);
            c.whole = &call;
            c.count = af_min(most, end - c.first);
            c.copied = 0;
            status = call_classes(&c);
            w->waiting += c.copied;
            if (status == AF_OK) status = bound_memory(w);
        }
    return status;
}

/* Heads of one dilation go together, as long as they begin and end with a group. */
static int64_t end_of_heads(const af_call *call, int64_t h)
{
    const int64_t group = call->H / call->Hk, *dilation = call->visible.dilation;
    int64_t end = h + 1;
    while (end < call->H && dilation[end] == dilation[h]) end++;
    if (h % group != 0) return af_min(end, (h / group + 1) * group);
    return end - h > group ? end / group * group : end;
}

static af_status call_heads(const af_call *whole, int64_t h, int64_t end, windows *w)
{
    const int64_t step = whole->visible.dilation[h], longer = whole->Lq % step;
    af_part part = af_whole_part(whole);
    part.h = h;
    part.H = end - h;
    af_call call = af_cut_call(whole, part);
    call.visible.dilation = NULL;
    call.visible.global = NULL;
    if (step == 1) return w->sink->call(w->sink, &call);
    const af_status status = call_residues(&call, step, 0, longer, w);
    return status == AF_OK ? call_residues(&call, step, longer, step, w) : status;
}

af_status af_call_windows(const af_call *whole, af_sink *sink)
{
    windows w = {.sink = sink};
    af_status status = AF_OK;
    for (int64_t h = 0, end; h < whole->H && status == AF_OK; h = end) {
        end = end_of_heads(whole, h);
        status = call_heads(whole, h, end, &w);
    }
    if (status == AF_OK) status = sink->barrier(sink);
    af_give_back(&w.arena);
    return status;
}

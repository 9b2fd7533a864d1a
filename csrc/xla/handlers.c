#include "xla/handlers.h"

#include <fenv.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "plan/call.h"
#include "runtime/pool.h"
#include "xla/call.h"

/* ---- XLA's side: versions, errors, threads ---- */

static xla_error *error_of(const xla_api *api, int code, const char *message)
{
    xla_error_args args = {.size = sizeof args, .message = message, .code = code};
    return api->create_error(&args);
}

static _Atomic int minor_version = XLA_NEWEST_MINOR;

void xla_speak(int minor) { atomic_store(&minor_version, minor); }

/* Whether the frame only asks for a version, and the answer. Such a frame has no api, so it cannot say its own. */
static bool answers_metadata(const xla_frame *frame)
{
    const xla_extension *e = frame->extensions;
    while (e && e->kind != XLA_METADATA) e = e->next;
    if (!e) return false;
    xla_version *version = &((const xla_metadata_extension *)e)->metadata->version;
    version->major = XLA_MAJOR;
    version->minor = atomic_load(&minor_version);
    return true;
}

static bool fits(const xla_frame *frame)
{
    const xla_version *v = &frame->api->version;
    return v->major == XLA_MAJOR && v->minor >= XLA_OLDEST_MINOR && v->minor <= XLA_NEWEST_MINOR;
}

static xla_error *unfit(const xla_frame *frame)
{
    char message[160];
    snprintf(message, sizeof message,
             "attnfast knows versions %d.%d to %d.%d of XLA's foreign-function interface, got %d.%d: upgrade attnfast",
             XLA_MAJOR, XLA_OLDEST_MINOR, XLA_MAJOR, XLA_NEWEST_MINOR, frame->api->version.major,
             frame->api->version.minor);
    return error_of(frame->api, XLA_UNIMPLEMENTED, message);
}

static bool without_error(const xla_api *api, xla_error *error)
{
    if (!error) return true;
    api->destroy_error(&(xla_destroy_args){.size = sizeof(xla_destroy_args), .error = error});
    return false;
}

static bool schedule(void *frame_, void (*task)(void *), void *argument)
{
    const xla_frame *frame = frame_;
    xla_schedule_args args = {.size = sizeof args, .context = frame->context, .task = task, .argument = argument};
    return without_error(frame->api, frame->api->schedule(&args));
}

/* XLA's threads, 0: this program has none for calls. */
static int pool_threads(const xla_frame *frame)
{
    int64_t threads = 0;
    xla_threads_args args = {.size = sizeof args, .context = frame->context, .threads = &threads};
    if (!without_error(frame->api, frame->api->count_threads(&args))) return 0;
    return threads < 1 ? 0 : threads > 1024 ? 1024 : (int)threads;
}

/* ---- a call ---- */

static af_status run_on_pool(xla_call *call, const af_gradients *gradients)
{
    const xla_frame *frame = call->frame;
    const af_pool pool = {.context = (void *)(uintptr_t)frame, .threads = pool_threads(frame), .schedule = schedule};
    af_run run = {.threads = (int)xla_integer(call, "threads")};
    if (pool.threads) {
        const int wanted = run.threads ? run.threads : af_threads();
        run.threads = wanted < pool.threads ? wanted : pool.threads;
    }
    af_use_pool(pool.threads ? &pool : NULL);
    fenv_t before; /* XLA's threads flush denormals */
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    const af_status status =
        gradients ? af_attention_backward(&call->problem, gradients, &run) : af_attention(&call->problem, &run);
    fesetenv(&before);
    af_use_pool(NULL);
    return status;
}

/* The end of every call: what it is to return, and its memory back. */
static xla_error *close_call(xla_call *call, af_status status)
{
    if (status != AF_OK) XLA_NO_MEMORY(call);
    af_give_back(&call->arena);
    return call->code ? error_of(call->frame->api, call->code, call->message) : NULL;
}

xla_error *xla_attention(const xla_frame *frame)
{
    if (answers_metadata(frame)) return NULL;
    if (!fits(frame)) return unfit(frame);
    xla_call call;
    xla_take_operands(&call, frame);
    xla_take_options(&call);
    const int64_t wanted = xla_integer(&call, "wanted");
    const xla_buffer *output = xla_next_result(&call, 3);
    const xla_buffer *lse = wanted >> XLA_LSE & 1 ? xla_next_result(&call, 2) : NULL;
    const xla_buffer *weights = wanted >> XLA_WEIGHTS & 1 ? xla_next_result(&call, 3) : NULL;
    xla_fill_problem(&call);
    call.results.output = xla_rows(&call, output, 3);
    call.results.lse = xla_rows(&call, lse, 2);
    call.results.weights = xla_pairs(&call, weights, 3);
    return close_call(&call, call.code ? AF_OK : run_on_pool(&call, NULL));
}

/* ---- gradients ---- */

static int64_t elements(const xla_buffer *buffer)
{
    int64_t count = 1;
    for (int64_t k = 0; k < buffer->rank; k++) count *= buffer->dims[k];
    return count;
}

static void clear(const xla_buffer *buffer)
{
    memset(buffer->data, 0, (size_t)elements(buffer) * (buffer->dtype == XLA_F64 ? 8 : 4));
}

static double *zeros(xla_call *call, int64_t count)
{
    double *sums = af_take(&call->arena, count, sizeof *sums);
    if (sums) memset(sums, 0, (size_t)count * sizeof *sums);
    else XLA_NO_MEMORY(call);
    return sums;
}

/* Adds rows of sums, one for each batch row, to those of a result that is broadcast along some of them. */
static void add_rows(const xla_buffer *result, const af_tensor *t, const double *sums, int64_t rows, int64_t width)
{
    for (int64_t b = 0; b < rows; b++)
        for (int64_t h = 0; h < width; h++) {
            const int64_t at = (t->batch ? t->batch[b] : b * t->b) + h;
            if (result->dtype == XLA_F64) ((double *)t->data)[at] += sums[b * width + h];
            else ((float *)t->data)[at] += (float)sums[b * width + h];
        }
}

/* Where C adds up, as doubles, a gradient of what there is once for a call; NULL for the others. */
static double **sums_of_call(af_gradients *g, int gradient)
{
    switch (gradient) {
    case XLA_OF_SINK:
        return &g->sink;
    case XLA_OF_SCORE_WEIGHT:
        return &g->score_weight;
    case XLA_OF_SCORE_BIAS:
        return &g->score_bias;
    default:
        return NULL;
    }
}

static void take_gradients(xla_call *call, const xla_buffer *results[XLA_GRADIENTS])
{
    static const int axes[XLA_GRADIENTS] = {3, 3, 3, 3, -1, 1, -2, -2};
    const int64_t wanted = xla_integer(call, "wanted");
    for (int n = 0; n < XLA_GRADIENTS; n++) results[n] = wanted >> n & 1 ? xla_next_result(call, axes[n]) : NULL;
}

static void fill_gradients(xla_call *call, af_gradients *g, const xla_buffer *const results[XLA_GRADIENTS])
{
    if (call->code) return;
    for (int n = 0; n < XLA_GRADIENTS; n++)
        if (results[n]) clear(results[n]);
    g->query = xla_rows(call, results[XLA_OF_QUERY], 3);
    g->key = xla_rows(call, results[XLA_OF_KEY], 3);
    g->value = xla_rows(call, results[XLA_OF_VALUE], 3);
    g->bias = xla_pairs(call, results[XLA_OF_BIAS], 3);
    for (int n = 0; n < XLA_GRADIENTS; n++)
        if (results[n] && sums_of_call(g, n)) *sums_of_call(g, n) = zeros(call, elements(results[n]));
    if (results[XLA_OF_ALIBI]) g->alibi = zeros(call, call->problem.B * call->problem.H);
}

/* Sums that C keeps as doubles. */
static void round_gradients(xla_call *call, af_gradients *g, const xla_buffer *const results[XLA_GRADIENTS])
{
    for (int n = 0; n < XLA_GRADIENTS; n++) {
        if (!results[n] || !sums_of_call(g, n)) continue;
        add_rows(results[n], &(af_tensor){.data = results[n]->data}, *sums_of_call(g, n), 1, elements(results[n]));
    }
    if (g->alibi) {
        const af_tensor t = xla_pairs(call, results[XLA_OF_ALIBI], 1);
        if (!call->code) add_rows(results[XLA_OF_ALIBI], &t, g->alibi, call->problem.B, call->problem.H);
    }
}

xla_error *xla_attention_backward(const xla_frame *frame)
{
    if (answers_metadata(frame)) return NULL;
    if (!fits(frame)) return unfit(frame);
    xla_call call;
    const xla_buffer *results[XLA_GRADIENTS];
    xla_take_operands(&call, frame);
    xla_take_options(&call);
    const int64_t losses = xla_integer(&call, "losses");
    const xla_buffer *output = xla_next_argument(&call, 3), *lse = xla_next_argument(&call, 2);
    const xla_buffer *grad_output = xla_next_argument(&call, 3);
    const xla_buffer *grad_lse = losses >> XLA_LSE & 1 ? xla_next_argument(&call, 2) : NULL;
    const xla_buffer *grad_weights = losses >> XLA_WEIGHTS & 1 ? xla_next_argument(&call, 3) : NULL;
    take_gradients(&call, results);
    xla_fill_problem(&call);
    af_gradients g = {
        .size = sizeof g,
        .output = xla_rows(&call, output, 3),
        .lse = xla_rows(&call, lse, 2),
        .grad_output = xla_rows(&call, grad_output, 3),
        .grad_lse = xla_rows(&call, grad_lse, 2),
        .grad_weights = xla_pairs(&call, grad_weights, 3),
    };
    fill_gradients(&call, &g, results);
    const af_status status = call.code ? AF_OK : run_on_pool(&call, &g);
    if (status == AF_OK && !call.code) round_gradients(&call, &g, results);
    return close_call(&call, status);
}

/* Runs out of memory on purpose: the first allocation of a call fails, in the next try the second, and so on until the
 * call succeeds. Every failure must be AF_NO_MEMORY, give back what was allocated, leave the results alone, and the
 * next call must be right. Linked with --wrap for each function below; see tests/promises/test_out_of_memory.py. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"

enum { MOST_ALLOCATIONS = 500 };

static bool armed;
static int asked, fails_at, live;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **p, size_t alignment, size_t size);
void __real_free(void *p);

static bool fails(void) { return armed && ++asked == fails_at; }

static void *counted(void *p)
{
    live += armed && p;
    return p;
}

void *__wrap_malloc(size_t size) { return fails() ? NULL : counted(__real_malloc(size)); }
void *__wrap_calloc(size_t count, size_t size) { return fails() ? NULL : counted(__real_calloc(count, size)); }
void *__wrap_realloc(void *p, size_t size)
{
    if (p) live -= armed;
    return fails() ? NULL : counted(__real_realloc(p, size));
}
void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : counted(__real_aligned_alloc(alignment, size));
}
int __wrap_posix_memalign(void **p, size_t alignment, size_t size)
{
    if (fails()) return ENOMEM;
    const int status = __real_posix_memalign(p, alignment, size);
    if (!status) counted(*p);
    return status;
}
void __wrap_free(void *p)
{
    live -= armed && p;
    __real_free(p);
}

/* What each allocates: csrc/driver. */
#define WINDOW .window = true, .left = 3, .right = 2
static const struct {
    const char *name;
    wish wish;
} cases[] = {
    {"attention", {.kind = ATTEND, SHAPE(2, 1, 60, 70, 8, 9), .lse = true}},
    {"splits", {.kind = ATTEND, SHAPE(2, 2, 8, 5000, 4, 4), .additive = true}},
    {"decode", {.kind = ATTEND, SHAPE(2, 2, 1, 9000, 32, 32)}},
    {"attention and weights", {.kind = ATTEND, SHAPE(2, 2, 60, 70, 8, 9), .weights = true}},
    {"weights", {.kind = WEIGHTS, .H = 2, .Hk = 2, .Lq = 60, .Lk = 70, .D = 8, .stage = AF_WEIGHTS}},
    {"scores", {.kind = WEIGHTS, .H = 2, .Hk = 2, .Lq = 60, .Lk = 70, .D = 8, .stage = AF_SCORES}},
    {"importance", {.kind = IMPORTANCE, .H = 2, .Hk = 2, .Lq = 60, .Lk = 70, .D = 8}},
    {"top", {.kind = TOP, .H = 2, .Hk = 2, .Lq = 8, .Lk = 5000, .D = 8, .topk = 5}},
    {"lse", {.kind = SUMS, .H = 2, .Hk = 2, .Lq = 20, .Lk = 50, .D = 8}},
    {"additive", {.kind = ATTEND, SHAPE(2, 2, 60, 70, 8, 9), .additive = true}},
    {"long top", {.kind = TOP, .H = 2, .Hk = 2, .Lq = 20, .Lk = 300, .D = 8, .topk = 100}},
    {"centers", {.kind = ATTEND, SHAPE(2, 2, 60, 70, 8, 9), WINDOW, .center = true}},
    {"dilation", {.kind = LOCAL, SHAPE(2, 2, 60, 70, 8, 9), WINDOW, .dilation = 3}},
    {"global tokens", {.kind = LOCAL, SHAPE(2, 2, 60, 70, 8, 9), WINDOW, .global = true}},
    {"global tokens of short rows", {.kind = LOCAL, SHAPE(2, 2, 60, 50, 8, 9), WINDOW, .global = true}},
    {"both and weights",
     {.kind = LOCAL,
      SHAPE(2, 2, 60, 70, 8, 9),
      WINDOW,
      .dilation = 3,
      .global = true,
      .mask = true,
      .bias = true,
      .alibi = true,
      .weights = true}},
    {"packed", {.kind = PACKED, SHAPE(2, 1, 900, 900, 4, 4), .sequences = 600}},
    {"packed and local",
     {.kind = PACKED,
      SHAPE(2, 2, 60, 70, 8, 9),
      .sequences = 3,
      WINDOW,
      .dilation = 3,
      .global = true,
      .weights = true,
      .stage = AF_WEIGHTS}},
    {"output and long top", {.kind = FREE, SHAPE(2, 1, 20, 300, 8, 9), .list = true, .topk = 100, .lse = true}},
    {"packed and split", {.kind = PACKED, SHAPE(1, 1, 30, 9000, 4, 4), .sequences = 3}},
    {"backward",
     {.kind = GRADIENTS, SHAPE(2, 1, 60, 70, 8, 9), .alibi = true, .sink = true, .bias = true, .dropout = 0.3}},
    {"backward of ranges", {.kind = GRADIENTS, SHAPE(2, 2, 60, 1300, 4, 4)}},
    {"additive backward",
     {.kind = GRADIENTS, SHAPE(2, 2, 60, 70, 8, 9), .additive = true, .score_bias = true, .alibi = true}},
    {"local backward",
     {.kind = GRADIENTS, SHAPE(2, 2, 60, 70, 8, 9), WINDOW, .dilation = 3, .global = true, .mask = true, .bias = true}},
    {"local backward by weights",
     {.kind = GRADIENTS,
      SHAPE(2, 2, 60, 70, 8, 9),
      WINDOW,
      .dilation = 3,
      .global = true,
      .sink = true,
      .alibi = true,
      .loss_lse = true,
      .loss_weights = true}},
    {"backward of centers", {.kind = GRADIENTS, SHAPE(2, 2, 60, 70, 8, 9), WINDOW, .center = true, .gaussian = 0.1}},
    {"packed backward", {.kind = PACKED_GRADIENTS, SHAPE(2, 1, 60, 70, 8, 9), .sequences = 3, .bias = true}},
    {"packed backward of ranges", {.kind = PACKED_GRADIENTS, SHAPE(2, 1, 900, 4000, 4, 4), .sequences = 3}},
    {"packed and local backward",
     {.kind = PACKED_GRADIENTS,
      SHAPE(2, 2, 60, 70, 8, 9),
      .sequences = 3,
      WINDOW,
      .dilation = 3,
      .global = true,
      .loss_weights = true}},
    {"long top of bytes", {.kind = TOP, .H = 2, .Hk = 2, .Lq = 20, .Lk = 300, .D = 8, .topk = 100, .storage = AF_INT8}},
    {"long top of pages", {.kind = TOP, .H = 2, .Hk = 2, .Lq = 20, .Lk = 300, .D = 8, .topk = 100, .page_size = 16}},
    {"packed pages", {.kind = PACKED, SHAPE(2, 1, 90, 900, 4, 4), .sequences = 60, .page_size = 16}},
};

static int problems;

static void complain(const char *name, int n, const char *what)
{
    fprintf(stderr, "%s, allocation %d fails: %s\n", name, n, what);
    problems++;
}

static af_status run_armed(const call *c, const results *r, int n)
{
    const af_run run = {.threads = 1};
    asked = live = 0;
    fails_at = n;
    armed = true;
    const af_status status = run_call(c, r, &run);
    armed = false;
    return status;
}

/* Whether a result is of several calls, of which some may be done when memory runs out. */
static bool is_several(const wish *w, int result)
{
    return is_packed(w) || w->kind == LOCAL || w->topk > 64 || (w->kind == GRADIENTS && result < FIRST_GRADIENT);
}

/* Results are as before; of packed sequences, long lists and the call before gradients each element is, or it is right.
 */
static bool left_alone(const call *c, const results *r, const results *before, const results *right)
{
    if (c->wish.dilation || c->wish.global) return true; /* windows whose global tokens have not been added */
    for (int k = 0; k < RESULTS; k++) {
        const array *a = &r->arrays[k];
        for (size_t at = 0; a->memory && at < a->bytes; at += 4)
            if (memcmp(a->memory + at, before->arrays[k].memory + at, 4) != 0 &&
                !(is_several(&c->wish, k) && memcmp(a->memory + at, right->arrays[k].memory + at, 4) == 0))
                return false;
    }
    return true;
}

/* One try; returns whether the call succeeded. */
static bool try_once(const char *name, const call *c, const results *right, int n)
{
    int64_t at[4];
    results r, before, again;
    new_results(&r, c, 0x5a);
    new_results(&before, c, 0x5a);
    new_results(&again, c, 0x5a);
    const af_status status = run_armed(c, &r, n);
    const bool failed = asked >= n;
    if (live) complain(name, n, "memory was not given back");
    if (status != (failed ? AF_NO_MEMORY : AF_OK)) complain(name, n, "wrong status");
    if (failed && !left_alone(c, &r, &before, right)) complain(name, n, "results were written");
    if (!failed && differ(&r, right, at)) complain(name, n, "other results");
    if (run_armed(c, &again, -1) != AF_OK || differ(&again, right, at)) complain(name, n, "the next call is wrong");
    free_results(&r);
    free_results(&before);
    free_results(&again);
    return !failed;
}

static af_status describe_armed(const call *c, const results *r, int n)
{
    af_report report;
    af_rectangle room[4];
    asked = live = 0;
    fails_at = n;
    armed = true;
    const af_status status = describe_call(c, r, &report, room, 4);
    armed = false;
    return status;
}

/* A plan may allocate; settings may not: they have no way to say that it failed. */
static void ask(const char *name, const call *c, const results *r)
{
    for (int n = 1; n < MOST_ALLOCATIONS; n++) {
        const af_status status = describe_armed(c, r, n);
        if (live) complain(name, n, "af_describe does not give memory back");
        if (status != (asked < n ? AF_OK : AF_NO_MEMORY)) complain(name, n, "wrong status of af_describe");
        if (asked < n) break;
    }
    asked = 0;
    fails_at = 1;
    armed = true;
    af_set_threads(0);
    af_set_own_threads(0);
    af_threads();
    af_cap_isa(af_isa(0));
    af_isa_in_use(AF_F32);
    armed = false;
    if (asked) complain("settings", 1, "they allocate");
}

/* Rotary embedding in place: a failure leaves every element as it was. */
static void try_rotation(void)
{
    float x[2][40][8], before[2][40][8];
    int64_t position[40];
    for (int i = 0; i < 640; i++) (&x[0][0][0])[i] = (float)i;
    for (int i = 0; i < 40; i++) position[i] = i;
    memcpy(before, x, sizeof x);
    const af_tensor rows = {.data = x, .h = 320, .i = 8, .j = 1};
    const af_rotation r = {.size = sizeof r,
                           .B = 1,
                           .H = 2,
                           .L = 40,
                           .D = 8,
                           .pairs = 4,
                           .from = rows,
                           .to = rows,
                           .position = {.data = position, .i = 1},
                           .base = 10000};
    int n = 1;
    for (; n < MOST_ALLOCATIONS; n++) {
        asked = live = 0;
        fails_at = n;
        armed = true;
        const af_status status = af_rotate(&r, NULL);
        armed = false;
        if (live) complain("rotate", n, "memory was not given back");
        if (status == AF_OK) break;
        if (status != AF_NO_MEMORY || memcmp(before, x, sizeof x) != 0) complain("rotate", n, "elements were written");
    }
    printf("rotate: %d allocations\n", n - 1);
}

int main(void)
{
    try_rotation();
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        call c;
        results right;
        wish w = cases[k].wish;
        w.B = 1;
        w.seed = k + 1;
        w.scale = 0.5;
        w.amplitude = 1;
        w.density = 0.5;
        make_call(&c, &w);
        new_results(&right, &c, 0x5a);
        run_armed(&c, &right, -1);
        int n = 1;
        while (n < MOST_ALLOCATIONS && !try_once(cases[k].name, &c, &right, n)) n++;
        printf("%s: %d allocations\n", cases[k].name, n - 1);
        if (n == 1 || n == MOST_ALLOCATIONS) complain(cases[k].name, n, "no allocation, or no end of them");
        ask(cases[k].name, &c, &right);
        free_results(&right);
        free_call(&c);
    }
    return problems != 0;
}

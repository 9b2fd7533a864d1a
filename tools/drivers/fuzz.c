/* libFuzzer's way in: bytes become a legal call, which every instruction set computes with 1, 2, 3 and 5 threads. All
 * of these must have the bits of the first, nothing may be written beside the results, and these must be what plain.c
 * makes of the call. Reading and writing out of bounds is the address sanitizer's to see. See tools/prove/fuzz.py. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "plain.h"

#ifndef FUZZ_DTYPES
#define FUZZ_DTYPES AF_F32, AF_F64, AF_F16, AF_BF16
#endif

/* Sizes below multiply to at most this, so that an input takes some 10 ms. */
enum { MOST_WORK = 400000, MOST_ROWS = 2000 };

typedef struct bytes {
    const uint8_t *at, *end;
} bytes;

static int64_t take(bytes *s, int64_t least, int64_t most) /* `least` after the last byte */
{
    if (s->at == s->end) return least;
    int64_t n = *s->at++;
    if (most - least > 255 && s->at < s->end) n = n << 8 | *s->at++;
    return least + n % (most - least + 1);
}

static bool sometimes(bytes *s) { return take(s, 0, 3) == 3; }

/* Small numbers, and both sides of what tiles and words end with. */
static int64_t length(bytes *s, int64_t most)
{
    static const int64_t edges[] = {8, 16, 24, 32, 48, 64, 96, 128, 192, 256};
    const int64_t n = take(s, 0, 255);
    if (n < 64) return n % 9 < most ? n % 9 : most;
    const int64_t x = n < 160 ? edges[n % 10] + take(s, -1, 1) : take(s, 0, most);
    return x < most ? x : most;
}

static double one_of(bytes *s, const double *numbers, int64_t count) { return numbers[take(s, 0, count - 1)]; }
#define ONE_OF(s, ...) one_of(s, (const double[]){__VA_ARGS__}, sizeof((double[]){__VA_ARGS__}) / sizeof(double))

static void draw_sizes(wish *w, bytes *s)
{
    w->B = take(s, 0, 20) % 4;
    w->Hk = take(s, 1, 3);
    w->H = w->Hk * take(s, 1, 4);
    w->Lq = sometimes(s) ? take(s, 1, 4) : length(s, 200);
    w->Lk = length(s, 700);
    w->D = length(s, 140);
    w->Dv = sometimes(s) ? length(s, 140) : w->D;
    w->sequences = take(s, 1, 9);
    while (w->B * w->H * (w->Lq + w->Lk) > MOST_ROWS && w->B > 1) w->B--;
    /* Of at least one batch row: some calls have no other number. */
    while ((w->B ? w->B : 1) * w->H * w->Lq * w->Lk * (w->D + w->Dv + 8) > MOST_WORK) {
        int64_t *largest = &w->Lk;
        if (w->Lq > *largest) largest = &w->Lq;
        if (w->D > *largest) largest = &w->D;
        if (w->Dv > *largest) largest = &w->Dv;
        *largest -= *largest / 4 + 1;
        if (*largest < 20 && w->B > 1) w->B = 1;
        else if (*largest < 20) w->H = w->Hk = 1;
    }
}

/* Calls of few options have ways of their own, for which many that are drawn together would leave next to none. */
static void make_plain(wish *w, bytes *s)
{
    w->weights = w->additive = w->alibi = w->sink = w->mask = w->bias = w->center = w->global = w->layouts = false;
    w->q_offset = w->q_length = w->kv_start = w->kv_length = false;
    w->dropout = 0;
    w->block_q = w->dilation = 0;
    w->order = (int)ONE_OF(s, C_ORDER, LENGTH_FIRST, IN_COLUMNS);
    if (w->order == IN_COLUMNS) w->page_size = 0, w->storage = AF_AS_QUERY;
}

static void draw_options(wish *w, bytes *s)
{
    const bool plain = sometimes(s);
    w->lse = sometimes(s);
    w->weights = sometimes(s);
    w->stage = (af_stage)take(s, AF_SCORES, AF_WEIGHTS);
    w->topk = sometimes(s) ? take(s, 65, 700) : take(s, 1, 64);
    w->additive = sometimes(s);
    w->score_bias = sometimes(s);
    w->scale = ONE_OF(s, 0.25, 1, 0, -0.3);
    w->softcap = sometimes(s) ? ONE_OF(s, 1, 20, 1e-30) : 0;
    w->dropout = sometimes(s) ? ONE_OF(s, 0.5, 0.1, 0.99, 1e-9) : 0;
    w->bias = sometimes(s);
    w->alibi = sometimes(s);
    w->sink = sometimes(s);
    w->mask = sometimes(s);
    w->q_offset = sometimes(s);
    w->q_length = sometimes(s);
    w->kv_length = sometimes(s);
    w->kv_start = sometimes(s);
    w->far = take(s, 0, 15) == 15;
    w->window = sometimes(s);
    w->left = take(s, -1, 60);
    w->right = take(s, -1, 60);
    w->causal = sometimes(s);
    w->center = sometimes(s);
    w->gaussian = sometimes(s) ? ONE_OF(s, 0.1, 3, 0.001) : 0;
    if (sometimes(s)) w->block_q = take(s, 1, 70);
    w->block_k = take(s, 1, 70);
    w->dilation = take(s, 0, 5);
    w->global = take(s, 0, 1);
    w->amplitude = ONE_OF(s, 1, 3, 0, 12);
    w->density = ONE_OF(s, 0.5, 0.02, 0.9, 1, 0);
    w->poison = sometimes(s) ? (int)take(s, 2, 40) : 0;
    w->layouts = take(s, 0, 3) > 1;
    w->order = w->layouts ? C_ORDER : (int)take(s, C_ORDER, IN_COLUMNS);
    w->no_output = sometimes(s);
    w->list = sometimes(s);
    w->importance = sometimes(s);
    w->loss_lse = sometimes(s);
    w->loss_weights = sometimes(s);
    w->unwanted = sometimes(s) ? (int)take(s, 0, 511) : 0;
    w->page_size = sometimes(s) ? take(s, 1, 70) : 0;
    w->storage = (af_storage)(sometimes(s) ? take(s, AF_INT8, AF_UINT8) : AF_AS_QUERY);
    w->group_rows = sometimes(s) ? take(s, 1, 70) : take(s, 0, 1);
    w->group_columns = sometimes(s) ? take(s, 1, 40) : 0;
    if (plain) make_plain(w, s);
}

static void fail(const call *c, const char *isa, int threads, const char *what, const char *name)
{
    const wish *w = &c->wish;
    fprintf(stderr, "%s: %s, %s, %d threads\n", what, name, isa, threads);
    fprintf(stderr,
            "kind %d dtype %d B %" PRId64 " H %" PRId64 " Hk %" PRId64 " Lq %" PRId64 " Lk %" PRId64 " D %" PRId64
            " Dv %" PRId64 " output %d lse %d weights %d stage %d topk %" PRId64 " importance %d sequences %" PRId64
            " layouts %d order %d\n",
            w->kind, w->dtype, w->B, w->H, w->Hk, w->Lq, w->Lk, w->D, w->Dv, !w->no_output, w->lse, w->weights,
            w->stage, w->topk, w->importance, w->sequences, w->layouts, w->order);
    fprintf(stderr,
            "additive %d scale %g softcap %g dropout %g bias %d alibi %d sink %d amplitude %g poison %d\n"
            "loss of lse %d of weights %d unwanted %d\n"
            "window %d: %" PRId64 ", %" PRId64
            " causal %d q_offset %d q_length %d kv_length %d kv_start %d far %d mask %d blocks %" PRId64 " x %" PRId64
            " density %g center %d gaussian %g dilation %" PRId64 " global %d page_size %" PRId64
            " storage %d groups of %" PRId64 " x %" PRId64 "\n",
            w->additive, w->scale, w->softcap, w->dropout, w->bias, w->alibi, w->sink, w->amplitude, w->poison,
            w->loss_lse, w->loss_weights, w->unwanted, w->window, w->left, w->right, w->causal, w->q_offset,
            w->q_length, w->kv_length, w->kv_start, w->far, w->mask, w->block_q, w->block_k, w->density, w->center,
            w->gaussian, w->dilation, w->global, w->page_size, w->storage, w->group_rows, w->group_columns);
    abort();
}

/* Kernels are compiled by gcc, which calls __sanitizer_cov_trace_pc wherever a block of code begins (wrapped, because
 * libFuzzer has one that does nothing); libFuzzer takes these counts as coverage. */
__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t counters[1 << 16];

void __wrap___sanitizer_cov_trace_pc(void);

__attribute__((no_sanitize("address", "undefined", "coverage"))) void __wrap___sanitizer_cov_trace_pc(void)
{
    const uintptr_t place = (uintptr_t)__builtin_return_address(0);
    counters[(place ^ place >> 16) & 0xffff]++;
}

/* What libomp keeps until the end of the process. */
const char *__lsan_default_suppressions(void);

const char *__lsan_default_suppressions(void) { return "leak:libomp"; }

static int64_t inputs, judged, skipped;

/* A plan of the call counts the pairs that it computes. */
static void compare_plan(const call *c, const results *r, const char *isa, int64_t visible)
{
    af_report report;
    if (describe_call(c, r, &report, NULL, 0) != AF_OK) fail(c, isa, 0, "not AF_OK", "af_describe");
    if (report.visible_pairs == visible && report.visited_pairs >= visible) return;
    fprintf(stderr, "%" PRId64 " of %" PRId64 " visited pairs are visible, not %" PRId64 "\n", report.visible_pairs,
            report.visited_pairs, visible);
    fail(c, isa, 0, "wrong", "af_describe");
}

static void compare(const call *c, const char *isa)
{
    static const int counts[] = {1, 2, 3, 5};
    results first;
    int64_t at[4];
    for (int k = 0; k < 4; k++) {
        results r;
        const af_run run = {.threads = counts[k]};
        new_results(&r, c, k ? 0x5a : 0xa5);
        if (run_call(c, &r, &run) != AF_OK) fail(c, isa, counts[k], "not AF_OK", "status");
        if (k == 0) {
            const verdict v = judge(c, &r);
            judged += v.judged;
            skipped += v.skipped;
            if (v.result) {
                fprintf(stderr,
                        "(%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 ") is %.17g, not %.17g within %.3g\n", v.b,
                        v.h, v.i, v.j, v.actual, v.exact, v.allowed);
                fail(c, isa, counts[k], "wrong", v.result);
            }
            compare_plan(c, &r, isa, v.visible);
            blank_beside_sequences(c, &r);
            first = r;
            continue;
        }
        blank_beside_sequences(c, &r);
        const char *name = differ(&first, &r, at);
        if (name) fail(c, isa, counts[k], "other bits", name);
        if ((name = spilled(&r))) fail(c, isa, counts[k], "written beside", name);
        free_results(&r);
    }
    free_results(&first);
}

static void report(void)
{
    fprintf(stderr, "%" PRId64 " inputs; of %" PRId64 " rows, %.1f %% judged\n", inputs, judged + skipped,
            100 * (double)judged / (double)(judged + skipped + 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const af_dtype dtypes[] = {FUZZ_DTYPES};
    bytes s = {data, data + size};
    wish w = {0};
    call c;
    if (!inputs++) atexit(report);
    w.kind = (kind)take(&s, 0, 19);
    if ((int)w.kind >= KINDS) w.kind = (kind[]){ATTEND, GRADIENTS, ATTEND, GRADIENTS, LOCAL}[w.kind % 5];
    w.dtype = dtypes[take(&s, 0, sizeof dtypes / sizeof *dtypes - 1)];
    w.seed = (uint64_t)take(&s, 0, 65535);
    draw_sizes(&w, &s);
    draw_options(&w, &s);
    make_call(&c, &w);
    for (int isa = 0; af_isa(isa); isa++) {
        af_cap_isa(af_isa(isa));
        compare(&c, af_isa(isa));
    }
    free_call(&c);
    return 0;
}

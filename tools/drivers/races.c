/* Many threads call the library at once: every kind of call with teams of 1 to 4, while others change the number of
 * threads and the instruction set, and some calls are interrupted. Every result must have the bits that one thread
 * alone computed. Runs under a thread sanitizer; see tools/prove/races.py.
 *
 *     races [rounds [seed]]
 *
 * With AF_PLANT_RACE defined, callers share the memory of results: a race that must be reported. */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "call.h"

enum { CALLERS = 4, MOST_ISAS = 8, CHANGING = -1 };

/* Each worth a team, and with several units of work: what that takes is in csrc/driver/passes.c and csrc/plan/plan.c;
 * panels of gradients are smaller than there. The first lasts long enough to be interrupted. */
static const wish cases[] = {
    {.kind = ATTEND,
     .B = 2,
     SHAPE(4, 2, 500, 500, 8, 9),
     .causal = true,
     .lse = true,
     .mask = true,
     .bias = true,
     .kv_length = true},
    {.kind = ATTEND, .B = 1, SHAPE(2, 2, 20, 5000, 8, 9), .lse = true, .sink = true},
    {.kind = ATTEND, .B = 1, SHAPE(4, 2, 1, 30000, 16, 16), .lse = true, .weights = true},
    {.kind = ATTEND, .B = 2, SHAPE(4, 2, 3, 4000, 8, 8), .page_size = 16, .kv_length = true, .lse = true},
    {.kind = ATTEND, .B = 2, SHAPE(4, 2, 200, 400, 8, 8), .storage = AF_INT8, .group_rows = 1, .lse = true},
    {.kind = ATTEND, .B = 1, SHAPE(4, 2, 2, 20000, 16, 16), .storage = AF_UINT8, .page_size = 40, .weights = true},
    {.kind = ATTEND,
     .dtype = AF_F64,
     .B = 1,
     SHAPE(2, 1, 300, 300, 5, 8),
     .window = true,
     .left = 40,
     .right = 9,
     .center = true,
     .gaussian = 0.1},
    {.kind = ATTEND,
     .dtype = AF_BF16,
     .B = 2,
     SHAPE(2, 1, 200, 200, 8, 8),
     .softcap = 3,
     .block_q = 16,
     .block_k = 32,
     .alibi = true},
    {.kind = ATTEND, .B = 1, SHAPE(2, 2, 120, 200, 8, 8), .additive = true, .lse = true},
    /* Rows in columns, read where they lie and copied; batch rows that are one with their heads; heads in turn; many
     * heads in a unit, alike and not. */
    {.kind = ATTEND, .B = 2, SHAPE(4, 2, 1, 9000, 16, 16), .order = IN_COLUMNS, .lse = true},
    {.kind = ATTEND, .B = 2, SHAPE(4, 2, 60, 3000, 8, 9), .order = IN_COLUMNS, .causal = true},
    {.kind = ATTEND, .B = 3, SHAPE(4, 2, 1, 4000, 16, 16), .order = LENGTH_FIRST, .lse = true},
    {.kind = ATTEND, .B = 200, SHAPE(8, 8, 1, 30, 8, 8), .order = LENGTH_FIRST, .lse = true},
    {.kind = ATTEND, .B = 200, SHAPE(8, 4, 1, 30, 8, 8), .kv_length = true, .bias = true},
    {.kind = WEIGHTS, .dtype = AF_F16, .B = 1, .H = 2, .Hk = 2, .Lq = 250, .Lk = 300, .D = 8, .stage = AF_WEIGHTS},
    {.kind = IMPORTANCE, .B = 2, .H = 2, .Hk = 1, .Lq = 200, .Lk = 400, .D = 8, .causal = true},
    {.kind = TOP, .B = 1, .H = 2, .Hk = 2, .Lq = 20, .Lk = 5000, .D = 8, .topk = 5, .kv_length = true},
    {.kind = PACKED, .B = 1, SHAPE(2, 1, 3000, 9000, 8, 8), .sequences = 300, .lse = true},
    {.kind = PACKED, .B = 1, SHAPE(2, 1, 300, 9000, 8, 8), .sequences = 300, .storage = AF_INT8, .group_rows = 7},
    {.kind = TOP, .dtype = AF_F16, .B = 1, .H = 2, .Hk = 1, .Lq = 20, .Lk = 900, .D = 8, .topk = 70, .page_size = 16},
    {.kind = IMPORTANCE, .B = 2, .H = 2, .Hk = 1, .Lq = 200, .Lk = 400, .D = 8, .storage = AF_UINT8, .group_rows = 1},
    {.kind = TOP, .dtype = AF_F16, .B = 1, .H = 2, .Hk = 1, .Lq = 200, .Lk = 400, .D = 8, .topk = 100},
    {.kind = LOCAL,
     .B = 2,
     SHAPE(4, 2, 900, 900, 8, 8),
     .window = true,
     .left = 30,
     .right = 30,
     .dilation = 3,
     .global = true,
     .weights = true,
     .lse = true},
    {.kind = LOCAL,
     .dtype = AF_BF16,
     .B = 1,
     SHAPE(2, 2, 900, 300, 8, 8),
     .window = true,
     .left = 5,
     .right = 5,
     .global = true,
     .mask = true},
    {.kind = ATTEND, .B = 2, SHAPE(2, 1, 300, 300, 8, 8), .dropout = 0.3, .weights = true},
    {.kind = GRADIENTS,
     .B = 2,
     SHAPE(4, 2, 300, 1200, 8, 9),
     .causal = true,
     .q_offset = true,
     .kv_length = true,
     .dropout = 0.3,
     .alibi = true,
     .sink = true,
     .bias = true,
     .loss_lse = true},
    {.kind = GRADIENTS,
     .dtype = AF_F64,
     .B = 4,
     SHAPE(2, 2, 200, 200, 5, 8),
     .window = true,
     .left = 40,
     .right = 9,
     .softcap = 3,
     .mask = true,
     .loss_weights = true},
    {.kind = GRADIENTS, .B = 1, SHAPE(2, 1, 120, 700, 8, 8), .additive = true, .score_bias = true, .dropout = 0.1},
    {.kind = GRADIENTS,
     .B = 2,
     SHAPE(2, 2, 400, 400, 8, 8),
     .window = true,
     .left = 30,
     .right = 30,
     .dilation = 3,
     .global = true,
     .dropout = 0.2},
    {.kind = GRADIENTS,
     .B = 1,
     SHAPE(2, 2, 300, 300, 8, 8),
     .window = true,
     .left = 30,
     .right = 30,
     .center = true,
     .gaussian = 0.1},
    /* Many panels of each head, more than are in flight: all ranges of keys; those that a window sees; the same where
     * heads take turns; one range, where heads take turns. */
    {.kind = GRADIENTS, .B = 4, SHAPE(2, 1, 250, 300, 8, 8), .causal = true},
    {.kind = GRADIENTS, .B = 2, SHAPE(2, 1, 400, 500, 8, 8), .window = true, .left = 40, .right = 20, .sink = true},
    {.kind = GRADIENTS, .B = 2, SHAPE(2, 1, 400, 500, 4, 4), .window = true, .left = 20, .right = 9, .additive = true},
    {.kind = GRADIENTS, .B = 4, SHAPE(2, 1, 400, 60, 8, 8), .alibi = true},
    {.kind = PACKED_GRADIENTS, SHAPE(2, 1, 3000, 3000, 8, 8), .sequences = 10, .causal = true, .sink = true},
};

/* Whose batch rows share the gradient of their query, with fewer panels of a head than are in flight: heads take turns
 * at dQ too. */
static const wish shared[] = {
    {.kind = GRADIENTS, .B = 8, SHAPE(2, 1, 60, 300, 8, 8)},
    {.kind = GRADIENTS, .B = 8, SHAPE(2, 1, 90, 500, 8, 8), .window = true, .left = 100, .right = 60},
};
enum { OWN = sizeof cases / sizeof *cases, CASES = OWN + sizeof shared / sizeof *shared };

static call calls[CASES];
static results expected[MOST_ISAS][CASES];
static int isas;

static int current; /* instruction set of this phase; CHANGING: any */
static int rounds = 6;
static atomic_bool done;
static atomic_int finished, interrupted, wrong;

static _Thread_local chance own_chance;

static int perhaps_interrupt(void) { return one_in(&own_chance, 2); }

static bool same_as_expected(int number, const results *r)
{
    int64_t at[4];
    if (current != CHANGING) return !differ(r, &expected[current][number], at);
    const wish *w = &calls[number].wish;
    /* Several calls, of any instruction sets. */
    if (w->kind == PACKED || w->kind == LOCAL || has_gradients(w) || w->topk > 64) return true;
    for (int isa = 0; isa < isas; isa++)
        if (!differ(r, &expected[isa][number], at)) return true;
    return false;
}

#ifdef AF_PLANT_RACE
static results shared[CASES];
#endif

static void call_once(int number)
{
    results own;
    const bool patient = one_in(&own_chance, 2);
    const af_run run = {(int)between(&own_chance, 0, 4), patient ? NULL : perhaps_interrupt};
#ifdef AF_PLANT_RACE
    own = shared[number];
#else
    new_results(&own, &calls[number], 0xff);
#endif
    const af_status status = run_call(&calls[number], &own, &run);
    if (status == AF_INTERRUPTED && !patient) {
        interrupted++;
    } else if (status != AF_OK || !same_as_expected(number, &own)) {
        fprintf(stderr, "case %d, %d threads: status %d or other bits\n", number, run.threads, status);
        wrong++;
    }
#ifndef AF_PLANT_RACE
    free_results(&own);
#endif
    finished++;
}

static void *caller(void *seed)
{
    own_chance.state = (uint64_t)(uintptr_t)seed;
    for (int n = 0; n < rounds * CASES; n++) {
        if (one_in(&own_chance, 3)) af_set_own_threads((int)between(&own_chance, 0, 3));
        call_once((int)between(&own_chance, 0, CASES - 1));
    }
    return NULL;
}

/* Changes what is global, and asks for it. */
static void *meddler(void *seed)
{
    own_chance.state = (uint64_t)(uintptr_t)seed;
    while (!atomic_load(&done)) {
        af_report report;
        af_set_threads((int)between(&own_chance, 0, 4));
        if (af_threads() < 1) wrong++;
        if (current == CHANGING) af_cap_isa(af_isa((int)between(&own_chance, 0, isas - 1)));
        if (!af_isa_in_use((af_dtype)between(&own_chance, AF_F32, AF_BF16))) wrong++;
        results r;
        const call *c = &calls[between(&own_chance, 0, CASES - 1)];
        new_results(&r, c, 0);
        describe_call(c, &r, &report, NULL, 0);
        free_results(&r);
    }
    return NULL;
}

static void run_phase(uint64_t seed)
{
    pthread_t callers[CALLERS], other;
    const int before = finished, before_interrupted = interrupted;
    atomic_store(&done, false);
    pthread_create(&other, NULL, meddler, (void *)(uintptr_t)seed);
    for (int k = 0; k < CALLERS; k++) pthread_create(&callers[k], NULL, caller, (void *)(uintptr_t)(seed + 1 + k));
    for (int k = 0; k < CALLERS; k++) pthread_join(callers[k], NULL);
    atomic_store(&done, true);
    pthread_join(other, NULL);
    printf("%s: %d calls, %d interrupted\n", current == CHANGING ? "changing" : af_isa(current), finished - before,
           interrupted - before_interrupted);
    fflush(stdout);
}

static void expect(int isa)
{
    const af_run alone = {.threads = 1};
    af_cap_isa(af_isa(isa));
    for (int k = 0; k < CASES; k++) {
        new_results(&expected[isa][k], &calls[k], 0xff);
        if (run_call(&calls[k], &expected[isa][k], &alone) != AF_OK) abort();
    }
}

static bool shares_query(const call *c)
{
    results r;
    new_results(&r, c, 0);
    const bool shares = r.gradients.query.b == 0;
    free_results(&r);
    return shares;
}

/* With another seed until it is what it must be. */
static void make_case(int k, uint64_t seed)
{
    wish w = k < OWN ? cases[k] : shared[k - OWN];
    w.seed = seed;
    w.scale = 0.3;
    w.amplitude = 2;
    w.density = 0.8;
    w.layouts = !w.order;
    make_call(&calls[k], &w);
    for (; k >= OWN && !shares_query(&calls[k]); make_call(&calls[k], &w)) {
        free_call(&calls[k]);
        w.seed += 1000003;
    }
}

int main(int argc, char **argv)
{
    if (argc > 1) rounds = atoi(argv[1]);
    const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (int k = 0; k < CASES; k++) {
        make_case(k, seed * 1000 + (uint64_t)k);
#ifdef AF_PLANT_RACE
        new_results(&shared[k], &calls[k], 0xff);
#endif
    }
    while (af_isa(isas)) expect(isas++);
    for (current = isas - 1; current >= CHANGING; current--) {
        if (current != CHANGING) af_cap_isa(af_isa(current));
        run_phase(seed + 100 * (uint64_t)(current + 1));
    }
    if (!interrupted) fprintf(stderr, "no call was interrupted\n");
    return wrong || !interrupted;
}

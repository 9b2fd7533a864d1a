/* Calls on the threads of a pool that is prompt, late, unwilling or used by several callers: the bits of one thread,
 * and no task that is lost. Prints what is wrong. */
#include <fenv.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attnfast.h"
#include "runtime/pool.h"

enum { H = 12, L = 96, D = 32, SIZE = H * L * D, TASKS = 4096, CALLERS = 3, CALLS = 5 };

typedef struct task {
    void (*run)(void *argument);
    void *argument;
} task;

typedef struct workers {
    pthread_mutex_t lock;
    pthread_cond_t more;
    task tasks[TASKS];
    int scheduled, taken, done;
    int willing; /* schedule refuses beyond so many */
    bool open, end;
} workers;

static int problems;
static _Atomic int overdue; /* regions that lasted until signals were checked: the work of their calls may take more */
static float query[SIZE], key[SIZE], value[SIZE], expected[SIZE];

static void expect(bool right, const char *what)
{
    if (right) return;
    fprintf(stderr, "wrong: %s\n", what);
    problems++;
}

static bool schedule(void *context, void (*run)(void *), void *argument)
{
    workers *w = context;
    pthread_mutex_lock(&w->lock);
    const bool takes = w->scheduled < w->willing && w->scheduled < TASKS;
    if (takes) w->tasks[w->scheduled++] = (task){run, argument};
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
    return takes;
}

static void *work(void *context)
{
    workers *w = context;
    fesetround(FE_UPWARD); /* a pool may have its own ideas of arithmetic */
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (!(w->open && w->taken < w->scheduled) && !w->end) pthread_cond_wait(&w->more, &w->lock);
        if (!(w->taken < w->scheduled)) break;
        const task t = w->tasks[w->taken++];
        pthread_mutex_unlock(&w->lock);
        t.run(t.argument);
        expect(fegetround() == FE_UPWARD, "a task changes how its thread rounds");
        pthread_mutex_lock(&w->lock);
        w->done++;
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static int count_overdue(void)
{
    overdue++;
    return 0;
}

static af_tensor rows_of(float *data) { return (af_tensor){.data = data, .h = L * D, .i = D, .j = 1}; }

static void attend(float *output, int threads)
{
    const af_operands operands = {
        .size = sizeof operands, .query = rows_of(query), .key = rows_of(key), .value = rows_of(value)};
    const af_results results = {.size = sizeof results, .output = rows_of(output)};
    const af_problem problem = {.size = sizeof problem,
                                .B = 1,
                                .H = H,
                                .Hk = H,
                                .Lq = L,
                                .Lk = L,
                                .D = D,
                                .Dv = D,
                                .operands = &operands,
                                .results = &results};
    const af_run run = {.threads = threads, .interrupted = count_overdue};
    expect(af_attention(&problem, &run) == AF_OK, "a call fails");
}

typedef struct caller {
    workers *workers;
    int threads;
} caller;

static void *call(void *caller_)
{
    const caller *c = caller_;
    const af_pool pool = {.context = c->workers, .threads = c->threads, .schedule = schedule};
    float *output = malloc(sizeof expected);
    af_use_pool(&pool);
    for (int n = 0; n < CALLS; n++) {
        memset(output, 0, sizeof expected);
        attend(output, 4);
        expect(memcmp(output, expected, sizeof expected) == 0, "other bits on a pool");
    }
    af_use_pool(NULL);
    free(output);
    return NULL;
}

static int try_pool(int threads, int willing, bool late, int callers)
{
    static workers w;
    pthread_t running[3], calling[CALLERS];
    caller c = {&w, threads};
    w = (workers){
        .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .willing = willing, .open = !late};
    for (int n = 0; n < 3; n++) pthread_create(&running[n], NULL, work, &w);
    for (int n = 0; n < callers; n++) pthread_create(&calling[n], NULL, call, &c);
    for (int n = 0; n < callers; n++) pthread_join(calling[n], NULL);
    pthread_mutex_lock(&w.lock);
    w.open = w.end = true;
    pthread_cond_broadcast(&w.more);
    pthread_mutex_unlock(&w.lock);
    for (int n = 0; n < 3; n++) pthread_join(running[n], NULL);
    expect(w.done == w.scheduled, "a task is lost");
    return w.scheduled;
}

int main(void)
{
    uint32_t state = 1;
    for (int n = 0; n < SIZE; n++) {
        state = state * 1664525 + 1013904223;
        query[n] = (float)(state >> 16) / 65536 - 0.5F;
        key[n] = (float)(state >> 8 & 65535) / 65536 - 0.5F;
        value[n] = (float)(state >> 12 & 65535) / 65536 - 0.5F;
    }
    attend(expected, 1);
    expect(try_pool(4, TASKS, false, 1) >= 3 * CALLS, "a prompt pool is not asked for three threads a call");
    expect(try_pool(4, TASKS, true, 1) >= 3 * CALLS, "nor is a late one");
    overdue = 0;
    const int asked = try_pool(2, TASKS, false, 1);
    expect(asked <= CALLS + overdue, "a pool of two threads is asked for more than one");
    expect(try_pool(4, 4, false, 1) == 4, "a pool that becomes unwilling");
    expect(try_pool(1, TASKS, false, 1) == 0, "a pool of one thread has none to spare");
    try_pool(4, TASKS, false, CALLERS);
    return problems > 0;
}

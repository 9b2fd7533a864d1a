#include "runtime/parallel.h"

#include <time.h>

#include "runtime/cpu.h"
#include "runtime/pool.h"
#include "runtime/team.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#define AF_HAVE_FORK 1
#elif defined(_WIN32)
#include <windows.h>
#endif

/* A parallel region ends after this long, so that signals are checked. */
static const double REGION_SECONDS = 0.05;

static double now(void)
{
    struct timespec t;
#ifdef CLOCK_MONOTONIC
    clock_gettime(CLOCK_MONOTONIC, &t);
#else
    timespec_get(&t, TIME_UTC);
#endif
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const af_run *af_or_default_run(const af_run *run)
{
    static const af_run default_run;
    return run ? run : &default_run;
}

/* Processor time of the calling thread; 0 where it cannot be had. */
static double thread_seconds(void)
{
#ifdef CLOCK_THREAD_CPUTIME_ID
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#else
    return 0;
#endif
}

af_watch af_start_watch(const af_run *run) { return (af_watch){.run = run, .due = now() + REGION_SECONDS}; }

typedef struct region {
    const af_work *work;
    _Atomic int64_t *next;
    double end;
    int threads;
    _Atomic int64_t busy; /* nanoseconds of processor time of all threads */
} region;

static void work_alone(const region *s, int thread)
{
    const af_work *w = s->work;
    char *scratch = w->scratch ? w->scratch + (size_t)thread * w->scratch_bytes : NULL;
    for (;;) {
        const int64_t left = w->count - atomic_load_explicit(s->next, memory_order_relaxed);
        const int64_t even = s->threads > 1 ? left / (4 * s->threads) : left; /* so that threads end together */
        const int64_t take = even < 1 ? 1 : even < w->share ? even : w->share;
        const int64_t first = atomic_fetch_add_explicit(s->next, take, memory_order_relaxed);
        if (first >= w->count) return;
        const int64_t end = w->count - first < take ? w->count : first + take;
        for (int64_t i = first; i < end; i++) w->unit(w->context, i, scratch);
        if (end < w->count && now() >= s->end) return;
    }
}

#ifdef _OPENMP
static void work_in_team(region *s, int thread)
{
    const double before = thread_seconds();
    work_alone(s, thread);
    atomic_fetch_add_explicit(&s->busy, (int64_t)(1e9 * (thread_seconds() - before)), memory_order_relaxed);
}

static void work_together(region *s)
{
#pragma omp parallel num_threads(s->threads)
    work_in_team(s, omp_get_thread_num());
}

/* With as many threads as are worth it at present. */
static void work_in_good_company(region *s)
{
    const int wanted = s->threads;
    const double start = now();
    s->threads = af_team_size(wanted, start);
    if (s->threads == 1) {
        work_alone(s, 0);
        return;
    }
    work_together(s);
    const double end = now(), busy = 1e-9 * (double)atomic_load(&s->busy);
    if (busy > 0)
        af_judge_team(
            &(af_region_time){.end = end, .wall = end - start, .busy = busy, .threads = s->threads, .wanted = wanted});
}
#endif

#if defined(_OPENMP) && defined(AF_HAVE_FORK)
/* After fork() the OpenMP pool of the calling thread has lost its threads, and the next region would wait for them
 * forever (libgomp, whichever library started them). A thread created in the child has a pool of its own. */
static _Atomic bool in_forked_child;

static void note_fork(void) { atomic_store(&in_forked_child, true); }

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, note_fork); }

static void *fresh_thread(void *s)
{
    work_together(s);
    return NULL;
}

static void work_in_forked_child(region *s)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, fresh_thread, s) == 0) pthread_join(thread, NULL);
    else work_alone(s, 0);
}
#endif

static void work_on_pool(void *s, int thread) { work_alone(s, thread); }

static void run_region(region *s)
{
    if (s->threads > 1 && af_pool_in_use()) {
        af_run_on_pool(af_pool_in_use(), s->threads, work_on_pool, s);
        return;
    }
#ifdef _OPENMP
    if (s->threads > 1) {
#ifdef AF_HAVE_FORK
        if (atomic_load_explicit(&in_forked_child, memory_order_relaxed)) {
            work_in_forked_child(s);
            return;
        }
#endif
        work_in_good_company(s);
        return;
    }
#endif
    work_alone(s, 0);
}

af_status af_check_signals(af_watch *watch)
{
    if (now() < watch->due) return AF_OK;
    if (watch->run->interrupted && watch->run->interrupted()) return AF_INTERRUPTED;
    watch->due = now() + REGION_SECONDS;
    return AF_OK;
}

af_status af_run_work(const af_work *work, af_watch *watch, int threads)
{
    _Atomic int64_t next = 0;
    do {
        region s = {.work = work, .next = &next, .end = watch->due, .threads = threads};
        run_region(&s);
        if (af_check_signals(watch) == AF_INTERRUPTED) return AF_INTERRUPTED;
    } while (atomic_load(&next) < work->count);
    return AF_OK;
}

/* Turns of some 20 ns before a thread offers its processor to others. */
enum { WAITING_TURNS = 1000 };

static void wait_a_turn(bool long_ago)
{
    if (long_ago) {
#if defined(AF_HAVE_FORK)
        sched_yield();
#elif defined(_WIN32)
        SwitchToThread();
#endif
        return;
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void af_wait_for(const _Atomic int64_t *counter, int64_t least)
{
    for (int64_t turn = 0; atomic_load_explicit(counter, memory_order_acquire) < least; turn++)
        wait_a_turn(turn >= WAITING_TURNS);
}

static int default_threads(void)
{
#ifdef _OPENMP
    const int allowed = omp_get_max_threads(), limit = omp_get_thread_limit(), cpus = af_cpu_count();
    const int threads = allowed < limit ? allowed : limit;
    return threads < cpus ? threads : cpus;
#else
    return 1;
#endif
}

static _Atomic int process_threads;
static _Thread_local int own_threads;

void af_set_threads(int threads) { atomic_store(&process_threads, threads); }

int af_set_own_threads(int threads)
{
    const int old = own_threads;
    own_threads = threads;
    return old;
}

int af_threads(void)
{
    if (own_threads) return own_threads;
    const int threads = atomic_load_explicit(&process_threads, memory_order_relaxed);
    return threads ? threads : default_threads();
}

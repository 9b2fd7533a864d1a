#include "runtime/pool.h"

#include <stddef.h>

static _Thread_local const af_pool *pool_in_use;

void af_use_pool(const af_pool *pool) { pool_in_use = pool; }
const af_pool *af_pool_in_use(void) { return pool_in_use; }

#if defined(__unix__) || defined(__APPLE__)
#include <fenv.h>
#include <pthread.h>
#include <stdlib.h>

/* Lives until the last task has come, which may be long after the work is done. */
typedef struct gathering {
    void (*work)(void *context, int thread);
    void *context;
    pthread_mutex_t lock;
    pthread_cond_t nobody_inside;
    int awaited; /* tasks that have not come, and the caller */
    int begun, inside;
    bool over;
} gathering;

/* Gives up one of `awaited`, with the lock held, and the lock. */
static void leave(gathering *g)
{
    const bool last = --g->awaited == 0;
    pthread_mutex_unlock(&g->lock);
    if (!last) return;
    pthread_cond_destroy(&g->nobody_inside);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

static void help(void *argument)
{
    gathering *g = argument;
    pthread_mutex_lock(&g->lock);
    if (!g->over) {
        const int thread = ++g->begun;
        g->inside++;
        pthread_mutex_unlock(&g->lock);
        fenv_t before; /* the pool's threads may flush denormals, and bits may not depend on who computes them */
        fegetenv(&before);
        fesetenv(FE_DFL_ENV);
        g->work(g->context, thread);
        fesetenv(&before);
        pthread_mutex_lock(&g->lock);
        if (--g->inside == 0) pthread_cond_signal(&g->nobody_inside);
    }
    leave(g);
}

static gathering *invite(const af_pool *pool, int others, void (*work)(void *, int), void *context)
{
    gathering *g = malloc(sizeof *g);
    if (!g) return NULL;
    *g = (gathering){.work = work, .context = context, .awaited = 1 + others};
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->nobody_inside, NULL);
    for (int n = 0; n < others; n++) {
        if (pool->schedule(pool->context, help, g)) continue;
        pthread_mutex_lock(&g->lock);
        g->awaited -= others - n;
        pthread_mutex_unlock(&g->lock);
        break;
    }
    return g;
}

void af_run_on_pool(const af_pool *pool, int threads, void (*work)(void *context, int thread), void *context)
{
    const int most = threads < pool->threads ? threads : pool->threads;
    gathering *g = most > 1 ? invite(pool, most - 1, work, context) : NULL;
    work(context, 0);
    if (!g) return;
    pthread_mutex_lock(&g->lock);
    g->over = true;
    while (g->inside > 0) pthread_cond_wait(&g->nobody_inside, &g->lock);
    leave(g);
}

#else

void af_run_on_pool(const af_pool *pool, int threads, void (*work)(void *context, int thread), void *context)
{
    (void)pool;
    (void)threads;
    work(context, 0);
}

#endif

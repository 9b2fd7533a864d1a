/* Running on the threads of another library instead of OpenMP's: a program with a pool of its own has one set of
 * threads for everything, however many of its threads call. */
#ifndef AF_POOL_H
#define AF_POOL_H

#include <stdbool.h>

typedef struct af_pool {
    void *context;
    int threads; /* of the pool, at least 1 */
    /* Have one of them call task(argument), exactly once, soon or late. False: none will. */
    bool (*schedule)(void *context, void (*task)(void *argument), void *argument);
} af_pool;

/* The pool that calls from this thread use from now on, NULL: OpenMP. It stays the caller's. */
void af_use_pool(const af_pool *pool);
const af_pool *af_pool_in_use(void);

/* Calls work(context, 0) here and, until that returns, work(context, n) on up to threads - 1 others, each with another
 * n below `threads`. Waits for those that have begun and for no other: a pool that is busy makes it slower, not stuck.
 */
void af_run_on_pool(const af_pool *pool, int threads, void (*work)(void *context, int thread), void *context);

#endif

#if defined(__linux__)
#define _GNU_SOURCE
#include <sys/mman.h>
#endif

#include "driver/arena.h"

#include <stdlib.h>

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20 };

static void *align(void *memory, size_t to) { return (void *)(((uintptr_t)memory + to - 1) & ~(uintptr_t)(to - 1)); }

void *af_take(af_arena *arena, int64_t count, size_t size)
{
    if (count < 0 || (double)count * (double)size > 0x1p60) return NULL;
    void **memory = malloc((size_t)count * size + sizeof(void *) + CACHE_LINE);
    if (!memory) return NULL;
    *memory = arena->last;
    arena->last = memory;
    return align(memory + 1, CACHE_LINE);
}

/* Memory of its own for what is large: malloc may give its pages back with every call, and so every call would wait for
 * them to be cleared. With 2 threads 4 x 2048 x 64 took 67 ms instead of 55 (Zen 4, a virtual machine). */
void *af_take_pages(af_arena *arena, size_t size)
{
#ifdef MADV_HUGEPAGE
    if (size >= HUGE_PAGE && size <= SIZE_MAX / 2 && !arena->pages) {
        const size_t pages = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        void *memory = mmap(NULL, pages + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return NULL;
        arena->pages = memory;
        arena->page_bytes = pages + HUGE_PAGE;
        memory = align(memory, HUGE_PAGE);
        madvise(memory, pages, MADV_HUGEPAGE); /* where the system has none, it is memory all the same */
        return memory;
    }
#endif
    return af_take(arena, 1, size);
}

void af_give_back(af_arena *arena)
{
    while (arena->last) {
        void **memory = arena->last;
        arena->last = *memory;
        free(memory);
    }
#ifdef MADV_HUGEPAGE
    if (arena->pages) munmap(arena->pages, arena->page_bytes);
    arena->pages = NULL;
#endif
}

#if defined(__linux__)
#define _GNU_SOURCE
#include <sched.h>
#endif

#include "runtime/cpu.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

static uint64_t enabled_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* AMD's family 26, Zen 5. */
static bool is_zen5(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d) || memcmp(&b, "Auth", 4) != 0) return false;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    return (a >> 8 & 15) + (a >> 20 & 255) == 26;
}

static unsigned ask_features(void)
{
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, F16C = 1 << 29 };                         /* leaf 1, ecx */
    enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 }; /* leaf 7, ebx */
    enum { AVX512VBMI = 1 << 1 };                                                      /* leaf 7, ecx */
    const uint32_t AVX512VL = (uint32_t)1 << 31;
    uint32_t a, b, c, d;
    unsigned features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE) || !(c & FMA) || !(c & F16C)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const uint64_t state = enabled_state();
    if ((state & 0x06) == 0x06 && (b & AVX2)) features |= AF_CPU_AVX2;
    const uint32_t need = AVX512F | AVX512DQ | AVX512BW | AVX512VL;
    if ((state & 0xe6) == 0xe6 && (b & need) == need && features) features |= AF_CPU_AVX512;
    if ((features & AF_CPU_AVX512) && (c & AVX512VBMI)) features |= AF_CPU_LOOKS_UP;
    if (is_zen5()) features |= AF_CPU_REQUESTS;
    return features;
}
#else
static unsigned ask_features(void) { return 0; }
#endif

unsigned af_cpu_features(void)
{
    static _Atomic unsigned known; /* bit 31: asked */
    unsigned features = atomic_load_explicit(&known, memory_order_relaxed);
    if (!features) {
        features = ask_features() | 1u << 31;
        atomic_store_explicit(&known, features, memory_order_relaxed);
    }
    return features;
}

static _Atomic unsigned taken, left_out; /* features, by choice */

bool af_cpu_uses(unsigned feature)
{
    const unsigned more = atomic_load_explicit(&taken, memory_order_relaxed);
    const unsigned less = atomic_load_explicit(&left_out, memory_order_relaxed);
    return ((af_cpu_features() | more) & ~less & feature) != 0;
}

static void choose(_Atomic unsigned *set, unsigned feature, bool in)
{
    if (in) atomic_fetch_or_explicit(set, feature, memory_order_relaxed);
    else atomic_fetch_and_explicit(set, ~feature, memory_order_relaxed);
}

void af_cpu_choose(unsigned feature, int choice)
{
    choose(&taken, feature, choice == 1);
    choose(&left_out, feature, choice == 0);
}

#if defined(__linux__)
static int read_line(const char *path, char *line, int size)
{
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    const int ok = fgets(line, size, file) != NULL;
    fclose(file);
    return ok;
}

/* CPUs' worth of time in each period that a control group may use, or 0: no limit. */
static double quota_of(const char *group)
{
    char path[512], line[128];
    double quota = 0, period = 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
    if (read_line(path, line, sizeof line)) return sscanf(line, "%lf %lf", &quota, &period) == 2 ? quota / period : 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup/cpu%s/cpu.cfs_quota_us", group);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%lf", &quota) != 1 || quota <= 0) return 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup/cpu%s/cpu.cfs_period_us", group);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%lf", &period) != 1 || period <= 0) return 0;
    return quota / period;
}

static bool lists_cpu(const char *names)
{
    for (;;) {
        const size_t n = strcspn(names, ",");
        if (n == 3 && strncmp(names, "cpu", n) == 0) return true;
        if (!names[n]) return false;
        names += n + 1;
    }
}

/* The group of this process for the cpu controller: "0::/path" (version 2) or "n:cpu,cpuacct:/path" (version 1). The
 * path may hold colons: container runtimes write them. */
static void own_group(char *group, int size)
{
    char line[512];
    bool found = false;
    group[0] = 0;
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file && !found && fgets(line, sizeof line, file)) {
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path) continue;
        *path = 0;
        found = lists_cpu(names + 1);
        if (!found && strcmp(line, "0:") != 0) continue;
        snprintf(group, (size_t)size, "%s", path + 1);
        group[strcspn(group, "\n")] = 0;
    }
    if (file) fclose(file);
    if (strcmp(group, "/") == 0) group[0] = 0;
}

static int quota_cpus(int cpus)
{
    char group[512];
    own_group(group, sizeof group);
    for (;;) { /* the tightest limit on the way up to the root */
        const double quota = quota_of(group);
        if (quota > 0 && quota < cpus) cpus = (int)quota + (quota > (int)quota); /* 1.5 CPUs of time: 2 threads */
        char *slash = strrchr(group, '/');
        if (!slash) return cpus;
        *slash = 0;
    }
}

static int quota_once(void)
{
    static _Atomic int known; /* every thread that gets here first computes the same */
    int cpus = atomic_load_explicit(&known, memory_order_relaxed);
    if (!cpus) {
        errno = 0;
        cpus = quota_cpus(1024);
        const bool asked = errno != EMFILE && errno != ENFILE && errno != ENOMEM; /* else asked again */
        if (asked) atomic_store_explicit(&known, cpus, memory_order_relaxed);
    }
    return cpus;
}

int af_cpu_count(void)
{
    cpu_set_t set;
    const int allowed = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1024, quota = quota_once();
    return allowed < quota ? allowed : quota;
}
#else
int af_cpu_count(void) { return 1024; } /* OpenMP's own count decides */
#endif

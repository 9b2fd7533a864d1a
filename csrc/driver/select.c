/* The k-th largest score is found bit by bit, eight at a time, from counts (radix selection); one pass over the row
 * collects what is above it, and as many equal ones as are missing; and these are sorted by the same digits. The k-th
 * of a long row would cost four or eight passes: there a sample of the row gives a score that k or a few more exceed.
 * If it misleads, the exact one is taken, so that the worst row costs some six passes. */
#include "driver/select.h"

#include <math.h>
#include <string.h>

#include "plan/intervals.h"

/* Of a row longer than LEAST_SAMPLE, so many scores or one of LONGEST_STRIDE are a sample. With the three standard
 * deviations of sample_rank() it lets some 500 scores too many pass. More than SPARE_ROOM, and it has misled. */
enum { LEAST_SAMPLE = 256, LONGEST_STRIDE = 63, SPARE_ROOM = 4096, MOST_SAMPLED = 8192 };

/* Scores between two checks of signals. */
enum { STRIP = 1 << 18 };

int64_t af_selection_room(int64_t k) { return k <= MOST_SAMPLED ? k + SPARE_ROOM : k; }

static bool is_interrupted(const af_selection *s) { return s->watch && af_check_signals(s->watch) == AF_INTERRUPTED; }

/* Bits as numbers in the order of what they stand for: the sign bit set for positive ones, all bits turned for negative
 * ones. And turned once more, so that the largest is first. +0 and -0 are equal. */
static uint64_t rank32(float x)
{
    uint32_t bits;
    x = isnan(x) ? INFINITY : x + 0.0F;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? bits : bits ^ 0x7fffffff;
}

static uint64_t rank64(double x)
{
    uint64_t bits;
    x = isnan(x) ? (double)INFINITY : x + 0.0;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 63 ? bits : bits ^ 0x7fffffffffffffff;
}

static uint64_t rank_of(const af_selection *s, int64_t j)
{
    return s->dtype == AF_F64 ? rank64(((const double *)s->scores)[j]) : rank32(((const float *)s->scores)[j]);
}

/* The score that has a rank. */
static double score_of(const af_selection *s, uint64_t rank)
{
    if (s->dtype == AF_F64) {
        double x;
        const uint64_t bits = rank >> 63 ? rank : rank ^ 0x7fffffffffffffff;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    float x;
    const uint32_t bits = rank >> 31 ? (uint32_t)rank : (uint32_t)rank ^ 0x7fffffff;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* How often each digit follows a prefix among every stride-th of some scores. */
static void count_digits(const af_selection *s, af_interval of, int64_t stride, int shift, uint64_t prefix,
                         int64_t counts[256])
{
    for (int64_t j = of.begin; j < of.end; j += stride) {
        const uint64_t rank = rank_of(s, j);
        if (rank >> shift >> 8 == prefix) counts[rank >> shift & 255]++;
    }
}

/* The rank of the place-th largest, counted from 1, of every stride-th score. */
static af_status find_rank(const af_selection *s, int64_t stride, int64_t place, uint64_t *found)
{
    uint64_t prefix = 0;
    for (int shift = s->dtype == AF_F64 ? 56 : 24; shift >= 0; shift -= 8) {
        int64_t counts[256] = {0}, digit = 0;
        for (int64_t j = 0; j < s->n; j += STRIP * stride) {
            if (is_interrupted(s)) return AF_INTERRUPTED;
            count_digits(s, (af_interval){j, af_min(s->n, j + STRIP * stride)}, stride, shift, prefix, counts);
        }
        while (place > counts[digit]) place -= counts[digit++];
        prefix = prefix << 8 | (uint64_t)digit;
    }
    *found = prefix;
    return AF_OK;
}

/* The first of the scores [j, end) that is not below a limit. */
static int64_t find_score(const af_selection *s, int64_t j, int64_t end, double limit)
{
    if (s->dtype == AF_F64) {
        const double *scores = s->scores;
        while (j < end && scores[j] < limit) j++;
    } else {
        const float *scores = s->scores, least = (float)limit;
        while (j < end && scores[j] < least) j++;
    }
    return j;
}

/* Keys above a rank go to entries, keys of it to spare, until there are k of these. The numbers of both; `above` is
 * more than the room where they do not fit. */
static af_status collect(const af_selection *s, uint64_t rank, int64_t *above, int64_t *equal)
{
    const double limit = score_of(s, rank);
    const int64_t room = af_selection_room(s->k);
    *above = *equal = 0;
    for (int64_t strip = 0; strip < s->n; strip += STRIP) {
        const int64_t end = af_min(s->n, strip + STRIP);
        if (is_interrupted(s)) return AF_INTERRUPTED;
        for (int64_t j = find_score(s, strip, end, limit); j < end; j = find_score(s, j + 1, end, limit)) {
            const af_ranked entry = {rank_of(s, j), j};
            if (entry.rank == rank) {
                if (*equal < s->k) s->spare[(*equal)++] = entry;
            } else {
                if (*above < room) s->entries[*above] = entry;
                if (++*above > room) return AF_OK;
            }
        }
    }
    return AF_OK;
}

/* Sorts by one digit, without changing the order of equal ones. */
static af_status scatter(const af_selection *s, const af_ranked *from, af_ranked *to, int64_t n, int shift)
{
    int64_t starts[256] = {0}, total = 0;
    for (int64_t i = 0; i < n; i++) starts[from[i].rank >> shift & 255]++;
    for (int digit = 0; digit < 256; digit++) {
        const int64_t count = starts[digit];
        starts[digit] = total;
        total += count;
    }
    for (int64_t strip = 0; strip < n; strip += STRIP) {
        if (is_interrupted(s)) return AF_INTERRUPTED;
        for (int64_t i = strip; i < af_min(n, strip + STRIP); i++) to[starts[from[i].rank >> shift & 255]++] = from[i];
    }
    return AF_OK;
}

static af_status sort(const af_selection *s, int64_t n, const af_ranked **sorted)
{
    af_ranked *from = s->entries, *to = s->spare;
    for (int shift = 0; shift < (s->dtype == AF_F64 ? 64 : 32); shift += 8) {
        if (scatter(s, from, to, n, shift) == AF_INTERRUPTED) return AF_INTERRUPTED;
        af_ranked *sorted_so_far = to;
        to = from;
        from = sorted_so_far;
    }
    *sorted = from;
    return AF_OK;
}

/* Which of a sample of m exceeds k of the n scores, most likely: it is three standard deviations further down. */
static int64_t sample_rank(int64_t m, int64_t k, int64_t n)
{
    const double share = (double)m * (double)k / (double)n;
    return af_min(m, (int64_t)(share + 3 * sqrt(share) + 3));
}

af_status af_select(const af_selection *s, const af_ranked **chosen)
{
    const int64_t k = af_min(s->k, s->n), stride = af_min(LONGEST_STRIDE, s->n / LEAST_SAMPLE) | 1;
    const int64_t m = (s->n + stride - 1) / stride;
    int64_t above = 0, equal = 0;
    uint64_t rank;
    *chosen = s->entries;
    if (k == 0) return AF_OK;
    const bool sampled = stride > 1 && k <= MOST_SAMPLED;
    if (sampled) {
        if (find_rank(s, stride, sample_rank(m, k, s->n), &rank) != AF_OK) return AF_INTERRUPTED;
        if (collect(s, rank, &above, &equal) != AF_OK) return AF_INTERRUPTED;
    }
    if (!sampled || above > af_selection_room(s->k) || above + equal < k) {
        if (find_rank(s, 1, k, &rank) != AF_OK) return AF_INTERRUPTED;
        if (collect(s, rank, &above, &equal) != AF_OK) return AF_INTERRUPTED;
    }
    for (int64_t n = 0; above < k; n++) s->entries[above++] = s->spare[n];
    return sort(s, above, chosen);
}

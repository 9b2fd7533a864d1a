/* How the size of a team follows the load, on a clock of its own. Prints what is wrong. */
#include <stdbool.h>
#include <stdio.h>

#include "runtime/team.h"

enum { WANTED = 8 };

static int problems;
static double clock_time;

static void expect(bool right, const char *what)
{
    if (right) return;
    fprintf(stderr, "wrong: %s\n", what);
    problems++;
}

/* A region of so much processor time, which took `wall`; returns its threads. */
static int region(double busy, double wall)
{
    const int threads = af_team_size(WANTED, clock_time);
    if (threads == 1) {
        clock_time += busy;
        return 1;
    }
    clock_time += wall;
    af_judge_team(
        &(af_region_time){.end = clock_time, .wall = wall, .busy = busy, .threads = threads, .wanted = WANTED});
    return threads;
}

static void test_quiet(void)
{
    bool all = true;
    for (int n = 0; n < 1000; n++) all &= region(8e-4, 1e-4) == WANTED;
    expect(all, "every region of a quiet machine has all threads");
}

static void test_losses(void)
{
    region(8e-4, 5e-3);
    expect(region(8e-4, 1e-4) == WANTED, "one loss after many gains changes nothing");
    region(8e-4, 2e-2);
    expect(region(8e-4, 2e-4) == WANTED / 2, "a loss beyond the gains halves the team");
    int regions = 1;
    for (; region(8e-4, 1e-4) != WANTED; regions++)
        if (regions > 5000) break;
    expect(regions > 50 && regions < 2000, "all threads come back, after a time in proportion to the loss");
    expect(region(8e-4, 1e-4) == WANTED, "and stay");
}

/* Whatever has more than one thread is a loss. */
static void test_always_busy(void)
{
    int lost = 0, regions = 0;
    for (; regions < 20000; regions++) lost += region(2e-4, 4e-3) > 1;
    expect(lost > 10, "a larger team is tried now and then");
    expect(lost < regions / 100, "fewer than one region in a hundred is lost on a busy machine");
    int alone = 0;
    for (; region(8e-4, 1e-4) != WANTED; alone++)
        if (alone > 100000) break;
    expect(alone < 5000, "all threads come back when the machine is quiet again");
}

static void test_fewer_wanted(void)
{
    region(8e-4, 2e-2);
    expect(af_team_size(2, clock_time) == 2, "a smaller team than the limit is as it was wanted");
    expect(af_team_size(1, clock_time) == 1, "one thread is one thread");
}

int main(void)
{
    test_quiet();
    test_losses();
    test_always_busy();
    test_fewer_wanted();
    return problems > 0;
}

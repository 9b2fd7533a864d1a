#include "runtime/team.h"

/* A region ends when its last thread does. On a machine whose processors are busy a thread may wait several
 * milliseconds before it runs, or in the middle of its work, and everyone waits for it. What a region took less than
 * the processor time of its threads is gained by having them; what it took more is lost. A team that loses more than it
 * gained lately is halved for a while: so long that the loss is a small part of it, and longer where it happens again
 * and again. Then twice as many threads are tried. Two processes that call at the same time leave each other a
 * processor in this way. Results do not depend on threads, so nobody sees it but by the time. */

/* Gains count up to MOST_CREDIT, a slice of the processor time that a system gives to others. After a loss beyond them
 * the smaller team stays for `caution` times the loss. Caution doubles with every such loss; a full credit halves it.
 * Reasoned, and held against bench/busy.py. In seconds. */
static const double MOST_CREDIT = 5e-3, MOST_CAUTION = 128, LONGEST = 1.0;

static _Thread_local struct {
    int most; /* threads that are worth it; 0: all */
    double credit, caution, until;
} team;

int af_team_size(int wanted, double now)
{
#ifdef AF_FIXED_TEAM /* proofs that want every thread */
    (void)now;
    return wanted;
#else
    if (team.most == 0 || wanted <= team.most) return wanted;
    if (now < team.until) return team.most;
    return wanted < 2 * team.most ? wanted : 2 * team.most;
#endif
}

static void earn(double gained)
{
    team.credit += gained;
    if (team.credit < MOST_CREDIT) return;
    team.credit = team.caution > 1 ? MOST_CREDIT / 2 : MOST_CREDIT;
    team.caution = team.caution > 2 ? team.caution / 2 : 1;
}

void af_judge_team(const af_region_time *region)
{
    earn(region->busy - region->wall);
    if (team.credit >= 0) {
        team.most = region->threads == region->wanted ? 0 : region->threads;
        return;
    }
    const double caution = team.caution < 1 ? 2 : 2 * team.caution;
    team.caution = caution < MOST_CAUTION ? caution : MOST_CAUTION;
    const double rest = -team.credit * team.caution;
    team.until = region->end + (rest < LONGEST ? rest : LONGEST);
    team.most = region->threads / 2;
    team.credit = 0;
}

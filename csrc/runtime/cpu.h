/* What the machine is: the only place that asks it. */
#ifndef AF_CPU_H
#define AF_CPU_H

#include <stdbool.h>

/* Features of this CPU that the operating system supports too, as in kernels.h. Asked once. */
unsigned af_cpu_features(void);

/* Whether a feature that changes no result is used: where the CPU has it, or as the last choice says. Choice 1: yes, 0:
 * no, -1: as the CPU has it. */
bool af_cpu_uses(unsigned feature);
void af_cpu_choose(unsigned feature, int choice);

/* CPUs the calling thread may run on now, less if its control group had a CPU quota when first asked; at least 1. */
int af_cpu_count(void);

#endif

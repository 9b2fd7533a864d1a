/* What the machine is: the only place that asks it. */
#ifndef AF_CPU_H
#define AF_CPU_H

#include <stdbool.h>

/* Features of this CPU that the operating system supports too, as in kernels.h. Asked once. */
unsigned af_cpu_features(void);

/* Whether decoding requests each line of keys and values before it reads it: on CPUs that read memory faster so, or as
 * the last choice says, which changes no result. Choice 1: yes, 0: no, -1: as the CPU wants it. */
bool af_requests_lines(void);
void af_choose_requests(int choice);

/* CPUs the calling thread may run on now, less if its control group had a CPU quota when first asked; at least 1. */
int af_cpu_count(void);

#endif

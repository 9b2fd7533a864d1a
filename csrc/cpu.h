/* What the machine is: the only place that asks it. */
#ifndef AF_CPU_H
#define AF_CPU_H

/* Features of this CPU that the operating system supports too, as in kernels.h. */
unsigned af_cpu_features(void);

/* CPUs the process may run on, less if its control group has a CPU quota; at least 1. Asked once. */
int af_cpu_count(void);

#endif

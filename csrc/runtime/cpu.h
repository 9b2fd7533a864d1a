/* What the machine is: the only place that asks it. */
#ifndef AF_CPU_H
#define AF_CPU_H

/* Features of this CPU that the operating system supports too, as in kernels.h. */
unsigned af_cpu_features(void);

/* CPUs the calling thread may run on now, less if its control group had a CPU quota when first asked; at least 1. */
int af_cpu_count(void);

#endif

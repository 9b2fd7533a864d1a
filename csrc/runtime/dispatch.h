/* Which kernel table serves a dtype: the best that this CPU can run, at or below the cap. */
#ifndef AF_DISPATCH_H
#define AF_DISPATCH_H

#include "kernels.h"

const af_kernels *af_kernels_for(af_dtype dtype);

#endif

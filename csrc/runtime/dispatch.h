/* Which kernel table serves a dtype: the best that this CPU can run, at or below the cap. */
#ifndef AF_DISPATCH_H
#define AF_DISPATCH_H

#include "kernels.h"

const af_kernels *af_kernels_for(af_dtype dtype);

/* The products with keys and values in bytes that this CPU does best. */
const af_byte_kernels *af_byte_kernels_here(void);

#endif

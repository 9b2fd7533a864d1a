/* The table of public functions that the binding hands out. */
#ifndef AF_API_H
#define AF_API_H

#include "attnfast.h"

extern const af_api af_public_functions;

#endif

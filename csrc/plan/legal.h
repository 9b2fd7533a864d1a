/* Which calls the library can compute: what csrc/attnfast.h says of them, as a test. */
#ifndef AF_LEGAL_H
#define AF_LEGAL_H

#include "plan/call.h"

/* Whether sizes are in range and options go together. Strides and the memory behind pointers cannot be tested. */
bool af_is_legal(const af_call *call);

/* The same for sequences packed one after the other, and whether their bounds rise from 0 to the number of rows. */
bool af_is_legal_packed(const af_call *whole, const af_packing *packing);

/* Whether gradients go with a legal call that has rows: they are of what the call has, in steps that kernels take. */
bool af_are_legal_gradients(const af_call *call);

bool af_rotation_is_legal(const af_rotation *rotation);

#endif

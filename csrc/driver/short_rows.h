/* Windows, dilation and global tokens of short rows, as a mask. */
#ifndef AF_SHORT_ROWS_H
#define AF_SHORT_ROWS_H

#include "driver/sink.h"

/* Whether a call with global tokens has rows so short that all of its pairs cost less than the calls that it would be
 * made of. */
bool af_has_short_rows(const af_call *call);

/* Makes one call with a mask, or some where the masks of all batch rows would take too much memory. */
af_status af_call_short_rows(const af_call *call, bool causal, af_sink *sink);

#endif

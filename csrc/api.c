#include "api.h"

const af_api af_public_functions = {
    .size = sizeof(af_api),
    .version = AF_API_VERSION,
    .attention = af_attention,
    .attention_packed = af_attention_packed,
    .attention_backward = af_attention_backward,
    .attention_packed_backward = af_attention_packed_backward,
    .describe = af_describe,
    .describe_packed = af_describe_packed,
    .describe_backward = af_describe_backward,
    .describe_packed_backward = af_describe_packed_backward,
    .threads = af_threads,
    .set_threads = af_set_threads,
    .set_own_threads = af_set_own_threads,
    .isa = af_isa,
    .cap_isa = af_cap_isa,
    .isa_in_use = af_isa_in_use,
    .rotate = af_rotate,
};

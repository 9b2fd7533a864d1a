"""One call of every function of the family and of each of its algorithms."""

import numpy as np

import attnfast

FLAGS = {"return_lse": True, "return_weights": True}


def blocks(lq, lk, size=16):
    return np.arange(-(-lq // size))[:, None] % 2 == np.arange(-(-lk // size)) % 2


def varlen(q, k, v, out=None, **more):
    packed = (a.swapaxes(0, 1) for a in (q, k, v))
    ends = ([0, a.shape[1] // 3, a.shape[1]] for a in (q, k))
    out = None if out is None else out.swapaxes(0, 1)
    return attnfast.attention_varlen(*packed, *ends, return_lse=True, out=out, **more)


# Calls of (query, key, value) and whatever arrays an option takes, made by `place`.
CALLS = {
    "dilation": lambda q, k, v, place, **more: attnfast.local_attention(
        q, k, v, 3, dilation=place([2, 3]), q_offset=5, **FLAGS, **more
    ),
    "global tokens": lambda q, k, v, place, **more: attnfast.local_attention(
        q, k, v, 3, global_tokens=place([0, k.shape[-2] - 1]), q_offset=0, **FLAGS, **more
    ),
    "global bools": lambda q, k, v, place, **more: attnfast.local_attention(
        q, k, v, 3, global_tokens=place(np.arange(k.shape[-2]) % 9 == 4), q_offset=0, **more
    ),
    "local-m": lambda q, k, v, place, **more: attnfast.local_attention(
        q, k, v, 5, centers=place(np.arange(q.shape[-2])[::-1] * 7 % k.shape[-2]), **more
    ),
    "local-p": lambda q, k, v, place, **more: attnfast.local_attention(
        *(q, k, v, 5),
        centers=place(np.linspace(k.shape[-2], 0, q.shape[-2])),
        sigma=2.5,
        **FLAGS,
        **more,
    ),
    "blocks": lambda q, k, v, place, **more: attnfast.attention(
        q, k, v, mask=attnfast.BlockMask(blocks(q.shape[-2], k.shape[-2]), 16), **FLAGS, **more
    ),
    "additive": lambda q, k, v, place, **more: attnfast.additive_attention(
        *(q, k, v, place(np.ones(q.shape[-1], np.float32))),
        score_bias=place(np.ones((2, q.shape[-1]), np.float32)),
        **FLAGS,
        **more,
    ),
    "top": lambda q, k, v, place, out=None, **more: attnfast.attention_topk(
        q, k, min(7, k.shape[-2]), **more
    ),
    "importance": lambda q, k, v, place, out=None, **more: attnfast.key_importance(q, k, **more),
    "grouped": lambda q, k, v, place, out=None, **more: attnfast.key_importance(
        q, k, per_kv_head=True, **more
    ),
    "varlen": lambda q, k, v, place, **more: varlen(q, k, v, **more),
}

"""One call of every function that attends, in each of its forms.

A call takes query, key and value of rank 3, `place`, which makes the arrays that an option takes,
and what else to pass on (`num_threads`, or `out`, which functions without that argument drop).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import attnfast
from support.arrays import compute_dtype
from support.stored_call import in_bytes

FLAGS = {"return_lse": True, "return_weights": True}
DROPOUT = {"dropout": 0.3, "dropout_seed": 7}


def blocks(lq: int, lk: int, size: int = 16) -> Any:
    return np.arange(-(-lq // size))[:, None] % 2 == np.arange(-(-lk // size)) % 2


def pairs(q: Any, k: Any, place: Any) -> dict[str, Any]:
    """A mask and a bias with a number for each pair of query and key."""
    i, j = np.arange(q.shape[-2])[:, None], np.arange(k.shape[-2])
    shape = (*(1 for _ in q.shape[:-3]), 2, q.shape[-2], k.shape[-2])
    bias = np.broadcast_to((j - i) / 50, shape)
    return {"mask": place((i + j) % 3 > 0), "bias": place(bias.astype(np.float32))}


def keys(k: Any, place: Any) -> dict[str, Any]:
    """The same for each key, for all queries."""
    j = np.arange(k.shape[-2])
    return {"mask": place(j % 3 > 0), "bias": place((j / 50).astype(np.float32))}


def rows(q: Any, k: Any, place: Any) -> dict[str, Any]:
    """What there is one of for each batch row, or for each head."""
    lq, lk, batch = q.shape[-2], k.shape[-2], q.shape[:-3] or (1,)
    return {
        "kv_lengths": place(np.full(batch, lk // 2)),
        "kv_starts": place(np.full(batch, lk // 8)),
        "q_lengths": place(np.full(batch, lq)),
        "q_offset": place(np.full(batch, lk - lq)),
        "alibi_slopes": place(np.array([0.5, 0.25])),
        "sink_logits": place(np.array([1.0, 0.0])),
        "is_causal": True,
    }


def block_mask(q: Any, k: Any, place: Any) -> Any:
    mask = attnfast.BlockMask(blocks(q.shape[-2], k.shape[-2]), 16)
    placed = place(mask.blocks)
    if placed.flags.c_contiguous:  # as what a BlockMask keeps always is
        mask._blocks = placed
    return mask


def attend(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return attnfast.attention(q, k, v, **FLAGS, **options)


def local(q: Any, k: Any, v: Any, window: Any, **options: Any) -> Any:
    return attnfast.local_attention(q, k, v, window, **FLAGS, **options)


def top(q: Any, k: Any, most: int, out: Any = None, **options: Any) -> Any:
    return attnfast.attention_topk(q, k, min(most, k.shape[-2]), **options)


def importance(q: Any, k: Any, out: Any = None, **options: Any) -> Any:
    return attnfast.key_importance(q, k, **options)


def stage(q: Any, k: Any, name: str, out: Any = None, **options: Any) -> Any:
    return attnfast.attention_weights(q, k, stage=name, **options)


def varlen(q: Any, k: Any, v: Any, place: Any, out: Any = None, **more: Any) -> Any:
    packed = (a.swapaxes(0, 1) for a in (q, k, v))
    ends = (place(np.array([0, a.shape[-2] // 3, a.shape[-2]])) for a in (q, k))
    out = None if out is None else out.swapaxes(0, 1)
    return attnfast.attention_varlen(*packed, *ends, return_lse=True, out=out, **more)


def small(
    function: Any, q: Any, k: Any, v: Any, place: Any, *own: Any, out: Any = None, **options: Any
) -> Any:
    """A function of keys and values in 8 bits, with a scale for each key and head."""
    if q.dtype.itemsize == 8:  # which 8 bits do not go with
        q, out = q.astype(np.float32), None
    arrays = []
    for name, a in (("key", k), ("value", v)):
        if a is not None:
            rows, scale = in_bytes(a, "float8_e4m3fn")
            arrays.append(place(rows))
            options[f"{name}_scale"] = place(scale.swapaxes(0, 1) if function is varlen else scale)
    return function(q, *arrays, *own, out=out, **options)


def pages_of(a: Any, place: Any) -> tuple[Any, Any]:
    """A pool of pages of one row, or of all that there are, and its table."""
    size = 16 if a.shape[-2] % 16 == 0 else a.shape[-2]
    *batch, heads, length, width = a.shape
    rows = a.reshape(-1, heads, length // size, size, width)[:, :, ::-1].swapaxes(1, 2)
    pool = rows.reshape(-1, heads, size, width)
    table = np.arange(len(pool)).reshape(*batch, length // size)[..., ::-1]
    return place(np.ascontiguousarray(pool)), place(np.ascontiguousarray(table))


def paged(function: Any, q: Any, k: Any, place: Any, *own: Any, **options: Any) -> Any:
    """A function of keys, with these in pages of which the last is not full."""
    pool, table = pages_of(k, place)
    reach = place(np.full(k.shape[:-3] or (1,), max(k.shape[-2] - 1, 0)))
    if function is top:
        own, function = (min(own[0], k.shape[-2]),), attnfast.attention_topk
        options.pop("out", None)
    return function(q, pool, *own, block_table=table, kv_lengths=reach, **options)


def paged_varlen(q: Any, k: Any, v: Any, place: Any, out: Any = None, **options: Any) -> Any:
    """Two sequences that have the same pages, of which one uses a third."""
    pools = [pages_of(a, place) for a in (k, v)]
    table = place(np.array([pools[0][1]] * 2))
    lk = k.shape[-2]
    cu_q = place(np.array([0, q.shape[-2] // 3, q.shape[-2]]))
    cu_k = place(np.array([0, lk // 3, lk // 3 + lk]))
    out = None if out is None else out.swapaxes(0, 1)
    options |= {"block_table": table, "return_lse": True, "out": out}
    return attnfast.attention_varlen(
        q.swapaxes(0, 1), *(pool for pool, _ in pools), cu_q, cu_k, **options
    )


def merge(q: Any, place: Any) -> Any:
    outputs = np.stack([q, -q, q * 2])
    lses = np.stack([q[..., 0], q[..., -1], q[..., 0] * 2]).astype(compute_dtype(q.dtype))
    return attnfast.merge_attention(place(outputs), place(lses))


def rotated(q: Any, place: Any, out: Any = None, **options: Any) -> Any:
    """Rows rotated by tables, of which the last elements of an odd head size have no pair."""
    places = place(np.arange(q.shape[-2]) % 7)
    angles = np.linspace(0, 3, 7 * (q.shape[-1] // 2)).reshape(7, -1)
    tables = tuple(place(f(angles).astype(compute_dtype(q.dtype))) for f in (np.cos, np.sin))
    return attnfast.rotate(q, places, cos_sin=tables, **options)


def rotated_neighbours(q: Any, place: Any, out: Any = None, **options: Any) -> Any:
    """The same by angles of each batch row."""
    places = np.broadcast_to(np.arange(q.shape[-2]) * 1000, (*q.shape[:-3], q.shape[-2]))
    x = q[..., q.shape[-1] % 2 :]
    return attnfast.rotate(x, place(places), base=5e5, interleaved=True, **options)


def gradients(
    q: Any,
    k: Any,
    v: Any,
    place: Any,
    wanted: Any = (),
    *,
    by_all: bool = False,
    out: Any = None,
    **options: Any,
) -> Any:
    """Those of `attention`; `by_all`: of a loss that depends on all that it returns."""
    return trained("attention", (q, k, v), place, wanted, by_all=by_all, **options)


def local_gradients(
    q: Any,
    k: Any,
    v: Any,
    place: Any,
    wanted: Any = (),
    *,
    by_all: bool = False,
    out: Any = None,
    **options: Any,
) -> Any:
    return trained("local_attention", (q, k, v), place, wanted, by_all=by_all, **options)


def trained(
    name: str, arrays: Any, place: Any, wanted: Any, *, by_all: bool, **options: Any
) -> Any:
    forward, backward = getattr(attnfast, name), getattr(attnfast, f"{name}_backward")
    output, lse, weights = forward(*arrays, return_lse=True, return_weights=by_all, **options)
    loss = place(output), *arrays, place(output), place(lse)
    if by_all:
        options |= {"grad_lse": place(lse), "grad_weights": place(weights)}
    wanted = ("query", "key", "value", *wanted)
    found = backward(*loss, wanted=wanted, **options)
    return tuple(getattr(found, each) for each in wanted)


def additive_gradients(q: Any, k: Any, v: Any, place: Any, out: Any = None, **options: Any) -> Any:
    weight = place(np.ones(q.shape[-1], np.float32))
    options |= {"score_bias": place(np.ones((2, q.shape[-1]), np.float32)), **keys(k, place)}
    output, lse, _ = attnfast.additive_attention(q, k, v, weight, return_lse=True, **options)
    wanted = ("query", "key", "value", "bias", "score_weight", "score_bias")
    loss = place(output), q, k, v, place(output), place(lse), weight
    found = attnfast.additive_attention_backward(*loss, wanted=wanted, **options)
    return tuple(getattr(found, name) for name in wanted)


def pulled_back(q: Any, k: Any, v: Any, place: Any, out: Any = None, **options: Any) -> Any:
    result, pullback = attnfast.vjp(attnfast.attention, q, k, v, **options)
    return result, *pullback(place(result))[:3]


def packed_gradients(q: Any, k: Any, v: Any, place: Any, out: Any = None, **options: Any) -> Any:
    packed = [a.swapaxes(0, 1) for a in (q, k, v)]
    ends = [place(np.array([0, a.shape[-2] // 3, a.shape[-2]])) for a in (q, k)]
    output, lse, _ = attnfast.attention_varlen(*packed, *ends, return_lse=True, **options)
    found = attnfast.attention_varlen_backward(
        place(output), *packed, place(output), place(lse), *ends, **options
    )
    return found[:3]


def merge_gradients(q: Any, place: Any) -> Any:
    outputs = np.stack([q, -q, q * 2])
    lses = np.stack([q[..., 0], q[..., -1], q[..., 0] * 2]).astype(compute_dtype(q.dtype))
    return attnfast.merge_attention_backward(place(q), place(outputs), place(lses))


CALLS: dict[str, Callable[..., Any]] = {
    "plain": lambda q, k, v, place, **more: attend(q, k, v, **more),
    "per row": lambda q, k, v, place, **more: attend(q, k, v, **rows(q, k, place), **more),
    "per pair": lambda q, k, v, place, **more: attend(
        q, k, v, softcap=5.0, **pairs(q, k, place), **more
    ),
    "window": lambda q, k, v, place, **more: attend(
        q, k, v, window_size=(20, 3), q_offset="end", **more
    ),
    "blocks": lambda q, k, v, place, **more: attend(q, k, v, mask=block_mask(q, k, place), **more),
    "dropout": lambda q, k, v, place, **more: attend(q, k, v, **keys(k, place), **DROPOUT, **more),
    "dilation": lambda q, k, v, place, **more: local(
        q, k, v, 3, dilation=place(np.array([2, 3])), q_offset=5, **keys(k, place), **more
    ),
    "dilation and dropout": lambda q, k, v, place, **more: local(
        q, k, v, 3, dilation=place(np.array([1, 3])), q_offset=5, **DROPOUT, **more
    ),
    "global tokens": lambda q, k, v, place, **more: local(
        q, k, v, 3, global_tokens=place(np.array([0, k.shape[-2] - 1])), q_offset=0, **more
    ),
    "global bools": lambda q, k, v, place, **more: attnfast.local_attention(
        q, k, v, 3, global_tokens=place(np.arange(k.shape[-2]) % 9 == 4), q_offset=0, **more
    ),
    "gradients": lambda q, k, v, place, **more: gradients(
        q, k, v, place, ("alibi_slopes", "sink_logits"), **rows(q, k, place), **more
    ),
    "gradients of pairs": lambda q, k, v, place, **more: gradients(
        q, k, v, place, ("bias",), softcap=5.0, **pairs(q, k, place), **more
    ),
    "gradients of blocks": lambda q, k, v, place, **more: gradients(
        q, k, v, place, mask=block_mask(q, k, place), **more
    ),
    "gradients by weights": lambda q, k, v, place, **more: gradients(
        q, k, v, place, by_all=True, softcap=5.0, **more
    ),
    "gradients of dilation": lambda q, k, v, place, **more: local_gradients(
        *(q, k, v, place),
        **{"window_size": 3, "dilation": place(np.array([2, 3])), "q_offset": 5},
        **keys(k, place),
        **more,
    ),
    "gradients of global tokens": lambda q, k, v, place, **more: local_gradients(
        *(q, k, v, place),
        **{"window_size": 3, "global_tokens": place(np.array([0, k.shape[-2] - 1]))},
        q_offset=0,
        **more,
    ),
    "gradients by local weights": lambda q, k, v, place, **more: local_gradients(
        *(q, k, v, place),
        **{"window_size": 3, "global_tokens": place(np.array([0, k.shape[-2] - 1]))},
        q_offset=0,
        by_all=True,
        **more,
    ),
    "gradients of local-m": lambda q, k, v, place, **more: local_gradients(
        *(q, k, v, place),
        **{"window_size": 5, "centers": place(np.arange(q.shape[-2])[::-1] * 7 % k.shape[-2])},
        **more,
    ),
    "gradients of local-p": lambda q, k, v, place, **more: local_gradients(
        *(q, k, v, place, ("centers",)),
        **{"window_size": 5, "centers": place(np.linspace(k.shape[-2], 0, q.shape[-2]))},
        sigma=2.5,
        **more,
    ),
    "gradients with dropout": lambda q, k, v, place, **more: gradients(
        q, k, v, place, window_size=(20, 30), q_offset=0, **DROPOUT, **more
    ),
    "vjp": lambda q, k, v, place, **more: pulled_back(
        q, k, v, place, is_causal=True, q_offset="end", **more
    ),
    "local-m": lambda q, k, v, place, **more: attnfast.local_attention(
        q, k, v, 5, centers=place(np.arange(q.shape[-2])[::-1] * 7 % k.shape[-2]), **more
    ),
    "local-p": lambda q, k, v, place, **more: local(
        q, k, v, 5, centers=place(np.linspace(k.shape[-2], 0, q.shape[-2])), sigma=2.5, **more
    ),
    "additive": lambda q, k, v, place, **more: attnfast.additive_attention(
        *(q, k, v, place(np.ones(q.shape[-1], np.float32))),
        score_bias=place(np.ones((2, q.shape[-1]), np.float32)),
        **keys(k, place),
        **FLAGS,
        **more,
    ),
    "additive and dropout": lambda q, k, v, place, **more: attnfast.additive_attention(
        q, k, v, place(np.ones(q.shape[-1], np.float32)), **FLAGS, **DROPOUT, **more
    ),
    "gradients of additive": additive_gradients,
    "gradients of additive with dropout": lambda q, k, v, place, **more: additive_gradients(
        q, k, v, place, **DROPOUT, **more
    ),
    "top": lambda q, k, v, place, **more: top(q, k, 7, **keys(k, place), **more),
    "top of rows": lambda q, k, v, place, **more: top(q, k, 65, **more),
    "importance": lambda q, k, v, place, **more: importance(q, k, **keys(k, place), **more),
    "grouped": lambda q, k, v, place, **more: importance(q, k, per_kv_head=True, **more),
    "weights": lambda q, k, v, place, **more: stage(q, k, "weights", **keys(k, place), **more),
    "scores": lambda q, k, v, place, **more: stage(q, k, "scores", **more),
    "biased": lambda q, k, v, place, **more: stage(q, k, "biased", **pairs(q, k, place), **more),
    "bytes": lambda q, k, v, place, **more: small(attend, q, k, v, place, **keys(k, place), **more),
    "top of bytes": lambda q, k, v, place, **more: small(top, q, k, None, place, 7, **more),
    "top of rows of bytes": lambda q, k, v, place, **more: small(
        top, q, k, None, place, 65, **keys(k, place), **more
    ),
    "importance of bytes": lambda q, k, v, place, **more: small(
        importance, q, k, None, place, **more
    ),
    "scores of bytes": lambda q, k, v, place, **more: small(
        stage, q, k, None, place, "scores", **more
    ),
    "weights of bytes": lambda q, k, v, place, **more: small(
        stage, q, k, None, place, "weights", **keys(k, place), **more
    ),
    "varlen of bytes": lambda q, k, v, place, **more: small(varlen, q, k, v, place, place, **more),
    "varlen of pages": paged_varlen,
    "weights of pages": lambda q, k, v, place, **more: paged(stage, q, k, place, "weights", **more),
    "scores of pages": lambda q, k, v, place, **more: paged(stage, q, k, place, "scores", **more),
    "top of pages": lambda q, k, v, place, **more: paged(top, q, k, place, 7, **more),
    "top of rows of pages": lambda q, k, v, place, **more: paged(top, q, k, place, 65, **more),
    "importance of pages": lambda q, k, v, place, **more: paged(importance, q, k, place, **more),
    "varlen": lambda q, k, v, place, **more: varlen(q, k, v, place, **more),
    "varlen and dropout": lambda q, k, v, place, **more: varlen(q, k, v, place, **DROPOUT, **more),
    "gradients of varlen": lambda q, k, v, place, **more: packed_gradients(
        q, k, v, place, is_causal=True, q_offset="end", **more
    ),
    "merge": lambda q, k, v, place, **more: merge(q, place),
    "rotated": lambda q, k, v, place, **more: rotated(q, place, **more),
    "rotated neighbours": lambda q, k, v, place, **more: rotated_neighbours(q, place, **more),
    "gradients of merge": lambda q, k, v, place, **more: merge_gradients(q, place),
}
# Those without batch axes.
PACKED = (
    *("varlen", "varlen and dropout", "gradients of varlen"),
    *("varlen of bytes", "varlen of pages"),
)
# Those that write `out`.
WITH_OUT = (
    *("plain", "per row", "per pair", "window", "blocks", "dropout", "dilation", "global tokens"),
    *("dilation and dropout", "global bools", "local-m", "local-p"),
    *("additive", "additive and dropout", "varlen", "varlen and dropout"),
)

"""Which query sees which key, and the score of every pair."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]


def arrange(dtype: DTypeLike, query: ArrayLike, *keyed: ArrayLike) -> tuple[list[Array], int]:
    """Give every array the same batch axes and the query's heads; also return the result's rank."""
    arrays = [np.asarray(a).astype(dtype) for a in (query, *keyed)]
    rank = max(a.ndim for a in arrays)
    arrays = [a.reshape((1,) * (max(rank, 3) - a.ndim) + a.shape) for a in arrays]
    batch = np.broadcast_shapes(*(a.shape[:-3] for a in arrays))
    heads, kv_heads = arrays[0].shape[-3], arrays[1].shape[-3]
    group = heads // kv_heads if kv_heads else 1
    # Query heads 0 .. group-1 read key head 0, the next group of them key head 1, and so on.
    arrays[1:] = [np.repeat(a, group, axis=-3) for a in arrays[1:]]
    return [np.broadcast_to(a, batch + a.shape[-3:]) for a in arrays], rank


class Stages(NamedTuple):
    """The scores after each step, and what they were made of."""

    scores: Array  # (..., H, Lq, Lk), all pairs
    capped: Array  # the same after the softcap
    biased: Array  # with bias and ALiBi; -inf where query i may not see key j
    distance: Array  # |p_i - j|
    is_query: Array  # (..., 1, Lq): rows that hold a query rather than padding


def score_stages(
    q: Array,
    k: Array,
    *,
    scores: Array | None = None,
    bias: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    **visibility: Any,
) -> Stages:
    """Score every pair, in the order of operations: scale, softcap, bias and ALiBi, masks."""
    dtype, shape = q.dtype, (*q.shape[:-3], q.shape[-2], k.shape[-2])
    positions = alibi_slopes is not None
    visible, distance, is_query = _visible(shape, positions_matter=positions, **visibility)
    if scores is None:
        scores = (q @ k.swapaxes(-1, -2)) * scale_of(q, scale)
    capped = scores if softcap is None else float(softcap) * np.tanh(scores / float(softcap))
    biased = capped
    if bias is not None:
        visible = visible & (np.asarray(bias) != -np.inf)
        biased = biased + np.asarray(bias).astype(dtype)
    if alibi_slopes is not None:
        slopes = np.asarray(alibi_slopes).astype(dtype)[..., None, None]
        biased = biased - slopes * distance.astype(dtype)
    biased = np.where(visible, biased, dtype.type(-np.inf))
    return Stages(scores, capped, biased, distance, is_query)


def scale_of(q: Array, scale: float | None) -> float:
    """The factor of the scores, where none is given ``1 / sqrt(D)``."""
    return 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else float(scale)


def key_exists(pairs: Array, kv_lengths: ArrayLike | None, kv_starts: ArrayLike | None) -> Array:
    """Which keys of `pairs` (..., H, Lq, Lk) are not padding, ``(..., 1, 1, Lk)``."""
    *batch, _, _, lk = pairs.shape
    ends, starts = (
        np.broadcast_to(np.reshape(n, -1), math.prod(batch)).reshape((*batch, 1, 1, 1))
        for n in (lk if kv_lengths is None else kv_lengths, 0 if kv_starts is None else kv_starts)
    )
    j = np.arange(lk)
    exists: Array = (starts <= j) & (j < ends)
    return exists


def _visible(
    shape: tuple[int, ...],
    *,
    mask: Any = None,
    is_causal: bool = False,
    window_size: Any = None,
    global_tokens: ArrayLike | None = None,
    dilation: ArrayLike = 1,
    centers: ArrayLike | None = None,
    q_offset: Any = None,
    q_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    kv_starts: ArrayLike | None = None,
    positions_matter: bool = False,
) -> tuple[Array, Array, Array]:
    """Which query sees which key, of `shape` (..., Lq, Lk); ``|p_i - j|``; which rows are queries.

    All three broadcast to (..., H, Lq, Lk), the last one without its last axis.
    """
    *leading, lq, lk = shape
    batch = tuple(leading)

    def per_row(number: Any) -> Array:
        rows = np.asarray(number, dtype=np.float64)
        return (np.full(batch, rows) if rows.ndim == 0 else rows).reshape((*batch, 1, 1, 1))

    left, right = _sides(window_size)
    step = np.asarray(dilation, dtype=np.float64)[..., None, None]
    around_p = centers is None and (min(left, right) < math.inf or bool((step != 1).any()))
    if q_offset is None:
        if (is_causal or around_p or positions_matter) and lq != lk:
            raise ValueError(
                f"Lq = {lq} and Lk = {lk} differ, so q_offset must say where query 0 lies on the "
                'key axis: q_offset=0 lines up the first query and key, q_offset="end" the last'
            )
        q_offset = 0

    q_length = per_row(lq if q_lengths is None else q_lengths)
    kv_length = per_row(lk if kv_lengths is None else kv_lengths)
    kv_start = per_row(0 if kv_starts is None else kv_starts)
    from_end = isinstance(q_offset, str)
    i, j = np.arange(lq)[:, None], np.arange(lk)
    p = i + (kv_length - q_length if from_end else per_row(q_offset))

    middle = p if centers is None else np.asarray(centers).astype(np.float64)[..., None]
    visible = (middle - step * left <= j) & (j <= middle + step * right)
    if centers is None:
        visible = visible & ((j - p) % step == 0)
    if global_tokens is not None:
        # Every query sees a global token, and the query at the place of one sees every key.
        is_global = _marked(np.asarray(global_tokens), batch, lk)
        visible = visible | is_global | (is_global & (j == p)).any(axis=-1, keepdims=True)

    is_query = i < q_length
    visible = visible & is_query & (kv_start <= j) & (j < kv_length)
    if is_causal:
        visible = visible & (j <= p)
    if mask is not None:
        visible = visible & (mask.dense(lq, lk) if hasattr(mask, "dense") else np.asarray(mask))
    return visible, np.abs(p - j), is_query[..., 0]


def _sides(window_size: Any) -> tuple[float, float]:
    """How far the window reaches to the left and to the right."""
    sides = window_size if np.ndim(window_size) == 1 else (window_size, window_size)
    left, right = (math.inf if side is None or side == -1 else float(side) for side in sides)
    return left, right


def _marked(tokens: Array, batch: tuple[int, ...], lk: int) -> Array:
    """True at global tokens, ``(..., 1, 1, Lk)``, from indices or bools for all rows or each."""
    if tokens.ndim > 1:
        tokens = tokens.reshape((*batch, 1, 1, tokens.shape[-1]))
    at_key = tokens[..., None, :] == np.arange(lk)[:, None]
    return tokens if tokens.dtype == bool else np.asarray(at_key.any(axis=-1))

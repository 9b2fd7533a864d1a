"""Exact attention in plain NumPy: slow, float64, and the meaning of every argument.

    score[i, j]  = scale * sum_d query[i, d] * key[j, d]
    capped       = softcap * tanh(score / softcap)
    biased       = capped + bias[i, j] - slope * |p_i - j|,   -inf where query i may not see key j
    weight[i, j] = exp(biased[i, j]) / (exp(sink) + sum_k exp(biased[i, k]))
    output[i]    = sum_j weight[i, j] * value[j]

``p_i = i + q_offset`` is the place of query ``i`` on the key axis. The kernels are tested against
these functions, so everything is written out: all scores exist in memory at once, grouped heads are
repeated, and arguments are taken to be legal (the public functions check them).

``compute_dtype`` is the dtype of every intermediate and of the results. float64 is the truth;
float32 is what plain NumPy attention in single precision gives, by which the rounding of the
kernels is judged.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .result import AttentionResult

Array = NDArray[Any]
STAGES = ("scores", "capped", "biased", "weights")


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    return_lse: bool = False,
    return_weights: bool = False,
    sink_logits: ArrayLike | None = None,
    compute_dtype: DTypeLike = np.float64,
    **score_options: Any,
) -> Array | AttentionResult:
    """Attention as `attnfast.attention` defines it.

    Parameters
    ----------
    query, key, value : array_like
        ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)`` and ``(..., Hk, Lk, Dv)``.
    return_lse, return_weights : bool
        Return an `AttentionResult` that holds these too.
    sink_logits : array_like, optional
        ``(H,)``, one more logit in each denominator.
    compute_dtype : dtype
        Precision of the computation and of the results.
    **score_options
        ``mask``, ``bias``, ``is_causal``, ``window_size``, ``q_offset``, ``q_lengths``,
        ``kv_lengths``, ``scale``, ``softcap`` and ``alibi_slopes`` of `attnfast.attention`.

    Returns
    -------
    ndarray or AttentionResult
        The output ``(..., H, Lq, Dv)`` in `compute_dtype`, alone or with what was asked for.
    """
    (q, k, v), rank = _arrange(compute_dtype, query, key, value)
    with np.errstate(all="ignore"):
        stages, is_query = _scores(q, k, **score_options)
        weights, lse = _softmax(stages["biased"], is_query, sink_logits)
        output = _weighted_sum(weights, stages["biased"] != -np.inf, v)
    if rank == 2:
        output, lse, weights = output[0], lse[0], weights[0]
    if not (return_lse or return_weights):
        return output
    return AttentionResult(output, lse if return_lse else None, weights if return_weights else None)


def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    *,
    stage: str = "weights",
    sink_logits: ArrayLike | None = None,
    compute_dtype: DTypeLike = np.float64,
    **score_options: Any,
) -> Array:
    """Scores or weights alone, as `attnfast.attention_weights` defines them.

    Parameters
    ----------
    query, key : array_like
        ``(..., H, Lq, D)`` and ``(..., Hk, Lk, D)``.
    stage : {"scores", "capped", "biased", "weights"}
        How far to go. The first two hold every pair; in ``"biased"`` excluded pairs are -inf.
    sink_logits, compute_dtype, **score_options
        As for `attention`.

    Returns
    -------
    ndarray
        ``(..., H, Lq, Lk)`` in `compute_dtype`.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {STAGES}, got {stage!r}")
    (q, k), rank = _arrange(compute_dtype, query, key)
    with np.errstate(all="ignore"):
        stages, is_query = _scores(q, k, **score_options)
        stages["weights"], _ = _softmax(stages["biased"], is_query, sink_logits)
    return stages[stage][0] if rank == 2 else stages[stage]


def merge_attention(
    outputs: ArrayLike, lses: ArrayLike, *, compute_dtype: DTypeLike = np.float64
) -> AttentionResult:
    """Attention over the union of disjoint key sets, from the result over each set.

    Parameters
    ----------
    outputs : array_like
        The partial outputs, stacked on axis 0: ``(parts, ..., Dv)``.
    lses : array_like
        Their log denominators, ``(parts, ...)``. A part with -inf saw no key and does not count.
    compute_dtype : dtype
        Precision of the computation and of the results.

    Returns
    -------
    AttentionResult
        Output and lse of the union; its weights are None.
    """
    o, lse = np.asarray(outputs).astype(compute_dtype), np.asarray(lses).astype(compute_dtype)
    with np.errstate(all="ignore"):
        # Each part is one key whose score is its lse and whose value is its output.
        scores = np.moveaxis(lse, 0, -1)[..., None, :]
        weights, total = _softmax(scores, True, None)
        merged = _weighted_sum(weights, scores != -np.inf, np.moveaxis(o, 0, -2))
    return AttentionResult(merged[..., 0, :], total[..., 0], None)


def _arrange(dtype: DTypeLike, query: ArrayLike, *keyed: ArrayLike) -> tuple[list[Array], int]:
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


def _scores(
    q: Array,
    k: Array,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    is_causal: bool = False,
    window_size: Any = None,
    q_offset: Any = None,
    q_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
) -> tuple[dict[str, Array], Array]:
    """The scores after each step, and which rows hold a query rather than padding (..., 1, Lq)."""
    (lq, dim), lk, dtype = q.shape[-2:], k.shape[-2], q.dtype

    def per_row(number: Any) -> Array:
        rows = np.asarray(number, dtype=np.float64)
        batch = q.shape[:-3]
        return (np.full(batch, rows) if rows.ndim == 0 else rows).reshape((*batch, 1, 1, 1))

    sides = window_size if np.ndim(window_size) == 1 else (window_size, window_size)
    left, right = (math.inf if side is None or side == -1 else float(side) for side in sides)
    needs_position = is_causal or min(left, right) < math.inf or alibi_slopes is not None
    if q_offset is None:
        if needs_position and lq != lk:
            raise ValueError(
                f"Lq = {lq} and Lk = {lk} differ, so q_offset must say where query 0 lies on the "
                'key axis: q_offset=0 lines up the first query and key, q_offset="end" the last'
            )
        q_offset = 0

    q_length = per_row(lq if q_lengths is None else q_lengths)
    kv_length = per_row(lk if kv_lengths is None else kv_lengths)
    from_end = isinstance(q_offset, str)
    i, j = np.arange(lq)[:, None], np.arange(lk)
    p = i + (kv_length - q_length if from_end else per_row(q_offset))

    is_query = i < q_length
    visible = is_query & (j < kv_length) & (p - left <= j) & (j <= p + right)
    if is_causal:
        visible = visible & (j <= p)
    if mask is not None:
        visible = visible & np.asarray(mask)
    if bias is not None:
        visible = visible & (np.asarray(bias) != -np.inf)

    scale = 1 / math.sqrt(max(dim, 1)) if scale is None else float(scale)
    scores = (q @ k.swapaxes(-1, -2)) * scale
    capped = scores if softcap is None else float(softcap) * np.tanh(scores / float(softcap))
    biased = capped
    if bias is not None:
        biased = biased + np.asarray(bias).astype(dtype)
    if alibi_slopes is not None:
        slopes = np.asarray(alibi_slopes).astype(dtype)[..., None, None]
        biased = biased - slopes * np.abs(p - j).astype(dtype)
    biased = np.where(visible, biased, dtype.type(-np.inf))
    return {"scores": scores, "capped": capped, "biased": biased}, is_query[..., 0]


def _softmax(
    scores: Array, is_query: Array | bool, sink_logits: ArrayLike | None
) -> tuple[Array, Array]:
    """Weights and log denominator of each row; a score of -inf has no weight."""
    sink = np.asarray(-np.inf if sink_logits is None else sink_logits).astype(scores.dtype)
    sink = sink[..., None]
    top = np.maximum(scores.max(axis=-1, initial=-np.inf), sink)
    top[top == -np.inf] = 0  # nothing to see and no sink
    e = np.exp(scores - top[..., None])
    denominator = e.sum(axis=-1) + np.exp(sink - top)
    lse = top + np.log(denominator)
    weights = np.zeros_like(e)
    np.divide(e, denominator[..., None], out=weights, where=scores != -np.inf)
    return weights, np.where(is_query, lse, scores.dtype.type(-np.inf))


def _weighted_sum(weights: Array, counts: Array, value: Array) -> Array:
    """sum_j weight[i, j] * value[j] over the pairs that count, whatever the other values hold."""
    finite = np.asarray(np.isfinite(value).all(axis=-1))
    output = weights @ np.where(finite[..., None], value, value.dtype.type(0))
    # 0 * NaN is NaN, so keys that hold NaN or inf are added one by one, where they count.
    for j in np.flatnonzero(~finite.all(axis=tuple(range(finite.ndim - 1)))):
        pairs = counts[..., j : j + 1] & ~finite[..., None, j : j + 1]
        term = weights[..., j : j + 1] * value[..., j : j + 1, :]
        output += np.where(pairs, term, value.dtype.type(0))
    return output

"""Exact attention in plain NumPy: slow, float64, and the meaning of every argument.

    score[i, j]  = scale * sum_d query[i, d] * key[j, d]
    capped       = softcap * tanh(score / softcap)
    biased       = capped + bias[i, j] - slope * |p_i - j|,   -inf where query i may not see key j
    weight[i, j] = exp(biased[i, j]) / (exp(sink) + sum_k exp(biased[i, k]))
    output[i]    = sum_j weight[i, j] * value[j]

``p_i = i + q_offset`` is the place of query ``i`` on the key axis. The kernels are tested against
these functions, so everything is written out: all scores exist in memory at once, grouped heads are
repeated, and arguments are taken to be legal (the public functions check them). Masks and biases
broadcast as NumPy arrays do, also those that the public functions refuse as ambiguous.

``compute_dtype`` is the dtype of every intermediate and of the results. float64 is the truth;
float32 is what plain NumPy attention in single precision gives, by which the rounding of the
kernels is judged.

>>> import numpy as np
>>> from attnfast import attention, reference
>>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 50, 8), dtype=np.float32)
>>> exact = reference.attention(q, k, v, window_size=3)
>>> np.allclose(attention(q, k, v, window_size=3), exact, atol=1e-6)
True
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
    compute_dtype: DTypeLike = np.float64,
    **options: Any,
) -> Array | AttentionResult:
    """Attention as `attnfast.attention` defines it.

    Parameters
    ----------
    query, key, value : array_like
        ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)`` and ``(..., Hk, Lk, Dv)``.
    compute_dtype : dtype
        Precision of the computation and of the results.
    **options
        ``mask``, ``bias``, ``is_causal``, ``window_size``, ``q_offset``, ``q_lengths``,
        ``kv_lengths``, ``scale``, ``softcap``, ``alibi_slopes``, ``sink_logits``, ``return_lse``
        and ``return_weights`` of `attnfast.attention`.

    Returns
    -------
    ndarray or AttentionResult
        The output ``(..., H, Lq, Dv)`` in `compute_dtype`, alone or with what was asked for.
    """
    (q, k, v), rank = _arrange(compute_dtype, query, key, value)
    return _attend(q, k, v, rank, **options)


def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    *,
    stage: str = "weights",
    sink_logits: ArrayLike | None = None,
    compute_dtype: DTypeLike = np.float64,
    **score_options: Any,
) -> Array:
    """The scores or weights alone, as `attnfast.attention_weights` defines them.

    Parameters
    ----------
    query, key : array_like
        ``(..., H, Lq, D)`` and ``(..., Hk, Lk, D)``.
    stage : {"scores", "capped", "biased", "weights"}
        How far to go. The first two hold every pair; in ``"biased"`` excluded pairs are -inf.
    sink_logits, compute_dtype : optional
        As for `attention`.
    **score_options
        Those of `attention` that concern the scores.

    Returns
    -------
    ndarray
        The scores or weights ``(..., H, Lq, Lk)`` in `compute_dtype`.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {STAGES}, got {stage!r}")
    (q, k), rank = _arrange(compute_dtype, query, key)
    with np.errstate(all="ignore"):
        stages, is_query = _scores(q, k, **score_options)
        stages["weights"], _ = _softmax(stages["biased"], is_query, sink_logits)
    return stages[stage][0] if rank == 2 else stages[stage]


def local_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    window_size: Any,
    *,
    centers: ArrayLike | None = None,
    sigma: float | None = None,
    compute_dtype: DTypeLike = np.float64,
    **options: Any,
) -> Array | AttentionResult:
    """Attention in a window, as `attnfast.local_attention` defines it.

    Parameters
    ----------
    query, key, value : array_like
        As for `attention`.
    window_size : int or pair
        Keys before and after the middle of the window that a query may see.
    centers : array_like, optional
        Broadcastable to ``(..., H, Lq)``: the middle of each query's window, instead of ``p_i``.
    sigma : float, optional
        With it weights are multiplied by ``exp(-(j - c)**2 / (2 sigma**2))``.
    compute_dtype : dtype
        As for `attention`.
    **options
        Those of `attention`, ``global_tokens`` and ``dilation``.

    Returns
    -------
    ndarray or AttentionResult
        As for `attention`. The lse is that of the softmax, before the weights are multiplied.
    """
    (q, k, v), rank = _arrange(compute_dtype, query, key, value)
    options = {"window_size": window_size, "centers": centers, **options}
    if sigma is None:
        return _attend(q, k, v, rank, **options)
    distance = np.arange(k.shape[-2]) - np.asarray(centers).astype(np.float64)[..., None]
    with np.errstate(all="ignore"):
        factor = np.exp(-((distance.astype(q.dtype) / float(sigma)) ** 2) / 2)
    return _attend(q, k, v, rank, factor=factor, **options)


def additive_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    score_weight: ArrayLike | None = None,
    *,
    score_bias: ArrayLike | None = None,
    compute_dtype: DTypeLike = np.float64,
    **options: Any,
) -> Array | AttentionResult:
    """Attention with ``score[i, j] = sum_d w[d] * tanh(query[i, d] + key[j, d] + b[d])``.

    Parameters
    ----------
    query, key, value : array_like
        As for `attention`.
    score_weight, score_bias : array_like, optional
        The ``w`` and ``b``: ``(D,)`` or ``(H, D)``. Default ones and zeros.
    compute_dtype : dtype
        As for `attention`.
    **options
        As for `attention`, without ``scale``.

    Returns
    -------
    ndarray or AttentionResult
        As for `attention`.
    """
    (q, k, v), rank = _arrange(compute_dtype, query, key, value)
    w = np.asarray(1 if score_weight is None else score_weight).astype(q.dtype)
    b = np.asarray(0 if score_bias is None else score_bias).astype(q.dtype)
    w, b = (np.broadcast_to(a, q.shape[-1:] if a.ndim < 2 else a.shape) for a in (w, b))
    with np.errstate(all="ignore"):
        sums = q[..., :, None, :] + k[..., None, :, :] + b[..., None, None, :]
        scores = (w[..., None, None, :] * np.tanh(sums)).sum(axis=-1)
    return _attend(q, k, v, rank, scores=scores, **options)


def attention_topk(
    query: ArrayLike,
    key: ArrayLike,
    k: int,
    *,
    sink_logits: ArrayLike | None = None,
    compute_dtype: DTypeLike = np.float64,
    **score_options: Any,
) -> tuple[Array, Array]:
    """The `k` heaviest keys of each query and their weights in the softmax over all visible keys.

    Parameters
    ----------
    query, key : array_like
        As for `attention_weights`.
    k : int
        How many, ``0 <= k <= Lk``.
    sink_logits, compute_dtype : optional
        As for `attention_weights`.
    **score_options
        As for `attention_weights`.

    Returns
    -------
    indices : ndarray
        Keys ``(..., H, Lq, k)``: heaviest first and the lower index first among equals; -1 where a
        query sees fewer than `k`.
    weights : ndarray
        Their weights, 0 where there is no key.
    """
    options = {"compute_dtype": compute_dtype, **score_options}
    biased = attention_weights(query, key, stage="biased", **options)
    weights = attention_weights(query, key, sink_logits=sink_logits, **options)
    hidden = biased == -np.inf
    order = np.lexsort((-biased, hidden), axis=-1)[..., :k]
    heaviest = np.take_along_axis(weights, order, axis=-1)
    return np.where(np.take_along_axis(hidden, order, axis=-1), -1, order), heaviest


def key_importance(
    query: ArrayLike, key: ArrayLike, *, per_kv_head: bool = False, **options: Any
) -> Array:
    """The weight that each key receives from all queries together.

    Parameters
    ----------
    query, key : array_like
        As for `attention_weights`.
    per_kv_head : bool
        Add up the query heads that share a key head.
    **options
        As for `attention_weights`.

    Returns
    -------
    ndarray
        The sums ``(..., H, Lk)``, or ``(..., Hk, Lk)``.
    """
    total: Array = attention_weights(query, key, **options).sum(axis=-2)
    if per_kv_head and total.ndim > 1:
        *batch, heads, lk = total.shape
        kv_heads = np.shape(key)[-3] if np.ndim(key) > 2 else 1
        total = total.reshape((*batch, kv_heads, heads // max(kv_heads, 1), lk)).sum(axis=-2)
    return total


def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    *,
    q_offset: Any = None,
    alibi_slopes: ArrayLike | None = None,
    return_lse: bool = False,
    compute_dtype: DTypeLike = np.float64,
    **options: Any,
) -> Array | AttentionResult:
    """Attention within each of many sequences that are packed one after the other.

    Parameters
    ----------
    query, key, value : array_like
        ``(Tq, H, D)``, ``(Tk, Hk, D)`` and ``(Tk, Hk, Dv)``.
    cu_q, cu_k : array_like
        ``(n + 1,)``: sequence ``s`` is rows ``cu[s]:cu[s + 1]``.
    q_offset, alibi_slopes, return_lse, compute_dtype : optional
        As for `attention`, with a sequence for a batch row.
    **options
        As for `attention`.

    Returns
    -------
    ndarray or AttentionResult
        The output ``(Tq, H, Dv)``, alone or with the lse ``(Tq, H)``.
    """
    q, k, v = (np.swapaxes(np.asarray(a), 0, 1) for a in (query, key, value))
    output = np.zeros((*q.shape[:2], v.shape[-1]), compute_dtype)
    lse = np.zeros(q.shape[:2], compute_dtype)
    q_ends, k_ends = np.asarray(cu_q), np.asarray(cu_k)
    n = len(q_ends) - 1
    offsets = [q_offset] * n if np.ndim(q_offset) == 0 else q_offset
    options = {"return_lse": True, "compute_dtype": compute_dtype, **options}
    for s in range(n):
        rows, keys = slice(q_ends[s], q_ends[s + 1]), slice(k_ends[s], k_ends[s + 1])
        if alibi_slopes is not None:
            options["alibi_slopes"] = np.broadcast_to(np.asarray(alibi_slopes), (n, len(q)))[s]
        output[:, rows], lse[:, rows], _ = attention(
            q[:, rows], k[:, keys], v[:, keys], q_offset=offsets[s], **options
        )
    output, lse = output.swapaxes(0, 1), lse.swapaxes(0, 1)
    return AttentionResult(output, lse) if return_lse else output


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


def _attend(
    q: Array,
    k: Array,
    v: Array,
    rank: int,
    *,
    factor: Array | None = None,
    sink_logits: ArrayLike | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
    **score_options: Any,
) -> Array | AttentionResult:
    """Scores, softmax and weighted sum; the weights are multiplied by `factor` in between."""
    with np.errstate(all="ignore"):
        stages, is_query = _scores(q, k, **score_options)
        weights, lse = _softmax(stages["biased"], is_query, sink_logits)
        weights = weights if factor is None else weights * factor
        output = _weighted_sum(weights, stages["biased"] != -np.inf, v)
    if rank == 2:
        output, lse, weights = output[0], lse[0], weights[0]
    if not (return_lse or return_weights):
        return output
    return AttentionResult(output, lse if return_lse else None, weights if return_weights else None)


def _scores(
    q: Array,
    k: Array,
    *,
    scores: Array | None = None,
    mask: Any = None,
    bias: ArrayLike | None = None,
    is_causal: bool = False,
    window_size: Any = None,
    global_tokens: ArrayLike | None = None,
    dilation: ArrayLike = 1,
    centers: ArrayLike | None = None,
    q_offset: Any = None,
    q_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
) -> tuple[dict[str, Array], Array]:
    """The scores after each step, and which rows hold a query rather than padding (..., 1, Lq)."""
    (lq, dim), lk, dtype = q.shape[-2:], k.shape[-2], q.dtype
    batch = q.shape[:-3]

    def per_row(number: Any) -> Array:
        rows = np.asarray(number, dtype=np.float64)
        return (np.full(batch, rows) if rows.ndim == 0 else rows).reshape((*batch, 1, 1, 1))

    left, right = _sides(window_size)
    step = np.asarray(dilation, dtype=np.float64)[..., None, None]
    around_p = centers is None and (min(left, right) < math.inf or bool((step != 1).any()))
    if q_offset is None:
        if (is_causal or around_p or alibi_slopes is not None) and lq != lk:
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

    middle = p if centers is None else np.asarray(centers).astype(np.float64)[..., None]
    visible = (middle - step * left <= j) & (j <= middle + step * right)
    if centers is None:
        visible = visible & ((j - p) % step == 0)
    if global_tokens is not None:
        # Every query sees a global token, and the query at the place of one sees every key.
        is_global = _marked(np.asarray(global_tokens), batch, lk)
        visible = visible | is_global | (is_global & (j == p)).any(axis=-1, keepdims=True)

    is_query = i < q_length
    visible = visible & is_query & (j < kv_length)
    if is_causal:
        visible = visible & (j <= p)
    if mask is not None:
        visible = visible & (mask.dense(lq, lk) if hasattr(mask, "dense") else np.asarray(mask))
    if bias is not None:
        visible = visible & (np.asarray(bias) != -np.inf)

    if scores is None:
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

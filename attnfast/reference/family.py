"""Local, additive and packed attention, the heaviest keys, and results that are joined."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..result import AttentionResult
from .scores import Array, arrange
from .softmax import attend, attention, attention_weights, softmax, weighted_sum
from .stored import NUMBERS, packed_rows


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
    (q, k, v), rank = arrange(compute_dtype, query, key, value)
    options = {"window_size": window_size, "centers": centers, **options}
    if sigma is None:
        return attend(q, k, v, rank, **options)
    _, factor = gaussian(k, centers, sigma)
    return attend(q, k, v, rank, factor=factor, **options)


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
    (q, k, v), rank = arrange(compute_dtype, query, key, value)
    w, tanh = additive_terms(q, k, score_weight, score_bias)
    with np.errstate(all="ignore"):
        scores = (w * tanh).sum(axis=-1)
    return attend(q, k, v, rank, scores=scores, **options)


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
        kv_heads = np.shape(key)[-3] if np.ndim(key) > 2 else 1  # of pages too
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
    block_table: ArrayLike | None = None,
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
    q_offset, alibi_slopes : optional
        As for `attention`, with a sequence for a batch row.
    block_table : array_like, optional
        ``(n, blocks)``: key and value are pages ``(pages, Hk, page_size, D)``, and the keys of
        sequence ``s`` are the first ``cu_k[s + 1] - cu_k[s]`` of the pages that row ``s`` names.
    return_lse, compute_dtype : optional
        As for `attention`.
    **options
        As for `attention`. The axes of scales and zero points divide those of key and value here.

    Returns
    -------
    ndarray or AttentionResult
        The output ``(Tq, H, Dv)``, alone or with the lse ``(Tq, H)``.
    """
    numbers = {n: options.pop(n) for n in NUMBERS if n in options}
    k, v = packed_rows(key, value, cu_k, block_table, compute_dtype, **numbers)
    q, k, v = (np.swapaxes(np.asarray(a), 0, 1) for a in (query, k, v))
    output = np.zeros((*q.shape[:2], v.shape[-1]), compute_dtype)
    lse = np.zeros(q.shape[:2], compute_dtype)
    options = {"return_lse": True, "compute_dtype": compute_dtype, **options}
    for rows, keys, own in sequences(cu_q, cu_k, len(q), q_offset, alibi_slopes):
        output[:, rows], lse[:, rows], _ = attention(
            q[:, rows], k[:, keys], v[:, keys], **own, **options
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
        weights, total = softmax(scores, True, None)
        merged = weighted_sum(weights, scores != -np.inf, np.moveaxis(o, 0, -2))
    return AttentionResult(merged[..., 0, :], total[..., 0], None)


def gaussian(k: Array, centers: Any, sigma: float) -> tuple[Array, Array]:
    """Distances ``j - c`` and the factors of the weights, ``(..., Lq, Lk)``."""
    distance = np.arange(k.shape[-2]) - np.asarray(centers).astype(np.float64)[..., None]
    distance = distance.astype(k.dtype)
    with np.errstate(all="ignore"):
        return distance, np.exp(-((distance / float(sigma)) ** 2) / 2)


def additive_terms(
    q: Array, k: Array, score_weight: ArrayLike | None, score_bias: ArrayLike | None
) -> tuple[Array, Array]:
    """The ``w[d]``, and ``tanh(q + k + b)`` of every query, key and d: ``(..., Lq, Lk, D)``."""
    w = np.asarray(1 if score_weight is None else score_weight).astype(q.dtype)
    b = np.asarray(0 if score_bias is None else score_bias).astype(q.dtype)
    w, b = (np.broadcast_to(a, q.shape[-1:] if a.ndim < 2 else a.shape) for a in (w, b))
    with np.errstate(all="ignore"):
        sums = q[..., :, None, :] + k[..., None, :, :] + b[..., None, None, :]
        return w[..., None, None, :], np.tanh(sums)


def sequences(
    cu_q: ArrayLike, cu_k: ArrayLike, heads: int, q_offset: Any, alibi_slopes: ArrayLike | None
) -> Iterator[tuple[slice, slice, dict[str, Any]]]:
    """The rows and keys of each packed sequence, and the options that are its own."""
    q_ends, k_ends = np.asarray(cu_q), np.asarray(cu_k)
    n = len(q_ends) - 1
    offsets = [q_offset] * n if np.ndim(q_offset) == 0 else q_offset
    for s in range(n):
        own = {"q_offset": offsets[s], "first_row": s}
        if alibi_slopes is not None:
            own["alibi_slopes"] = np.broadcast_to(np.asarray(alibi_slopes), (n, heads))[s]
        yield slice(q_ends[s], q_ends[s + 1]), slice(k_ends[s], k_ends[s + 1]), own

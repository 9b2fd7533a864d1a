"""Attention: scores become weights, and weights a sum of the values."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..result import AttentionResult
from .dropout import dropout_factor
from .scores import Array, arrange, key_exists, score_stages
from .stored import real_rows

STAGES = ("scores", "capped", "biased", "weights")


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    block_table: ArrayLike | None = None,
    key_scale: ArrayLike | None = None,
    value_scale: ArrayLike | None = None,
    key_zero_point: ArrayLike | None = None,
    value_zero_point: ArrayLike | None = None,
    compute_dtype: DTypeLike = np.float64,
    **options: Any,
) -> Array | AttentionResult:
    """Attention as `attnfast.attention` defines it.

    Parameters
    ----------
    query, key, value : array_like
        ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)`` and ``(..., Hk, Lk, Dv)``.
    block_table : array_like, optional
        ``(..., blocks)``: key and value are pages ``(pages, Hk, page_size, D)``, and the keys of a
        batch row are those of the pages that its numbers name, one page after the other.
    key_scale, value_scale, key_zero_point, value_zero_point : array_like, optional
        What is stored stands for ``(stored - zero_point) * scale``. Each of their axes is 1 or
        divides that of key, or of value.
    compute_dtype : dtype
        Precision of the computation and of the results.
    **options
        ``mask``, ``bias``, ``is_causal``, ``window_size``, ``q_offset``, ``q_lengths``,
        ``kv_lengths``, ``kv_starts``, ``scale``, ``softcap``, ``alibi_slopes``, ``sink_logits``,
        ``return_lse`` and ``return_weights`` of `attnfast.attention`; ``dropout`` and
        ``dropout_seed``, with which some weights count as 0 and the others as
        ``weight / (1 - dropout)``. The lse and weights that are returned are those before.

    Returns
    -------
    ndarray or AttentionResult
        The output ``(..., H, Lq, Dv)`` in `compute_dtype`, alone or with what was asked for.
    """
    stored = (key, key_scale, key_zero_point), (value, value_scale, value_zero_point)
    key, value = (
        real_rows(a, compute_dtype, block_table=block_table, scale=scale, zero_point=zero)
        for a, scale, zero in stored
    )
    (q, k, v), rank = arrange(compute_dtype, query, key, value)
    return attend(q, k, v, rank, **options)


def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    *,
    stage: str = "weights",
    block_table: ArrayLike | None = None,
    key_scale: ArrayLike | None = None,
    key_zero_point: ArrayLike | None = None,
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
        Where keys are in pages, those that no length reaches do not exist: -inf in the first two.
    block_table, key_scale, key_zero_point, sink_logits, compute_dtype : optional
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
    stored = {"block_table": block_table, "scale": key_scale, "zero_point": key_zero_point}
    keys = real_rows(key, compute_dtype, **stored)
    (q, k), rank = arrange(compute_dtype, query, keys)
    with np.errstate(all="ignore"):
        stages = score_stages(q, k, **score_options)
        weights, _ = softmax(stages.biased, stages.is_query, sink_logits)
    result: Array = weights if stage == "weights" else getattr(stages, stage)
    if block_table is not None and stage in ("scores", "capped"):
        lengths = {n: score_options.get(n) for n in ("kv_lengths", "kv_starts")}
        result = np.where(key_exists(result, **lengths), result, -np.inf)
    return result[0] if rank == 2 else result


def attend(
    q: Array,
    k: Array,
    v: Array,
    rank: int,
    *,
    factor: Array | None = None,
    sink_logits: ArrayLike | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
    dropout: float = 0.0,
    dropout_seed: int = 0,
    first_row: int = 0,
    **score_options: Any,
) -> Array | AttentionResult:
    """Scores, softmax and weighted sum; the weights are multiplied by `factor` in between.

    For dropout, batch rows count from `first_row`.
    """
    with np.errstate(all="ignore"):
        stages = score_stages(q, k, **score_options)
        weights, lse = softmax(stages.biased, stages.is_query, sink_logits)
        weights = weights if factor is None else weights * factor
        kept = weights * dropout_factor(weights.shape, dropout, dropout_seed, first_row)
        output = weighted_sum(kept.astype(q.dtype), stages.biased != -np.inf, v)
    if rank == 2:
        output, lse, weights = output[0], lse[0], weights[0]
    if not (return_lse or return_weights):
        return output
    return AttentionResult(output, lse if return_lse else None, weights if return_weights else None)


def softmax(
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


def weighted_sum(weights: Array, counts: Array, value: Array) -> Array:
    """sum_j weight[i, j] * value[j] over the pairs that count, whatever the other values hold."""
    finite = np.asarray(np.isfinite(value).all(axis=-1))
    output = weights @ np.where(finite[..., None], value, value.dtype.type(0))
    # 0 * NaN is NaN, so keys that hold NaN or inf are added one by one, where they count.
    for j in np.flatnonzero(~finite.all(axis=tuple(range(finite.ndim - 1)))):
        pairs = counts[..., j : j + 1] & ~finite[..., None, j : j + 1]
        term = weights[..., j : j + 1] * value[..., j : j + 1, :]
        output += np.where(pairs, term, value.dtype.type(0))
    return output

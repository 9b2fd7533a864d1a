"""Gradients of local, additive and packed attention and of results that are joined."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .family import additive_terms, gaussian, sequences
from .gradients import (
    QKV,
    AttentionGradients,
    attend_backward,
    attention_backward,
    choose,
    product_backward,
    softmax_backward,
    sum_to,
)
from .scores import Array, arrange
from .softmax import softmax


def local_attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike | None,
    lse: ArrayLike | None,
    window_size: Any,
    *,
    centers: ArrayLike | None = None,
    sigma: float | None = None,
    wanted: tuple[str, ...] = QKV,
    compute_dtype: DTypeLike = np.float64,
    **options: Any,
) -> AttentionGradients:
    """Compute the gradients of a loss that depends on what `local_attention` returns.

    Parameters
    ----------
    grad_output, query, key, value, output, lse : array_like
        As for `attention_backward`.
    window_size, centers, sigma : optional
        As for `local_attention`. Centers have a gradient where there is a `sigma`; that of the
        edges of a window is 0.
    wanted, compute_dtype : optional
        As for `attention_backward`.
    **options
        Those of `attention_backward`, ``global_tokens`` and ``dilation``.

    Returns
    -------
    AttentionGradients
        As for `attention_backward`.
    """
    (q, k, v), _ = arrange(compute_dtype, query, key, value)
    options = {"window_size": window_size, "centers": centers, **options}
    distance, factor = (None, None) if sigma is None else gaussian(k, centers, sigma)
    scores, seen, grads = attend_backward(grad_output, q, k, v, factor=factor, **options)
    grads |= product_backward(scores, seen, q, k, options.get("scale"))
    if sigma is not None:
        assert centers is not None and distance is not None
        by_center = grads.pop("log_factor") * (distance / float(sigma)) / float(sigma)
        grads["centers"] = sum_to(by_center.sum(axis=-1), np.shape(centers))
    return choose(grads, wanted, query=query, key=key, value=value)


def additive_attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike | None,
    lse: ArrayLike | None,
    score_weight: ArrayLike | None = None,
    *,
    score_bias: ArrayLike | None = None,
    wanted: tuple[str, ...] = QKV,
    compute_dtype: DTypeLike = np.float64,
    **options: Any,
) -> AttentionGradients:
    """Compute the gradients of a loss that depends on what `additive_attention` returns.

    Parameters
    ----------
    grad_output, query, key, value, output, lse : array_like
        As for `attention_backward`.
    score_weight, score_bias : array_like, optional
        As for `additive_attention`.
    wanted, compute_dtype : optional
        As for `attention_backward`.
    **options
        Those of `attention_backward`, without ``scale``.

    Returns
    -------
    AttentionGradients
        As for `attention_backward`.
    """
    (q, k, v), _ = arrange(compute_dtype, query, key, value)
    w, tanh = additive_terms(q, k, score_weight, score_bias)
    scores = (w * tanh).sum(axis=-1)
    scores, seen, grads = attend_backward(grad_output, q, k, v, scores=scores, **options)
    with np.errstate(all="ignore"):
        by_tanh = np.where(seen[..., None], scores[..., None] * tanh, 0)
        by_sum = np.where(seen[..., None], scores[..., None] * w * (1 - tanh**2), 0)
    grads["query"], grads["key"] = by_sum.sum(axis=-2), by_sum.sum(axis=-3)
    for name, operand, by in [
        ("score_weight", score_weight, by_tanh),
        ("score_bias", score_bias, by_sum),
    ]:
        if operand is not None:
            grads[name] = sum_to(by.sum(axis=(-3, -2)), np.shape(operand))
    return choose(grads, wanted, query=query, key=key, value=value)


def attention_varlen_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike | None,
    lse: ArrayLike | None,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    *,
    q_offset: Any = None,
    alibi_slopes: ArrayLike | None = None,
    grad_lse: ArrayLike | None = None,
    wanted: tuple[str, ...] = QKV,
    compute_dtype: DTypeLike = np.float64,
    **options: Any,
) -> AttentionGradients:
    """Compute the gradients of a loss that depends on what `attention_varlen` returns.

    Parameters
    ----------
    grad_output : array_like
        Derivative of the loss by the output, ``(Tq, H, Dv)``.
    query, key, value, output, lse, cu_q, cu_k : array_like
        As for `attention_varlen` and `attention_backward`.
    q_offset, alibi_slopes : optional
        As for `attention_varlen`.
    grad_lse : array_like, optional
        Derivative of the loss by the lse, ``(Tq, H)``.
    wanted, compute_dtype : optional
        As for `attention_backward`.
    **options
        Those of `attention_varlen`.

    Returns
    -------
    AttentionGradients
        As for `attention_backward`.
    """
    g, q, k, v = (np.swapaxes(np.asarray(a), 0, 1) for a in (grad_output, query, key, value))
    arrays = {"query": q, "key": k, "value": v}
    total = {name: np.zeros(a.shape, compute_dtype) for name, a in arrays.items()}
    sinks = options.get("sink_logits")
    if sinks is not None:
        total["sink_logits"] = np.zeros(np.shape(sinks), compute_dtype)
    if alibi_slopes is not None:
        total["alibi_slopes"] = np.zeros((len(np.asarray(cu_q)) - 1, len(q)), compute_dtype)
    by_lse = np.zeros(q.shape[:2]) if grad_lse is None else np.swapaxes(np.asarray(grad_lse), 0, 1)
    options = {"wanted": tuple(total), "compute_dtype": compute_dtype, **options}
    for s, (rows, keys, own) in enumerate(sequences(cu_q, cu_k, len(q), q_offset, alibi_slopes)):
        packed = (g[:, rows], q[:, rows], k[:, keys], v[:, keys])
        own |= {"grad_lse": by_lse[:, rows], **options}
        grads = attention_backward(*packed, output=None, lse=None, **own)
        total["query"][:, rows] = grads.query
        total["key"][:, keys] = grads.key
        total["value"][:, keys] = grads.value
        if alibi_slopes is not None:
            total["alibi_slopes"][s] = grads.alibi_slopes
        if sinks is not None:
            total["sink_logits"] += grads.sink_logits
    total |= {name: total[name].swapaxes(0, 1) for name in arrays}
    if alibi_slopes is not None:
        total["alibi_slopes"] = sum_to(total["alibi_slopes"], np.shape(alibi_slopes))
    return choose(total, wanted)


def merge_attention_backward(
    grad_output: ArrayLike,
    outputs: ArrayLike,
    lses: ArrayLike,
    *,
    grad_lse: ArrayLike | None = None,
    compute_dtype: DTypeLike = np.float64,
) -> tuple[Array, Array]:
    """Compute the gradients of a loss that depends on what `merge_attention` returns.

    Parameters
    ----------
    grad_output : array_like
        Derivative of the loss by the merged output, ``(..., Dv)``.
    outputs, lses : array_like
        As for `merge_attention`.
    grad_lse : array_like, optional
        Derivative of the loss by the merged lse, ``(...)``.
    compute_dtype : dtype
        Precision of the computation and of the results.

    Returns
    -------
    outputs : ndarray
        Gradients of the parts' outputs, ``(parts, ..., Dv)``.
    lses : ndarray
        Gradients of their lses, ``(parts, ...)``.
    """
    o, s = np.asarray(outputs).astype(compute_dtype), np.asarray(lses).astype(compute_dtype)
    g = np.asarray(grad_output).astype(compute_dtype)
    with np.errstate(all="ignore"):
        # Each part is one key whose score is its lse and whose value is its output.
        scores = np.moveaxis(s, 0, -1)
        weights, _ = softmax(scores, True, None)
        seen = scores != -np.inf
        by_weight = np.moveaxis((g * o).sum(axis=-1), 0, -1)
        by_lse, _ = softmax_backward(by_weight, weights, seen, grad_lse)
        by_output = np.where(seen[..., None], weights[..., None] * g[..., None, :], 0)
    return np.moveaxis(by_output, -2, 0), np.moveaxis(by_lse, -1, 0)

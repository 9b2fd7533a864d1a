"""Gradients of everything that attends, in closed form.

A loss L depends on the output O, the lse and the weights W that a call returns. With P the softmax,
f the Gaussian factor (1 but for local-p attention) and m that of dropout,

    W[i, j] = f[i, j] P[i, j]           O[i] = sum_j m[i, j] W[i, j] value[j]
    P[i, j] = exp(biased[i, j] - lse[i])         lse[i] = log(exp(sink) + sum_j exp(biased[i, j]))

The weights meet the loss in the output and as they are returned:

    dW[i, j] = m[i, j] <dO[i], value[j]> + grad_weights[i, j]           dP = f dW

A score moves all weights of its query, dP[i, k] / dbiased[i, j] = P[i, k] ([j = k] - P[i, j]), and
the lse by P[i, j]. The sink is one more score, whose weight P_sink[i] = exp(sink - lse[i]) meets
nothing:

    delta[i]      = sum_k P[i, k] dP[i, k] - grad_lse[i]
    dbiased[i, j] = P[i, j] (dP[i, j] - delta[i])
    dsink         = sum_i P_sink[i] (0 - delta[i])

``sum_k P dP = <dO[i], O[i]> + sum_k W grad_weights``, so delta needs no second look at the keys
where the output is known. From dbiased, each step of the scores goes back by its own derivative
(`_score_gradients`), and what was broadcast in the call is summed (`sum_to`).

A pair that is hidden has dbiased = 0 and takes no part in any sum, whatever is stored there.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .dropout import dropout_factor
from .scores import Array, Stages, arrange, scale_of, score_stages
from .softmax import softmax, weighted_sum

QKV = ("query", "key", "value")


class AttentionGradients(NamedTuple):
    """Gradients of what a call was given, each in the shape of its operand.

    Attributes
    ----------
    query, key, value : ndarray or None
        Those of the three arrays.
    bias, sink_logits, alibi_slopes : ndarray or None
        Those of the options that every function has.
    centers, score_weight, score_bias : ndarray or None
        Those of what only `local_attention` or only `additive_attention` takes.
    """

    # Arrays where they are wanted, which callers know: `Any` spares them a test for None.
    query: Any = None
    key: Any = None
    value: Any = None
    bias: Any = None
    sink_logits: Any = None
    alibi_slopes: Any = None
    centers: Any = None
    score_weight: Any = None
    score_bias: Any = None


def attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike | None,
    lse: ArrayLike | None,
    *,
    wanted: tuple[str, ...] = QKV,
    compute_dtype: DTypeLike = np.float64,
    **options: Any,
) -> AttentionGradients:
    """Compute the gradients of a loss that depends on what `attention` returns.

    Parameters
    ----------
    grad_output : array_like
        Derivative of the loss by the output, ``(..., H, Lq, Dv)``.
    query, key, value : array_like
        As for `attention`.
    output, lse : array_like or None
        What the call returned. They are worked out again here, so that no rounding of theirs
        enters, and None will do.
    wanted : tuple of str
        Fields of `AttentionGradients`.
    compute_dtype : dtype
        Precision of the computation and of the results.
    **options
        Those of `attention`; ``grad_lse`` ``(..., H, Lq)`` and ``grad_weights``
        ``(..., H, Lq, Lk)``, derivatives of the loss by the lse and by the weights returned.

    Returns
    -------
    AttentionGradients
        The gradients in `compute_dtype`, None where they are not wanted.
    """
    (q, k, v), _ = arrange(compute_dtype, query, key, value)
    scores, seen, grads = attend_backward(grad_output, q, k, v, **options)
    grads |= product_backward(scores, seen, q, k, options.get("scale"))
    return choose(grads, wanted, query=query, key=key, value=value)


def attend_backward(
    grad_output: ArrayLike,
    q: Array,
    k: Array,
    v: Array,
    *,
    factor: Array | None = None,
    sink_logits: ArrayLike | None = None,
    grad_lse: ArrayLike | None = None,
    grad_weights: ArrayLike | None = None,
    dropout: float = 0.0,
    dropout_seed: int = 0,
    first_row: int = 0,
    **score_options: Any,
) -> tuple[Array, Array, dict[str, Array]]:
    """Gradient of the scores, which pairs are seen, and the gradients of all but query and key."""
    with np.errstate(all="ignore"):
        stages = score_stages(q, k, **score_options)
        p, lse = softmax(stages.biased, stages.is_query, sink_logits)
        seen = stages.biased != -np.inf
        kept = np.asarray(dropout_factor(p.shape, dropout, dropout_seed, first_row)).astype(q.dtype)
        f = q.dtype.type(1) if factor is None else factor
        g = np.asarray(grad_output).astype(q.dtype).reshape((*p.shape[:-1], v.shape[-1]))

        by_weight = kept * (g @ v.swapaxes(-1, -2))
        if grad_weights is not None:
            by_weight = by_weight + np.asarray(grad_weights).astype(q.dtype)
        by_biased, delta = softmax_backward(f * by_weight, p, seen, grad_lse)
        transposed = (p * f * kept).swapaxes(-1, -2), seen.swapaxes(-1, -2)
        grads = {"value": weighted_sum(*transposed, g)}
        if factor is not None:
            grads["log_factor"] = np.where(seen, p * f * by_weight, 0)
        if sink_logits is not None:
            sink = np.asarray(sink_logits).astype(q.dtype)[..., None]
            by_sink = np.where(lse == -np.inf, 0, -np.exp(sink - lse) * delta)
            grads["sink_logits"] = sum_to(by_sink.sum(axis=-1), np.shape(sink_logits))
        by_score, more = _score_gradients(by_biased, seen, stages, **score_options)
    return by_score, seen, grads | more


def softmax_backward(
    by_weight: Array, weights: Array, seen: Array, grad_lse: ArrayLike | None
) -> tuple[Array, Array]:
    """Gradient of the scores of a softmax, and the delta that is taken off in each row."""
    delta = np.where(seen, weights * by_weight, 0).sum(axis=-1)
    if grad_lse is not None:
        delta = delta - np.asarray(grad_lse).astype(delta.dtype)
    return np.where(seen, weights * (by_weight - delta[..., None]), 0), delta


def _score_gradients(
    by_biased: Array,
    seen: Array,
    stages: Stages,
    *,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Array, dict[str, Array]]:
    """Gradient of the scores, and those of what was added to them: each step's derivative."""
    grads = {}
    if bias is not None:
        grads["bias"] = sum_to(by_biased, np.shape(bias))
    if alibi_slopes is not None:
        by_slope = -(by_biased * stages.distance).sum(axis=(-2, -1))
        grads["alibi_slopes"] = sum_to(by_slope, np.shape(alibi_slopes)).astype(by_biased.dtype)
    by_score = by_biased
    if softcap is not None:
        by_score = np.where(seen, by_biased * (1 - (stages.capped / float(softcap)) ** 2), 0)
    return by_score, grads


def product_backward(
    by_score: Array, seen: Array, q: Array, k: Array, scale: float | None
) -> dict[str, Array]:
    """Gradients of query and key by way of ``scale * <query, key>``."""
    with np.errstate(all="ignore"):
        by_product = by_score * scale_of(q, scale)
        transposed = by_product.swapaxes(-1, -2), seen.swapaxes(-1, -2)
        return {"query": weighted_sum(by_product, seen, k), "key": weighted_sum(*transposed, q)}


def choose(
    grads: dict[str, Array], wanted: tuple[str, ...], **arrays: ArrayLike
) -> AttentionGradients:
    """The gradients by name; heads and batch axes of the arrays as they were in the call."""
    for name, array in arrays.items():
        shape, grad = np.shape(array), grads[name]
        *batch, heads, length, dim = grad.shape
        kv_heads = shape[-3] if len(shape) > 2 else 1
        groups = (*batch, kv_heads, heads // kv_heads if kv_heads else 1, length, dim)
        grads[name] = sum_to(grad.reshape(groups).sum(axis=-3), shape)
    return AttentionGradients(**{name: grads[name] for name in wanted})


def sum_to(a: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an operand of this shape was broadcast."""
    a = a.sum(axis=tuple(range(a.ndim - len(shape))))
    thin = tuple(axis for axis, n in enumerate(shape) if n == 1 and a.shape[axis] != 1)
    return np.asarray(a.sum(axis=thin, keepdims=True)).reshape(shape)

"""Multi-head attention and its gradients, by way of those of attention."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..api import attention
from ..merge import merge_attention
from ..pullback import vjp
from ..result import AttentionResult
from .forward import (
    EXTRA_OPTIONS,
    extra_heads,
    join_heads,
    join_weights,
    prepare,
    project,
    shares_of,
    split_heads,
)
from .gradients import LayerGradients, add_to, as_gradient, linear_backward, weights_gradient
from .projections import Projections

Array = NDArray[Any]
Parts = dict[str, Array]
# From the derivatives by output and weights of all heads to those of q, k, v, options, extra key.
DIFFERENTIABLE = ("bias", "sink_logits", "alibi_slopes")  # of the options
Pullback = Callable[[Array, Array | None], Parts]


def multihead_vjp(
    w: Projections,
    query: ArrayLike,
    key: ArrayLike | None,
    value: ArrayLike | None,
    options: dict[str, Any],
    *,
    wanted: Sequence[str],
    return_weights: bool,
) -> tuple[Array, Array | None, Callable[..., LayerGradients]]:
    """Output, weights of all heads or None, and the pullback of both."""
    if isinstance(wanted, str) or any(name not in DIFFERENTIABLE for name in wanted):
        raise ValueError(
            f"wanted must be a tuple of {', '.join(DIFFERENTIABLE)}, got {wanted!r}: inputs and "
            "weights always have gradients"
        )
    inputs, options = prepare(w, query, key, value, options)
    names = ["query", "query" if key is None else "key"]
    names.append(names[1] if value is None else "value")
    result, attend_back = _attend(*project(w, inputs), w, options, wanted, return_weights)
    packed = join_heads(result.output)
    output = w.output(packed)

    def pullback(grad_output: ArrayLike, grad_weights: ArrayLike | None = None) -> LayerGradients:
        """Gradients, from the derivatives of a loss by output and weights of all heads."""
        grad = as_gradient(grad_output, "grad_output", output)
        by_weights = weights_gradient(grad_weights, result.weights)
        by_packed, *by_output = linear_backward(w.output, packed, grad)
        parts = attend_back(split_heads(by_packed, w.num_heads), by_weights)
        by_input: Parts = {name: parts[name] for name in wanted}
        by_weight: Parts = {}
        maps = (w.query, w.key, w.value)
        for name, kind, m, x in zip(names, ("query", "key", "value"), maps, inputs, strict=True):
            by_x, *by_map = linear_backward(m, x, join_heads(parts[kind]))
            add_to(by_input, name, by_x)
            _put(by_weight, kind, by_map)
        _put(by_weight, "output", by_output)
        by_weight |= {name: parts[name] for name in ("extra_key", "extra_value") if name in parts}
        return LayerGradients(by_input, by_weight)

    return output, result.weights, pullback


def _put(total: Parts, name: str, grads: Sequence[Array | None]) -> None:
    """Gradients of the weight and the bias of a map."""
    for part, grad in zip(("weight", "bias"), grads, strict=True):
        if grad is not None:
            total[f"{name}.{part}"] = grad


def _attend(
    q: Array,
    k: Array,
    v: Array,
    w: Projections,
    options: dict[str, Any],
    wanted: Sequence[str],
    return_weights: bool,
) -> tuple[AttentionResult, Pullback]:
    """Attention, and the gradients of what it was given by name."""
    names = ("query", "key", "value", *wanted)
    flags = {"return_lse": True, "return_weights": return_weights}
    rest, rest_back = vjp(attention, q, k, v, wanted=names, **flags, **options)
    if w.extra_key is None:

        def pullback(grad: Array, grad_weights: Array | None) -> Parts:
            grads = rest_back(grad, grad_weights=grad_weights)
            return {name: getattr(grads, name) for name in names}

        return rest, pullback
    own = {name: options[name] for name in EXTRA_OPTIONS if name in options}
    extra, extra_back = vjp(attention, q, *extra_heads(w), return_lse=True, **own)
    outputs, lses = [rest.output, extra.output], [rest.lse, extra.lse]
    joined, join_back = vjp(merge_attention, outputs, lses)
    shares = shares_of((rest, extra), joined.lse)
    weights = join_weights(rest.weights, shares) if return_weights else None

    def pullback_of_both(grad: Array, grad_weights: Array | None) -> Parts:
        by_lses, by_joined, by_rest_weights = np.zeros(2), None, None
        if grad_weights is not None:  # the weights of a part are its own times exp(its lse - lse)
            by_rest_weights = grad_weights[..., :-1] * shares[0][..., None]
            by_rest = (by_rest_weights * rest.weights).sum(axis=-1)
            by_lses = np.stack([by_rest, grad_weights[..., -1] * shares[1]])
            by_joined = -by_lses.sum(axis=0)
        parts = join_back(grad, by_joined)
        of_rest = rest_back(parts.outputs[0], parts.lses[0] + by_lses[0], by_rest_weights)
        of_extra = extra_back(parts.outputs[1], parts.lses[1] + by_lses[1])
        grads = {name: getattr(of_rest, name) for name in names}
        grads["query"] = grads["query"] + of_extra.query
        grads["extra_key"] = of_extra.key.reshape(-1)
        grads["extra_value"] = of_extra.value.reshape(-1)
        return grads

    return AttentionResult(joined.output, joined.lse, weights), pullback_of_both

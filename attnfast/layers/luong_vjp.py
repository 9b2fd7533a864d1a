"""Gradients of Luong's attention, from those of its function to those of states and weights."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pullback import vjp
from ..result import AttentionResult
from .gradients import LayerGradients, linear_backward
from .linear import Linear
from .windows import window_pullback

Array = NDArray[Any]


def attend(
    function: Callable[..., AttentionResult],
    operands: tuple[Array, Array, Array],
    options: dict[str, Any],
) -> tuple[AttentionResult, Callable[..., Any]]:
    """The result of a call with one head, and its pullback."""
    own = [name for name in ("centers", "score_weight") if name in options]
    if len(own) < 2:
        wanted = ("query", "key", "value", *own)
        result, pullback = vjp(function, *operands, wanted=wanted, return_lse=True, **options)
        return result, pullback
    result = function(*operands, return_lse=True, **options)
    rest = {name: x for name, x in options.items() if name != "return_weights"}
    return result, window_pullback(*operands, **rest)


def score_gradients(
    score: str, weights: Mapping[str, Array], h_t: Array, h_s: Array, grads: Any
) -> LayerGradients:
    """From gradients of query, key and value to those of the states and of the score."""
    q, k, v = (getattr(grads, name)[..., 0, :, :] for name in ("query", "key", "value"))
    if score == "dot":
        return LayerGradients({"hidden": q, "source": k + v}, {})
    w_a, dim = weights["w_a"], h_t.shape[-1]
    by_hidden, by_w_q, _ = linear_backward(Linear(w_a[:dim]), h_t, q)
    if score == "general":
        return LayerGradients({"hidden": by_hidden, "source": k + v}, {"w_a": by_w_q})
    by_source, by_w_k, _ = linear_backward(Linear(w_a[dim:]), h_s, k)
    by_weight = {"w_a": np.concatenate([by_w_q, by_w_k]), "v_a": grads.score_weight}
    return LayerGradients({"hidden": by_hidden, "source": by_source + v}, by_weight)


def add_center_gradients(
    weights: Mapping[str, Array], h_t: Array, by_share: Array, gradients: LayerGradients
) -> None:
    """Add what goes by way of the predicted positions, which are shares of the source's length."""
    w_p, v_p = Linear(weights["w_p"]), weights["v_p"]
    inner = np.tanh(w_p(h_t))
    share = (1 + np.tanh(inner @ v_p / 2)) / 2
    by_logit = (by_share * share * (1 - share)).astype(h_t.dtype)[..., None]
    by_hidden, by_w_p, _ = linear_backward(w_p, h_t, by_logit * v_p * (1 - inner**2))
    gradients.inputs["hidden"] = gradients.inputs["hidden"] + by_hidden
    gradients.weights["w_p"] = by_w_p
    gradients.weights["v_p"] = (inner * by_logit).reshape(-1, len(v_p)).sum(axis=0)

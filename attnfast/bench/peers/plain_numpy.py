"""Plain NumPy: the baseline that every row is compared with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..case import BACKWARD, Case
from ..functions.attention import Calls
from ..functions.local import dense_mask, gaussian_factor
from ..functions.training import GRADIENT
from ..functions.varlen import sequences
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import TRAINING, Prepared, plain_gradients
from .plain_math import (
    plain_additive,
    plain_attention,
    plain_half,
    plain_heaviest,
    plain_importance,
    plain_topk,
    plain_varlen,
)

MOST_BYTES = 5e9  # of the arrays of scores that live at once; above this a user would not run it


class PlainNumpy:
    """NumPy and whatever BLAS it was built with."""

    def __init__(self, threads: int) -> None:
        self.version = np.__version__

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """One way, or two where neither is always faster.

        Refuses scores that would not fit a desktop's memory. Masks are made before, so that they
        are not timed.
        """
        arrays = 4 if case.function in TRAINING else 2
        arrays *= case.head_dim if case.function.startswith("additive") else 1
        require_memory(arrays * case.score_bytes, "the scores", MOST_BYTES)
        ways = _topk(case, inputs) if case.kind == "top" else {"plain": _calls(case, inputs)}
        return {name: partial(_prepared, calls) for name, calls in ways.items()}


def _prepared(calls: Calls) -> Prepared:
    return Prepared(calls, lambda result: result)


def _topk(case: Case, inputs: Inputs) -> dict[str, Calls]:
    arrays, mask = (inputs.query, inputs.keys[0]), full_mask(case, inputs)
    if case.number == 1:
        return {"argmax": [partial(plain_heaviest, *arrays, mask)]}
    return {
        name: [partial(plain_topk, *arrays, case.number, mask, from_above)]
        for name, from_above in (("partition", False), ("partition of -w", True))
    }


def _calls(case: Case, inputs: Inputs) -> Calls:
    if case.function in ("attention", "stored"):
        mask = full_mask(case, inputs)
        attend = plain_half if case.itemsize == 2 else plain_attention
        return [
            partial(attend, inputs.query, key, value, mask, inputs.bias)
            for key, value in zip(inputs.keys, inputs.values, strict=True)
        ]
    if case.function in TRAINING:
        return [_step(case, inputs)]
    query, key, value = inputs.query, inputs.keys[0], inputs.values[0]
    if case.function == "local_attention":
        mask, factor = dense_mask(case, inputs), gaussian_factor(case, inputs)
        return [partial(plain_attention, query, key, value, mask, None, factor)]
    if case.function == "block_mask":
        mask = inputs.extra["mask"].dense(case.q_len, case.k_len)
        return [partial(plain_attention, query, key, value, mask)]
    if case.function == "additive_attention":
        return [partial(plain_additive, query, key, value, **inputs.extra)]
    if case.function == "key_importance":
        return [partial(plain_importance, query, key, full_mask(case, inputs))]
    return [partial(plain_varlen, sequences(inputs), case.causal)]


def _step(case: Case, inputs: Inputs) -> Callable[[], tuple[Any, ...]]:
    """Forward and backward, or the latter alone."""
    forward, backward = _halves(case, inputs)
    if case.kind == BACKWARD:
        return partial(backward, *forward())

    def step() -> tuple[Any, ...]:
        output, *kept = forward()
        return output, *backward(output, *kept)

    return step


def _halves(
    case: Case, inputs: Inputs
) -> tuple[Callable[[], tuple[Any, ...]], Callable[..., tuple[Any, ...]]]:
    """The forward call, and the backward one that takes what the forward one returns."""
    arrays = inputs.query, inputs.keys[0], inputs.values[0]
    gradient = inputs.extra[GRADIENT]
    if case.function == "additive_training":
        weight = inputs.extra["score_weight"]
        return (
            partial(plain_gradients.forward_additive, *arrays, weight),
            partial(plain_gradients.backward_additive, gradient, arrays[2], weight),
        )
    mask, bias = full_mask(case, inputs), inputs.bias
    return (
        partial(plain_gradients.forward, *arrays, mask, bias, case.softcap),
        partial(plain_gradients.backward, gradient, *arrays, with_bias=bias is not None),
    )

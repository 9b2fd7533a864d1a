"""JAX: `jax.nn.dot_product_attention` and its gradients, compiled for the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ..case import BACKWARD, Case
from ..functions.training import GRADIENT
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import Prepared

ARRAYS_KEPT = 5  # of scores, in a step of training


class Jax:
    """XLA's attention; the number of threads is set in the worker's environment."""

    def __init__(self, threads: int) -> None:
        jax.config.update("jax_enable_x64", True)
        self.version = jax.__version__

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """One variant, whose arrays are `(B, L, H, D)` as JAX wants them."""
        if case.function == "training":
            require_memory(ARRAYS_KEPT * case.score_bytes, "the scores")
            name = "dot_product_attention" if case.softcap is None else "formula"
            return {name: partial(_prepare_step, case, inputs)}
        require_memory(3 * case.score_bytes, "the scores")
        return {"dot_product_attention": partial(_prepare, case, inputs)}


def _prepare(case: Case, inputs: Inputs) -> Prepared:
    options = _options(case, inputs)
    if inputs.bias is not None:
        options["bias"] = jnp.asarray(inputs.bias)
    attend = jax.jit(jax.nn.dot_product_attention, static_argnames="is_causal")
    query = _rows_first(inputs.query)

    def call(key: Any, value: Any) -> Any:
        return attend(query, key, value, **options).block_until_ready()

    calls = [
        partial(call, _rows_first(key), _rows_first(value))
        for key, value in zip(inputs.keys, inputs.values, strict=True)
    ]
    return Prepared(calls, lambda result: np.asarray(result).swapaxes(1, 2))


def _prepare_step(case: Case, inputs: Inputs) -> Prepared:
    """Forward and backward as one compiled function, or the compiled pullback alone."""
    options = _options(case, inputs)
    arrays = inputs.query, inputs.keys[0], inputs.values[0]
    operands = [_rows_first(array) for array in arrays]
    operands += [] if inputs.bias is None else [jnp.asarray(inputs.bias)]
    gradient = _rows_first(inputs.extra[GRADIENT])

    def attend(query: Any, key: Any, value: Any, bias: Any = None) -> Any:
        if case.softcap is not None:
            return _softcapped(query, key, value, bias, options.get("mask"), case)
        return jax.nn.dot_product_attention(query, key, value, bias, **options)

    def step(gradient: Any, *operands: Any) -> tuple[Any, ...]:
        output, pullback = jax.vjp(attend, *operands)
        return output, *pullback(gradient)

    call = partial(jax.jit(step), gradient, *operands)
    if case.kind == BACKWARD:
        _, pullback = jax.vjp(attend, *operands)
        call = partial(jax.jit(lambda pullback, gradient: pullback(gradient)), pullback, gradient)

    def results(result: tuple[Any, ...]) -> tuple[NDArray[Any], ...]:
        last = len(result) - (inputs.bias is not None)
        rows, bias = result[:last], result[last:]
        return *(np.asarray(a).swapaxes(1, 2) for a in rows), *(np.asarray(a) for a in bias)

    return Prepared([lambda: jax.block_until_ready(call())], results)


def _softcapped(query: Any, key: Any, value: Any, bias: Any, mask: Any, case: Case) -> Any:
    """The formula, for what `dot_product_attention` does not have."""
    group = case.heads // case.kv_heads
    key, value = (jnp.repeat(array, group, axis=2) for array in (key, value))
    scores = jnp.einsum("bihd,bjhd->bhij", query, key) * (1 / math.sqrt(case.head_dim))
    scores = case.softcap * jnp.tanh(scores / case.softcap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores, axis=-1), value)


def _options(case: Case, inputs: Inputs) -> dict[str, Any]:
    """What hides keys, as `dot_product_attention` is told; the formula knows masks only."""
    options: dict[str, Any] = {}
    if case.causal and case.window is None and not case.at_end and case.softcap is None:
        options["is_causal"] = True
        mask = inputs.mask
    else:
        mask = full_mask(case, inputs)
    if mask is not None:
        options["mask"] = jnp.asarray(mask.reshape((1,) * (4 - mask.ndim) + mask.shape))
    return options


def _rows_first(array: Any) -> Any:
    """(B, H, L, D) -> (B, L, H, D)."""
    return jnp.asarray(np.ascontiguousarray(array.swapaxes(1, 2)))

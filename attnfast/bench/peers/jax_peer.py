"""JAX: `jax.nn.dot_product_attention`, compiled for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..case import Case
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import Prepared


class Jax:
    """XLA's attention; the number of threads is set in the worker's environment."""

    def __init__(self, threads: int) -> None:
        jax.config.update("jax_enable_x64", True)
        self.version = jax.__version__

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """One variant, whose arrays are `(B, L, H, D)` as JAX wants them."""
        require_memory(3 * case.score_bytes, "the scores")
        return {"dot_product_attention": partial(_prepare, case, inputs)}


def _prepare(case: Case, inputs: Inputs) -> Prepared:
    options: dict[str, Any] = {}
    if case.causal and case.window is None and not case.at_end:
        options["is_causal"] = True
        mask = inputs.mask
    else:
        mask = full_mask(case, inputs)
    if mask is not None:
        options["mask"] = jnp.asarray(mask.reshape((1,) * (4 - mask.ndim) + mask.shape))
    if inputs.bias is not None:
        options["bias"] = jnp.asarray(inputs.bias)
    attend = jax.jit(jax.nn.dot_product_attention, static_argnames="is_causal")

    def rows_first(array: Any) -> Any:
        return jnp.asarray(np.ascontiguousarray(array.swapaxes(1, 2)))

    query = rows_first(inputs.query)

    def call(key: Any, value: Any) -> Any:
        return attend(query, key, value, **options).block_until_ready()

    calls = [
        partial(call, rows_first(key), rows_first(value))
        for key, value in zip(inputs.keys, inputs.values, strict=True)
    ]
    return Prepared(calls, lambda result: np.asarray(result).swapaxes(1, 2))

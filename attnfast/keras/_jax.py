"""Attention on the arrays of Keras's backend jax, traced or not, with gradients."""

from functools import partial
from typing import Any

import jax

from ..jax import _attend, _call

DTYPES = ("float32", "float64", "float16", "bfloat16")


def computes(*arrays: Any) -> bool:
    kind = arrays[0].dtype
    return (
        jax.default_backend() == "cpu"
        and kind.name in DTYPES
        and all(x.dtype == kind and _is_readable(x) for x in arrays)
    )


def _is_readable(x: Any) -> bool:
    if isinstance(x, jax.core.Tracer):
        return True
    return isinstance(x, jax.Array) and all(d.platform == "cpu" for d in x.devices())


def attend(function: str, query: Any, key: Any, value: Any, **options: Any) -> Any:
    arrays = {"query": query, "key": key, "value": value}
    arrays |= {name: x for name, x in options.items() if isinstance(x, jax.Array)}
    fixed = tuple((name, x) for name, x in options.items() if name not in arrays)
    return _output(fixed, arrays)


@partial(jax.jit, static_argnums=0)
def _output(fixed: tuple[tuple[str, Any], ...], arrays: dict[str, Any]) -> Any:
    return _attend.attend(*_call.complete(dict(fixed), arrays, tokens_first=True))["output"]


def as_seed(state: Any) -> Any:
    return state

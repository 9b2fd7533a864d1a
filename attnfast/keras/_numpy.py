"""Attention on the arrays of Keras's backend numpy."""

from typing import Any

import numpy as np

import attnfast

DTYPES = ("float32", "float64", "float16", "bfloat16")


def computes(*arrays: Any) -> bool:
    kind = arrays[0].dtype
    return kind.name in DTYPES and all(type(x) is np.ndarray and x.dtype == kind for x in arrays)


def attend(function: str, query: Any, key: Any, value: Any, **options: Any) -> Any:
    heads = (x.swapaxes(1, 2) for x in (query, key, value))
    return getattr(attnfast, function)(*heads, **options).swapaxes(1, 2)


def as_seed(state: Any) -> int:
    high, low = (int(x) for x in state)
    return high << 32 | low

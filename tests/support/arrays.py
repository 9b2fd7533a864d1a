"""Dtypes, random inputs, and comparisons of bits."""

from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
DTYPE_IDS = [d.name for d in DTYPES]
# Of caches that store 8 bits.
BYTES = [np.dtype(d) for d in (np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)]
POISON = (np.nan, np.inf, -np.inf, 1e38, -1e38)


def compute_dtype(dtype: Any) -> np.dtype:
    """The dtype in which the library computes for inputs of `dtype`."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def truth_dtype(dtype: Any) -> Any:
    """A type wide enough to call a result in it exact."""
    return np.longdouble if np.dtype(dtype) == np.float64 else np.float64


def randn(rng: np.random.Generator, shape: Any, dtype: Any = np.float32) -> np.ndarray:
    """Standard normal numbers, rounded to `dtype`."""
    return rng.standard_normal(shape).astype(dtype)


def qkv(
    rng: np.random.Generator,
    lq: int,
    lk: int,
    d: int = 16,
    dv: int | None = None,
    *,
    heads: int = 2,
    kv_heads: int | None = None,
    batch: tuple[int, ...] = (2,),
    dtype: Any = np.float32,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random query, key and value of rank len(batch) + 3."""
    kv_heads = heads if kv_heads is None else kv_heads
    return (
        randn(rng, (*batch, heads, lq, d), dtype),
        randn(rng, (*batch, kv_heads, lk, d), dtype),
        randn(rng, (*batch, kv_heads, lk, d if dv is None else dv), dtype),
    )


def same_bits(a: Any, b: Any) -> bool:
    """Equal shape, dtype and bytes, so that NaN equals NaN and 0 differs from -0."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def assert_same(a: Any, b: Any, what: str = "") -> None:
    """Assert that two results hold the same bits, field by field."""
    if not isinstance(a, tuple):
        a, b = (a,), (b,)
    names = getattr(a, "_fields", range(len(a)))
    for name, x, y in zip(names, a, b, strict=True):
        assert (x is None and y is None) or same_bits(x, y), (name, what)


def poisoned(a: np.ndarray, where: Any, poison: float) -> np.ndarray:
    """A copy of `a` in the same layout, with poison in the rows (..., L) that `where` selects."""
    copy = np.copy(a, order="K")
    with np.errstate(over="ignore"):
        copy[np.broadcast_to(where, a.shape[:-1])] = np.array(poison).astype(a.dtype)
    return copy


def row_of(result: Any, row: Any) -> Any:
    """One batch row of a result, in the same form."""
    return type(result)(*(a[row] for a in result)) if isinstance(result, tuple) else result[row]


def same_batch(*arrays: Any) -> list[np.ndarray]:
    """Broadcast the axes before the heads, which the options refer to."""
    arrays = [np.asarray(a) for a in arrays]
    rank = max(a.ndim for a in arrays)
    arrays = [a.reshape((1,) * (rank - a.ndim) + a.shape) for a in arrays]
    batch = np.broadcast_shapes(*(a.shape[:-3] for a in arrays))
    return [np.broadcast_to(a, batch + a.shape[-3:]) for a in arrays]

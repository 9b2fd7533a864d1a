"""What a cache stores of keys and values: the numbers themselves, or 8 bits of each and scales."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _core
from ._checks import MOST
from ._misread import as_array, spelled, wrong_dtype
from .quantization import LARGEST, as_float32, to_bytes

Array = NDArray[Any]
# Arrays (..., tokens, numbers of each): keys and values, and in 8 bits the scales of both.
Parts = tuple[Array, ...]
NAMES = ("key", "value", "key_scale", "value_scale")
OF_ML_DTYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
NO_SCALES: dict[str, Array] = {}


class Storage:
    """Keys and values of `dims` numbers a token and head, stored in `dtype`.

    In 8 bits each token of each head has a scale, in an array of its own with one number a token.
    """

    def __init__(self, dtype: DTypeLike, dims: tuple[int, int]) -> None:
        self.dtype, self.dims = as_dtype(dtype), dims
        self.quantised = self.dtype.name in LARGEST
        self.columns = [(self.dtype, d) for d in dims]
        if self.quantised:
            self.columns += [(np.dtype(np.float32), 1)] * 2

    def empty(self, front: tuple[int, ...], tokens: int) -> Parts:
        """Memory for so many tokens of each of `front`."""
        shapes = [(*front, tokens, width) for _, width in self.columns]
        sizes = (math.prod(max(n, 1) for n in shape) for shape in shapes)
        items = (dtype.itemsize for dtype, _ in self.columns)
        if sum(size * item for size, item in zip(sizes, items, strict=True)) > MOST:
            raise MemoryError(f"no memory for keys {shapes[0]} and values {shapes[1]}")
        parts = zip(shapes, self.columns, strict=True)
        return tuple(np.empty(shape, dtype) for shape, (dtype, _) in parts)

    def fitting(self, x: ArrayLike, which: int, front: tuple[int, ...]) -> Array:
        """New keys (`which` = 0) or values (1) as an array ``(*front, n, D)``, or an error."""
        name = NAMES[which]
        a = x if type(x) is np.ndarray else as_array(x, name)
        dtype = self.dtype
        other = a.dtype is not dtype and a.dtype.newbyteorder("=") != dtype
        if self.quantised or other:  # 8 bits without their scales are no numbers
            self._check_dtype(a, x, name)
        shape, d = a.shape, self.dims[which]
        if len(shape) < 3 or shape[:-2] != front or shape[-1] != d:
            wanted = ", ".join(map(str, (*front, "n", d)))
            raise ValueError(f"{name} must have shape ({wanted}), got {shape}")
        return a

    def _check_dtype(self, a: Array, x: ArrayLike, name: str) -> None:
        if not self.quantised:
            to = dtype_spelled(self.dtype)
            raise TypeError(
                f"{name} has dtype {a.dtype} but the cache has {self.dtype.name}: "
                f"write {spelled(x, name)}.astype({to})"
            )
        if a.dtype.name not in _core.DTYPES:
            advice = "write {0}.astype(np.float32)"
            if a.dtype.name in LARGEST:
                advice += " * scale: the cache makes 8 bits of real numbers"
            raise wrong_dtype(a, x, name, "floating point", advice)

    def rows(self, key: Array, value: Array, counts: Array | None) -> Parts:
        """What is stored of new tokens; in 8 bits those from `counts` on, which are padding, as 0.

        Raises a ValueError for a number that cannot be stored.
        """
        if not self.quantised:
            return key, value
        k, k_scale = to_bytes(_real_tokens(key, counts), "key", -1, self.dtype)
        v, v_scale = to_bytes(_real_tokens(value, counts), "value", -1, self.dtype)
        return k, v, k_scale, v_scale

    def scales(self, rows: Parts) -> dict[str, Array]:
        """The options of :func:`attnfast.attention` for what is stored."""
        return dict(zip(NAMES[2:], rows[2:], strict=True)) if self.quantised else NO_SCALES

    def real(self, rows: Parts, which: int) -> Array:
        """Keys or values as the numbers that they stand for: in 8 bits a copy, in float32."""
        if not self.quantised:
            return rows[which]
        with np.errstate(all="ignore"):  # of slots that hold nothing
            result: Array = rows[which].astype(np.float32) * rows[which + 2]
        return result


def _real_tokens(a: Array, counts: Array | None) -> Array:
    """Tokens in float32, those that are padding 0."""
    real = as_float32(a)
    if counts is None:
        return real
    seen = np.arange(a.shape[-2]) < counts[..., None]
    return np.where(seen[..., None, :, None], real, np.float32(0))


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """A dtype of caches by its name, or what NumPy takes for one."""
    if isinstance(dtype, str) and dtype in OF_ML_DTYPES:
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError(
                f'dtype="{dtype}" needs the package ml_dtypes: pip install ml_dtypes'
            ) from None
        named: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype))
        return named
    try:
        found: np.dtype[Any] | None = np.dtype(dtype).newbyteorder("=")
    except TypeError:
        found = None
    if dtype is None or found is None or found.name not in (*_core.DTYPES, *LARGEST):
        accepted = ", ".join((*_core.DTYPES, *LARGEST))
        raise TypeError(f"dtype must be one of {accepted}, got {dtype!r}")
    return found


def dtype_spelled(dtype: np.dtype[Any]) -> str:
    """How to write a dtype in code."""
    return f"np.{dtype.name}" if dtype.isbuiltin == 1 else f"ml_dtypes.{dtype.name}"

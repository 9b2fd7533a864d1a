"""Arrays of real numbers as 8-bit numbers with scales."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._checks import whole_number
from ._misread import as_array, wrong_dtype
from ._signature import plain_signature

# The largest number that each dtype holds.
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
LEAST_SCALE = np.finfo(np.float32).smallest_normal  # smaller ones have fewer digits


@plain_signature
def quantize(
    x: ArrayLike,
    dtype: str = "int8",
    *,
    axis: int | Sequence[int] | None = -1,
    group: int | None = None,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """An array in 8 bits: ``stored * scale`` is near `x`.

    Each scale is the largest magnitude of those that share it, divided by the largest number of the
    dtype, and at least the smallest normal number of float32. The defaults give one scale for each
    key and head.

    Parameters
    ----------
    x : array_like
        Keys or values, of float32, float64, float16 or bfloat16; finite.
    dtype : {"int8", "float8_e4m3fn", "float8_e5m2"}
        The float8 dtypes are those of ``ml_dtypes``.
    axis : int, tuple of int or None
        Axes along which elements share a scale: -1 is one for each row, ``(-2, -1)`` one for each
        head, -2 one for each column (channel) of a head, None one for the whole array.
    group : int, optional
        How many neighbours along `axis`, which is then one axis, share a scale; it divides the
        axis. Default all.

    Returns
    -------
    stored : ndarray
        In the shape of `x`.
    scale : ndarray of float32
        In the shape of `x`, but with length 1, or the number of groups, in `axis`.

    Raises
    ------
    TypeError
        A dtype or type that is not accepted.
    ValueError
        A number that is not finite, an axis that is not there, or a group that does not divide it.

    Notes
    -----
    An element of int8 is at most half a scale from its number. One of float8_e4m3fn is at most 1/16
    of the number away, one of float8_e5m2 1/8, and for the smallest ones 2**-10 and 2**-17 scales.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention, quantize
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 2, 4, 100, 64), dtype=np.float32)
    >>> k8, k_scale = quantize(k)
    >>> v8, v_scale = quantize(v, axis=-1, group=32)
    >>> k8.dtype, k_scale.shape, v_scale.shape
    (dtype('int8'), (2, 4, 100, 1), (2, 4, 100, 2))
    >>> output = attention(q, k8, v8, key_scale=k_scale, value_scale=v_scale)
    >>> bool(np.abs(output - attention(q, k, v)).max() < 0.02)
    True
    """
    a = as_array(x, "x")
    if a.dtype.kind != "f" and a.dtype.name != "bfloat16":
        raise wrong_dtype(a, x, "x", "floating point", "write {0}.astype(np.float32)")
    if not isinstance(dtype, str) or dtype not in LARGEST:
        raise ValueError(f"dtype must be one of {', '.join(LARGEST)}, got {dtype!r}")
    axes = _axes(axis, a.ndim)
    real = as_float32(a)
    if group is not None:
        real = _grouped(real, axes, group)
        axes = (axes[0] + 1,)
    stored, scale = to_bytes(real, "x", axes, _dtype_of(dtype))
    return stored.reshape(a.shape), scale if group is None else scale.squeeze(axes)


def as_float32(a: NDArray[Any]) -> NDArray[np.float32]:
    """The same numbers in float32, in which too large ones are infinite."""
    if a.dtype != np.float64:
        return np.asarray(a, np.float32)
    with np.errstate(over="ignore"):
        return a.astype(np.float32)


def to_bytes(
    real: NDArray[np.float32], name: str, axes: int | tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """The argument `name` as 8-bit numbers, and the scales that those along `axes` share."""
    most = np.maximum.reduce(np.abs(real), axis=axes, keepdims=True, initial=0)
    if not np.isfinite(most).all():
        wrong = real[~np.isfinite(real)][0]
        raise ValueError(f"{name} must be finite in float32 to be stored in 8 bits, got {wrong}")
    scale = np.maximum(most / np.float32(LARGEST[dtype.name]), LEAST_SCALE)
    ratio = real / scale
    return (np.rint(ratio, out=ratio) if dtype.kind == "i" else ratio).astype(dtype), scale


def _dtype_of(name: str) -> np.dtype[Any]:
    if name == "int8":
        return np.dtype(np.int8)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """Axes as numbers from 0."""
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    numbers = tuple(whole_number(n, "axis", -ndim) for n in axes)
    if any(n >= ndim for n in numbers):
        raise ValueError(f"axis must be below {ndim}, the number of axes of x, got {axis!r}")
    return tuple(sorted({n % ndim for n in numbers}))


def _grouped(real: NDArray[Any], axes: tuple[int, ...], group: Any) -> NDArray[Any]:
    """The same numbers with the axis of groups as two axes: groups, and what is in one."""
    size = whole_number(group, "group", 1)
    if len(axes) != 1:
        raise ValueError(f"group must be None with {len(axes)} axes, got {size}: write one axis")
    length = real.shape[axes[0]]
    if length % size:
        raise ValueError(f"group must divide the axis of x, which is {length} long, got {size}")
    before, after = real.shape[: axes[0]], real.shape[axes[0] + 1 :]
    return real.reshape((*before, length // size, size, *after))

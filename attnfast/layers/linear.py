"""A linear map, random weights for one, and the checks that all layers make of their inputs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._misread import as_array, wrong_dtype
from .._signature import plain_signature

Array = NDArray[Any]
Seed = int | np.random.Generator | None


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear map, ``x @ weight + bias`` over the last axis of ``x``.

    Parameters
    ----------
    weight : ndarray, ``(n_in, n_out)``
        Of float32 or float64. PyTorch stores the transpose.
    bias : ndarray ``(n_out,)``, optional
        Of the same dtype.

    Raises
    ------
    TypeError, ValueError
        Dtypes or shapes that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.layers import Linear
    >>> Linear(np.array([[1.0], [2.0]]), np.array([0.5]))(np.ones((3, 2)))
    array([[3.5],
           [3.5],
           [3.5]])
    """

    weight: Array
    bias: Array | None = None

    def __post_init__(self) -> None:
        real_dtype(self.weight.dtype, "weight")
        if self.weight.ndim != 2:
            raise ValueError(f"weight must have shape (n_in, n_out), got {self.weight.shape}")
        if self.bias is not None:
            check_array(self.bias, "bias", self.weight.shape[1:], self.weight.dtype)

    def __repr__(self) -> str:
        bias = self.bias is not None
        return f"Linear({self.n_in}, {self.n_out}, bias={bias}, dtype={self.weight.dtype})"

    def _repr_html_(self) -> str:
        from .._html import arrays

        own = {"weight": self.weight}
        return arrays(repr(self), own if self.bias is None else own | {"bias": self.bias})

    @property
    def n_in(self) -> int:
        """Width of the input."""
        return int(self.weight.shape[0])

    @property
    def n_out(self) -> int:
        """Width of the output."""
        return int(self.weight.shape[1])

    @plain_signature
    def __call__(self, x: Array) -> Array:
        """The map of an array, in one matrix product.

        Parameters
        ----------
        x : ndarray, ``(..., n_in)``
            Of the dtype of the weight.

        Returns
        -------
        ndarray, ``(..., n_out)``
            A new array.
        """
        rows = math.prod(x.shape[:-1])
        with np.errstate(invalid="ignore", over="ignore"):  # padding may hold anything
            y = x.reshape(rows, self.n_in) @ self.weight
        if self.bias is not None:
            y += self.bias
        return y.reshape(*x.shape[:-1], self.n_out)


def glorot(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """``(n_in, n_out)`` weights, or ``(n_in,)`` for one output, within sqrt(6 / (n_in + n_out))."""
    limit = math.sqrt(6 / sum((*shape, 1)[:2]))
    return rng.uniform(-limit, limit, shape).astype(dtype)


def size(n: int, name: str) -> int:
    """A whole number above 0."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"{name} must be at least 1, got {n}")
    return int(n)


def real_dtype(dtype: DTypeLike, name: str = "dtype") -> np.dtype[Any]:
    """float32 or float64, in which layers with weights compute."""
    found = np.dtype(dtype)
    if found not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64, got {found}")
    return found


def check_array(x: Array, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless an array of weights has this shape and dtype."""
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}")
    if x.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} like the other weights, got {x.dtype}")


def as_weights(x: Any, dtype: DTypeLike | None = None) -> Array:
    """A new array of float32 or float64 from an array or a torch tensor; the latter for float64."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if str(x.dtype) == "torch.bfloat16" else x
    x = np.asarray(x)
    if dtype is None:
        dtype = np.float64 if x.dtype == np.float64 else np.float32
    return np.array(x, dtype=real_dtype(dtype))


def as_input(x: ArrayLike, name: str, width: int, dtype: np.dtype[Any]) -> Array:
    """An input ``(..., length, width)`` of the layer's dtype."""
    a = as_array(x, name)
    if a.shape == (width,):
        raise ValueError(
            f"{name} must have shape (..., length, {width}), got {a.shape}: write {name}[None]"
        )
    if a.ndim < 2 or a.shape[-1] != width:
        raise ValueError(f"{name} must have shape (..., length, {width}), got {a.shape}")
    if a.dtype.newbyteorder("=") != dtype:
        advice = f"write {{0}}.astype(np.{dtype})"
        raise wrong_dtype(a, x, name, f"{dtype} like the weights of the layer", advice)
    return a.astype(dtype, copy=False)


def check_batch(query: Array, name: str, key: Array, key_name: str, *, shared: bool = True) -> None:
    """Refuse a query for each batch row that lacks the axis of its length.

    It would be taken for queries that all batch rows share, where a layer accepts those.
    """
    batch = key.shape[:-2]
    if query.shape[:-1] != batch or not any(n > 1 for n in batch):
        return
    each = f"{name}[{', '.join([':'] * len(batch) + ['None'])}]"
    got = f"{name} has shape {query.shape} and {key_name} {key.shape}"
    if not shared:
        raise ValueError(f"{got}: write {each} for one query per batch row")
    raise ValueError(
        f"{got}, which can be read in two ways: write {each} for one query per batch row, "
        f"{name}[None] for queries that all batch rows share"
    )


def as_named(
    shapes: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, Any] | None,
    dtype: DTypeLike | None,
    seed: Seed,
) -> dict[str, Array]:
    """Arrays of these shapes: the caller's, or drawn, with ``b`` as zeros."""
    if weights is None:
        rng, real = np.random.default_rng(seed), real_dtype(np.float32 if dtype is None else dtype)
        drawn = {name: glorot(rng, shape, real) for name, shape in shapes.items()}
        return {name: np.zeros_like(a) if name == "b" else a for name, a in drawn.items()}
    if weights.keys() != shapes.keys():
        raise ValueError(f"weights must be {', '.join(shapes)}, got {', '.join(weights)}")
    arrays = {name: as_weights(weights[name], dtype) for name in shapes}
    first = next(iter(arrays.values()))
    for name, array in arrays.items():
        check_array(array, f"weights[{name!r}]", shapes[name], first.dtype)
    return arrays

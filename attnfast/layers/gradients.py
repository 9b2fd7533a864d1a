"""What the gradients of a layer are, and those of a linear map."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._misread import as_array, wrong_dtype
from ..result import AttentionResult, fields_repr
from .linear import Linear

Array = NDArray[Any]


class LayerGradients(NamedTuple):
    """Gradients of what a layer was given and of its weights, each in the shape of its array.

    Attributes
    ----------
    inputs : dict of str to ndarray
        By the name of the argument. An argument that was left out, such as the key of
        self-attention, adds to the one that stood for it.
    weights : dict of str to ndarray
        By the name that the layer has for them.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.layers import MultiHeadAttention
    >>> layer = MultiHeadAttention(32, num_heads=4, seed=0)
    >>> output, pullback = layer.vjp(np.ones((5, 32), np.float32))
    >>> gradients = pullback(output)
    >>> list(gradients.inputs), gradients.weights["query.weight"].shape
    (['query'], (32, 32))
    """

    inputs: dict[str, Array]
    weights: dict[str, Array]

    def __repr__(self) -> str:
        return fields_repr(self)


def linear_backward(m: Linear, x: Array, grad: Array) -> tuple[Array, Array, Array | None]:
    """Gradients of the input, the weight and the bias of a linear map.

    A row whose gradient is 0 is padding, or as if it were: it may hold anything.
    """
    rows, by_y = x.reshape(-1, m.n_in), grad.reshape(-1, m.n_out)
    unseen = np.asarray(~by_y.any(axis=-1))
    if unseen.any() and not np.isfinite(rows[unseen]).all():
        rows = np.where(unseen[:, None], 0, rows)
    by_x = (by_y @ m.weight.T).reshape(*grad.shape[:-1], m.n_in)
    return by_x, rows.T @ by_y, None if m.bias is None else by_y.sum(axis=0)


def as_gradient(grad: ArrayLike, name: str, like: Array) -> Array:
    """A derivative of the loss by a result of the layer."""
    a = as_array(grad, name)
    if a.dtype.newbyteorder("=") != like.dtype:
        advice = f"write {{0}}.astype(np.{like.dtype})"
        raise wrong_dtype(a, grad, name, f"{like.dtype} like the output of the layer", advice)
    if a.shape != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}, got {a.shape}")
    return a.astype(like.dtype, copy=False)


def one_head(result: AttentionResult) -> tuple[Array, Array | None]:
    """Output and weights, if any, without the axis of their only head."""
    weights = None if result.weights is None else result.weights[..., 0, :, :]
    return result.output[..., 0, :, :], weights


def head_gradients(
    grad_output: ArrayLike, grad_weights: ArrayLike | None, output: Array, weights: Array | None
) -> tuple[Array, Array | None]:
    """Derivatives by output and weights, with an axis for their only head."""
    by_output = as_gradient(grad_output, "grad_output", output)[..., None, :, :]
    by_weights = weights_gradient(grad_weights, weights)
    return by_output, None if by_weights is None else by_weights[..., None, :, :]


def weights_gradient(grad_weights: ArrayLike | None, weights: Array | None) -> Array | None:
    """A derivative of the loss by the weights, if there is one."""
    if grad_weights is None:
        return None
    if weights is None:
        raise ValueError("grad_weights needs weights: call vjp so that it returns them")
    return as_gradient(grad_weights, "grad_weights", weights)


def inner(a: Array, b: Array) -> np.float64:
    """The sum of ``a * b``, where b is not 0: elsewhere a may hold anything."""
    with np.errstate(invalid="ignore", over="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)
    return np.float64(np.where(b == 0, 0, product).sum())


def add_to(total: dict[str, Array], name: str, grad: Array) -> None:
    """Add a gradient to those of its name."""
    total[name] = total[name] + grad if name in total else grad

"""Joining attention over parts of the keys."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._misread import as_array, wrong_dtype
from ._signature import plain_signature
from .result import AttentionResult, fields_repr

Array = NDArray[Any]


class MergeGradients(NamedTuple):
    """Gradients of the parts that a call was given, stacked.

    Attributes
    ----------
    outputs : ndarray ``(parts, ..., Lq, Dv)``
        Those of the outputs, in their dtype.
    lses : ndarray ``(parts, ..., Lq)``
        Those of the lses, in float32 (float64 for float64).

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import merge_attention_backward
    >>> outputs, lses = np.zeros((2, 50, 32)), np.zeros((2, 50))  # of two equal parts
    >>> gradients = merge_attention_backward(np.ones((50, 32)), outputs, lses)
    >>> gradients.outputs[:, 0, 0], gradients.lses.shape
    (array([0.5, 0.5]), (2, 50))
    """

    outputs: Array
    lses: Array

    def __repr__(self) -> str:
        return fields_repr(self)


@plain_signature
def merge_attention(
    outputs: Sequence[ArrayLike] | Array, lses: Sequence[ArrayLike] | Array
) -> AttentionResult:
    r"""Exact attention over the union of disjoint sets of keys, from the results for each set.

    .. math::
        L = \log \sum_n e^{L_n} \qquad O = \sum_n e^{L_n - L} O_n

    Parameters
    ----------
    outputs : sequence of array_like ``(..., Lq, Dv)``, or array stacked on axis 0
        Outputs of :func:`attnfast.attention` over each set of keys, equally shaped, of one dtype:
        float32, float64, float16 or bfloat16.
    lses : sequence of array_like ``(..., Lq)``, or array stacked on axis 0
        Their `lse`, natural logarithms. A part with ``-inf`` saw no key and has no influence.

    Returns
    -------
    AttentionResult
        Output in the dtype of the parts, lse in float32 (float64 for float64), weights None.

    Raises
    ------
    TypeError
        Dtypes that differ or are not floating point.
    ValueError
        No parts, or shapes that do not fit.

    Notes
    -----
    Pass `sink_logits` in the call for one part only.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention, merge_attention
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 8, 50, 32))
    >>> halves = slice(20), slice(20, 50)
    >>> parts = [attention(q, k[:, half], v[:, half], return_lse=True) for half in halves]
    >>> merged = merge_attention([p.output for p in parts], [p.lse for p in parts])
    >>> np.allclose(merged.output, attention(q, k, v), atol=1e-14)
    True
    """
    output_parts, lse_parts = _parts(outputs, "outputs"), _parts(lses, "lses")
    _check(output_parts, lse_parts)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        weights, seen, lse = _weights(output_parts, lse_parts)
        output = _output(output_parts, weights, seen)
    return AttentionResult(output.astype(output_parts[0].dtype), lse, None)


@plain_signature
def merge_attention_backward(
    grad_output: ArrayLike,
    outputs: Sequence[ArrayLike] | Array,
    lses: Sequence[ArrayLike] | Array,
    *,
    grad_lse: ArrayLike | None = None,
) -> MergeGradients:
    r"""Compute the gradients of a loss that depends on the result of :func:`merge_attention`.

    .. math::
        dO_n = w_n \, dO \qquad dL_n = w_n (dO \cdot (O_n - O) + dL) \qquad w_n = e^{L_n - L}

    They are the `grad_output` and `grad_lse` of :func:`attention_backward` for each part.

    Parameters
    ----------
    grad_output : array_like, ``(..., Lq, Dv)``
        Derivative of the loss by the merged output, in the dtype of `outputs`.
    outputs, lses : sequence of array_like, or array stacked on axis 0
        As for :func:`merge_attention`.
    grad_lse : array_like, ``(..., Lq)``, optional
        Derivative of the loss by the merged lse.

    Returns
    -------
    MergeGradients
        Named tuple ``(outputs, lses)``, stacked on axis 0. A part with an lse of ``-inf`` saw no
        key: it gets 0 and has no influence on others.

    Raises
    ------
    TypeError, ValueError
        As for :func:`merge_attention`, and for derivatives of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention, merge_attention_backward
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 8, 50, 32))
    >>> halves = slice(20), slice(20, 50)
    >>> parts = [attention(q, k[:, half], v[:, half], return_lse=True) for half in halves]
    >>> outputs, lses = [p.output for p in parts], [p.lse for p in parts]
    >>> gradients = merge_attention_backward(np.ones_like(q), outputs, lses)
    >>> np.allclose(gradients.outputs.sum(axis=0), 1)
    True
    """
    output_parts, lse_parts = _parts(outputs, "outputs"), _parts(lses, "lses")
    _check(output_parts, lse_parts)
    dtype, shape = output_parts[0].dtype, output_parts[0].shape
    grad = _loss(grad_output, "grad_output", shape)
    if grad.dtype != dtype:
        raise wrong_dtype(
            grad, grad_output, "grad_output", str(dtype), f"write {{0}}.astype({dtype.name!r})"
        )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        weights, seen, _ = _weights(output_parts, lse_parts)
        output = _output(output_parts, weights, seen)
        real = grad.astype(output.dtype)
        by_output = np.empty((len(output_parts), *shape), dtype)  # no float32 copies of all parts
        for part, weight, has in zip(by_output, weights, seen, strict=True):
            part[...] = np.where(has[..., None], weight[..., None] * real, 0)
        by_weight = np.stack([(real * (part - output)).sum(axis=-1) for part in output_parts])
        if grad_lse is not None:
            by_weight += _loss(grad_lse, "grad_lse", shape[:-1])
        return MergeGradients(by_output, np.where(seen, weights * by_weight, 0))


def _weights(outputs: list[Array], lses: list[Array]) -> tuple[Array, Array, Array]:
    """How much each part counts, whether it saw anything, and the lse of all."""
    real = np.float64 if outputs[0].dtype == np.float64 else np.float32
    stack = np.stack([part.astype(real) for part in lses])
    top = stack.max(axis=0)
    top = np.where(top == -np.inf, 0, top)  # nothing seen: every weight becomes exp(-inf)
    weights = np.exp(stack - top)
    total = weights.sum(axis=0)
    lse = top + np.log(total)
    return weights / np.where(total == 0, 1, total), stack != -np.inf, lse


def _output(outputs: list[Array], weights: Array, seen: Array) -> Array:
    output = np.zeros(outputs[0].shape, weights.dtype)
    for part, weight, has in zip(outputs, weights, seen, strict=True):
        output += np.where(has[..., None], weight[..., None] * part.astype(weights.dtype), 0)
    return output


def _loss(given: ArrayLike, name: str, shape: tuple[int, ...]) -> Array:
    """A derivative by a result of that shape."""
    a = _native(as_array(given, name))
    if a.dtype.kind not in "fiu" and a.dtype.name != "bfloat16":
        raise wrong_dtype(a, given, name, "floating point", "write {0}.astype(np.float32)")
    if a.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {a.shape}")
    return a


def _parts(arrays: Sequence[ArrayLike] | Array, name: str) -> list[Array]:
    if isinstance(arrays, np.ndarray) and arrays.ndim == 0:
        raise ValueError(
            f"{name} must be a sequence of arrays or one stacked on axis 0, got a scalar"
        )
    try:
        given = list(arrays)
    except TypeError:
        raise TypeError(
            f"{name} must be a sequence of arrays, got {type(arrays).__name__}"
        ) from None
    parts = [_native(as_array(part, f"{name}[{n}]")) for n, part in enumerate(given)]
    if not parts:
        raise ValueError(f"{name} must have at least one array, got none")
    for n, part in enumerate(parts):
        if part.dtype.kind != "f" and part.dtype.name != "bfloat16":
            raise wrong_dtype(
                part, given[n], f"{name}[{n}]", "floating point", "write {0}.astype(np.float32)"
            )
        if part.dtype != parts[0].dtype:
            raise TypeError(f"{name} must have one dtype, got {parts[0].dtype} and {part.dtype}")
        if part.shape != parts[0].shape:
            raise ValueError(f"{name} must have one shape, got {parts[0].shape} and {part.shape}")
    return parts


def _native(a: Array) -> Array:
    """The same numbers in the byte order of this machine."""
    return a.astype(a.dtype.newbyteorder("="), copy=False)


def _check(outputs: list[Array], lses: list[Array]) -> None:
    if outputs[0].dtype.name not in ("float32", "float64", "float16", "bfloat16"):
        accepted = "float32, float64, float16 or bfloat16"
        raise TypeError(f"outputs must be {accepted}, got {outputs[0].dtype}")
    if outputs[0].ndim < 1 or lses[0].shape != outputs[0].shape[:-1]:
        raise ValueError(
            f"lses must have the shape of outputs without its last axis: "
            f"outputs {outputs[0].shape}, lses {lses[0].shape}"
        )
    if len(lses) != len(outputs):
        raise ValueError(f"lses must be {len(outputs)} arrays like outputs, got {len(lses)}")

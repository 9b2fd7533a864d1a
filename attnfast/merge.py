"""Joining attention over parts of the keys."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._misread import as_array, wrong_dtype
from ._signature import plain_signature
from .result import AttentionResult

Array = NDArray[Any]


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
    dtype = output_parts[0].dtype
    real = np.float64 if dtype == np.float64 else np.float32
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lse_stack = np.stack([part.astype(real) for part in lse_parts])
        top = lse_stack.max(axis=0)
        top = np.where(top == -np.inf, 0, top)  # nothing seen: every weight becomes exp(-inf)
        weights = np.exp(lse_stack - top)
        total = weights.sum(axis=0)
        lse = top + np.log(total)
        weights /= np.where(total == 0, 1, total)
        output = np.zeros(output_parts[0].shape, real)
        for part, weight, part_lse in zip(output_parts, weights, lse_stack, strict=True):
            seen = (part_lse != -np.inf)[..., None]
            output += np.where(seen, weight[..., None] * part.astype(real), 0)
    return AttentionResult(output.astype(dtype), lse, None)


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

"""A call and its gradients: what the call returns, and a function from a loss to gradients."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._keywords import refuse_unknown
from .additive import additive_attention, additive_attention_backward
from .api import attention
from .gradient import attention_backward
from .local import local_attention, local_attention_backward
from .merge import merge_attention, merge_attention_backward
from .result import AttentionResult
from .varlen import attention_varlen, attention_varlen_backward

# What computes the gradients of each function.
BACKWARDS: dict[Callable[..., Any], Callable[..., Any]] = {
    attention: attention_backward,
    local_attention: local_attention_backward,
    additive_attention: additive_attention_backward,
    attention_varlen: attention_varlen_backward,
    merge_attention: merge_attention_backward,
}

# Arguments that say how keys and values are stored; no function has gradients of such.
FORWARD_ONLY = (*("block_table", "key_scale", "value_scale", "key_zero_point", "value_zero_point"),)


def vjp(
    function: Callable[..., Any],
    /,
    *operands: Any,
    wanted: Sequence[str] | None = None,
    **options: Any,
) -> tuple[Any, Callable[..., Any]]:
    """Call a function, and return its result with a function that computes gradients.

    ``vjp(attention, query, key, value, ...)`` is ``attention(query, key, value, ...)`` followed,
    when the pullback is called, by :func:`attention_backward` with the same arguments. The name is
    short for vector-Jacobian product.

    Parameters
    ----------
    function : callable
        A function that has a backward: :func:`attention`, :func:`local_attention`,
        :func:`additive_attention`, :func:`attention_varlen` or :func:`merge_attention`.
    *operands
        What comes first in its call.
    wanted : tuple of str, optional
        Which gradients the pullback computes, by name of the argument; default query, key and
        value. Those of :func:`merge_attention` are always both.
    **options
        Those of the function. With `out`, the output is written there as usual.

    Returns
    -------
    result : ndarray or AttentionResult
        What the function returns: the output or, with ``return_lse=True`` or
        ``return_weights=True`` and from :func:`merge_attention`, the named tuple
        ``(output, lse, weights)``.
    pullback : callable
        ``pullback(grad_output, grad_lse=None, grad_weights=None)``: from the derivatives of a loss
        by output, lse and weights to its gradients, as the backward returns them. It may be called
        more than once. `grad_lse` is taken even if the lse was not returned.

    Raises
    ------
    TypeError
        A function that has no backward, an argument that it does not take, or as it raises itself.
    ValueError
        A name in `wanted` whose argument is not there or has no gradient, an `out` that overlaps
        another argument, keys and values in pages or in 8 bits, or as the function raises itself.
    MemoryError
        As for :func:`attention`.

    Notes
    -----
    The pullback keeps the arguments and the output, not copies of them: do not change these arrays
    before its last call. Beside them it keeps the lse, one number for each query of each head.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention, vjp
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 8, 50, 32))
    >>> bias = np.zeros((50, 50))
    >>> output, pullback = vjp(
    ...     attention, q, k, v, bias=bias, is_causal=True, wanted=("query", "bias")
    ... )
    >>> gradients = pullback(2 * output)  # of the loss (output**2).sum()
    >>> gradients.query.shape, gradients.bias.shape, gradients.key is None
    ((8, 50, 32), (50, 50), True)
    """
    if function not in BACKWARDS:
        names = ", ".join(known.__name__ for known in BACKWARDS)
        raise TypeError(f"function must be one that has a backward, {names}, got {function!r}")
    signature = inspect.signature(function)
    unknown = {name: x for name, x in options.items() if name not in signature.parameters}
    if unknown:
        refuse_unknown(function, unknown)
    arguments = signature.bind(*operands, **options).arguments
    if wanted is not None:
        _check_wanted(function, wanted, arguments)
    refuse_stored(arguments)
    _check_out(arguments)
    result = call_with_lse(function, arguments)

    def pullback(
        grad_output: ArrayLike,
        grad_lse: ArrayLike | None = None,
        grad_weights: ArrayLike | None = None,
    ) -> Any:
        """Gradients, from the derivatives of a loss by output, lse and weights."""
        loss: dict[str, Any] = {"grad_output": grad_output}
        more = {"grad_lse": grad_lse, "grad_weights": grad_weights}
        loss |= {name: x for name, x in more.items() if x is not None}
        return call_backward(function, arguments, result, wanted, loss)

    if "return_lse" not in signature.parameters or arguments.get("return_lse"):
        return result, pullback
    return result._replace(lse=None) if result.weights is not None else result.output, pullback


def refuse_stored(arguments: Mapping[str, Any]) -> None:
    """Refuse keys and values that are not plain arrays."""
    for name in FORWARD_ONLY:
        if arguments.get(name) is not None:
            raise ValueError(
                f"{name} must be left out, as there are no gradients of keys and values that are "
                "stored so: pass them as plain arrays"
            )


def differentiable(function: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of a function in BACKWARDS that have a gradient."""
    parameters = inspect.signature(function).parameters
    fields = inspect.get_annotations(BACKWARDS[function])["return"]._fields
    return tuple(name for name in fields if name in parameters)


def call_with_lse(function: Callable[..., Any], arguments: Mapping[str, Any]) -> AttentionResult:
    """The result of a call with its lse."""
    flag = arguments.get("return_lse", False)
    if "return_lse" in inspect.signature(function).parameters and isinstance(
        flag, (bool, np.bool_)
    ):
        arguments = {**arguments, "return_lse": True}
    result: AttentionResult = function(**arguments)
    return result


def call_backward(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    result: AttentionResult,
    wanted: Sequence[str] | None,
    loss: Mapping[str, Any],
) -> Any:
    """The gradients of a call, by its arguments, result and the derivatives of a loss."""
    backward = BACKWARDS[function]
    taken = inspect.signature(backward).parameters
    kept = {**arguments, "output": result.output, "lse": result.lse}
    if wanted is not None:
        kept["wanted"] = tuple(wanted)
    return backward(**loss, **{name: x for name, x in kept.items() if name in taken})


def _check_wanted(
    function: Callable[..., Any], wanted: Sequence[str], arguments: Mapping[str, Any]
) -> None:
    """Refuse what the pullback would refuse, before the call."""
    if "wanted" not in inspect.signature(BACKWARDS[function]).parameters:
        refuse_unknown(function, {"wanted": wanted})
    if isinstance(wanted, str) or not isinstance(wanted, (tuple, list)):
        advice = f": write wanted=({wanted!r},)" if isinstance(wanted, str) else ""
        raise TypeError(f"wanted must be a tuple of names, got {wanted!r}{advice}")
    parameters, names = inspect.signature(function).parameters, differentiable(function)
    for name in wanted:
        if name not in names:
            raise ValueError(f"wanted may name {', '.join(names)}, got {name!r}")
        if parameters[name].default is None and arguments.get(name) is None:
            raise ValueError(
                f"wanted names {name}, which the call does not have: pass {name}= as well"
            )


def _check_out(arguments: Mapping[str, Any]) -> None:
    """Refuse to write over what the pullback reads."""
    out = arguments.get("out")
    if not isinstance(out, np.ndarray):
        return
    for name, x in arguments.items():
        if name != "out" and isinstance(x, np.ndarray) and np.may_share_memory(out, x):
            raise ValueError(
                f"out must not overlap {name}, which the pullback reads: write out=np.empty(...)"
            )

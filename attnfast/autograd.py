"""The functions that attend as primitives of the package autograd, which differentiates NumPy code.

>>> import autograd
>>> import numpy as np
>>> from attnfast.autograd import attention
>>> q, k, v = np.random.default_rng(0).standard_normal((3, 4, 50, 16))
>>> def loss(q, k, v):
...     return (attention(q, k, v, is_causal=True) ** 2).sum()
>>> by_query, by_value = autograd.grad(loss, (0, 2))(q, k, v)
>>> by_query.shape, by_value.shape
((4, 50, 16), (4, 50, 16))

Each function takes the arguments of its namesake in `attnfast`, but for `out`, and returns what
that returns. All arguments that have a gradient may be differentiated, by position or by name:
`bias`, `sink_logits`, `alibi_slopes`, the `centers` of local-p, the weights of additive scores. The
gradients are those of :func:`attnfast.vjp`, and have none of their own: there is no second
derivative.

Needs the package autograd 1.7 or later: ``pip install "attnfast[autograd]"``.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import autograd.numpy as anp
    from autograd.extend import Box, defvjp_argnums, primitive
    from autograd.tracer import getval
except (ImportError, AttributeError) as error:  # the latter: made for an older NumPy
    raise ImportError(
        "attnfast.autograd needs the package autograd, 1.7 or later: "
        "pip install 'attnfast[autograd]'"
    ) from error

from . import additive, api, local, merge, varlen
from ._keywords import refuse_unknown
from .pullback import call_backward, call_with_lse, differentiable, refuse_stored
from .result import AttentionResult

__all__ = [
    "additive_attention",
    "attention",
    "attention_varlen",
    "local_attention",
    "merge_attention",
]


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function for autograd, which traces what is given by position only."""
    signature = inspect.signature(function)
    has_lse = "return_lse" not in signature.parameters

    def compute(*arrays: Any, names: tuple[str, ...], others: dict[str, Any]) -> tuple[Any, ...]:
        """Output, lse and, if they were asked for, weights."""
        result = call_with_lse(function, {**others, **dict(zip(names, arrays, strict=True))})
        return tuple(x for x in result if x is not None)

    def differentiate(
        grads: Any, result: Any, *arrays: Any, names: Any, others: dict[str, Any], wanted: Any
    ) -> tuple[Any, ...]:
        """Gradients, by those of what `compute` returned; a primitive that has none itself."""
        arguments = {**others, **dict(zip(names, arrays, strict=True))}
        by_output, by_lse, *by_weights = grads
        loss: dict[str, Any] = {"grad_output": _like(by_output, result[0]), "grad_lse": by_lse}
        if by_weights:
            loss["grad_weights"] = _like(by_weights[0], result[2])
        found = call_backward(function, arguments, AttentionResult(*result[:2]), wanted, loss)
        return tuple(getattr(found, name) for name in wanted)

    run, gradients = primitive(compute), primitive(differentiate)

    def pullback_of(numbers: Any, result: Any, arrays: Any, options: Any) -> Callable[..., Any]:
        wanted = tuple(options["names"][n] for n in numbers)
        return lambda grads: gradients(grads, result, *arrays, **options, wanted=wanted)

    defvjp_argnums(run, pullback_of)

    @functools.wraps(function)
    def traced(*operands: Any, **options: Any) -> Any:
        unknown = {name: x for name, x in options.items() if name not in signature.parameters}
        if unknown:
            refuse_unknown(function, unknown)
        arguments = signature.bind(*operands, **options).arguments
        _check(function, arguments)
        names = tuple(name for name in differentiable(function) if arguments.get(name) is not None)
        arrays = [_stacked(arguments.pop(name), name) for name in names]
        output, lse, *weights = run(*arrays, names=names, others=arguments)
        if not (has_lse or arguments.get("return_lse") or weights):
            return output
        lse = lse if has_lse or arguments.get("return_lse") else None
        return AttentionResult(output, lse, weights[0] if weights else None)

    return traced


def _stacked(x: Any, name: str) -> Any:
    """One array in place of a sequence that holds traced ones, whose gradient reaches each."""
    if not isinstance(x, (list, tuple)):
        return x
    parts = [_stacked(part, f"{name}[{n}]") for n, part in enumerate(x)]
    if not any(isinstance(part, Box) for part in parts):
        return x
    values = [np.asarray(getval(part)) for part in parts]
    for part in values:
        if part.dtype != values[0].dtype:
            raise TypeError(f"{name} must have one dtype, got {values[0].dtype} and {part.dtype}")
        if part.shape != values[0].shape:
            raise ValueError(f"{name} must have one shape, got {values[0].shape} and {part.shape}")
    return anp.stack(parts)


def _like(gradient: Any, array: Any) -> Any:
    """A gradient in the dtype of its array; sums of autograd may have a wider one."""
    return np.asarray(gradient).astype(array.dtype, copy=False)


def _check(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    if arguments.get("out") is not None:
        raise ValueError(
            "out must be left out, as autograd keeps every result: use what is returned"
        )
    refuse_stored(arguments)
    names = differentiable(function)
    for name, x in arguments.items():
        if isinstance(x, Box) and name not in names:
            raise TypeError(
                f"{name} has no gradient, got a value that autograd traces: only "
                f"{', '.join(names)} can be differentiated"
            )


attention = _traced(api.attention)
local_attention = _traced(local.local_attention)
additive_attention = _traced(additive.additive_attention)
attention_varlen = _traced(varlen.attention_varlen)
merge_attention = _traced(merge.merge_attention)

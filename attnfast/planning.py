"""What a call would do, without doing it."""

import inspect
from collections.abc import Callable
from typing import Any, Unpack, overload

from numpy.typing import ArrayLike

from . import _core
from ._keywords import refuse_unknown
from .additive import additive_attention, additive_attention_backward
from .api import attention, attention_weights
from .explain import attention_topk, key_importance
from .gradient import attention_backward
from .local import local_attention, local_attention_backward
from .options import AttentionKeywords
from .result import Plan
from .varlen import attention_varlen, attention_varlen_backward

# What computes each function, and describes it.
CORES: dict[Callable[..., Any], Callable[..., Any]] = {
    attention: _core.attention,
    attention_weights: _core.attention_weights,
    local_attention: _core.local_attention,
    additive_attention: _core.additive_attention,
    attention_topk: _core.attention_topk,
    key_importance: _core.key_importance,
    attention_varlen: _core.attention_varlen,
    attention_backward: _core.attention_backward,
    local_attention_backward: _core.local_attention_backward,
    additive_attention_backward: _core.additive_attention_backward,
    attention_varlen_backward: _core.attention_varlen_backward,
}
# What a backward takes beside the operands of its forward: for a plan only by name, if at all.
OF_LOSS = ("grad_output", "output", "lse")


@overload
def plan(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    /,
    *,
    return_blocks: bool = ...,
    **options: Unpack[AttentionKeywords],
) -> Plan: ...
@overload
def plan(
    *,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    return_blocks: bool = ...,
    **options: Unpack[AttentionKeywords],
) -> Plan: ...
@overload
def plan(
    function: Callable[..., Any],
    /,
    *operands: Any,
    return_blocks: bool = ...,
    **options: Any,
) -> Plan: ...
def plan(*operands: Any, return_blocks: bool = False, **options: Any) -> Plan:
    """What a call would do, without doing it.

    ``plan(query, key, value, ...)`` is about :func:`attention`,
    ``plan(local_attention, query, key, value, 256, ...)`` about any other function, and
    ``plan(attention_backward, query, key, value, ...)`` about gradients.

    Parameters
    ----------
    *operands
        A function, :func:`attention` if it is left out, and what comes first in its call. The
        functions are :func:`attention`, :func:`attention_weights`, :func:`local_attention`,
        :func:`additive_attention`, :func:`attention_varlen`, :func:`attention_topk`,
        :func:`key_importance`, :func:`attention_backward`, :func:`local_attention_backward`,
        :func:`additive_attention_backward` and :func:`attention_varlen_backward`. Of query, key and
        value only shape, strides and dtype matter. Of a backward come the operands of its forward;
        `grad_output`, `output` and `lse` may be left out, else they are given by name.
    return_blocks : bool
        Also list the rectangles of (query, key) pairs that the call visits; see
        :func:`attnfast.plot.window`.
    **options
        As for the function. A `mask` is read. A `bias` is not: a pair that ``-inf`` hides counts as
        visible.

    Returns
    -------
    Plan
        Named tuple ``(visible_pairs, visited_pairs, flops, bytes, tasks, threads, isa, kernel,
        memory, blocks)``.

    Raises
    ------
    TypeError, ValueError
        As for the function.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention_backward, local_attention, plan
    >>> x = np.zeros((8, 65536, 64), np.float32)
    >>> full, local = plan(x, x, x), plan(x, x, x, window_size=256)
    >>> full.visible_pairs // local.visible_pairs
    128
    >>> tokens = plan(local_attention, x, x, x, 256, global_tokens=range(8))
    >>> tokens.visible_pairs - local.visible_pairs
    8355264
    >>> training = plan(attention_backward, x, x, x)
    >>> training.flops / full.flops, training.memory < 2**26
    (2.5, True)
    """
    function: Callable[..., Any] = attention
    if operands and callable(operands[0]):
        function, *given = operands
        operands = tuple(given)
    if function not in CORES:
        names = ", ".join(known.__name__ for known in CORES)
        raise TypeError(f"function must be one of {names}, got {function!r}")
    signature = inspect.signature(function)
    unknown = {name: x for name, x in options.items() if name not in signature.parameters}
    if unknown:
        refuse_unknown(function, unknown)
    call = _with_optional_loss(signature).bind(*operands, **options)
    call.apply_defaults()
    if "grad_output" in call.arguments:
        call = signature.bind(**call.arguments)
    return Plan(*CORES[function](*call.args, {**call.kwargs, "return_blocks": return_blocks}))


def _with_optional_loss(signature: inspect.Signature) -> inspect.Signature:
    """The signature of a backward with the operands of its forward first, all else by name."""
    loss = [
        signature.parameters[name].replace(kind=inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in OF_LOSS
        if name in signature.parameters
    ]
    others = [x for name, x in signature.parameters.items() if name not in OF_LOSS]
    return signature.replace(parameters=[*others, *loss])

"""A call of one of attnfast's functions on tensors, with its gradients."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, is_autocast_enabled, is_grad_enabled, strided
from torch.autograd import forward_ad

from .. import _core, additive_attention, attention, attention_varlen, local_attention
from .._core import get_threads as get_num_threads
from ..pullback import BACKWARDS
from ..result import AttentionResult
from ._tensors import DTYPES, have_memory, is_watched, plain_arrays, to_array, to_tensor

Function = Callable[..., Any]
FUNCTIONS = (attention, local_attention, additive_attention, attention_varlen)
OPERANDS = ("query", "key", "value")
FLAGS = ("return_lse", "return_weights")
LOSSES = ("grad_output", "grad_lse", "grad_weights")


def _differentiable(function: Function) -> tuple[str, ...]:
    """Names of the arguments that have a gradient."""
    if function not in BACKWARDS:
        return ()
    fields = inspect.get_annotations(BACKWARDS[function])["return"]._fields
    return tuple(name for name in fields if name in inspect.signature(function).parameters)


def _core_of(function: Function) -> tuple[Function, tuple[str, ...]]:
    """What computes it, of these arguments and a dict of options."""
    parameters = inspect.signature(function).parameters.values()
    names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    return getattr(_core, function.__name__), names


CORE = {function: _core_of(function) for function in FUNCTIONS}
DIFFERENTIABLE = {function: _differentiable(function) for function in FUNCTIONS}


def call(function: Function, given: dict[str, Any]) -> Any:
    """What `function` returns for arguments among which are tensors, as tensors."""
    if not is_grad_enabled() and not is_autocast_enabled("cpu") and not is_watched():
        # The shortest way: in a model, whose weights evict all code from the caches, each line of
        # it comes from memory.
        try:
            found = plain_arrays(given, OPERANDS)
            if found is not None:
                return compute(function, found)
        except (TypeError, ValueError):
            pass  # `check` may say it in the words of tensors
    tensors = check(function, given)
    if forward_ad._current_level >= 0:
        _refuse_tangents(function, tensors)
    if is_autocast_enabled("cpu"):
        kind = torch.get_autocast_dtype("cpu")
        cast = {n: given[n].to(kind) for n in OPERANDS if given[n].dtype is not torch.float64}
        given, tensors = {**given, **cast}, {**tensors, **cast}
    return run(function, given, tensors)


def run(function: Function, given: dict[str, Any], tensors: dict[str, Any]) -> Any:
    """`call` of what was checked; `tensors` are those in `given`."""
    if not have_memory(tensors.values()):
        from ._operators import call_operator

        return call_operator(function, given)
    if is_grad_enabled():
        for x in tensors.values():
            if x.requires_grad:
                others = {name: x for name, x in given.items() if name not in tensors}
                flags = others.pop("return_lse", False), others.get("return_weights", False)
                results = record(function, others, flags, tuple(tensors), *tensors.values())
                return pack(flags, *results) if any(flags) else results
    return compute(function, arrays(given))


def compute(function: Function, given: dict[str, Any]) -> Any:
    """What `function` returns for arrays, as tensors; names are known to be its own."""
    given = with_threads(given)
    core, names = CORE[function]
    result = core(*[given.pop(name) for name in names], given)
    return to_tensor(result) if type(result) is np.ndarray else _tensors(result)


def check(function: Function, given: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a call; what has no memory on the CPU, or no gradient, is refused."""
    for name in OPERANDS:
        if not isinstance(given[name], Tensor):
            got = type(given[name]).__name__
            raise TypeError(f"{name} must be a tensor, got {got}: write torch.as_tensor({name})")
    kind = given["query"].dtype
    if kind not in DTYPES or given["key"].dtype is not kind or given["value"].dtype is not kind:
        _refuse_dtypes(given)
    recorded = is_grad_enabled()
    tensors = {}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            continue
        tensors[name] = x
        if not x.is_cpu or x.layout is not strided:
            _refuse_memory(name, x)
        if recorded and x.requires_grad and name not in DIFFERENTIABLE[function]:
            raise ValueError(
                f"{name} requires gradients, which {function.__name__} does not have for it: "
                f"write {name}.detach()"
            )
    return tensors


def _refuse_memory(name: str, x: Any) -> None:
    if not x.is_cpu:
        raise ValueError(
            f"{name} must be on the CPU, where attnfast computes, got a tensor on {x.device}: "
            f"write {name}.cpu()"
        )
    raise TypeError(
        f"{name} must be a dense tensor, got one of layout {x.layout}: write {name}.to_dense()"
    )


def _refuse_dtypes(given: Mapping[str, Any]) -> None:
    query = given["query"].dtype
    for name in OPERANDS:
        got = given[name].dtype
        if got not in DTYPES:
            raise TypeError(
                f"{name} must be of float32, float64, float16 or bfloat16, got {got}: "
                f"write {name}.to(torch.float32)"
            )
        if got is not query and not is_autocast_enabled("cpu"):
            raise TypeError(
                f"{name} has dtype {got} but query has {query}: write {name}.to({query})"
            )


def _refuse_tangents(function: Function, tensors: Mapping[str, Any]) -> None:
    for name, x in tensors.items():
        if forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"{name} has a forward derivative, which {function.__name__} does not carry on: "
                f"use reverse mode, such as torch.func.vjp"
            )


def arrays(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with arrays for tensors."""
    return {n: to_array(x) if isinstance(x, Tensor) else x for n, x in given.items()}


def with_threads(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with as many threads as both libraries allow, if they do not say how many."""
    if given.get("num_threads") is None:
        threads = torch.get_num_threads()
        if threads < get_num_threads():
            given["num_threads"] = threads
    return given


def _tensors(result: AttentionResult) -> AttentionResult:
    return AttentionResult(*[None if a is None else to_tensor(a) for a in result])  # type: ignore[arg-type]


def pack(flags: tuple[bool, bool], output: Any, lse: Any = None, weights: Any = None) -> Any:
    """What a function returns for these values of `return_lse` and `return_weights`."""
    if not any(flags):
        return output
    return AttentionResult(output, lse if flags[0] else None, weights if flags[1] else None)


def gradients(
    function: Function,
    given: Mapping[str, Any],
    losses: Mapping[str, Any],
    output: Any,
    lse: Any,
    wanted: Sequence[str],
) -> list[Any]:
    """Gradients of what is `wanted`, in that order; `losses` are derivatives by the results."""
    known = {name: x for name, x in given.items() if name not in FLAGS}
    for name, x in losses.items():
        if x is not None and (name != "grad_weights" or given.get("return_weights")):
            known[name] = x
    known["output"], known["lse"] = output, lse
    if "grad_output" not in known:
        known["grad_output"] = torch.zeros_like(output)
    found = BACKWARDS[function](**with_threads(arrays(known)), wanted=tuple(wanted))
    return [to_tensor(getattr(found, name)) for name in wanted]


class _Call(torch.autograd.Function):  # type: ignore[misc]
    """A call on plain tensors, some of which require gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Function,
        others: dict[str, Any],
        flags: tuple[bool, bool],
        names: tuple[str, ...],
        *tensors: Any,
    ) -> Any:
        known = {**others, "return_lse": True}
        for name, x in zip(names, tensors, strict=True):
            known[name] = to_array(x)
        output, lse, weights = compute(function, known)
        ctx.save_for_backward(*tensors, output, lse)
        ctx.set_materialize_grads(False)
        ctx.call = function, others, names
        if not any(flags):
            return output  # each result costs half a microsecond
        return (output, lse) if weights is None else (output, lse, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if not is_grad_enabled():
            return _pull(ctx, *grads)
        # They may be differentiated again (create_graph=True), by the arguments as by the loss.
        with torch.no_grad():
            found = _pull(ctx, *grads)
        origins = [x for x in (*ctx.saved_tensors, *grads) if x is not None]
        return tuple(x if x is None else _Last.apply(ctx.call[0], x, *origins) for x in found)


class _Last(torch.autograd.Function):  # type: ignore[misc]
    """A gradient that is not differentiated again: nothing is detached in silence."""

    @staticmethod
    def forward(ctx: Any, function: Function, gradient: Any, *origins: Any) -> Any:
        ctx.function = function
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"{ctx.function.__name__} has no second derivatives")


# Function.apply in Python also looks for transforms, of which `have_memory` has seen none.
record = super(torch.autograd.Function, _Call).apply


def _pull(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    """Derivatives by the arguments of `_Call.forward`, from those by its results."""
    function, others, names = ctx.call
    *tensors, output, lse = ctx.saved_tensors
    given = {**others, **dict(zip(names, tensors, strict=True))}
    losses = dict(zip(LOSSES, grads, strict=False))
    needed = ctx.needs_input_grad[4:]
    wanted = [name for name, needs in zip(names, needed, strict=True) if needs]
    if have_memory(tensors) and have_memory([x for x in grads if x is not None]):
        found = gradients(function, given, losses, output, lse, wanted)
    else:
        from ._operators import call_backward

        found = call_backward(function, given, losses, output, lse, wanted)
    grad = dict(zip(wanted, found, strict=True)).get
    return None, None, None, None, *[grad(name) for name in names]

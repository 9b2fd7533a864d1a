"""A call of one of attnfast's functions on tensors, with its gradients."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from .. import additive_attention, attention, attention_varlen, get_num_threads, local_attention
from ..pullback import BACKWARDS
from ..result import AttentionResult
from ._tensors import DTYPES, have_memory, to_array, to_tensor

Function = Callable[..., Any]
FUNCTIONS = (attention, local_attention, additive_attention, attention_varlen)
OPERANDS = ("query", "key", "value")


def _differentiable(function: Function) -> tuple[str, ...]:
    """Names of the arguments that have a gradient."""
    if function not in BACKWARDS:
        return ()
    fields = inspect.get_annotations(BACKWARDS[function])["return"]._fields
    return tuple(name for name in fields if name in inspect.signature(function).parameters)


DIFFERENTIABLE = {function: _differentiable(function) for function in FUNCTIONS}


def call(function: Function, given: dict[str, Any]) -> Any:
    """What `function` returns for arguments among which are tensors, as tensors."""
    tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)}
    check(function, given, tensors)
    if forward_ad._current_level >= 0:
        _refuse_tangents(function, tensors)
    if torch.is_autocast_enabled("cpu"):
        kind = torch.get_autocast_dtype("cpu")
        cast = {n: given[n].to(kind) for n in OPERANDS if given[n].dtype is not torch.float64}
        given, tensors = {**given, **cast}, {**tensors, **cast}
    return run(function, given, tensors)


def run(function: Function, given: dict[str, Any], tensors: dict[str, Any]) -> Any:
    """`call` of what was checked; `tensors` are those in `given`."""
    if not have_memory(tensors.values()):
        from ._operators import call_operator

        return call_operator(function, given)
    if torch.is_grad_enabled():
        for x in tensors.values():
            if x.requires_grad:
                others = {name: x for name, x in given.items() if name not in tensors}
                flags = others.pop("return_lse", False), others.get("return_weights", False)
                results = _Call.apply(function, others, tuple(tensors), *tensors.values())
                return pack(flags, *results)
    result = function(**arrays(given, tensors))
    return to_tensor(result) if type(result) is np.ndarray else _tensors(result)


def check(function: Function, given: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Refuse what has no memory on the CPU, mixed dtypes, and what has no gradient."""
    for name in OPERANDS:
        if name not in tensors:
            got = type(given[name]).__name__
            raise TypeError(f"{name} must be a tensor, got {got}: write torch.as_tensor({name})")
    kind = given["query"].dtype
    if kind not in DTYPES or given["key"].dtype is not kind or given["value"].dtype is not kind:
        _refuse_dtypes(given)
    for name, x in tensors.items():
        if not x.is_cpu:
            raise ValueError(
                f"{name} must be on the CPU, where attnfast computes, got a tensor on {x.device}: "
                f"write {name}.cpu()"
            )
        if x.layout is not torch.strided:
            raise TypeError(
                f"{name} must be a dense tensor, got one of layout {x.layout}: "
                f"write {name}.to_dense()"
            )
        if x.requires_grad and name not in DIFFERENTIABLE[function] and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires gradients, which {function.__name__} does not have for it: "
                f"write {name}.detach()"
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
        if got is not query and not torch.is_autocast_enabled("cpu"):
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


def arrays(given: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with arrays for `tensors`, and as many threads as both libraries allow."""
    found = {**given, **{name: to_array(x) for name, x in tensors.items()}}
    threads = torch.get_num_threads()
    if found.get("num_threads") is None and threads < get_num_threads():
        found["num_threads"] = threads
    return found


def _tensors(result: AttentionResult) -> AttentionResult:
    output, lse, weights = (None if a is None else to_tensor(a) for a in result)
    return AttentionResult(output, lse, weights)  # type: ignore[arg-type]


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
    if not given.get("return_weights"):
        losses = {name: x for name, x in losses.items() if name != "grad_weights"}
    losses = {name: x for name, x in losses.items() if x is not None}
    given = {n: x for n, x in given.items() if n not in ("return_lse", "return_weights")}
    if "grad_output" not in losses:
        losses["grad_output"] = torch.zeros_like(output)
    given = {**given, **losses, "output": output, "lse": lse}
    known = arrays(given, {n: x for n, x in given.items() if isinstance(x, torch.Tensor)})
    found = BACKWARDS[function](**known, wanted=tuple(wanted))
    return [to_tensor(getattr(found, name)) for name in wanted]


class _Call(torch.autograd.Function):  # type: ignore[misc]
    """A call on plain tensors, some of which require gradients."""

    @staticmethod
    def forward(
        ctx: Any, function: Function, others: dict[str, Any], names: tuple[str, ...], *tensors: Any
    ) -> tuple[Any, ...]:
        named = dict(zip(names, tensors, strict=True))
        result = function(**arrays(others, named), return_lse=True)
        output, lse, weights = _tensors(result)
        ctx.save_for_backward(*tensors, output, lse)
        ctx.set_materialize_grads(False)
        ctx.function, ctx.others, ctx.names = function, others, names
        return (output, lse) if weights is None else (output, lse, weights)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        *tensors, output, lse = ctx.saved_tensors
        given = {**ctx.others, **dict(zip(ctx.names, tensors, strict=True))}
        losses = dict(zip(("grad_output", "grad_lse", "grad_weights"), grads, strict=False))
        needed = ctx.needs_input_grad[3:]
        wanted = [name for name, needs in zip(ctx.names, needed, strict=True) if needs]
        if have_memory((*tensors, *(g for g in grads if g is not None))):
            found = gradients(ctx.function, given, losses, output, lse, wanted)
        else:
            from ._operators import call_backward

            found = call_backward(ctx.function, given, losses, output, lse, wanted)
        by_name = dict(zip(wanted, found, strict=True))
        return None, None, None, *(by_name.get(name) for name in ctx.names)

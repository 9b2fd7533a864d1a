"""Operators for calls that PyTorch compiles, exports or transforms, and so must not look into.

Each function has two: ``attnfast::NAME`` and ``attnfast::NAME_backward``. Their arguments are those
of the function, in a form that PyTorch can record: what varies from call to call is a tensor.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .._keywords import refuse_unknown
from ..block_mask import BlockMask
from ._call import DIFFERENTIABLE, FUNCTIONS, Function, arrays, gradients, pack, with_threads
from ._tensors import to_array
from ._vmap import backward_rule, forward_rule

# How an argument that is not a tensor is written in a schema; all others are ``Tensor?``.
TYPES = {
    "is_causal": "bool",
    "window_size": "SymInt[]?",
    "scale": "float?",
    "softcap": "float?",
    "sigma": "float?",
    "dropout": "float?",
    "return_weights": "bool",
    "num_threads": "int?",
    **{name: "Tensor" for name in ("query", "key", "value", "cu_q", "cu_k")},
}
LEFT_OUT = ("out", "return_lse")  # operators always return the lse
# What says how a tensor argument is meant: q_offset="end", blocks of a BlockMask.
BESIDES = {"q_offset": ("at_end", "bool"), "mask": ("block_size", "SymInt[]?")}
MAIN_TENSORS = {name for name, kind in TYPES.items() if kind == "Tensor"}


def _describe(function: Function) -> dict[str, str]:
    """Arguments of the operator of a function: their names and types in its schema."""
    columns = {}
    for name in inspect.signature(function).parameters:
        if name in LEFT_OUT:
            continue
        columns[name] = TYPES.get(name, "Tensor?")
        if name in BESIDES:
            beside, kind = BESIDES[name]
            columns[beside] = kind
    return columns


COLUMNS = {function: _describe(function) for function in FUNCTIONS}


def encode(function: Function, given: Mapping[str, Any]) -> list[Any]:
    """The arguments of a call as those of its operator."""
    given = dict(given)
    columns = COLUMNS[function]
    unknown = {n: x for n, x in given.items() if n not in columns and n != "return_lse"}
    if unknown:
        refuse_unknown(function, unknown)
    if "q_offset" in columns:
        given["at_end"] = isinstance(given.get("q_offset"), str)
        if given["at_end"]:
            if given["q_offset"] != "end":
                raise ValueError(f"q_offset must be an int, ints or 'end', got {given['q_offset']}")
            given["q_offset"] = None
    mask = given.get("mask")
    if isinstance(mask, BlockMask):
        given["mask"], given["block_size"] = torch.tensor(mask.blocks), list(mask.block_size)
    return [_encoded(name, kind, given.get(name)) for name, kind in COLUMNS[function].items()]


def _encoded(name: str, kind: str, x: Any) -> Any:
    if kind == "bool":
        return bool(x)
    if x is None or isinstance(x, torch.Tensor):
        return x
    if name == "window_size":
        sides = (x, x) if isinstance(x, (int, torch.SymInt)) else x
        return [-1 if side is None else side for side in sides]
    if kind.startswith("Tensor"):
        if isinstance(x, torch.SymInt):
            return torch.full((), x, dtype=torch.int64)
        if name == "dropout_seed" and x >= 2**63:
            x -= 2**64  # the same 64 bits
        return torch.as_tensor(list(x) if isinstance(x, range) else x)
    return float(x) if kind.startswith("float") else x


def decode(function: Function, args: Sequence[Any]) -> dict[str, Any]:
    """The arguments of a call from those of its operator; inverse of `encode`."""
    given = dict(zip(COLUMNS[function], args, strict=True))
    if given.pop("at_end", False):
        given["q_offset"] = "end"
    block_size = given.pop("block_size", None)
    if block_size is not None:
        given["mask"] = BlockMask(to_array(given["mask"]), tuple(block_size))
    given = {name: x for name, x in given.items() if x is not None}
    for name in ("q_offset", "dropout_seed", "dilation"):
        x = given.get(name)
        if isinstance(x, torch.Tensor) and x.dim() == 0:
            given[name] = int(x)
    if "dropout_seed" in given:
        given["dropout_seed"] %= 2**64
    if "window_size" in given:
        left, right = given["window_size"]
        given["window_size"] = (left, right)
    return given


def call_operator(function: Function, given: Mapping[str, Any]) -> Any:
    """What `function` returns for tensors that may stand for others."""
    flags = given.get("return_lse", False), given.get("return_weights", False)
    args = encode(function, given)
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return pack(flags, *OPERATORS[function](*args))
    return pack(flags, *_Transformed.apply(function, *args))


def call_backward(
    function: Function,
    given: Mapping[str, Any],
    losses: Mapping[str, Any],
    output: Any,
    lse: Any,
    wanted: Sequence[str],
) -> list[Any]:
    """`gradients` of tensors that may stand for others."""
    grad_output = losses.get("grad_output")
    return OPERATORS_BACKWARD[function](  # type: ignore[no-any-return]
        torch.zeros_like(output) if grad_output is None else grad_output,
        losses.get("grad_lse"),
        losses.get("grad_weights"),
        output,
        lse,
        *encode(function, given),
        [name in wanted for name in DIFFERENTIABLE[function]],
    )


# ---- what the operators do, and of what shape their results are ----


def _shape(function: Function, query: Any, key: Any, value: Any) -> tuple[Any, ...]:
    """Shape of the output."""
    rank = max(query.dim(), key.dim(), value.dim())
    if function.__name__ == "attention_varlen" or rank == 2:
        return (*query.shape[:-1], value.shape[-1])
    heads = query.shape[-3] if query.dim() > 2 else 1
    batch = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    return (*batch, heads, query.shape[-2], value.shape[-1])


def _new_output(query: Any, shape: tuple[Any, ...]) -> Any:
    """An output in the order of the axes of `query`, if that is one of the two that are common."""
    if len(shape) > 2 and query.dim() == len(shape) and not query.is_contiguous():
        swapped = query.transpose(-3, -2)
        if swapped.is_contiguous():
            *outer, heads, rows, last = shape
            return query.new_empty((*outer, rows, heads, last)).transpose(-3, -2)
    return query.new_empty(shape)


def _results(function: Function, args: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Tensors for the results of an operator with these arguments."""
    given = dict(zip(COLUMNS[function], args, strict=True))
    query, key = given["query"], given["key"]
    shape = _shape(function, query, key, given["value"])
    lse_type = torch.float64 if query.dtype is torch.float64 else torch.float32
    if function.__name__ == "attention_varlen":
        lse = query.new_empty((shape[1], shape[0]), dtype=lse_type).transpose(0, 1)
    else:
        lse = query.new_empty(shape[:-1], dtype=lse_type)
    weights = (*shape[:-1], key.shape[-2]) if given.get("return_weights") else (0,)
    return (
        _new_output(query, shape),
        lse,
        query.new_empty(weights),
    )


def _run(function: Function, args: Sequence[Any]) -> tuple[Any, Any, Any]:
    output, *others = _results(function, args)
    given = decode(function, args)
    result = function(**with_threads(arrays(given)), return_lse=True, out=to_array(output))
    for tensor, a in zip(others, result[1:], strict=True):
        if a is not None:
            to_array(tensor)[...] = a
    return output, *others


def _wanted(function: Function, args: Sequence[Any]) -> tuple[list[str], list[Any]]:
    """Names of what is wanted in a call of the backward operator, and their tensors."""
    *_, flags = args
    given = dict(zip(COLUMNS[function], args[5:-1], strict=True))
    names = [n for n, flag in zip(DIFFERENTIABLE[function], flags, strict=True) if flag]
    return names, [given[name] for name in names]


def _run_backward(function: Function, args: Sequence[Any]) -> list[Any]:
    losses = dict(zip(("grad_output", "grad_lse", "grad_weights"), args, strict=False))
    output, lse = args[3:5]
    wanted, _ = _wanted(function, args)
    found = gradients(function, decode(function, args[5:-1]), losses, output, lse, wanted)
    return [x.contiguous() for x in found]


def _save(ctx: Any, inputs: Sequence[Any], output: Sequence[Any]) -> None:
    ctx.set_materialize_grads(False)
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    ctx.others = [None if isinstance(x, torch.Tensor) else x for x in inputs]
    ctx.places = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
    ctx.save_for_backward(*output[:2], *tensors)


def _pull(
    function: Function, ctx: Any, grads: Sequence[Any], operator: Callable[..., Any]
) -> tuple[Any, ...]:
    output, lse, *tensors = ctx.saved_tensors
    args = list(ctx.others)
    for i, x in zip(ctx.places, tensors, strict=True):
        args[i] = x
    columns = list(COLUMNS[function])
    needed = dict(zip(columns, ctx.needs_input_grad[-len(columns) :], strict=True))
    flags = [needed[name] for name in DIFFERENTIABLE[function]]
    grad_output, grad_lse, grad_weights = grads
    found = operator(
        torch.zeros_like(output) if grad_output is None else grad_output,
        *(grad_lse, grad_weights, output, lse, *args, flags),
    )
    names = [n for n, flag in zip(DIFFERENTIABLE[function], flags, strict=True) if flag]
    by_name = dict(zip(names, found, strict=True))
    return tuple(by_name.get(name) for name in columns)


class _Transformed(torch.autograd.Function):  # type: ignore[misc]
    """An operator under the transforms of ``torch.func``, which custom operators do not take."""

    @staticmethod
    def forward(function: Function, *args: Any) -> Any:
        return OPERATORS[function](*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.function, *args = inputs
        _save(ctx, args, output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        def operator(*args: Any) -> Any:
            return _TransformedBackward.apply(ctx.function, *args)

        return None, *_pull(ctx.function, ctx, grads, operator)

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Function, *args: Any) -> Any:
        def operator(*args: Any) -> Any:
            return _Transformed.apply(function, *args)

        columns = list(COLUMNS[function])
        return forward_rule(operator, columns, info.batch_size, in_dims[1:], args)


class _TransformedBackward(torch.autograd.Function):  # type: ignore[misc]
    """The same for gradients, which are not differentiated again."""

    @staticmethod
    def forward(function: Function, *args: Any) -> Any:
        return tuple(OPERATORS_BACKWARD[function](*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.function = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"{ctx.function.__name__} has no second derivatives")

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Function, *args: Any) -> Any:
        def operator(*args: Any) -> Any:
            return _TransformedBackward.apply(function, *args)

        columns, names = list(COLUMNS[function]), DIFFERENTIABLE[function]
        return backward_rule(operator, columns, names, info.batch_size, in_dims[1:], args)


def _define(function: Function) -> tuple[Any, Any]:
    """Register the operators of a function."""
    name = f"attnfast::{function.__name__}"
    columns = ", ".join(f"{kind} {column}" for column, kind in COLUMNS[function].items())
    forward = torch.library.custom_op(
        name,
        lambda *args: _run(function, args),
        mutates_args=(),
        device_types="cpu",
        schema=f"({columns}) -> (Tensor, Tensor, Tensor)",
    )
    forward.register_fake(lambda *args: _results(function, args))
    forward.register_autograd(
        lambda ctx, *grads: _pull(function, ctx, grads, OPERATORS_BACKWARD[function]),
        setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output),
    )
    losses = "Tensor grad_output, Tensor? grad_lse, Tensor? grad_weights, Tensor output, Tensor lse"
    backward = torch.library.custom_op(
        f"{name}_backward",
        lambda *args: _run_backward(function, args),
        mutates_args=(),
        device_types="cpu",
        schema=f"({losses}, {columns}, bool[] wanted) -> Tensor[]",
    )
    backward.register_fake(lambda *args: [x.new_empty(x.shape) for x in _wanted(function, args)[1]])
    return forward, backward


_defined = {function: _define(function) for function in FUNCTIONS}
OPERATORS = {function: forward for function, (forward, _) in _defined.items()}
OPERATORS_BACKWARD = {function: backward for function, (_, backward) in _defined.items()}

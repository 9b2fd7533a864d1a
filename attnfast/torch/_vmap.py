"""Operators under ``torch.vmap``: as one call with one more batch axis, else row by row.

Both give the bits of the calls of the rows alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

OPERANDS = ("query", "key", "value")
RESULTS = ("grad_output", "grad_lse", "grad_weights", "output", "lse")
JOINED = {*OPERANDS, *RESULTS, "mask", "bias"}
# What has an entry for each batch row, or is counted by it, does not take another batch axis.
PER_ROW = ("q_lengths", "kv_lengths", "kv_starts", "global_tokens", "centers", "block_size")
PER_ROW_IF = {"q_offset": 1, "alibi_slopes": 2}  # from this rank on


def forward_rule(
    operator: Callable[..., Any], names: Sequence[str], size: int, in_dims: Any, args: Sequence[Any]
) -> tuple[Any, Any]:
    """Results of all rows and where their axis of rows is."""
    given, dims = _named(names, in_dims, args)
    if not _joins(given, dims, ()):
        return _each(operator, size, in_dims, args)
    rank = max(given[name].dim() - (dims[name] is not None) for name in OPERANDS)
    lifted = _lifted(given, dims, size, rank, ("query",))
    output, lse, weights = operator(*lifted.values())
    if rank == 2:
        output, lse = output.squeeze(1), lse.squeeze(1)
    if given.get("return_weights"):
        weights = weights.squeeze(1) if rank == 2 else weights
    else:
        weights = weights.expand(size, 0)
    return (output, lse, weights), (0, 0, 0)


def backward_rule(
    operator: Callable[..., Any],
    names: Sequence[str],
    differentiable: Sequence[str],
    size: int,
    in_dims: Any,
    args: Sequence[Any],
) -> tuple[Any, Any]:
    """Gradients of all rows and where their axis of rows is."""
    names = [*RESULTS, *names, "wanted"]
    given, dims = _named(names, in_dims, args)
    wanted = [n for n, flag in zip(differentiable, given["wanted"], strict=True) if flag]
    if not _joins(given, dims, wanted):
        return _each(operator, size, in_dims, args)
    rank = max(given[name].dim() - (dims[name] is not None) for name in OPERANDS)
    lifted = _lifted(given, dims, size, rank, ("query", *RESULTS, *wanted))
    found = operator(*lifted.values())
    shapes = [_row(given[name], dims[name]) for name in wanted]
    found = [x.reshape(size, *shape) for x, shape in zip(found, shapes, strict=True)]
    return found, [0] * len(found)


def _named(names: Sequence[str], in_dims: Any, args: Sequence[Any]) -> tuple[Any, Any]:
    """Arguments by name, and of each tensor with rows the axis that counts them."""
    given = dict(zip(names, args, strict=True))
    dims = dict(zip(names, in_dims, strict=True))
    return given, {n: dims[n] if isinstance(x, torch.Tensor) else None for n, x in given.items()}


def _row(x: Any, dim: int | None) -> list[int]:
    """The shape of one row."""
    return [n for k, n in enumerate(x.shape) if k != dim]


def _joins(given: dict[str, Any], dims: dict[str, Any], wanted: Sequence[str]) -> bool:
    return (
        not given.get("dropout")
        and "cu_q" not in given
        and JOINED.issuperset(wanted)
        and all(name in JOINED for name, dim in dims.items() if dim is not None)
        and all(given.get(name) is None for name in PER_ROW)
        and not any(
            given.get(name) is not None and given[name].dim() >= rank
            for name, rank in PER_ROW_IF.items()
        )
    )


def _lifted(
    given: dict[str, Any], dims: dict[str, Any], size: int, rank: int, whole: Sequence[str]
) -> dict[str, Any]:
    """Arguments with rows as the first axis; those in `whole` have all of them, not one for all."""
    lifted = dict(given)
    inner = max(rank, 3)
    for name in JOINED & given.keys():
        x, dim = given[name], dims[name]
        if x is None:
            continue
        x = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
        missing = inner - rank if name in RESULTS else inner - (x.dim() - 1)
        x = x.reshape(x.shape[0], *(1,) * missing, *x.shape[1:])
        lifted[name] = x.expand(size, *x.shape[1:]) if name in whole else x
    return lifted


def _each(
    operator: Callable[..., Any], size: int, in_dims: Any, args: Sequence[Any]
) -> tuple[Any, Any]:
    rows = []
    for i in range(size):
        row = [
            x.select(dim, i) if isinstance(x, torch.Tensor) and dim is not None else x
            for x, dim in zip(args, in_dims, strict=True)
        ]
        rows.append(operator(*row))
    stacked = [torch.stack(list(column)) for column in zip(*rows, strict=True)]
    kind = type(rows[0])
    return kind(stacked), kind([0] * len(stacked))

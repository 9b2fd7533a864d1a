"""Steps of training in PyTorch: automatic differentiation of its fused attention or of a formula.

FlexAttention has no gradients on CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional

from ..case import BACKWARD, Case
from ..functions.training import GRADIENT
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import Prepared
from .torch_family import MOST_BYTES, additive

ARRAYS = 5  # of scores, that automatic differentiation of the formula keeps or makes at once


def training_variants(case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
    """The fused function where it can say what the case says, and the formula for the rest of it.

    With a bias or a window, the fused function takes a mask over all pairs, of which the formula
    may be no slower.
    """
    if case.function == "additive_training":
        return {"tensors": partial(_prepare_additive, case, inputs)}
    variants: dict[str, Callable[[], Prepared]] = {}
    if case.softcap is None:
        variants["sdpa"] = partial(_prepare_fused, case, inputs, repeated=False)
        if case.heads != case.kv_heads:
            variants["sdpa, keys repeated"] = partial(_prepare_fused, case, inputs, repeated=True)
    if case.softcap is not None or case.window is not None or inputs.bias is not None:
        variants["tensors"] = partial(_prepare_formula, case, inputs)
    return variants


def _prepare_fused(case: Case, inputs: Inputs, repeated: bool) -> Prepared:
    """`is_causal` where it means what the case means, else one mask that says it all."""
    causal = case.causal and case.window is None and not case.at_end and case.mask == "none"
    mask = None if causal else full_mask(case, inputs)
    hidden = None if mask is None else torch.from_numpy(mask)
    group = case.heads // case.kv_heads

    def attend(query: Any, key: Any, value: Any, bias: Any = None) -> Any:
        if repeated:
            key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=hidden if bias is None else bias,
            is_causal=causal,
            enable_gqa=group > 1 and not repeated,
        )

    return _prepared(case, inputs, attend, _operands(inputs))


def _prepare_formula(case: Case, inputs: Inputs) -> Prepared:
    require_memory(ARRAYS * case.score_bytes, "the scores", MOST_BYTES)
    mask = full_mask(case, inputs)
    hidden = None if mask is None else torch.from_numpy(~mask)
    group = case.heads // case.kv_heads

    def attend(query: Any, key: Any, value: Any, bias: Any = None) -> Any:
        if group > 1:
            key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
        scores = query @ key.swapaxes(-1, -2) * (1 / math.sqrt(case.head_dim))
        if case.softcap is not None:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        if bias is not None:
            scores = scores + bias
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        return scores.softmax(dim=-1) @ value

    return _prepared(case, inputs, attend, _operands(inputs))


def _prepare_additive(case: Case, inputs: Inputs) -> Prepared:
    require_memory(ARRAYS * case.score_bytes * case.head_dim, "the tangents", MOST_BYTES)
    weight = torch.from_numpy(inputs.extra["score_weight"])
    return _prepared(case, inputs, additive, [*_operands(inputs), weight])


def _operands(inputs: Inputs) -> list[Any]:
    arrays = [inputs.query, inputs.keys[0], inputs.values[0]]
    return [torch.from_numpy(a) for a in (*arrays, inputs.bias) if a is not None]


def _prepared(
    case: Case, inputs: Inputs, attend: Callable[..., Any], operands: list[Any]
) -> Prepared:
    """A call of the step, or of the backward pass through a graph that is kept."""
    gradient = torch.from_numpy(inputs.extra[GRADIENT])
    leaves = [tensor.detach().requires_grad_() for tensor in operands]

    def step() -> tuple[Any, ...]:
        with torch.enable_grad():
            output = attend(*leaves)
        return output.detach(), *torch.autograd.grad(output, leaves, gradient)

    call: Callable[[], tuple[Any, ...]] = step
    if case.kind == BACKWARD:
        with torch.enable_grad():
            output = attend(*leaves)
        call = partial(torch.autograd.grad, output, leaves, gradient, retain_graph=True)
    return Prepared([call], lambda results: tuple(tensor.numpy() for tensor in results))

"""The attention family in PyTorch: its fused attention with a mask, or the formula in tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional

from ..case import Case
from ..functions.local import dense_mask
from ..functions.varlen import sequences
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import Prepared, Unsupported

MOST_BYTES = 5e9
MASK_BYTES = 2**30  # of a mask over all pairs, and the float mask made of it in every call


def family_variants(case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
    """One variant of a function other than attention."""
    if case.function in ("local_attention", "block_mask"):
        return {"sdpa": partial(_prepare_masked, case, inputs)}
    if case.function == "attention_varlen":
        return {"sdpa, a call each": partial(_prepare_varlen, case, inputs)}
    return {"tensors": partial(_prepare_tensors, case, inputs)}


def _prepare_masked(case: Case, inputs: Inputs) -> Prepared:
    """Fused attention with a mask over all pairs."""
    if case.kind == "gaussian":
        raise Unsupported("no factor after the softmax")
    require_memory(case.q_len * case.k_len * (1 + case.itemsize), "an (Lq, Lk) mask", MASK_BYTES)
    if case.function == "block_mask":
        mask = inputs.extra["mask"].dense(case.q_len, case.k_len)
    else:
        mask = dense_mask(case, inputs)
    attend = partial(functional.scaled_dot_product_attention, attn_mask=torch.from_numpy(mask))
    return _prepared(partial(attend, *_tensors(inputs)))


def _prepare_varlen(case: Case, inputs: Inputs) -> Prepared:
    parts = [tuple(torch.from_numpy(a)[None] for a in part) for part in sequences(inputs)]

    def attend(parts: Sequence[tuple[Any, ...]]) -> Any:
        attend_one = partial(functional.scaled_dot_product_attention, is_causal=case.causal)
        return torch.cat([attend_one(*part)[0].swapaxes(0, 1) for part in parts])

    return _prepared(partial(attend, parts))


def _prepare_tensors(case: Case, inputs: Inputs) -> Prepared:
    query, key, value = _tensors(inputs)
    if case.function == "additive_attention":
        require_memory(2 * case.score_bytes * case.head_dim, "the tangents", MOST_BYTES)
        weight = torch.from_numpy(inputs.extra["score_weight"])
        return _prepared(partial(additive, query, key, value, weight))
    require_memory(2 * case.score_bytes, "the scores", MOST_BYTES)
    mask = full_mask(case, inputs)
    hidden = None if mask is None else torch.from_numpy(~mask)
    weights = partial(_weights, query, key, hidden)
    if case.function == "key_importance":
        return _prepared(lambda: weights().sum(dim=-2))
    return Prepared([lambda: weights().topk(case.number)], _found)


def additive(query: Any, key: Any, value: Any, weight: Any) -> Any:
    """The formula of additive attention in tensors."""
    scores = torch.tanh(query[..., :, None, :] + key[..., None, :, :]) @ weight
    return scores.softmax(dim=-1) @ value


def _weights(query: Any, key: Any, hidden: Any) -> Any:
    scores = query @ key.swapaxes(-1, -2) * (1 / math.sqrt(query.shape[-1]))
    if hidden is not None:
        scores = scores.masked_fill_(hidden, -math.inf)
    return scores.softmax(dim=-1)


def _found(result: Any) -> tuple[Any, Any]:
    weights, indices = result
    return torch.where(weights > 0, indices, -1).numpy(), weights.numpy()


def _tensors(inputs: Inputs) -> list[Any]:
    return [torch.from_numpy(a) for a in (inputs.query, inputs.keys[0], inputs.values[0])]


def _prepared(call: Callable[[], Any]) -> Prepared:
    return Prepared([call], lambda result: result.numpy())

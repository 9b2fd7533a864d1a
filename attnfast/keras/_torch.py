"""Attention on the tensors of Keras's backend torch, with gradients."""

from typing import Any

import torch
from torch.autograd import forward_ad

import attnfast.torch

from ..torch._sdpa import _is_traced
from ..torch._tensors import DTYPES, PLAIN, have_memory


def computes(*arrays: Any) -> bool:
    kind = arrays[0].dtype
    return (
        kind in DTYPES
        and all(x.dtype is kind and _is_readable(x) for x in arrays)
        and forward_ad._current_level < 0
    )


def _is_readable(x: Any) -> bool:
    known = type(x) in PLAIN or _is_traced(x)
    return known and x.is_cpu and not x.is_nested and x.layout is torch.strided


def attend(function: str, query: Any, key: Any, value: Any, **options: Any) -> Any:
    heads = (x.transpose(1, 2) for x in (query, key, value))
    output = getattr(attnfast.torch, function)(*heads, **options)
    return output.transpose(1, 2)


def as_seed(state: Any) -> Any:
    high, low = state.to(torch.int64)
    seed = (high & 0x7FFFFFFF) << 32 | low & 0xFFFFFFFF
    return int(seed) if have_memory((state,)) else seed

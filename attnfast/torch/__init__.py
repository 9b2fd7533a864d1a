"""Attention on PyTorch's CPU tensors, with gradients.

>>> import torch
>>> import attnfast.torch
>>> q, k, v = torch.randn(3, 2, 8, 300, 64).requires_grad_().unbind()
>>> attnfast.torch.attention(q, k, v, window_size=(127, 0), softcap=30.0).sum().backward()

- `attention`, `local_attention`, `additive_attention`, `attention_varlen`: the functions of
  `attnfast` with the same options, on tensors
- `scaled_dot_product_attention`: PyTorch's signature
- `activate`, `restore`: PyTorch's own function, and what calls it, uses attnfast on the CPU
"""

from . import _installed as _installed  # first: it says what to install
from ._functions import additive_attention, attention, attention_varlen, local_attention
from ._sdpa import activate, restore, scaled_dot_product_attention

__all__ = [
    "activate",
    "additive_attention",
    "attention",
    "attention_varlen",
    "local_attention",
    "restore",
    "scaled_dot_product_attention",
]


def __dir__() -> list[str]:
    return sorted(__all__)

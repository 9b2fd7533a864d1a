"""Attention layers in plain NumPy, forward only, with weights from and to the frameworks.

Attention is computed by the kernels of attnfast, projections by NumPy's matrix products.
"""

from .bahdanau import BahdanauAttention
from .keras import AdditiveAttention, Attention
from .linear import Linear
from .luong import LuongAttention
from .multihead import MultiHeadAttention
from .projections import Projections
from .safetensors import read_safetensors

__all__ = [
    "AdditiveAttention",
    "Attention",
    "BahdanauAttention",
    "Linear",
    "LuongAttention",
    "MultiHeadAttention",
    "Projections",
    "read_safetensors",
]


def __dir__() -> list[str]:
    return __all__

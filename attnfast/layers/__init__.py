"""Attention layers in plain NumPy with weights from and to the frameworks, and with gradients.

Attention is computed by the kernels of attnfast, projections by NumPy's matrix products. Layers
that go into the models of Keras are in `attnfast.keras`.
"""

from .bahdanau import BahdanauAttention
from .gradients import LayerGradients
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
    "LayerGradients",
    "Linear",
    "LuongAttention",
    "MultiHeadAttention",
    "Projections",
    "read_safetensors",
]


def __dir__() -> list[str]:
    return __all__

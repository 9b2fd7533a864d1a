"""Keras's attention layers with attnfast inside: on the backends torch, jax and numpy, on CPUs.

>>> import numpy as np
>>> from attnfast.keras import MultiHeadAttention
>>> x = np.random.default_rng(0).standard_normal((2, 100, 64), dtype=np.float32)
>>> MultiHeadAttention(num_heads=4, key_dim=16)(x, x, use_causal_mask=True).shape == x.shape
True

`Attention`, `AdditiveAttention`, `MultiHeadAttention` and `GroupQueryAttention` are subclasses of
the layers of these names in ``keras.layers`` and take their places. Only the attention itself is
computed by attnfast. Needs Keras 3.12 or newer.

The layers of `attnfast.layers`, some of which have the same names, are others: they compute in
plain NumPy, need no Keras, and take the weights of Keras's layers.
"""

from . import _library as _library  # first: it says what is missing
from ._heads import GroupQueryAttention, MultiHeadAttention
from ._tokens import AdditiveAttention, Attention

__all__ = ["AdditiveAttention", "Attention", "GroupQueryAttention", "MultiHeadAttention"]

for _layer in (AdditiveAttention, Attention, GroupQueryAttention, MultiHeadAttention):
    _layer.__module__ = __name__  # which Keras writes into the files of models


def __dir__() -> list[str]:
    return sorted(__all__)

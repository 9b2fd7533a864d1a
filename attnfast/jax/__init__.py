"""Attention on JAX arrays, under ``jit``, ``grad`` and ``vmap``.

>>> import jax, jax.numpy as jnp
>>> from attnfast.jax import attention
>>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 8, 100, 64))
>>> jax.jit(lambda *qkv: attention(*qkv, is_causal=True))(q, k, v).shape
(2, 8, 100, 64)

`attention` is :func:`attnfast.attention`, `additive_attention` is
:func:`attnfast.additive_attention`, and `dot_product_attention` has the arguments and layout of
``jax.nn.dot_product_attention``. Needs JAX 0.5.0 or newer, on CPU devices.
"""

from . import _ffi as _ffi  # first: it says what is wrong with the JAX that is there
from ._dot_product import dot_product_attention
from ._functions import additive_attention, attention

__all__ = ["additive_attention", "attention", "dot_product_attention"]

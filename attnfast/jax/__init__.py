"""Attention on JAX arrays, under ``jit``, ``grad`` and ``vmap``.

>>> import jax, jax.numpy as jnp
>>> from attnfast.jax import attention
>>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 8, 100, 64))
>>> jax.jit(lambda *qkv: attention(*qkv, is_causal=True))(q, k, v).shape
(2, 8, 100, 64)

`attention` is :func:`attnfast.attention`, `dot_product_attention` has the arguments and layout of
``jax.nn.dot_product_attention``. Needs JAX 0.5.0 or newer, on CPU devices.
"""

from . import _ffi as _ffi  # first: it says what is wrong with the JAX that is there
from ._attention import attention
from ._dot_product import dot_product_attention

__all__ = ["attention", "dot_product_attention"]

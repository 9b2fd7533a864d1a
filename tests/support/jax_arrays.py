"""What the tests of attnfast.jax share."""

import jax.numpy as jnp
import numpy as np


def draw(*shapes, dtype="float32", seed=0):
    """Random arrays of NumPy, in any dtype that JAX has."""
    rng = np.random.default_rng(seed)
    return [np.array(jnp.asarray(rng.standard_normal(s), dtype)) for s in shapes]


def same(a, b):
    """Whether two arrays have the same dtype, shape and bits."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def stacked(function, n):
    """What a function returns for 0 .. n, as vmap would."""
    return jnp.stack([function(i) for i in range(n)])

"""The call of ``jax.nn.dot_product_attention``."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._attend import QKV, Arrays, attend
from ._call import complete, plain

DTYPES = ("float32", "float64", "float16", "bfloat16")
LENGTHS = ("query_seq_lengths", "key_value_seq_lengths")
OWN = jax.nn.dot_product_attention  # also if somebody puts this one in its place


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Any:
    """Compute what ``jax.nn.dot_product_attention`` does, in place of it.

    The same arguments, errors and gradients, on CPU devices. A query that may see no key gives
    zeros here, and there the mean of all values, hidden ones too. Memory does not grow with the
    product of the lengths; keys outside of a window or past a length cost nothing. What this cannot
    do is done by JAX: other dtypes, `scale` or a window that is traced, bounds below 0, and an
    `implementation` that is asked for.

    Parameters
    ----------
    query : array_like, ``(B, T, N, H)`` or ``(T, N, H)``
        Queries.
    key, value : array_like, ``(B, S, K, H)`` or ``(S, K, H)``
        Keys and values; `K` divides `N`.
    bias : array_like, optional
        Added to the scores; broadcast to ``(B, N, T, S)``.
    mask : array_like of bool, optional
        True where a query may attend to a key; broadcast to ``(B, N, T, S)``.
    scale : float, optional
        By default ``1 / sqrt(H)``.
    is_causal : bool
        Query `i` sees keys up to `i`.
    query_seq_lengths, key_value_seq_lengths : array_like of int32, ``(B,)``, optional
        The rest is padding.
    local_window_size : int or (left, right), optional
        Keys before and after its own position that a query sees.
    implementation : {None, "xla", "cudnn"}
        None is this one, the others are JAX's.
    return_residual : bool
        Also return the log-sum-exp of scores, ``(B, T, N)``, without gradient, as newer versions
        of JAX do.

    Returns
    -------
    jax.Array or (jax.Array, jax.Array)
        Output like `query`, and the log-sum-exp where it is wanted.

    Examples
    --------
    >>> import jax
    >>> from attnfast.jax import dot_product_attention
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 100, 8, 64))
    >>> dot_product_attention(q, k, v, is_causal=True, local_window_size=(16, 0)).shape
    (2, 100, 8, 64)
    """
    arrays = {"query": query, "key": key, "value": value, "bias": bias, "mask": mask}
    arrays |= dict(zip(LENGTHS, (query_seq_lengths, key_value_seq_lengths), strict=True))
    given = {name: jnp.asarray(x) for name, x in arrays.items() if x is not None}
    options = {"scale": scale, "is_causal": is_causal, "local_window_size": local_window_size}
    if not _is_ours(given, options, implementation):
        if return_residual:
            options["return_residual"] = True
        return OWN(**given, **options, implementation=implementation)
    fixed = tuple((name, plain(x, name)) for name, x in options.items() if x is not None)
    output, lse = _attention(fixed, given)
    return (output, jax.lax.stop_gradient(lse).astype(output.dtype)) if return_residual else output


def _is_ours(arrays: Arrays, options: dict[str, Any], implementation: str | None) -> bool:
    """Whether this is a call for the handlers in C."""
    if implementation is not None or any(isinstance(x, jax.core.Tracer) for x in options.values()):
        return False
    if any(arrays[name].dtype.name not in DTYPES for name in QKV):
        return False
    return bool(min(np.ravel(options["local_window_size"] or 0)) >= 0)


@partial(jax.jit, static_argnums=0)
def _attention(fixed: tuple[tuple[str, Any], ...], arrays: Arrays) -> tuple[Any, Any]:
    options = dict(fixed)
    # JAX's own checks and messages, without computing anything.
    jax.eval_shape(partial(OWN, **options), **arrays)
    ndim = arrays["query"].ndim
    given = {
        name: x.reshape((1,) * (4 - x.ndim) + x.shape) for name, x in arrays.items() if x.ndim > 1
    }
    rows = given["query"].shape[1], given["key"].shape[1]
    for name, ours, most in zip(LENGTHS, ("q_lengths", "kv_lengths"), rows, strict=True):
        if name in arrays:
            given[ours] = jnp.clip(arrays[name], 0, most)
    if "bias" in given:
        given["bias"] = given["bias"].astype(jnp.promote_types(given["bias"].dtype, np.float32))
    options["window_size"] = options.pop("local_window_size", None)
    found = attend(*complete(options | {"return_lse": True}, given, tokens_first=True))
    output, lse = found["output"], found["lse"]
    return (output[0], lse[0]) if ndim == 3 else (output, lse)

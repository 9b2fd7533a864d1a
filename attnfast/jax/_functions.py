"""The functions of ``attnfast`` on JAX arrays."""

from typing import Any, Never, Unpack

import numpy as np

import attnfast

from .. import options
from .._signature import check_arguments, takes
from ._call import call


class AttentionKeywords(
    options.Attending, options.Dropout, options.Lse, options.Weights, options.Threads, total=False
):
    """Those of :func:`attention`: there is no `out`, a result is a new array."""


class AdditiveKeywords(
    options.Bahdanau, options.Dropout, options.Lse, options.Weights, options.Threads, total=False
):
    """Those of :func:`additive_attention`."""


@takes(AttentionKeywords)
def attention(
    query: Any, key: Any, value: Any, *extra: Never, **options: Unpack[AttentionKeywords]
) -> Any:
    """Compute :func:`attnfast.attention` of JAX arrays.

    The same arguments with the same meaning, on CPU devices, inside or outside of ``jax.jit``,
    ``jax.grad``, ``jax.vjp`` and ``jax.vmap``. Arrays may be traced; flags, windows and numbers are
    fixed when a function is compiled. There are gradients of `query`, `key`, `value`, `bias`,
    `sink_logits` and `alibi_slopes`, computed only where they are needed, and none of gradients.

    Parameters
    ----------
    query : array_like, ``(..., H, Lq, D)``
        Queries in float32, float64, float16 or bfloat16.
    key, value : array_like, ``(..., Hk, Lk, D)``, ``(..., Hk, Lk, Dv)``
        Keys and values in the dtype of `query`.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As in :func:`attnfast.attention`. Lengths and starts outside of ``0 .. L`` are an error of
        XLA when the call runs.
    scale, softcap, alibi_slopes, sink_logits, dropout : optional
        As in :func:`attnfast.attention`.
    dropout_seed : int, array of one int, or key of ``jax.random``
        Which weights are dropped.
    return_lse, return_weights : bool
        As in :func:`attnfast.attention`.
    num_threads : int, optional
        At most so many of XLA's threads; by default, as :func:`attnfast.set_num_threads` says.

    Returns
    -------
    jax.Array or AttentionResult
        What :func:`attnfast.attention` returns, with the same bits.

    Raises
    ------
    TypeError, ValueError
        As for :func:`attnfast.attention`, while the call is traced.

    Examples
    --------
    >>> import jax
    >>> from attnfast.jax import attention
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 8, 100, 64))
    >>> loss = lambda q: attention(q, k, v, window_size=(16, 0)).sum()
    >>> jax.jit(jax.grad(loss))(q).shape
    (2, 8, 100, 64)
    """
    check_arguments(attention, extra, options)
    return call(attnfast.attention, {"query": query, "key": key, "value": value, **options})


@takes(AdditiveKeywords)
def additive_attention(
    query: Any,
    key: Any,
    value: Any,
    score_weight: Any = None,
    *extra: Never,
    **options: Unpack[AdditiveKeywords],
) -> Any:
    """Compute :func:`attnfast.additive_attention` of JAX arrays, as :func:`attention` does its.

    Parameters
    ----------
    query, key, value : array_like, ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)``, ``(..., Hk, Lk, Dv)``
        As for :func:`attention`.
    score_weight, score_bias : array_like ``(D,)`` or ``(H, D)``, optional
        As for :func:`attnfast.additive_attention`; they have gradients too.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As for :func:`attention`.
    softcap, alibi_slopes, sink_logits, dropout, dropout_seed : optional
        As for :func:`attention`.
    return_lse, return_weights, num_threads : optional
        As for :func:`attention`.

    Returns
    -------
    jax.Array or AttentionResult
        What :func:`attnfast.additive_attention` returns, with the same bits.

    Raises
    ------
    TypeError, ValueError
        As for :func:`attnfast.additive_attention`, while the call is traced.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from attnfast.jax import additive_attention
    >>> state, source = jnp.ones((1, 64)), jax.random.normal(jax.random.key(0), (20, 64))
    >>> loss = lambda w: additive_attention(state, source, source, w).sum()
    >>> jax.jit(jax.grad(loss))(jnp.ones(64)).shape
    (64,)
    """
    check_arguments(additive_attention, extra, options)
    if score_weight is None:
        score_weight = np.ones(np.shape(query)[-1:], np.float32)
    given = {"query": query, "key": key, "value": value, "score_weight": score_weight}
    return call(attnfast.additive_attention, given | options)

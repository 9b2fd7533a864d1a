"""Additive (Bahdanau) attention."""

from typing import Literal, Never, Unpack, overload

from numpy.typing import ArrayLike

from . import _core
from ._signature import check_arguments, takes
from .options import AdditiveKeywords, AdditiveOptions, Array
from .result import AttentionResult


@overload
def additive_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    score_weight: ArrayLike | None = ...,
    *,
    return_lse: Literal[False] = ...,
    return_weights: Literal[False] = ...,
    **options: Unpack[AdditiveOptions],
) -> Array: ...
@overload
def additive_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    score_weight: ArrayLike | None = ...,
    *,
    return_lse: Literal[True],
    return_weights: bool = ...,
    **options: Unpack[AdditiveOptions],
) -> AttentionResult: ...
@overload
def additive_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    score_weight: ArrayLike | None = ...,
    *,
    return_lse: bool = ...,
    return_weights: Literal[True],
    **options: Unpack[AdditiveOptions],
) -> AttentionResult: ...
@overload
def additive_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    score_weight: ArrayLike | None = ...,
    *,
    return_lse: bool = ...,
    return_weights: bool = ...,
    **options: Unpack[AdditiveOptions],
) -> Array | AttentionResult: ...
@takes(AdditiveKeywords)
def additive_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    score_weight: ArrayLike | None = None,
    *extra: Never,
    **options: Unpack[AdditiveKeywords],
) -> Array | AttentionResult:
    r"""Attention with the additive scores of Bahdanau et al. [1]_.

    .. math:: s_{ij} = \sum_d w_d \tanh(q_{id} + k_{jd} + b_d)

    in place of the scaled dot product; all that follows is as in :func:`attention`. Queries and
    keys are already projected (``W s`` and ``U h`` of the paper). The ``Lq x Lk x D`` tensor of the
    formula is never in memory, which is ``O(Lq)``.

    Parameters
    ----------
    query, key, value : array_like, ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)``, ``(..., Hk, Lk, Dv)``
        As for :func:`attention`.
    score_weight : array_like ``(D,)`` or ``(H, D)``, optional
        ``w``; default all ones.
    score_bias : array_like ``(D,)`` or ``(H, D)``, optional
        ``b``; default zero.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As for :func:`attention`.
    softcap, alibi_slopes, sink_logits, return_lse, return_weights, out, num_threads : optional
        As for :func:`attention`. There is no `scale`: it is part of `score_weight`.

    Returns
    -------
    ndarray or AttentionResult
        As for :func:`attention`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attention`.

    Notes
    -----
    A tanh is computed from exponentials of its query and of its key, which are computed once each:
    ``tanh(x + y) = 1 - 2 / (1 + exp(2 x) exp(2 y))``. Its absolute error is some 3 units in the
    last place of 1.

    References
    ----------
    .. [1] D. Bahdanau, K. Cho, Y. Bengio, "Neural Machine Translation by Jointly Learning to Align
       and Translate", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import additive_attention
    >>> rng = np.random.default_rng(0)
    >>> state, source = rng.standard_normal((1, 64)), rng.standard_normal((20, 64))
    >>> w = rng.standard_normal(64)
    >>> context, _, weights = additive_attention(state, source, source, w, return_weights=True)
    >>> scores = (w * np.tanh(state[:, None] + source)).sum(axis=-1)
    >>> np.allclose(weights, np.exp(scores) / np.exp(scores).sum())
    True
    """
    if extra or options:
        check_arguments(additive_attention, extra, options)
    return _core.additive_attention(query, key, value, score_weight, options)

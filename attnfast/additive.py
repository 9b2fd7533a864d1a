"""Additive (Bahdanau) attention."""

from typing import Any, Literal, NamedTuple, Never, Unpack, overload

from numpy.typing import ArrayLike

from . import _core
from ._signature import check_arguments, takes
from .options import AdditiveBackwardKeywords, AdditiveKeywords, AdditiveOptions, Array
from .result import AttentionResult, fields_repr


class AdditiveGradients(NamedTuple):
    """Gradients of what a call was given, each in the shape and dtype of its operand.

    Attributes
    ----------
    query : ndarray or None
        That of the query, None where not wanted; so are the others.
    key : ndarray or None
        That of the key.
    value : ndarray or None
        That of the value.
    bias : ndarray or None
        That of the bias.
    sink_logits : ndarray or None
        That of the sinks.
    alibi_slopes : ndarray or None
        That of the slopes.
    score_weight : ndarray or None
        That of the weights of the scores.
    score_bias : ndarray or None
        That of the bias within the tanh.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import additive_attention, additive_attention_backward
    >>> x, w = np.ones((4, 8)), np.ones(8)
    >>> output, lse, _ = additive_attention(x, x, x, w, return_lse=True)
    >>> wanted = ("score_weight",)
    >>> gradients = additive_attention_backward(x, x, x, x, output, lse, w, wanted=wanted)
    >>> gradients.query is None, gradients.score_weight.shape
    (True, (8,))
    """

    query: Any = None
    key: Any = None
    value: Any = None
    bias: Any = None
    sink_logits: Any = None
    alibi_slopes: Any = None
    score_weight: Any = None
    score_bias: Any = None

    def __repr__(self) -> str:
        return fields_repr(self)


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
    r"""Attention with the additive scores of Bahdanau et al.

    .. math:: s_{ij} = \sum_d w_d \tanh(q_{id} + k_{jd} + b_d)

    in place of the scaled dot product; all that follows is as in :func:`attention`. Queries and
    keys are already projected (``W s`` and ``U h`` of the paper [1]_). The ``Lq x Lk x D``
    tensor of the formula is never in memory, which is ``O(Lq)``.

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
    softcap, alibi_slopes, sink_logits, dropout, dropout_seed : optional
        As for :func:`attention`.
    return_lse, return_weights, out, num_threads : optional
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


@takes(AdditiveBackwardKeywords)
def additive_attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    score_weight: ArrayLike | None = None,
    *extra: Never,
    **options: Unpack[AdditiveBackwardKeywords],
) -> AdditiveGradients:
    r"""Compute the gradients of a loss that depends on the result of :func:`additive_attention`.

    From the gradient ``dS`` of a score, as in :func:`attention_backward`:

    .. math::
        dQ_{id} = w_d \sum_j dS_{ij} (1 - t_{ijd}^2) \qquad
        dw_d = \sum_{ij} dS_{ij} t_{ijd} \qquad t_{ijd} = \tanh(q_{id} + k_{jd} + b_d)

    ``dK`` is the same sum over the queries, and ``db`` that over both. The ``Lq x Lk x D`` tensor
    ``t`` is never in memory.

    Parameters
    ----------
    grad_output : array_like, ``(..., H, Lq, Dv)``
        Derivative of the loss by the output, in the dtype of `query`.
    query, key, value : array_like
        As for :func:`additive_attention`.
    output, lse : array_like, ``(..., H, Lq, Dv)``, ``(..., H, Lq)``
        What :func:`additive_attention` returned for them, with ``return_lse=True``.
    score_weight, score_bias : array_like ``(D,)`` or ``(H, D)``, optional
        As in the forward call.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As in the forward call.
    softcap, alibi_slopes, sink_logits, dropout, dropout_seed : optional
        As in the forward call.
    grad_lse : array_like, ``(..., H, Lq)``, optional
        Derivative of the loss by `lse`.
    grad_weights : array_like, ``(..., H, Lq, Lk)``, optional
        Derivative of the loss by the weights that the forward call returned, in the dtype of
        `query`.
    wanted : tuple of str
        Which gradients to compute: fields of `AdditiveGradients`.
    num_threads : int, optional
        Threads for this call, default :func:`attnfast.get_num_threads`.

    Returns
    -------
    AdditiveGradients
        As :func:`attention_backward` has it, with `score_weight` and `score_bias` besides.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`additive_attention` and :func:`attention_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import additive_attention, additive_attention_backward
    >>> rng = np.random.default_rng(0)
    >>> state, source = rng.standard_normal((1, 64)), rng.standard_normal((20, 64))
    >>> w = rng.standard_normal(64)
    >>> output, lse, _ = additive_attention(state, source, source, w, return_lse=True)
    >>> loss = (output**2).sum() / 2
    >>> gradients = additive_attention_backward(
    ...     output, state, source, source, output, lse, w, wanted=("score_weight",)
    ... )
    >>> moved = w + 1e-6 * gradients.score_weight
    >>> growth = (additive_attention(state, source, source, moved) ** 2).sum() / 2 - loss
    >>> bool(np.isclose(growth, 1e-6 * (gradients.score_weight**2).sum(), rtol=1e-3))
    True
    """
    check_arguments(additive_attention_backward, extra, options)
    return AdditiveGradients(
        *_core.additive_attention_backward(
            grad_output, query, key, value, output, lse, score_weight, options
        )
    )

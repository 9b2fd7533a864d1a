"""Attention over sequences of different length, packed without padding."""

from typing import Literal, Never, Unpack, overload

from numpy.typing import ArrayLike

from . import _core
from ._signature import check_arguments, takes
from .gradient import AttentionGradients
from .options import Array, VarlenBackwardKeywords, VarlenKeywords, VarlenOptions
from .result import AttentionResult


@overload
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[VarlenOptions],
) -> Array: ...
@overload
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    *,
    return_lse: Literal[True],
    **options: Unpack[VarlenOptions],
) -> AttentionResult: ...
@overload
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    *,
    return_lse: bool = ...,
    **options: Unpack[VarlenOptions],
) -> Array | AttentionResult: ...
@takes(VarlenKeywords)
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    *extra: Never,
    **options: Unpack[VarlenKeywords],
) -> Array | AttentionResult:
    """Attention within each of several sequences that are packed one after the other.

    Sequence ``s`` has the rows ``cu_q[s] : cu_q[s + 1]`` of `query` and the rows
    ``cu_k[s] : cu_k[s + 1]`` of `key` and `value`. The bits of its result are those of
    :func:`attention` on it alone. Nothing is padded.

    Parameters
    ----------
    query : array_like, ``(Tq, H, D)``
        The queries of all sequences; heads are the second axis here.
    key, value : array_like, ``(Tk, Hk, D)``, ``(Tk, Hk, Dv)``
        Their keys and values; or pools of pages (see `block_table`).
    cu_q, cu_k : array_like of int, ``(sequences + 1,)``
        Where each sequence begins, and the end: from 0 to ``Tq`` and ``Tk``, never decreasing. With
        `block_table`, `cu_k` says how many keys each sequence has.
    is_causal, window_size : optional
        As for :func:`attention`, in each sequence.
    q_offset : int, array_like of int ``(sequences,)``, or "end", optional
        As for :func:`attention`, for each sequence.
    scale, softcap : optional
        As for :func:`attention`.
    alibi_slopes : array_like ``(H,)`` or ``(sequences, H)``, optional
        As for :func:`attention`.
    sink_logits : optional
        As for :func:`attention`.
    block_table : array_like of int ``(sequences, blocks)``, optional
        `key` and `value` are pools of pages ``(pages, Hk, page_size, D)`` (or ``Dv``), as for
        :func:`attention`, and row ``s`` has the pages of sequence ``s``, one after the other, of
        which the first ``cu_k[s + 1] - cu_k[s]`` keys are used. Later pages are never read.
    key_scale, value_scale, key_zero_point, value_zero_point : array_like, optional
        For keys and values in 8 bits, as for :func:`attention`. Their axes are those of `key` and
        `value` here: one for each key and head is ``(Tk, Hk, 1)``.
    dropout, dropout_seed : optional
        As for :func:`attention`, a batch row being a sequence.
    return_lse : bool
        Also return the natural logarithm of the softmax denominators.
    out : ndarray ``(Tq, H, Dv)``, optional
        Where to write the output.
    num_threads : int, optional
        As for :func:`attention`.

    Returns
    -------
    ndarray or AttentionResult
        The output ``(Tq, H, Dv)``; with `return_lse` the named tuple with lse ``(Tq, H)``, float32
        (float64 for float64), and None for the weights.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attention`; ValueError for bounds that decrease or do not cover the rows.

    Examples
    --------
    Three sentences of 5, 9 and 2 words:

    >>> import numpy as np
    >>> from attnfast import attention, attention_varlen
    >>> x = np.random.default_rng(0).standard_normal((16, 4, 32))  # words, heads, head size
    >>> cu = [0, 5, 14, 16]
    >>> o = attention_varlen(x, x, x, cu, cu, is_causal=True)
    >>> second = x[5:14].swapaxes(0, 1)
    >>> np.array_equal(o[5:14].swapaxes(0, 1), attention(second, second, second, is_causal=True))
    True

    One new word for each of them, with keys in pages of 8, the first page of two texts the same:

    >>> pool = np.random.default_rng(1).standard_normal((9, 4, 8, 32))  # pages, heads, words
    >>> table = [[4, -1], [4, 2], [7, -1]]
    >>> lengths = np.array([0, 5, 9, 2])
    >>> cu_k = np.cumsum(lengths)
    >>> attention_varlen(x[:3], pool, pool, [0, 1, 2, 3], cu_k, block_table=table).shape
    (3, 4, 32)
    """
    if extra or options:
        check_arguments(attention_varlen, extra, options)
    return _core.attention_varlen(query, key, value, cu_q, cu_k, options)


@takes(VarlenBackwardKeywords)
def attention_varlen_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    *extra: Never,
    **options: Unpack[VarlenBackwardKeywords],
) -> AttentionGradients:
    """Compute the gradients of a loss that depends on the result of :func:`attention_varlen`.

    Parameters
    ----------
    grad_output : array_like, ``(Tq, H, Dv)``
        Derivative of the loss by the output, in the dtype of `query`.
    query, key, value : array_like
        As for :func:`attention_varlen`.
    output, lse : array_like, ``(Tq, H, Dv)``, ``(Tq, H)``
        What :func:`attention_varlen` returned for them, with ``return_lse=True``.
    cu_q, cu_k : array_like of int, ``(sequences + 1,)``
        As for :func:`attention_varlen`.
    is_causal, window_size, q_offset, scale, softcap, alibi_slopes, sink_logits : optional
        As in the forward call.
    dropout, dropout_seed : optional
        As in the forward call.
    grad_lse : array_like, ``(Tq, H)``, optional
        Derivative of the loss by `lse`.
    wanted : tuple of str
        Which gradients to compute: fields of `AttentionGradients`.
    num_threads : int, optional
        Threads for this call, default :func:`attnfast.get_num_threads`.

    Returns
    -------
    AttentionGradients
        As for :func:`attention_backward`; those of sinks and slopes that several sequences share
        are summed in the order of the sequences.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attention_varlen` and :func:`attention_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention_varlen, attention_varlen_backward
    >>> x = np.random.default_rng(0).standard_normal((16, 4, 32))
    >>> cu = [0, 5, 14, 16]
    >>> output, lse, _ = attention_varlen(x, x, x, cu, cu, return_lse=True)
    >>> loss = np.zeros_like(output)
    >>> loss[5:14] = 1  # by the second sequence alone
    >>> gradients = attention_varlen_backward(loss, x, x, x, output, lse, cu, cu)
    >>> gradients.value.any(axis=(1, 2)).nonzero()[0]
    array([ 5,  6,  7,  8,  9, 10, 11, 12, 13])
    """
    check_arguments(attention_varlen_backward, extra, options)
    return AttentionGradients(
        *_core.attention_varlen_backward(
            grad_output, query, key, value, output, lse, cu_q, cu_k, options
        )
    )

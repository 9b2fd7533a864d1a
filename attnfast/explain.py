"""Heaviest keys of queries and total weight of keys, without the ``Lq x Lk`` weights."""

from typing import Never, Unpack

from numpy.typing import ArrayLike

from . import _core
from ._signature import check_arguments, takes
from .options import Array, ImportanceKeywords, TopKKeywords
from .result import AttentionTopK


@takes(TopKKeywords)
def attention_topk(
    query: ArrayLike,
    key: ArrayLike,
    k: int,
    *extra: Never,
    **options: Unpack[TopKKeywords],
) -> AttentionTopK:
    """The `k` heaviest keys of each query, with their exact softmax weights.

    Memory is ``O(Lq * k)``; time that of the scores, and grows with `k`.

    Parameters
    ----------
    query, key : array_like, ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)``
        As for :func:`attention`.
    k : int
        How many keys, from 0 to ``Lk``.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As for :func:`attention`.
    scale, softcap, alibi_slopes, sink_logits : optional
        As for :func:`attention`.
    block_table, key_scale, key_zero_point : optional
        As for :func:`attention`: keys in pages, keys in 8 bits.
    num_threads : int, optional
        As for :func:`attention`.

    Returns
    -------
    AttentionTopK
        Named tuple ``(indices, weights)`` of shape ``(..., H, Lq, k)``: int64 keys, heaviest first
        (the first key first where scores are equal), and their weights in the dtype of `query`, of
        the softmax over all visible keys. Where a query sees fewer than `k` keys, -1 and 0.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attention`; ValueError for a `k` out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention_topk
    >>> q = k = np.eye(4, dtype=np.float32)
    >>> indices, weights = attention_topk(q, k, 2, is_causal=True, scale=3.0)
    >>> indices
    array([[ 0, -1],
           [ 1,  0],
           [ 2,  0],
           [ 3,  0]])
    >>> weights.round(2)
    array([[1.  , 0.  ],
           [0.95, 0.05],
           [0.91, 0.05],
           [0.87, 0.04]], dtype=float32)
    """
    if extra or options:
        check_arguments(attention_topk, extra, options)
    return _core.attention_topk(query, key, k, options)


@takes(ImportanceKeywords)
def key_importance(
    query: ArrayLike,
    key: ArrayLike,
    *extra: Never,
    **options: Unpack[ImportanceKeywords],
) -> Array:
    """The total softmax weight that each key receives from all queries.

    The column sums of :func:`attention_weights`, without the weights: memory is ``O(Lq + Lk)``,
    time that of computing the scores twice.

    Parameters
    ----------
    query, key : array_like, ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)``
        As for :func:`attention`.
    per_kv_head : bool
        Add up the query heads that share a key head.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As for :func:`attention`.
    scale, softcap, alibi_slopes, sink_logits : optional
        As for :func:`attention`.
    block_table, key_scale, key_zero_point : optional
        As for :func:`attention`: keys in pages, keys in 8 bits.
    num_threads : int, optional
        As for :func:`attention`.

    Returns
    -------
    ndarray, ``(..., H, Lk)`` or ``(..., Hk, Lk)``
        In float32, or float64 for float64. The sum over keys is the number of queries that see any
        key, less what sinks take.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attention`.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import key_importance
    >>> x = np.array([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> key_importance(x, x).round(2)
    array([1., 1., 1.])
    """
    if extra or options:
        check_arguments(key_importance, extra, options)
    return _core.key_importance(query, key, options)

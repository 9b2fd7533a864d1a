"""The public functions: signatures, defaults, documentation. ``_core`` checks the arguments."""

from typing import Literal, Never, Unpack, overload

from numpy.typing import ArrayLike

from . import _core
from ._signature import check_arguments, takes
from .options import Array, AttentionKeywords, AttentionOptions, WeightsKeywords
from .result import AttentionResult


@overload
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    return_lse: Literal[False] = ...,
    return_weights: Literal[False] = ...,
    **options: Unpack[AttentionOptions],
) -> Array: ...
@overload
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    return_lse: Literal[True],
    return_weights: bool = ...,
    **options: Unpack[AttentionOptions],
) -> AttentionResult: ...
@overload
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    return_lse: bool = ...,
    return_weights: Literal[True],
    **options: Unpack[AttentionOptions],
) -> AttentionResult: ...
@overload
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    return_lse: bool = ...,
    return_weights: bool = ...,
    **options: Unpack[AttentionOptions],
) -> Array | AttentionResult: ...
@takes(AttentionKeywords)
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *extra: Never,
    **options: Unpack[AttentionKeywords],
) -> Array | AttentionResult:
    r"""Exact scaled dot-product attention.

    .. math::
        O_i = \sum_j \mathrm{softmax}_j(\mathrm{scale}\; q_i \cdot k_j + \mathrm{bias}_{ij})\, v_j

    over the keys ``j`` that query ``i`` may see. The ``Lq x Lk`` scores are never in memory. The
    order of operations is scale, softcap, bias and ALiBi, masks, softmax with sink, weighted sum.
    Windows, causality and lengths skip blocks of keys, so that hidden keys cost nothing.

    ``B`` is batch, ``H`` query heads, ``Hk`` key/value heads, ``Lq`` queries, ``Lk`` keys, ``D``
    the head size of query and key, ``Dv`` that of value.

    Parameters
    ----------
    query : array_like, ``(..., H, Lq, D)``
        Of float32, float64, float16 or bfloat16 (``ml_dtypes``). Rank 2 is one head, rank 3 heads,
        rank 4 batch and heads; further leading axes are batch. Any strides.
    key : array_like, ``(..., Hk, Lk, D)``
        Same dtype as `query`, or 8 bits (see `key_scale`); ``H % Hk == 0``. Query head ``h`` uses
        key head ``h // (H // Hk)``. Batch axes of query, key and value broadcast.
    value : array_like, ``(..., Hk, Lk, Dv)``
        Same dtype as `key`.
    mask : array_like of bool or BlockMask, optional
        Broadcastable to ``(..., H, Lq, Lk)``; True where a query may attend to a key. One for each
        batch row has an axis for the heads: ``(B, 1, Lq, Lk)``, or ``(B, 1, 1, Lk)`` for padding.
        A key that is hidden by this or by anything below has no influence, even if it holds NaN.
        Blocks that a :class:`BlockMask` hides cost nothing.
    bias : array_like of float, optional
        Broadcastable to ``(..., H, Lq, Lk)``, added to the scores. ``-inf`` hides a key; any finite
        value, ``-1e9`` too, is data.
    is_causal : bool
        Query ``i`` sees key ``j`` only if ``j <= i + q_offset``.
    window_size : int or (left, right), optional
        Query ``i`` sees key ``j`` only if ``p - left <= j <= p + right`` with ``p = i + q_offset``:
        its own position, `left` keys before and `right` keys after. An int is both sides; -1 or
        None is unbounded.
    q_offset : int, array_like of int ``(B,)``, or "end", optional
        Position of query 0 on the key axis, may be negative. ``"end"`` puts the last query at the
        last key, in each batch row by its lengths. Default 0; must be given if ``Lq != Lk`` and
        `is_causal`, `window_size` or `alibi_slopes` need positions.
    q_lengths, kv_lengths : array_like of int ``(B,)``, optional
        Queries and keys from here on are padding: such keys are never seen, such queries give zero.
        An int if there is one batch row.
    kv_starts : array_like of int ``(B,)``, optional
        Keys before these are padding on the left, and never seen. Positions and `q_offset` still
        count from key 0.
    scale : float, optional
        Default ``1 / sqrt(D)``.
    softcap : float, optional
        Scores become ``softcap * tanh(score / softcap)``.
    alibi_slopes : array_like ``(H,)`` or ``(B, H)``, optional
        Adds ``-slope * abs(p - j)`` [3]_.
    sink_logits : array_like ``(H,)``, optional
        One more logit in each head's softmax denominator that carries no value.
    block_table : array_like of int ``(B, blocks)``, optional
        `key` and `value` are pools of pages ``(pages, Hk, page_size, D)`` (or ``Dv``), and the keys
        of batch row ``b`` are those of pages ``block_table[b]``, one page after the other:
        ``Lk = blocks * page_size``. Pages may be shared. One that `kv_lengths` and `kv_starts` do
        not reach is never read, and its number may be any. Without batch axes ``(blocks,)``.
    key_scale, value_scale : array_like, optional
        For `key` and `value` of int8, uint8, float8_e4m3fn or float8_e5m2 (``ml_dtypes``), which
        stand for ``(stored - zero_point) * scale``; :func:`quantize` makes them. Each axis is 1 or
        divides that of `key`, or of `value`, so that neighbours share a scale: one for all ``()``,
        each head ``(Hk, 1, 1)``, key ``(..., Lk, 1)`` or column ``(D,)``, groups of 32 columns
        ``(..., Lk, D // 32)``. In pages, these are the axes of the pools. Default 1 for float8; the
        other dtypes need them. `query` is float32, float16 or bfloat16. They are taken as float32,
        in which numbers below 1.2e-38 have fewer digits and those above 3.4e38 are infinite.
    key_zero_point, value_zero_point : array_like, optional
        Likewise; default 0.
    dropout : float in [0, 1), optional
        Probability with which each weight is dropped after the softmax, for training; the others
        are divided by ``1 - dropout``. `lse` and returned weights are those before.
    dropout_seed : int in 0 .. 2**64 - 1, optional
        Which ones: the same seed drops the same weights, a function of the seed and of (batch row,
        head, query, key) alone, which :mod:`attnfast.reference` writes out. Pass another in each
        step.
    return_lse : bool
        Also return the natural logarithm of the softmax denominator.
    return_weights : bool
        Also return the softmax weights, which takes ``Lq x Lk`` memory.
    out : ndarray ``(..., H, Lq, Dv)``, optional
        Where to write the output; dtype of `query`, any strides, may overlap the inputs.
    num_threads : int, optional
        Threads for this call, default :func:`attnfast.get_num_threads`.

    Returns
    -------
    ndarray or AttentionResult
        The output ``(..., H, Lq, Dv)`` in the dtype of `query`, its memory in the axis order of
        `query`. With a ``return_*`` flag the named tuple ``(output, lse, weights)``: lse
        ``(..., H, Lq)`` in float32 (float64 for float64), weights ``(..., H, Lq, Lk)`` in the dtype
        of `query`, None where not asked for. A query that sees no key has output and weights 0 and
        lse ``-inf``; with a sink, lse is the sink logit.

    Raises
    ------
    TypeError
        A dtype or type that is not accepted; the message says what to write instead.
    ValueError
        A shape that does not fit or could be read in two ways, a number out of range, or a missing
        `q_offset`. The page "Which call, which argument" (docs/guide/which-call.md) shows what to
        write for each layout, mask and offset.
    MemoryError
        No memory for the result or the working memory (under 2 MB a thread; SECURITY.md has the
        exceptions).

    Notes
    -----
    The algorithm is that of FlashAttention [2]_ with the queries in the vector lanes: scores,
    softmax and weighted sum go block by block of keys with a running maximum. Arithmetic is float64
    for float64 and float32 otherwise. The same inputs give the same bits for any number of threads.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017.
    .. [2] T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with
       IO-Awareness", 2022.
    .. [3] O. Press et al., "Train Short, Test Long", 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 2, 4, 100, 64), dtype=np.float32)
    >>> attention(q, k, v, is_causal=True).shape
    (2, 4, 100, 64)

    A window of 8 keys on either side, and padding in the second batch row:

    >>> o, lse, _ = attention(q, k, v, window_size=8, kv_lengths=[100, 60], return_lse=True)
    >>> lse.shape
    (2, 4, 100)
    >>> bool((o[1, :, 70:] == 0).all())
    True

    One new query for each of two texts, whose keys are in pages of 16 and begin with the same page:

    >>> pool = rng.standard_normal((10, 4, 16, 64), dtype=np.float32)
    >>> table = [[7, 3, 2], [7, 5, -1]]
    >>> attention(q[:, :, :1], pool, pool, block_table=table, kv_lengths=[48, 20]).shape
    (2, 4, 1, 64)
    """
    if extra or options:
        check_arguments(attention, extra, options)
    return _core.attention(query, key, value, options)


@takes(WeightsKeywords)
def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    *extra: Never,
    **options: Unpack[WeightsKeywords],
) -> Array:
    """The softmax weights of :func:`attention`, or its scores at an earlier stage.

    Parameters
    ----------
    query, key : array_like, ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)``
        As for :func:`attention`.
    stage : {"scores", "capped", "biased", "weights"}
        ``"scores"``: ``scale * q . k`` of every pair. ``"capped"``: after the softcap, every pair.
        ``"biased"``: after bias and ALiBi, and ``-inf`` where a key is hidden. ``"weights"``: after
        the softmax, 0 where a key is hidden. These are modes 0 to 3 of ``qk_matmul_output_mode`` of
        the ONNX operator ``Attention``.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As for :func:`attention`.
    scale, softcap, alibi_slopes, sink_logits : optional
        As for :func:`attention`.
    block_table, key_scale, key_zero_point : optional
        As for :func:`attention`: keys in pages, keys in 8 bits. Keys of pages that no length
        reaches are not read: their scores are ``-inf`` at the first two stages too.
    num_threads : int, optional
        As for :func:`attention`.

    Returns
    -------
    ndarray, ``(..., H, Lq, Lk)``
        In the dtype of `query`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attention`.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention_weights
    >>> q = k = np.eye(3, dtype=np.float32)
    >>> attention_weights(q, k, is_causal=True, scale=1.0).round(2)
    array([[1.  , 0.  , 0.  ],
           [0.27, 0.73, 0.  ],
           [0.21, 0.21, 0.58]], dtype=float32)
    """
    if extra or options:
        check_arguments(attention_weights, extra, options)
    return _core.attention_weights(query, key, options)

"""Local attention: windows, dilated windows, global tokens, windows around predicted positions."""

from typing import Literal, Never, Unpack, overload

from numpy.typing import ArrayLike

from . import _core
from ._signature import check_arguments, takes
from .options import Array, LocalKeywords, LocalOptions, Window
from .result import AttentionResult


@overload
def local_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    window_size: Window,
    *,
    return_lse: Literal[False] = ...,
    return_weights: Literal[False] = ...,
    **options: Unpack[LocalOptions],
) -> Array: ...
@overload
def local_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    window_size: Window,
    *,
    return_lse: Literal[True],
    return_weights: bool = ...,
    **options: Unpack[LocalOptions],
) -> AttentionResult: ...
@overload
def local_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    window_size: Window,
    *,
    return_lse: bool = ...,
    return_weights: Literal[True],
    **options: Unpack[LocalOptions],
) -> AttentionResult: ...
@overload
def local_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    window_size: Window,
    *,
    return_lse: bool = ...,
    return_weights: bool = ...,
    **options: Unpack[LocalOptions],
) -> Array | AttentionResult: ...
@takes(LocalKeywords)
def local_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    window_size: Window,
    *extra: Never,
    **options: Unpack[LocalKeywords],
) -> Array | AttentionResult:
    r"""Attention within windows; work is ``O(Lq * window)``.

    Query ``i`` at position ``p = i + q_offset`` sees the keys

    .. math:: j = p + d\,t, \qquad -left \le t \le right

    of its window, d being the dilation of its head; the global tokens; and, if it is a global token
    itself, every key. This is the pattern of Longformer [1]_. With `centers` each query has a
    window around a center of its own, as in Luong's local attention [2]_: integers are local-m,
    real numbers with a `sigma` local-p, where each weight is multiplied, after the softmax, by

    .. math:: \exp\left(-\frac{(j - c_i)^2}{2 \sigma^2}\right).

    These weights are not normalised again: rows add up to less than 1.

    Parameters
    ----------
    query, key, value : array_like, ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)``, ``(..., Hk, Lk, Dv)``
        As for :func:`attention`.
    window_size : int or (left, right)
        Keys of the window before and after its middle, which is included. An int is both; -1 or
        None is unbounded.
    global_tokens : array_like, optional
        Positions on the key axis whose tokens attend to all and are attended by all: indices
        ``(n,)`` or ``(B, n)``, or one bool for each key, ``(Lk,)`` or ``(B, Lk)``. Other masks,
        causality too, hold for them as well.
    dilation : int or array_like of int ``(H,)``
        Distance between neighbouring keys of a window.
    centers : array_like, optional
        Broadcastable to ``(..., H, Lq)``; in any order. Integers for local-m, floating point for
        local-p. The window has the keys ``center - left <= j <= center + right``. Causality and
        ALiBi still depend on ``p``.
    sigma : float, optional
        Standard deviation of the factor; must be given with real `centers`. Luong's is half of one
        side of the window, ``(left + right) / 4``.
    mask, bias, is_causal, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As for :func:`attention`.
    scale, softcap, alibi_slopes, sink_logits, dropout, dropout_seed : optional
        As for :func:`attention`.
    return_lse, return_weights, out, num_threads : optional
        As for :func:`attention`. `return_weights` takes ``Lq x Lk`` memory.

    Returns
    -------
    ndarray or AttentionResult
        As for :func:`attention`. The weights are those that multiply `value`; lse is that of the
        softmax, before any factor.

    Raises
    ------
    TypeError
        A dtype or type that is not accepted.
    ValueError
        A shape that does not fit or a number out of range; `centers` together with `global_tokens`
        or a dilation; real `centers` without `sigma`, or `sigma` without them.
    MemoryError
        As for :func:`attention`.

    References
    ----------
    .. [1] I. Beltagy et al., "Longformer: The Long-Document Transformer", 2020.
    .. [2] M.-T. Luong et al., "Effective Approaches to Attention-based Neural Machine Translation",
       2015.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import local_attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 4, 1000, 64), dtype=np.float32)
    >>> local_attention(q, k, v, 16, global_tokens=[0], dilation=[1, 1, 2, 4]).shape
    (4, 1000, 64)

    Five decoder states that attend to positions of a source of 1000 words:

    >>> places = np.array([3.5, 180.2, 420.0, 700.9, 998.0])
    >>> luong = {"centers": places, "sigma": 5.0}
    >>> o, _, w = local_attention(q[:, :5], k, v, 10, **luong, return_weights=True)
    >>> int((w[0, 1] > 0).sum()), bool(w[0, 1].sum() < 1)
    (20, True)
    """
    if extra or options:
        check_arguments(local_attention, extra, options)
    return _core.local_attention(query, key, value, window_size, options)

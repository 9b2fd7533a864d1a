"""Local attention: windows, dilated windows, global tokens, windows around predicted positions."""

from typing import Any, Literal, NamedTuple, Never, Unpack, overload

from numpy.typing import ArrayLike

from . import _core
from ._signature import check_arguments, takes
from .options import Array, LocalBackwardKeywords, LocalKeywords, LocalOptions, Window
from .result import AttentionResult, fields_repr


class LocalGradients(NamedTuple):
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
    centers : ndarray or None
        That of the centers.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import local_attention, local_attention_backward
    >>> x, luong = np.ones((4, 8)), {"centers": np.full(4, 1.5), "sigma": 1.0}
    >>> output, lse, _ = local_attention(x, x, x, 2, **luong, return_lse=True)
    >>> wanted = ("centers",)
    >>> gradients = local_attention_backward(x, x, x, x, output, lse, 2, **luong, wanted=wanted)
    >>> gradients.query is None, gradients.centers.shape
    (True, (4,))
    """

    query: Any = None
    key: Any = None
    value: Any = None
    bias: Any = None
    sink_logits: Any = None
    alibi_slopes: Any = None
    centers: Any = None

    def __repr__(self) -> str:
        return fields_repr(self)


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


@takes(LocalBackwardKeywords)
def local_attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    window_size: Window,
    *extra: Never,
    **options: Unpack[LocalBackwardKeywords],
) -> LocalGradients:
    r"""Compute the gradients of a loss that depends on the result of :func:`local_attention`.

    As :func:`attention_backward`, within windows; work is ``O(Lq * window)``. With `sigma`, a
    weight is ``f P``, f the Gaussian factor, and a center has the gradient

    .. math::
        dc_i = \frac{1}{\sigma^2} \sum_j f_{ij} P_{ij} (dO_i \cdot v_j + dW_{ij}) (j - c_i).

    That of the edges of its window, where keys come in or go, is 0.

    Parameters
    ----------
    grad_output : array_like, ``(..., H, Lq, Dv)``
        Derivative of the loss by the output, in the dtype of `query`.
    query, key, value : array_like
        As for :func:`local_attention`.
    output, lse : array_like, ``(..., H, Lq, Dv)``, ``(..., H, Lq)``
        What :func:`local_attention` returned for them, with ``return_lse=True``.
    window_size, global_tokens, dilation, centers, sigma : optional
        As in the forward call.
    mask, bias, is_causal, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As in the forward call.
    scale, softcap, alibi_slopes, sink_logits, dropout, dropout_seed : optional
        As in the forward call.
    grad_lse : array_like, ``(..., H, Lq)``, optional
        Derivative of the loss by `lse`.
    grad_weights : array_like, ``(..., H, Lq, Lk)``, optional
        Derivative of the loss by the weights that the forward call returned, in the dtype of
        `query`.
    wanted : tuple of str
        Which gradients to compute: fields of `LocalGradients`. Only real `centers` have one.
    num_threads : int, optional
        Threads for this call, default :func:`attnfast.get_num_threads`.

    Returns
    -------
    LocalGradients
        As :func:`attention_backward` has it, with `centers` besides.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`local_attention` and :func:`attention_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import local_attention, local_attention_backward
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 50, 16))
    >>> window = {"window_size": 4, "global_tokens": [0], "dilation": [1, 3]}
    >>> output, lse, _ = local_attention(q, k, v, **window, return_lse=True)
    >>> loss = (output**2).sum() / 2
    >>> gradients = local_attention_backward(output, q, k, v, output, lse, **window)
    >>> moved = v + 1e-6 * gradients.value
    >>> growth = (local_attention(q, k, moved, **window) ** 2).sum() / 2 - loss
    >>> bool(np.isclose(growth, 1e-6 * (gradients.value**2).sum(), rtol=1e-4))
    True
    """
    check_arguments(local_attention_backward, extra, options)
    return LocalGradients(
        *_core.local_attention_backward(
            grad_output, query, key, value, output, lse, window_size, options
        )
    )

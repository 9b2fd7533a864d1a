"""Rotary position embedding."""

from typing import Any

from numpy.typing import ArrayLike, NDArray

from . import _core
from ._signature import plain_signature

Array = NDArray[Any]


@plain_signature
def rotate(
    x: ArrayLike,
    positions: ArrayLike,
    *,
    base: float = 10000.0,
    interleaved: bool = False,
    cos_sin: tuple[ArrayLike, ArrayLike] | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    r"""Rotary position embedding of queries or keys.

    .. math::
        (x_a, x_b) \to (x_a \cos\theta - x_b \sin\theta,\; x_b \cos\theta + x_a \sin\theta)
        \qquad \theta = \mathrm{position} \cdot \mathrm{base}^{-2d / D}

    for each pair ``d`` of elements. The product of a query and a key that are both rotated depends
    on their contents and on the distance of their positions alone [1]_.

    Parameters
    ----------
    x : array_like, ``(..., H, L, D)``
        Of float32, float64, float16 or bfloat16. Rank 2 is one head, rank 3 heads; further leading
        axes are batch. Any strides.
    positions : array_like of int, ``(L,)`` or ``(..., L)``
        Position of each row in its text, for all batch rows or for each. A number if there is one
        row.
    base : float
        10000 in the paper; models for long texts have larger ones.
    interleaved : bool
        Pair ``d`` is the elements ``2 d`` and ``2 d + 1``, as in the paper, GPT-J and GGUF files of
        Llama. Default: elements ``d`` and ``d + D / 2``, as in GPT-NeoX and transformers.
    cos_sin : (cos, sin), two array_like ``(positions, pairs)``, optional
        Tables of which row ``p`` belongs to position ``p``, in place of `base`: angles and factors
        of any scaling (linear, YaRN, Llama 3). If there are fewer than ``D / 2`` pairs, the first
        ``2 * pairs`` elements are rotated and the others copied.
    out : ndarray ``(..., H, L, D)``, optional
        Where to write; dtype of `x`, any strides. ``out=x`` rotates in place.
    num_threads : int, optional
        Threads for this call, default :func:`attnfast.get_num_threads`.

    Returns
    -------
    ndarray ``(..., H, L, D)``
        In the dtype of `x`, its memory in the axis order of `x`.

    Raises
    ------
    TypeError, ValueError
        A dtype, shape or number that is not accepted; nothing is written.
    MemoryError
        No memory for the result.

    Notes
    -----
    Angles, cosines and sines are float64, and rounded once: to float32, float64 for float64. So are
    results of 16-bit types. Both conventions and any number of threads give the same bits.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import rotate
    >>> q, k = np.random.default_rng(0).standard_normal((2, 8, 64))  # 8 heads, one row each
    >>> def score(p, q_position):
    ...     return (rotate(q[:, None], q_position) * rotate(k[:, None], p)).sum(axis=-1)
    >>> np.allclose(score(3, 10), score(1003, 1010))
    True

    The first half of each head only, in place, by tables:

    >>> x = np.ones((2, 8, 5, 64), np.float32)
    >>> angles = np.outer(np.arange(100), 500000.0 ** -(np.arange(16) / 16))
    >>> y = rotate(x, np.arange(5) + 7, cos_sin=(np.cos(angles), np.sin(angles)), out=x)
    >>> y is x, bool((x[..., 32:] == 1).all())
    (True, True)
    """
    return _core.rotate(x, positions, base, interleaved, cos_sin, out, num_threads)

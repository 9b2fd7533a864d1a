"""Gradients of attention, without the ``Lq x Lk`` weights."""

from typing import Any, NamedTuple, Never, Unpack

from numpy.typing import ArrayLike

from . import _core
from ._signature import check_arguments, takes
from .options import BackwardKeywords
from .result import fields_repr


class AttentionGradients(NamedTuple):
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

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention, attention_backward
    >>> x = np.ones((4, 8))
    >>> output, lse, _ = attention(x, x, x, return_lse=True)
    >>> gradients = attention_backward(x, x, x, x, output, lse, wanted=("value",))
    >>> gradients.query is None, gradients.value.shape
    (True, (4, 8))
    """

    # Arrays where they are wanted, which callers know: `Any` spares them a test for None.
    query: Any = None
    key: Any = None
    value: Any = None
    bias: Any = None
    sink_logits: Any = None
    alibi_slopes: Any = None

    def __repr__(self) -> str:
        return fields_repr(self)


@takes(BackwardKeywords)
def attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    *extra: Never,
    **options: Unpack[BackwardKeywords],
) -> AttentionGradients:
    r"""Compute the gradients of a loss that depends on the result of :func:`attention`.

    .. math::
        dP_{ij} = dO_i \cdot v_j + dW_{ij} \qquad
        dS_{ij} = P_{ij} (dP_{ij} - \sum_k P_{ik} dP_{ik} + dL_i)

    and from ``dS`` back through what makes the scores. The weights ``P`` are computed again from
    the scores and `lse`, block by block; nothing of size ``Lq x Lk`` is in memory. What is skipped
    in the forward call is skipped here.

    Parameters
    ----------
    grad_output : array_like, ``(..., H, Lq, Dv)``
        Derivative of the loss by the output, in the dtype of `query`.
    query, key, value : array_like
        As for :func:`attention`.
    output, lse : array_like, ``(..., H, Lq, Dv)``, ``(..., H, Lq)``
        What :func:`attention` returned for them, with ``return_lse=True``.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As in the forward call.
    scale, softcap, alibi_slopes, sink_logits, dropout, dropout_seed : optional
        As in the forward call.
    grad_lse : array_like, ``(..., H, Lq)``, optional
        Derivative of the loss by `lse`.
    grad_weights : array_like, ``(..., H, Lq, Lk)``, optional
        Derivative of the loss by the weights that the forward call returned, in the dtype of
        `query`.
    wanted : tuple of str
        Which gradients to compute: fields of `AttentionGradients`.
    num_threads : int, optional
        Threads for this call, default :func:`attnfast.get_num_threads`.

    Returns
    -------
    AttentionGradients
        Named tuple ``(query, key, value, bias, sink_logits, alibi_slopes)``, each in the shape and
        dtype of its operand, None where not wanted. What was broadcast in the forward call (grouped
        heads, batch axes, axes of a bias) is summed. Sums are float32 (float64 for float64) and
        rounded once.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attention`; ValueError for a name in `wanted` whose argument is not there.

    Notes
    -----
    A hidden key gets a gradient of exactly 0 and has no influence on others, even if it holds NaN;
    so does a query that sees no key. The same inputs give the same bits for any number of threads.
    Working memory is at most some 5 MB a thread at ``D = 64``. Arrays of 16-bit types are copied
    as float32.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention, attention_backward
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 8, 50, 32))
    >>> output, lse, _ = attention(q, k, v, is_causal=True, return_lse=True)
    >>> loss = (output**2).sum() / 2
    >>> gradients = attention_backward(output, q, k, v, output, lse, is_causal=True)
    >>> moved = v + 1e-6 * gradients.value
    >>> growth = (attention(q, k, moved, is_causal=True) ** 2).sum() / 2 - loss
    >>> bool(np.isclose(growth, 1e-6 * (gradients.value**2).sum(), rtol=1e-4))
    True
    """
    check_arguments(attention_backward, extra, options)
    return AttentionGradients(
        *_core.attention_backward(grad_output, query, key, value, output, lse, options)
    )

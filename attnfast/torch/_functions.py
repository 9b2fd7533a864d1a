"""The functions of ``attnfast`` on tensors."""

from typing import Any, Never, Unpack

import torch

import attnfast

from .. import options
from .._signature import check_arguments, takes
from ._call import call


class AttentionKeywords(
    options.Attending, options.Dropout, options.Lse, options.Weights, options.Threads, total=False
):
    """Those of :func:`attention`: there is no `out`, a result is a new tensor."""


class LocalKeywords(
    options.Local, options.Dropout, options.Lse, options.Weights, options.Threads, total=False
):
    """Those of :func:`local_attention`."""


class AdditiveKeywords(
    options.Bahdanau, options.Dropout, options.Lse, options.Weights, options.Threads, total=False
):
    """Those of :func:`additive_attention`."""


class VarlenKeywords(options.Packed, options.Dropout, options.Lse, options.Threads, total=False):
    """Those of :func:`attention_varlen`."""


@takes(AttentionKeywords)
def attention(
    query: Any, key: Any, value: Any, *extra: Never, **options: Unpack[AttentionKeywords]
) -> Any:
    """Exact scaled dot-product attention of tensors: :func:`attnfast.attention` with gradients.

    Tensors are read where they are, contiguous or not. With ``torch.compile``, ``torch.export`` and
    the transforms of ``torch.func`` the call is an operator, ``attnfast::attention``.

    Parameters
    ----------
    query, key, value : Tensor, ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)``, ``(..., Hk, Lk, Dv)``
        On the CPU, of one dtype: float32, float64, float16 or bfloat16. With autocast they are
        converted to its dtype, as PyTorch does for its own function.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As for :func:`attnfast.attention`; tensors wherever it takes arrays.
    scale, softcap, alibi_slopes, sink_logits, dropout, dropout_seed : optional
        As for :func:`attnfast.attention`. The seed is not drawn from PyTorch's generator: pass
        another in each step.
    return_lse, return_weights : bool
        As for :func:`attnfast.attention`.
    num_threads : int, optional
        Default: the smaller of ``torch.get_num_threads()`` and :func:`attnfast.get_num_threads`.

    Returns
    -------
    Tensor or AttentionResult
        As from :func:`attnfast.attention`, in tensors. Output, lse and weights have gradients by
        query, key, value, bias, sink_logits and alibi_slopes, once: there are no second
        derivatives.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attnfast.attention`; ValueError for a tensor on another device, and for one
        that requires gradients where there are none.

    Examples
    --------
    >>> import torch
    >>> from attnfast.torch import attention
    >>> q, k, v = torch.randn(3, 2, 8, 50, 64, requires_grad=True).unbind()
    >>> sinks = torch.zeros(8, requires_grad=True)
    >>> attention(q, k, v, is_causal=True, sink_logits=sinks).square().sum().backward()
    >>> sinks.grad.shape
    torch.Size([8])
    """
    if extra or (options and not torch.compiler.is_compiling()):
        check_arguments(attention, extra, options)
    given = {"query": query, "key": key, "value": value, **options}
    return call(attnfast.attention, given)


@takes(LocalKeywords)
def local_attention(
    query: Any,
    key: Any,
    value: Any,
    window_size: options.Window,
    *extra: Never,
    **options: Unpack[LocalKeywords],
) -> Any:
    """Attention within windows: :func:`attnfast.local_attention` on tensors, with gradients.

    Parameters
    ----------
    query, key, value : Tensor, ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)``, ``(..., Hk, Lk, Dv)``
        As for :func:`attention`.
    window_size, global_tokens, dilation, centers, sigma : optional
        As for :func:`attnfast.local_attention`.
    mask, bias, is_causal, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As for :func:`attention`.
    scale, softcap, alibi_slopes, sink_logits, dropout, dropout_seed : optional
        As for :func:`attention`.
    return_lse, return_weights, num_threads : optional
        As for :func:`attention`.

    Returns
    -------
    Tensor or AttentionResult
        As for :func:`attention`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attnfast.local_attention` and :func:`attention`.

    Examples
    --------
    >>> import torch
    >>> from attnfast.torch import local_attention
    >>> q, k, v = torch.randn(3, 4, 1000, 64).unbind()
    >>> local_attention(q, k, v, 16, global_tokens=[0], dilation=[1, 1, 2, 4]).shape
    torch.Size([4, 1000, 64])
    """
    if extra or (options and not torch.compiler.is_compiling()):
        check_arguments(local_attention, extra, options)
    given = {"query": query, "key": key, "value": value, "window_size": window_size, **options}
    return call(attnfast.local_attention, given)


@takes(AdditiveKeywords)
def additive_attention(
    query: Any,
    key: Any,
    value: Any,
    score_weight: Any = None,
    *extra: Never,
    **options: Unpack[AdditiveKeywords],
) -> Any:
    """Additive attention: :func:`attnfast.additive_attention` on tensors, with gradients.

    Parameters
    ----------
    query, key, value : Tensor, ``(..., H, Lq, D)``, ``(..., Hk, Lk, D)``, ``(..., Hk, Lk, Dv)``
        As for :func:`attention`.
    score_weight, score_bias : Tensor ``(D,)`` or ``(H, D)``, optional
        As for :func:`attnfast.additive_attention`; they have gradients too.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As for :func:`attention`.
    softcap, alibi_slopes, sink_logits, dropout, dropout_seed : optional
        As for :func:`attention`.
    return_lse, return_weights, num_threads : optional
        As for :func:`attention`.

    Returns
    -------
    Tensor or AttentionResult
        As for :func:`attention`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attnfast.additive_attention` and :func:`attention`.

    Examples
    --------
    >>> import torch
    >>> from attnfast.torch import additive_attention
    >>> state, source = torch.randn(1, 64), torch.randn(20, 64)
    >>> w = torch.randn(64, requires_grad=True)
    >>> additive_attention(state, source, source, w).sum().backward()
    >>> w.grad.shape
    torch.Size([64])
    """
    if extra or (options and not torch.compiler.is_compiling()):
        check_arguments(additive_attention, extra, options)
    given = {"query": query, "key": key, "value": value, "score_weight": score_weight, **options}
    return call(attnfast.additive_attention, given)


@takes(VarlenKeywords)
def attention_varlen(
    query: Any,
    key: Any,
    value: Any,
    cu_q: Any,
    cu_k: Any,
    *extra: Never,
    **options: Unpack[VarlenKeywords],
) -> Any:
    """Packed sequences: :func:`attnfast.attention_varlen` on tensors, with gradients.

    Parameters
    ----------
    query, key, value : Tensor, ``(Tq, H, D)``, ``(Tk, Hk, D)``, ``(Tk, Hk, Dv)``
        As for :func:`attnfast.attention_varlen`.
    cu_q, cu_k : Tensor or array_like of int, ``(sequences + 1,)``
        As for :func:`attnfast.attention_varlen`.
    is_causal, window_size, q_offset, scale, softcap, alibi_slopes, sink_logits : optional
        As for :func:`attnfast.attention_varlen`.
    dropout, dropout_seed, return_lse, num_threads : optional
        As for :func:`attention`.

    Returns
    -------
    Tensor or AttentionResult
        As from :func:`attnfast.attention_varlen`, in tensors with gradients.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`attnfast.attention_varlen` and :func:`attention`.

    Examples
    --------
    >>> import torch
    >>> from attnfast.torch import attention_varlen
    >>> words = torch.randn(16, 4, 32, requires_grad=True)
    >>> cu = torch.tensor([0, 5, 14, 16])
    >>> attention_varlen(words, words, words, cu, cu, is_causal=True).sum().backward()
    >>> words.grad.shape
    torch.Size([16, 4, 32])
    """
    if extra or (options and not torch.compiler.is_compiling()):
        check_arguments(attention_varlen, extra, options)
    given = {"query": query, "key": key, "value": value, "cu_q": cu_q, "cu_k": cu_k, **options}
    return call(attnfast.attention_varlen, given)

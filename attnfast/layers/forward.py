"""What a call of multi-head attention computes."""

from typing import Annotated, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._misread import as_array, check_axes
from ..api import attention
from ..block_mask import BlockMask
from ..merge import merge_attention
from ..options import Attending, Threads
from ..result import AttentionResult
from .linear import as_input, check_batch
from .masks import as_key_mask, hide_keys
from .projections import Projections

Array = NDArray[Any]


class KeyMask(TypedDict, total=False):
    """Padding among the keys."""

    key_mask: Annotated[ArrayLike | None, None]


class CallOptions(KeyMask, Attending, Threads, total=False):
    """Keywords of a call that do not change what kind of result it returns."""


# What an extra key shares: it has no place, no mask hides it, and a sink enters only once.
EXTRA_OPTIONS = ("scale", "softcap", "q_lengths", "num_threads")


def forward(
    weights: Projections,
    query: ArrayLike,
    key: ArrayLike | None,
    value: ArrayLike | None,
    options: dict[str, Any],
    *,
    return_weights: bool,
) -> tuple[Array, Array | None]:
    """Output ``(..., Lq, output_dim)`` and the weights of all heads, or None."""
    key = query if key is None else key
    value = key if value is None else value
    x_q = as_input(query, "query", weights.query.n_in, weights.dtype)
    x_k = as_input(key, "key", weights.key.n_in, weights.dtype)
    x_v = as_input(value, "value", weights.value.n_in, weights.dtype)
    check_batch(x_q, "query", x_k, "key")
    options = _kernel_options(options, x_q.shape, x_k.shape, weights.num_heads)
    q = _split(weights.query(x_q), weights.num_heads)
    k = _split(weights.key(x_k), weights.num_kv_heads)
    v = _split(weights.value(x_v), weights.num_kv_heads)
    result = _attend(q, k, v, weights, options, return_weights)
    packed = result.output.swapaxes(-3, -2)
    packed = packed.reshape(*packed.shape[:-2], weights.output.n_in)
    return weights.output(packed), result.weights


def _split(x: Array, heads: int) -> Array:
    """``(..., L, heads * size)`` seen as ``(..., heads, L, size)``."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).swapaxes(-3, -2)


def _kernel_options(
    options: dict[str, Any], query: tuple[int, ...], key: tuple[int, ...], heads: int
) -> dict[str, Any]:
    """Options of `attnfast.attention`, from those of a call with inputs of these shapes."""
    options = dict(options)
    batch = np.broadcast_shapes(query[:-2], key[:-2])
    for name in ("mask", "bias"):
        _check_heads(options.get(name), name, len(query))
    key_mask = options.pop("key_mask", None)
    if key_mask is not None:
        mask = options.get("mask")
        if mask is not None and not isinstance(mask, BlockMask):
            options["mask"] = mask = as_array(mask, "mask")
            check_axes("mask", mask.shape, batch, (heads, query[-2], key[-2]))
        options = hide_keys(as_key_mask(key_mask, "key_mask", key[:-1]), options, batch)
    return options


def _check_heads(pairs: Any, name: str, rank: int) -> None:
    """Refuse an array in which it is not clear whether batch or heads are left out."""
    shape = np.shape(pairs)
    if rank > 2 and len(shape) == rank and any(n != 1 for n in shape[:-2]):
        raise ValueError(
            f"{name} has shape {shape}, which lacks the axis of batch or that of heads: write "
            f"{name}[..., None, :, :] if all heads share it, {name}[None] if all batch rows do"
        )


def _attend(
    q: Array, k: Array, v: Array, w: Projections, options: dict[str, Any], return_weights: bool
) -> AttentionResult:
    """Attention, with the extra key as one more part of the keys."""
    if w.extra_key is None or w.extra_value is None:
        if return_weights:
            result: AttentionResult = attention(q, k, v, return_weights=True, **options)
            return result
        return AttentionResult(attention(q, k, v, **options))
    own = {name: options[name] for name in EXTRA_OPTIONS if name in options}
    extra_k = w.extra_key.reshape(w.num_kv_heads, 1, w.head_dim)
    extra_v = w.extra_value.reshape(w.num_kv_heads, 1, w.value_head_dim)
    extra = attention(q, extra_k, extra_v, return_lse=True, **own)
    rest = attention(q, k, v, return_lse=True, return_weights=return_weights, **options)
    output, lse, _ = merge_attention([rest.output, extra.output], [rest.lse, extra.lse])
    if not return_weights:
        return AttentionResult(output)
    with np.errstate(invalid="ignore"):
        shares = [np.where(p.lse == -np.inf, 0, np.exp(p.lse - lse)) for p in (rest, extra)]
    parts = [rest.weights * shares[0][..., None], shares[1][..., None]]
    return AttentionResult(output, None, np.concatenate(parts, axis=-1))

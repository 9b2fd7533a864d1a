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
    inputs, options = prepare(weights, query, key, value, options)
    result = _attend(*project(weights, inputs), weights, options, return_weights)
    return weights.output(join_heads(result.output)), result.weights


def prepare(
    weights: Projections,
    query: ArrayLike,
    key: ArrayLike | None,
    value: ArrayLike | None,
    options: dict[str, Any],
) -> tuple[tuple[Array, Array, Array], dict[str, Any]]:
    """The inputs of a call as arrays, and the options of `attnfast.attention`."""
    key = query if key is None else key
    value = key if value is None else value
    x_q = as_input(query, "query", weights.query.n_in, weights.dtype)
    x_k = as_input(key, "key", weights.key.n_in, weights.dtype)
    x_v = as_input(value, "value", weights.value.n_in, weights.dtype)
    check_batch(x_q, "query", x_k, "key")
    options = _kernel_options(options, x_q.shape, x_k.shape, weights.num_heads)
    return (x_q, x_k, x_v), options


def project(w: Projections, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Query, key and value of all heads."""
    x_q, x_k, x_v = inputs
    q = split_heads(w.query(x_q), w.num_heads)
    k = split_heads(w.key(x_k), w.num_kv_heads)
    return q, k, split_heads(w.value(x_v), w.num_kv_heads)


def split_heads(x: Array, heads: int) -> Array:
    """``(..., L, heads * size)`` seen as ``(..., heads, L, size)``."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).swapaxes(-3, -2)


def join_heads(x: Array) -> Array:
    """``(..., heads, L, size)`` as ``(..., L, heads * size)``."""
    x = x.swapaxes(-3, -2)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


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
    extra = attention(q, *extra_heads(w), return_lse=True, **own)
    rest = attention(q, k, v, return_lse=True, return_weights=return_weights, **options)
    output, lse, _ = merge_attention([rest.output, extra.output], [rest.lse, extra.lse])
    if not return_weights:
        return AttentionResult(output)
    shares = shares_of((rest, extra), lse)
    return AttentionResult(output, None, join_weights(rest.weights, shares))


def extra_heads(w: Projections) -> tuple[Array, Array]:
    """The extra key and value as one more key of each head."""
    assert w.extra_key is not None and w.extra_value is not None
    key = w.extra_key.reshape(w.num_kv_heads, 1, w.head_dim)
    return key, w.extra_value.reshape(w.num_kv_heads, 1, w.value_head_dim)


def shares_of(parts: tuple[AttentionResult, AttentionResult], lse: Array) -> tuple[Array, Array]:
    """How much of the weight of each query its keys have, and the extra key."""
    with np.errstate(invalid="ignore"):
        rest, extra = (np.where(p.lse == -np.inf, 0, np.exp(p.lse - lse)) for p in parts)
    return rest, extra


def join_weights(rest: Array, shares: tuple[Array, Array]) -> Array:
    """The weights of all keys, of which the extra key is the last."""
    return np.concatenate([rest * shares[0][..., None], shares[1][..., None]], axis=-1)

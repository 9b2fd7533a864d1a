"""A call with JAX arrays: checked while JAX traces it, then given all of its axes."""

import numbers
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..block_mask import BlockMask
from ..planning import plan
from ..result import AttentionResult
from ._attend import QKV, Arrays, Fixed, attend
from ._ffi import OF_ADDITIVE

FAR = 1 << 60  # AF_FAR, a bound that is none
PAIRS = ("mask", "blocks", "bias")
ROWS = ("q_offset", "q_lengths", "kv_lengths", "kv_starts")
ARRAYS = (*PAIRS, *ROWS, "alibi_slopes", "sink_logits", *OF_ADDITIVE, "dropout_seed")

Function = Callable[..., Any]  # of attnfast


def call(function: Function, given: Mapping[str, Any]) -> Any:
    """What `function` returns, for the arguments of a call by name."""
    given = {name: x for name, x in given.items() if x is not None}
    if isinstance(mask := given.get("mask"), BlockMask):
        del given["mask"]
        single = mask.block_size == (1, 1)  # an elementwise mask
        given |= {"mask": mask.blocks} if single else {"blocks": mask.blocks}
        given |= {} if single else {"block_size": mask.block_size}
    seed = given.get("dropout_seed")
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        given["dropout_seed"] = halves(int(seed))
    named = {n for n, x in given.items() if n in (*QKV, *ARRAYS) and not isinstance(x, str)}
    arrays = {name: jnp.asarray(given[name]) for name in named}
    fixed = {name: plain(x, name) for name, x in given.items() if name not in named}
    try:
        hash(tuple(fixed.values()))
    except TypeError:
        _check(function, fixed, arrays)  # which says what is wrong with it
        raise
    return _call(function, tuple(sorted(fixed.items())), arrays)


def plain(x: Any, name: str) -> Any:
    """A Python number, string or tuple, by which JAX knows whether it has compiled a call."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(
            f"{name} must be known when the call is compiled, got a traced array: take it out of "
            "the arguments of the function that is transformed, or list it in static_argnames"
        )
    if isinstance(x, (tuple, list)):
        return tuple(plain(part, name) for part in x)
    return x.item() if isinstance(x, (np.generic, np.ndarray, jax.Array)) and x.size == 1 else x


def halves(seed: int) -> Any:
    """The upper and the lower 32 bits."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"dropout_seed must be within 0 .. 2**64 - 1, got {seed}")
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


@partial(jax.jit, static_argnums=(0, 1))
def _call(function: Function, fixed: tuple[tuple[str, Any], ...], arrays: Arrays) -> Any:
    options = dict(fixed)
    _check(function, options, arrays)
    results = attend(*complete(options, arrays))
    if max(arrays[name].ndim for name in QKV) == 2:
        results = {name: x[0] for name, x in results.items()}
    output = results["output"]
    if not options.get("return_lse") and not options.get("return_weights"):
        return output
    return AttentionResult(output, results.get("lse"), results.get("weights"))


def _check(function: Function, options: dict[str, Any], arrays: Arrays) -> None:
    """Raise what `function` would, by a plan for arrays of zeros that take no memory."""
    zeros = {
        name: np.broadcast_to(np.zeros((), x.dtype), x.shape)
        for name, x in arrays.items()
        if name != "dropout_seed"
    }
    of_blocks = ("blocks", "block_size")
    given = {name: x for name, x in (options | zeros).items() if name not in of_blocks}
    if "blocks" in arrays:
        given["mask"] = BlockMask(zeros["blocks"], options["block_size"])
    try:
        batch = np.broadcast_shapes(*(arrays[name].shape[:-3] for name in QKV))
        given.setdefault("q_lengths", np.zeros(batch, np.int64))  # no query: nothing is counted
    except ValueError:
        pass  # plan says so with more words
    plan(function, **given)


def complete(
    options: dict[str, Any], arrays: Arrays, tokens_first: bool = False
) -> tuple[Fixed, Arrays]:
    """What a call is made for, and its arrays with all of their axes."""
    axes = max(3, *(arrays[name].ndim for name in QKV)) - 3
    found = {name: _with_axes(arrays[name], axes + 3) for name in QKV}
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in found.values()))
    query = found["query"]
    found |= {n: _with_axes(arrays[n], axes + 3) for n in PAIRS if n in arrays}
    for name in ROWS:
        if name in arrays:
            x = _whole(arrays[name])
            found[name] = x.reshape(batch if x.ndim else (1,) * axes)
    heads, rows = (-2, -3) if tokens_first else (-3, -2)
    lengths = {name: found[name].shape[rows] for name in ("query", "key")}
    if options.get("q_offset") == "end":
        last = found.get("kv_lengths", lengths["key"]) - found.get("q_lengths", lengths["query"])
        found["q_offset"] = jnp.asarray(last, jnp.int32).reshape(jnp.shape(last) or (1,) * axes)
    if "alibi_slopes" in arrays:
        x = _inexact(arrays["alibi_slopes"])
        found["alibi_slopes"] = x.reshape(
            (*(batch if x.ndim > 1 else (1,) * axes), query.shape[heads])
        )
    if "sink_logits" in arrays:
        found["sink_logits"] = _inexact(arrays["sink_logits"])
    for name in OF_ADDITIVE:
        if name in arrays:
            found[name] = _with_axes(_inexact(arrays[name]), 2)
    if options.get("dropout"):
        found["dropout_seed"] = _seed(arrays.get("dropout_seed", halves(0)))
    return _fixed(options, query, lengths, tokens_first), found


def _fixed(
    options: dict[str, Any], query: Any, lengths: dict[str, int], tokens_first: bool
) -> Fixed:
    left, right = _window(options.get("window_size"))
    limit = 1e300 if query.dtype == np.float64 else 1e30  # as in the binding
    cap, size = options.get("softcap"), query.shape[-1]
    block_q, block_k = options.get("block_size", (1, 1))
    return Fixed(
        causal=options.get("is_causal", False),
        left=left,
        right=right,
        scale=float(options.get("scale", 1 / np.sqrt(size) if size else 1)),
        softcap=0.0 if cap is None else max(1 / limit, min(limit, float(cap))),
        dropout=float(options.get("dropout", 0)),
        threads=min(options.get("num_threads", 0), 1024),
        block_size=(
            min(block_q, max(lengths["query"], 1)),
            min(block_k, max(lengths["key"], 1)),
        ),
        tokens_first=tokens_first,
        results=frozenset(n for n in ("lse", "weights") if options.get(f"return_{n}")),
    )


def _window(window_size: Any) -> list[int]:
    sides = window_size if isinstance(window_size, tuple) else (window_size, window_size)
    return [FAR if n is None or n == -1 else min(int(n), FAR) for n in sides]


def _with_axes(x: Any, ndim: int) -> Any:
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def _whole(x: Any) -> Any:
    """Whole numbers of 32 bits, or of 64 where JAX has them."""
    if x.dtype.itemsize == 8:
        return jnp.clip(x, max=2**62).astype(np.int64)
    return (
        jnp.clip(x, max=2**31 - 1).astype(np.int32) if x.dtype == np.uint32 else x.astype(np.int32)
    )


def _inexact(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(np.float32)


def _seed(x: Any) -> Any:
    """The two halves of a seed, from these, a key of jax.random or an array of one integer."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.bits(x, (2,), np.uint32)
    if not jnp.issubdtype(x.dtype, jnp.integer) or x.shape not in ((), (1,), (2,)):
        raise TypeError(
            "dropout_seed must be an int, an array of one integer or a key of jax.random, got "
            f"shape {x.shape}, dtype {x.dtype}"
        )
    if x.shape == (2,):
        return x.astype(np.uint32)
    upper = x >> 32 if x.dtype.itemsize == 8 else jnp.zeros_like(x)
    return jnp.stack([upper.reshape(()), x.reshape(())]).astype(np.uint32)

"""Attention of arrays whose axes are all there, and its gradients: two calls of handlers in C."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from ._ffi import GRADIENTS, OF_ADDITIVE, OPTIONS, RESULTS, bits, call
from ._manual import shape_like, vary_alike

Arrays = dict[str, Any]
QKV = ("query", "key", "value")


class Fixed(NamedTuple):
    """What a compiled call is made for: attributes of the handlers, and what is returned."""

    causal: bool
    left: int
    right: int
    scale: float
    softcap: float  # 0: none
    dropout: float
    threads: int  # 0: the default
    block_size: tuple[int, int]
    tokens_first: bool  # (batch ..., L, H, D) instead of (batch ..., H, L, D); lse likewise
    results: frozenset[str]  # of RESULTS


def real_type(query: Any) -> Any:
    """What everything but the operands is in."""
    return np.float64 if query.dtype == np.float64 else np.float32


def _attributes(fixed: Fixed, arrays: Arrays) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "causal": fixed.causal,
        "left": fixed.left,
        "right": fixed.right,
        "threads": fixed.threads,
        "block_q": fixed.block_size[0],
        "block_k": fixed.block_size[1],
        "tokens_first": fixed.tokens_first,
        "given": bits(OPTIONS, arrays),
    }
    reals = {"scale": fixed.scale, "softcap": fixed.softcap, "dropout": fixed.dropout}
    return {name: np.int64(x) for name, x in numbers.items()} | {
        name: np.float64(x) for name, x in reals.items()
    }


def _buffers(arrays: Arrays) -> list[Any]:
    """In the order and the dtypes that C takes."""
    numbers = {n: _in_range(arrays[n], arrays["query"]) for n in GRADIENTS[3:] if n in arrays}
    for name in ("bias", *OF_ADDITIVE):
        if name in numbers:
            numbers[name] = numbers[name].astype(real_type(arrays["query"]))
    return [(arrays | numbers)[name] for name in (*QKV, *OPTIONS) if name in arrays]


def _in_range(x: Any, query: Any) -> Any:
    """Values that stay finite when they are rounded: -inf hides a key, a large value does not."""
    if x.dtype == np.float64 and real_type(query) == np.float32:
        limit = np.finfo(np.float32).max
        return jnp.where(jnp.isinf(x), x, jnp.clip(x, -limit, limit))
    return x if x.dtype == np.float64 else x.astype(np.float32)


def _result_shapes(fixed: Fixed, arrays: Arrays) -> dict[str, Any]:
    """The output and what `fixed` wants beside it."""
    q, k, v = (arrays[name].shape for name in QKV)
    batch = np.broadcast_shapes(q[:-3], k[:-3], v[:-3])
    heads, lq, lk = (-2, -3, -3) if fixed.tokens_first else (-3, -2, -2)
    dtype = arrays["query"].dtype
    rows = (*batch, *q[-3:-1])
    shapes = {
        "output": ((*rows, v[-1]), dtype),
        "lse": (rows, real_type(arrays["query"])),
        "weights": ((*batch, q[heads], q[lq], k[lk]), dtype),
    }
    wanted = {"output"} | fixed.results
    return {n: shape_like(arrays["query"], *x) for n, x in shapes.items() if n in wanted}


def _forward(fixed: Fixed, arrays: Arrays) -> Arrays:
    shapes = _result_shapes(fixed, arrays)
    attributes = _attributes(fixed, arrays) | {"wanted": bits(RESULTS, fixed.results)}
    results = call("attnfast_attention", tuple(shapes.values()), _buffers(arrays), attributes)
    return dict(zip(shapes, results, strict=True))


def attend(fixed: Fixed, arrays: Arrays) -> Arrays:
    """Output, and lse and weights where `fixed` has them in its results, by name.

    XLA may leave out a call that has an empty buffer, and its results undefined (JAX 0.5.0 does):
    without keys, or where vectors have no elements, there is one of zeros, which changes nothing.
    """
    value_dim, rows = arrays["value"].shape[-1], -3 if fixed.tokens_first else -2
    keys = arrays["key"].shape[rows]
    vectors = [name for name in (*QKV, *OF_ADDITIVE) if name in arrays]
    arrays = arrays | {name: _not_empty(arrays[name], -1) for name in vectors}
    if keys == 0:
        arrays = {name: x for name, x in arrays.items() if name not in ("mask", "blocks", "bias")}
        arrays |= {name: _not_empty(arrays[name], rows) for name in ("key", "value")}
        arrays["kv_lengths"] = jnp.zeros((1,) * (arrays["query"].ndim - 3), np.int32)
    results = _attend(fixed, vary_alike(arrays))
    kept = {"output": value_dim, "weights": keys}
    return {name: x[..., : kept[name]] if name in kept else x for name, x in results.items()}


def _not_empty(x: Any, axis: int) -> Any:
    if x.shape[axis]:
        return x
    return jnp.pad(x, [(0, int(k == x.ndim + axis)) for k in range(x.ndim)])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(fixed: Fixed, arrays: Arrays) -> Arrays:
    return _forward(fixed, arrays)


def _gradient_shape(x: Any, name: str, real: Any) -> Any:
    """C adds up what there is for each head in doubles."""
    of_heads = name in ("sink_logits", "alibi_slopes", *OF_ADDITIVE)
    return shape_like(x, x.shape, np.float64 if of_heads and x.dtype == np.float64 else real)


def _attend_and_keep(fixed: Fixed, primals: Arrays) -> tuple[Arrays, Any]:
    arrays = {name: primal.value for name, primal in primals.items()}
    # The keys of a dict are no arrays: they reach the backward call as they are.
    wanted = {n: () for n in GRADIENTS if n in primals and primals[n].perturbed}
    results = _forward(fixed._replace(results=fixed.results | {"lse"}), arrays)
    returned = {n: x for n, x in results.items() if n == "output" or n in fixed.results}
    return returned, (arrays, results["output"], results["lse"], wanted)


def _backward(fixed: Fixed, kept: Any, losses: Arrays) -> tuple[Arrays]:
    arrays, output, lse, wanted = kept
    query = arrays["query"]
    real = real_type(query)
    losses = {n: x for n, x in losses.items() if not isinstance(x, SymbolicZero)}
    # What is not wanted is dropped by JAX, of which 0.7 wants as many results of every call.
    gradients: Arrays = dict.fromkeys(arrays)
    gradients |= {n: jnp.zeros_like(arrays[n]) for n in GRADIENTS if n in arrays}
    if not losses or not wanted:
        return (gradients,)
    grad_output = losses.pop("output", None)
    if grad_output is None:
        grad_output = jnp.zeros(output.shape, output.dtype)
    rows = {name: arrays[name].astype(real) for name in QKV}  # C has gradients of 32 and 64 bits
    operands = [
        *_buffers(arrays | rows),
        *(x.astype(real) for x in (output, lse, grad_output)),
        *(losses[name].astype(real) for name in RESULTS if name in losses),
    ]
    names = [name for name in GRADIENTS if name in wanted]
    shapes = tuple(_gradient_shape(arrays[name], name, real) for name in names)
    attributes = _attributes(fixed, arrays)
    attributes |= {"wanted": bits(GRADIENTS, names), "losses": bits(RESULTS, losses)}
    found = call("attnfast_attention_backward", shapes, operands, attributes)
    for name, x in zip(names, found, strict=True):
        gradients[name] = x.astype(arrays[name].dtype)
    return (gradients,)


_attend.defvjp(_attend_and_keep, _backward, symbolic_zeros=True)

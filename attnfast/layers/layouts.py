"""The weights of multi-head attention in the layouts of PyTorch and Keras.

PyTorch multiplies by ``(n_out, n_in)`` matrices and packs the three input projections where it can;
Keras keeps heads as axes of their own. Here all are ``(n_in, heads * size)``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .linear import Linear, as_weights
from .projections import Projections

Array = NDArray[Any]

TORCH_NAMES = (
    *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"),
    *("bias_k", "bias_v", "out_proj.weight", "out_proj.bias"),
)


# ---- PyTorch ----


def from_torch(
    state_dict: Mapping[str, Any], num_heads: int, prefix: str, dtype: DTypeLike | None
) -> Projections:
    """From the names of ``torch.nn.MultiheadAttention``."""
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
    for name in tensors:
        if name not in TORCH_NAMES:
            raise ValueError(
                f"state_dict has {prefix + name!r}, which is not of torch.nn.MultiheadAttention: "
                "give the prefix of the layer, or names for another layout"
            )
    arrays = {name: as_weights(tensor, dtype) for name, tensor in tensors.items()}
    if "in_proj_weight" in arrays:
        weights = _thirds(arrays["in_proj_weight"], "in_proj_weight")
    else:
        weights = [_named(arrays, f"{x}_proj_weight", prefix) for x in "qkv"]
    bias = arrays.get("in_proj_bias")
    biases = [None] * 3 if bias is None else _thirds(bias, "in_proj_bias")
    query, key, value = (Linear(w.T, b) for w, b in zip(weights, biases, strict=True))
    output = Linear(_named(arrays, "out_proj.weight", prefix).T, arrays.get("out_proj.bias"))
    extra = [arrays[name].ravel() if name in arrays else None for name in ("bias_k", "bias_v")]
    return Projections(query, key, value, output, num_heads, num_heads, *extra)


def from_named(
    state_dict: Mapping[str, Any],
    num_heads: int,
    prefix: str,
    names: Sequence[str],
    dtype: DTypeLike | None,
) -> Projections:
    """From four linear maps in PyTorch's layout, named by the caller."""
    maps = []
    for weight, bias in named_pairs(names, prefix):
        w, b = as_weights(_named(state_dict, weight), dtype), state_dict.get(bias)
        maps.append(Linear(w.T, None if b is None else as_weights(b, dtype)))
    query, key, value, output = maps
    # Too few outputs for one head, or not a multiple of a head: Projections says so.
    kv_heads = max(1, key.n_out // max(1, query.n_out // num_heads))
    return Projections(query, key, value, output, num_heads, kv_heads)


def named_pairs(names: Sequence[str], prefix: str) -> list[tuple[str, str]]:
    """Weight and bias of each of the four maps."""
    if isinstance(names, str) or len(names) != 4:
        raise ValueError(f"names must be four: query, key, value and output, got {names!r}")
    return [(f"{prefix}{name}.weight", f"{prefix}{name}.bias") for name in names]


def tensor_names(names: Sequence[str] | None, prefix: str) -> set[str]:
    """What a layer may need of a file."""
    if names is None:
        return {prefix + name for name in TORCH_NAMES}
    return {name for pair in named_pairs(names, prefix) for name in pair}


def to_torch(p: Projections, prefix: str) -> dict[str, Array]:
    """To the names of ``torch.nn.MultiheadAttention``."""
    maps, width = (p.query, p.key, p.value), p.output.n_out
    if any(m.n_out != width for m in maps) or p.query.n_in != width:
        sizes = ", ".join(f"{m.n_in} to {m.n_out}" for m in (*maps, p.output))
        raise ValueError(
            "torch.nn.MultiheadAttention has one width for queries, all heads and the output, "
            f"but query, key, value and output map {sizes}"
        )
    weights = [m.weight.T for m in maps]
    if all(m.n_in == width for m in maps):
        state = {"in_proj_weight": np.concatenate(weights)}
    else:
        state = {f"{x}_proj_weight": w.copy("C") for x, w in zip("qkv", weights, strict=True)}
    state["out_proj.weight"] = p.output.weight.T.copy("C")
    if p.use_bias:
        state["in_proj_bias"] = np.concatenate([_bias(m) for m in maps])
        state["out_proj.bias"] = _bias(p.output)
    if p.extra_key is not None and p.extra_value is not None:
        state["bias_k"] = p.extra_key.reshape(1, 1, -1).copy()
        state["bias_v"] = p.extra_value.reshape(1, 1, -1).copy()
    return {prefix + name: array for name, array in state.items()}


def _thirds(packed: Array, name: str) -> list[Array]:
    if packed.ndim == 0 or packed.shape[0] % 3:
        raise ValueError(f"{name} must have shape (3 * embed_dim, ...), got {packed.shape}")
    return np.split(packed, 3)


def _named(tensors: Mapping[str, Any], name: str, prefix: str = "") -> Any:
    if name not in tensors:
        raise ValueError(f"state_dict has no {prefix + name!r}")
    return tensors[name]


def _bias(m: Linear) -> Array:
    return np.zeros(m.n_out, m.weight.dtype) if m.bias is None else m.bias.copy()


# ---- Keras ----


def from_keras(weights: Sequence[Any], dtype: DTypeLike | None) -> Projections:
    """From ``get_weights()`` of a Keras layer."""
    arrays = [as_weights(w, dtype) for w in weights]
    if len(arrays) not in (4, 8):
        raise ValueError(
            "weights must be 4 kernels, of query, key, value and output, or each with its bias, "
            f"got {len(arrays)} arrays"
        )
    step = len(arrays) // 4
    kernels, shapes = arrays[::step], [w.shape for w in arrays[::step]]
    if any(w.ndim != 3 for w in kernels):
        raise ValueError(
            "weights must have kernels of 3 axes, (n_in, heads, size) and for the output "
            f"(heads, size, n_out), got {shapes}"
        )
    query, key, value, output = kernels
    if value.shape[1] != key.shape[1] or output.shape[:2] != (query.shape[1], value.shape[2]):
        raise ValueError(f"weights must have kernels with the same heads, got shapes {shapes}")
    flat = [w.reshape(len(w), -1) for w in (query, key, value)]
    flat.append(output.reshape(-1, output.shape[2]))
    biases = [b.ravel() for b in arrays[1::2]] if step == 2 else [None] * 4
    q, k, v, o = (Linear(w, b) for w, b in zip(flat, biases, strict=True))
    return Projections(q, k, v, o, num_heads=query.shape[1], num_kv_heads=key.shape[1])


def to_keras(p: Projections) -> list[Array]:
    """To the order and shapes of ``get_weights()`` of a Keras layer."""
    if p.extra_key is not None:
        raise ValueError("keras.layers.MultiHeadAttention has no extra key and value")
    weights = []
    for m, shape in (
        (p.query, (p.num_heads, p.head_dim)),
        (p.key, (p.num_kv_heads, p.head_dim)),
        (p.value, (p.num_kv_heads, p.value_head_dim)),
    ):
        weights += [m.weight.reshape(m.n_in, *shape).copy("C"), _bias(m).reshape(shape)]
    shape = p.num_heads, p.value_head_dim
    weights += [p.output.weight.reshape(*shape, p.output.n_out).copy("C"), _bias(p.output)]
    return weights if p.use_bias else weights[::2]

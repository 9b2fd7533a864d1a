"""A user's code, for mypy --strict: what attnfast's calls give back, and which calls are wrong.

tests/promises/test_types.py checks it against the installed package. A line with ``type: ignore``
must be an error of that kind, or mypy complains of the comment.
"""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import attnfast
from attnfast import (
    AttentionGradients,
    AttentionResult,
    AttentionTopK,
    BlockMask,
    KVCache,
    LocalGradients,
    PagedKVCache,
    Plan,
    additive_attention,
    attention,
    attention_backward,
    attention_topk,
    attention_varlen,
    attention_weights,
    key_importance,
    local_attention,
    local_attention_backward,
    merge_attention,
    plan,
    plot,
    reference,
    rotate,
    vjp,
)
from attnfast.layers import (
    AdditiveAttention,
    Attention,
    BahdanauAttention,
    LayerGradients,
    Linear,
    LuongAttention,
    MultiHeadAttention,
    Projections,
    read_safetensors,
)

Array = NDArray[Any]
rng = np.random.default_rng(0)
q: NDArray[np.float32] = rng.standard_normal((2, 8, 300, 64), dtype=np.float32)
k, v = q[:, :2], q[:, :2]
wanted: bool = len(q) > 1


def attention_and_options() -> None:
    assert_type(attention(q, k, v), Array)
    assert_type(attention(q, k, v, is_causal=True, q_offset="end", num_threads=2), Array)
    assert_type(attention(q, k, v, window_size=(128, None), kv_lengths=[300, 211]), Array)
    assert_type(attention(q, k, v, kv_starts=[0, 89]), Array)
    assert_type(attention(q, k, v, block_table=[[1], [0]]), Array)
    assert_type(attention_varlen(q, k, v, [0, 1], [0, 1], block_table=[[1]]), Array)
    assert_type(attention_weights(q, k, key_scale=0.5, block_table=[[1], [0]]), Array)
    key_importance(q, k, value_scale=0.5)  # type: ignore[call-arg]
    assert_type(attention(q, k, v, mask=np.ones((300, 300), bool), bias=0.5 * q[..., :1]), Array)
    assert_type(attention(q, k, v, scale=1, softcap=30.0, alibi_slopes=np.ones(8)), Array)
    assert_type(attention(q, k, v, sink_logits=[0.0] * 8, out=np.empty_like(q)), Array)
    assert_type(attention([[1.0]], [[1.0]], [[1.0]], return_lse=False), Array)
    assert_type(attention(q, k, v, return_lse=True), AttentionResult)
    assert_type(attention(q, k, v, return_weights=True), AttentionResult)
    assert_type(attention(q, k, v, return_lse=True, return_weights=wanted), AttentionResult)
    assert_type(attention(q, k, v, return_lse=wanted, return_weights=True), AttentionResult)
    assert_type(attention(q, k, v, return_lse=wanted), Array | AttentionResult)
    result = attention(q, k, v, return_lse=True)
    assert_type(result.output, Array)
    assert_type(result.lse.shape, Any)
    output, *_ = result
    assert_type(output, Array)

    attention(q, k)  # type: ignore[call-overload]
    attention(q, k, v, None)  # type: ignore[call-overload]
    attention(q, k, v, causal=True)  # type: ignore[call-overload]
    attention(q, k, v, is_causal="yes")  # type: ignore[call-overload]
    attention(q, k, v, window_size=2.5)  # type: ignore[call-overload]
    attention(q, k, v, window_size=(1, 2, 3))  # type: ignore[arg-type]
    attention(q, k, v, scale="small")  # type: ignore[call-overload]
    attention(q, k, v, out=[[0.0]])  # type: ignore[call-overload]
    _ = attention(q, k, v).output  # type: ignore[attr-defined]
    _ = attention(q, k, v, return_lse=True).shape  # type: ignore[attr-defined]


def the_family() -> None:
    assert_type(local_attention(q, k, v, 16, global_tokens=range(8), dilation=[1] * 8), Array)
    assert_type(local_attention(q, k, v, 9, centers=q[..., 0], sigma=2.0), Array)
    assert_type(local_attention(q, k, v, (8, 0), return_weights=True), AttentionResult)
    assert_type(local_attention(q, k, v, 8, return_lse=wanted), Array | AttentionResult)
    local_attention(q, k, v)  # type: ignore[call-overload]
    local_attention(q, k, v, 16, window_size=16)  # type: ignore[call-overload]

    assert_type(additive_attention(q, k, v), Array)
    assert_type(additive_attention(q, k, v, np.ones(64), score_bias=np.ones(64)), Array)
    assert_type(additive_attention(q, k, v, return_lse=True), AttentionResult)
    assert_type(additive_attention(q, k, v, return_weights=wanted), Array | AttentionResult)
    additive_attention(q, k, v, scale=0.5)  # type: ignore[call-overload]

    packed = q[0].swapaxes(0, 1)
    assert_type(attention_varlen(packed, packed, packed, [0, 300], [0, 300]), Array)
    bounds = np.array([0, 100, 300])
    assert_type(
        attention_varlen(packed, packed, packed, bounds, bounds, return_lse=True), AttentionResult
    )
    either = attention_varlen(packed, packed, packed, bounds, bounds, return_lse=wanted)
    assert_type(either, Array | AttentionResult)
    attention_varlen(packed, packed, packed, bounds)  # type: ignore[call-overload]
    attention_varlen(packed, packed, packed, bounds, bounds, mask=1)  # type: ignore[call-overload]

    assert_type(merge_attention([q, q], [q[..., 0], q[..., 0]]), AttentionResult)
    assert_type(merge_attention(np.stack([q, q]), np.zeros((2, 2, 8, 300))), AttentionResult)
    merge_attention(q)  # type: ignore[call-arg]
    cache = KVCache(2, 2, 64, capacity=400, dtype=np.float32)
    assert_type(cache.append(k, v), None)
    assert_type(cache.attend(q, softcap=30.0), Array)
    assert_type(cache.attend(q, return_lse=True), AttentionResult)
    assert_type(cache.extend(q, k, v, [300, 211]), Array)
    assert_type(cache.extend(q, k, v, return_lse=wanted), Array | AttentionResult)
    assert_type(cache.lengths, Array)
    cache.attend(q, is_causal=True)  # type: ignore[call-overload]
    pages = PagedKVCache(2, 2, 64, pages=50, dtype="int8")
    assert_type(pages.append(k, v, [300, 211], rows=[0, 1]), None)
    assert_type(pages.attend(q), Array)
    assert_type(pages.attend(q[:1], 1, return_weights=True), AttentionResult)
    assert_type(pages.fork(1), int)
    pages.attend(q, kv_lengths=3)  # type: ignore[call-overload]
    assert_type(rotate(q, np.arange(300), interleaved=True), Array)


def gradients() -> None:
    output, lse, _ = attention(q, k, v, return_lse=True)
    assert_type(
        attention_backward(output, q, k, v, output, lse, is_causal=True, wanted=("query",)),
        AttentionGradients,
    )
    places = local_attention_backward(output, q, k, v, output, lse, 9, wanted=("key",))
    assert_type(places, LocalGradients)
    result, pullback = vjp(attention, q, k, v, is_causal=True, wanted=("query", "key"))
    grads: AttentionGradients = pullback(result, grad_lse=None)
    assert_type(grads, AttentionGradients)


def what_it_looks_at() -> None:
    assert_type(attention_weights(q, k, stage="biased", bias=q[..., :1]), Array)
    attention_weights(q, k, stage="logits")  # type: ignore[arg-type]
    attention_weights(q, k, v)  # type: ignore[arg-type]

    top = attention_topk(q, k, 5, is_causal=True)
    assert_type(top, AttentionTopK)
    indices, weights = top
    assert_type(indices, NDArray[np.int64])
    assert_type(weights, Array)
    attention_topk(q, k)  # type: ignore[call-arg]
    attention_topk(q, k, 2.5)  # type: ignore[arg-type]

    assert_type(key_importance(q, k, per_kv_head=True), Array)
    key_importance(q, k, v)  # type: ignore[arg-type]

    what = plan(q, k, v, window_size=256, return_blocks=True)
    assert_type(what, Plan)
    assert_type(what.flops // what.visible_pairs, int)
    assert_type(what.isa, str)
    _ = what.seconds  # type: ignore[attr-defined]


def block_masks() -> None:
    mask = BlockMask(np.eye(3, dtype=bool), (100, 100))
    assert_type(mask.blocks, NDArray[np.bool_])
    assert_type(mask.block_size, tuple[int, int])
    assert_type(BlockMask.from_mask(np.ones((300, 300), bool), 100), BlockMask)
    assert_type(BlockMask.from_function(lambda i, j: i >= j, 300, 300, 50), BlockMask)
    assert_type(BlockMask.bigbird(300, 300, 10, heads=8, seed=1), BlockMask)
    assert_type(mask.dense(300, 300), NDArray[np.bool_])
    assert_type(attention(q, k, v, mask=mask), Array)
    mask.block_size = 3  # type: ignore[misc, assignment]
    BlockMask(np.eye(3, dtype=bool))  # type: ignore[call-arg]
    BlockMask.bigbird(300, 300, 10, 3)  # type: ignore[call-arg]


def threads_and_machine() -> None:
    with attnfast.num_threads(2):
        assert_type(attnfast.get_num_threads(), int)
    attnfast.set_num_threads(None)
    attnfast.set_num_threads("all")  # type: ignore[arg-type]
    assert_type(attnfast.available_isas(), tuple[str, ...])
    assert_type(attnfast.show_config("dicts"), dict[str, Any])
    attnfast.show_config("json")  # type: ignore[call-overload]
    assert_type(attnfast.__version__, str)
    _ = attnfast.attend  # type: ignore[attr-defined]


def layers(path: Path) -> None:
    x = np.ones((2, 100, 256), np.float32)
    layer = MultiHeadAttention(256, num_heads=8, num_kv_heads=2, dtype="float32", seed=0)
    assert_type(layer(x, kv_lengths=[100, 61], kv_starts=[0, 3], key_mask=None), Array)
    assert_type(layer(x, x, return_weights=True), tuple[Array, Array])
    assert_type(layer(x, return_weights="mean"), tuple[Array, Array])
    assert_type(layer(x, return_weights=wanted), Array | tuple[Array, Array])
    assert_type(layer.weights, Projections)
    assert_type(layer.weights.query, Linear)
    assert_type(layer.weights.query.weight, Array)
    assert_type(MultiHeadAttention.from_torch({"in_proj_weight": x}, 2), MultiHeadAttention)
    assert_type(MultiHeadAttention.from_keras([x] * 8), MultiHeadAttention)
    assert_type(MultiHeadAttention.from_safetensors(path, 8, "attn."), MultiHeadAttention)
    assert_type(MultiHeadAttention.from_projections(layer.weights), MultiHeadAttention)
    wide, narrow = Linear(x[0], bias=x[0, 0]), Linear(x[0, :, :64])
    assert_type(wide(x), Array)
    assert_type(Projections(wide, narrow, narrow, wide, 4, 1, extra_key=None).head_dim, int)
    assert_type(layer.to_torch(), dict[str, Array])
    assert_type(layer.to_keras(), list[Array])
    Linear(256, 256)  # type: ignore[arg-type]
    MultiHeadAttention(256)  # type: ignore[call-arg]
    layer(x, return_weights="max")  # type: ignore[call-overload]
    layer(x, causal=True)  # type: ignore[call-overload]
    layer(x, out=x)  # type: ignore[call-overload]

    luong = LuongAttention(32, score="concat", alignment="local-p", window=10)
    assert_type(luong(x, x, keys=luong.project_keys(x)), Array)
    assert_type(luong(x, x, return_weights=True), tuple[Array, Array])
    assert_type(luong.attentional(x, x), Array)
    assert_type(luong.centers(x, [100, 61]), Array)
    LuongAttention(32, score="cosine")  # type: ignore[arg-type]
    LuongAttention(32, alignment="local")  # type: ignore[arg-type]

    bahdanau = BahdanauAttention(query_dim=32, key_dim=48, units=24, weights=None)
    assert_type(bahdanau(x, x, keys=bahdanau.project_keys(x)), Array)
    assert_type(bahdanau(x, x, return_weights=True), tuple[Array, Array])
    assert_type(bahdanau.weights["v"], Array)
    BahdanauAttention(32, 48)  # type: ignore[call-arg]

    assert_type(Attention(score_mode="concat")([x, x]), Array)
    assert_type(Attention()([x, x], return_attention_scores=True), tuple[Array, Array])
    assert_type(Attention()([x, x], [None, x[..., 0] > 0]), Array)
    assert_type(AdditiveAttention(256)([x, x, x], use_causal_mask=True), Array)
    assert_type(AdditiveAttention.from_keras([x[0, 0]]).to_keras(), list[Array])
    Attention(score_mode="product")  # type: ignore[arg-type]
    Attention()(x, value=x)  # type: ignore[call-overload]

    assert_type(read_safetensors(path, lambda name: name.endswith("weight")), dict[str, Array])
    read_safetensors(3.5)  # type: ignore[arg-type]

    result, pullback = layer.vjp(x, is_causal=True, wanted=("bias",), bias=np.zeros(30))
    grads: LayerGradients = pullback(result)
    assert_type(grads.weights["query.weight"], Array)
    assert_type(layer.weights.arrays(), dict[str, Array])


def pictures(path: Path) -> None:
    weights = attention_weights(q[0], k[0])
    assert_type(plot.weights(weights, ["a"] * 300, titles="heads", path=path), Figure)
    assert_type(plot.text(["a", "b"], weights[0, 0, :2], sep="", path=path), Figure)
    assert_type(plot.text_html(["a", "b"], [0.1, 0.9], titles="heads"), str)
    plot.text("ab", [0.1, 0.9], columns=2)  # type: ignore[call-arg]
    assert_type(plot.topk(*attention_topk(q[0], k[0], 3), least=0.1), Figure)
    assert_type(plot.window(plan(q, k, v, return_blocks=True), shape=(300, 300)), Figure)
    plot.window(weights)  # type: ignore[arg-type]
    plot.weights(weights, rows=2)  # type: ignore[call-arg]


def truth() -> None:
    exact = reference.attention(q, k, v, compute_dtype=np.float64)
    assert_type(exact, Array | AttentionResult)

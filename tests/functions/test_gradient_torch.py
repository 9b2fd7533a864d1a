"""Gradients of attention against PyTorch's of plain attention, in float64, for drawn calls."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from attnfast import attention, vjp
from support.criterion import kept_of
from support.draws import calls

torch = pytest.importorskip("torch", reason="torch is an optional extra")

DIFFERENTIABLE = ("query", "key", "value", "bias", "sink_logits", "alibi_slopes")
FLAGS = ("return_lse", "return_weights", "num_threads")


def per_row(x: Any, batch: tuple[int, ...]) -> Any:
    """A number for each batch row, with axes for heads, queries and keys."""
    return torch.as_tensor(np.broadcast_to(np.reshape(x, np.shape(x) and batch), batch).copy())[
        ..., None, None, None
    ]


def positions(options: dict[str, Any], shape: tuple[int, ...]) -> tuple[Any, Any, Any, Any]:
    """Places of queries and keys on the axis of keys, and how many of each a batch row has."""
    *batch, _, lq, lk = shape
    batch = tuple(batch)
    q_length = per_row(options.get("q_lengths", lq), batch)
    kv_length = per_row(options.get("kv_lengths", lk), batch)
    offset = options.get("q_offset", 0)
    start = kv_length - q_length if isinstance(offset, str) else per_row(offset, batch)
    return torch.arange(lq)[:, None] + start, torch.arange(lk), q_length, kv_length


def visible(options: dict[str, Any], shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Which keys each query sees, and which queries are no padding."""
    *batch, _, lq, _ = shape
    p, j, q_length, kv_length = positions(options, shape)
    seen = (j < kv_length) & (j >= per_row(options.get("kv_starts", 0), tuple(batch)))
    real = torch.arange(lq)[:, None] < q_length
    seen = seen & real
    if options.get("is_causal"):
        seen = seen & (j <= p)
    window = options.get("window_size")
    left, right = window if isinstance(window, tuple) else (window, window)
    if left not in (None, -1):
        seen = seen & (j >= p - left)
    if right not in (None, -1):
        seen = seen & (j <= p + right)
    if options.get("mask") is not None:
        seen = seen & torch.tensor(np.array(options["mask"]))
    if options.get("bias") is not None:
        seen = seen & torch.as_tensor(np.asarray(options["bias"]).astype(np.float64) != -np.inf)
    return seen.expand(shape), real.expand((*shape[:-1], 1))[..., 0]


def plain_attention(leaves: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Output, lse and weights of tensors whose gradients are wanted, and which rows have an lse."""
    q, k, v = (leaves[name] for name in DIFFERENTIABLE[:3])
    q, k, v = (x[None] if x.ndim == 2 else x for x in (q, k, v))
    group = q.shape[-3] // k.shape[-3]
    k, v = (x.repeat_interleave(group, dim=-3) for x in (k, v))
    scale = options.get("scale")
    scores = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * (q @ k.mT)
    shape = tuple(torch.broadcast_shapes(scores.shape, (*v.shape[:-2], 1, 1)))
    if options.get("softcap") is not None:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    seen, real = visible(options, shape)
    if "bias" in leaves:
        scores = scores + torch.where(leaves["bias"] == -math.inf, 0, leaves["bias"])
    if "alibi_slopes" in leaves:
        p, j, *_ = positions(options, shape)
        scores = scores - leaves["alibi_slopes"][..., None, None] * (p - j).abs()
    scores = torch.where(seen, scores.expand(shape), -math.inf)
    sink = leaves.get("sink_logits", torch.tensor([-math.inf], dtype=torch.float64))
    sink = torch.where(real[..., None], sink[:, None, None], -math.inf)
    scores = torch.cat([scores, sink.expand((*shape[:-1], 1))], dim=-1)
    some = (scores != -math.inf).any(dim=-1, keepdim=True)
    scores = torch.where(some, scores, 0)  # where a row is empty torch makes NaN of it
    weights = torch.where(seen, torch.softmax(scores, dim=-1)[..., : shape[-1]], 0)
    lse = torch.where(some[..., 0], torch.logsumexp(scores, dim=-1), -math.inf)
    return (weights * torch.as_tensor(kept_of(shape, options))) @ v, lse, weights


@settings(max_examples=300)
@given(call=calls([np.dtype(np.float64)], most_pairs=20_000))
def test_gradients_are_those_of_torch(call):
    options = {n: x for n, x in call.options.items() if n not in FLAGS}
    wanted = [n for n in DIFFERENTIABLE if n in options or hasattr(call, n)]
    operands = (call.query, call.key, call.value)
    given_ = dict(zip(DIFFERENTIABLE, operands, strict=False)) | options
    numbers = {n: np.asarray(given_[n]).astype(np.float64) for n in wanted}
    if "bias" in numbers:  # a bias of -1e9 would leave few digits of the other scores
        bias = numbers["bias"]
        numbers["bias"] = np.where(bias == -np.inf, bias, np.maximum(bias, -1e3))
    options |= {n: x for n, x in numbers.items() if n in options}  # gradients in float64, too
    leaves = {n: torch.tensor(x, requires_grad=True) for n, x in numbers.items()}
    results = plain_attention(leaves, options)

    result, pullback = vjp(
        attention, *operands, wanted=wanted, return_lse=True, return_weights=True, **options
    )
    output, lse, weights = (x.reshape(y.shape) for x, y in zip(results, result, strict=True))
    rng = np.random.default_rng(output.numel())
    grads = [rng.standard_normal(x.shape) for x in result]
    for mine, other in zip(result, (output, lse, weights), strict=True):
        size = np.abs(np.where(np.isfinite(mine), mine, 0)).max(initial=1)
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-9, atol=1e-10 * size)
    has_lse = lse != -math.inf
    loss = (output * torch.tensor(grads[0])).sum() + (weights * torch.tensor(grads[2])).sum()
    loss = loss + (torch.where(has_lse, lse, 0) * torch.tensor(grads[1])).sum()
    loss.backward()
    found = pullback(*grads)
    largest = 1 + np.abs(numbers["value"]).max(initial=0)  # of the derivatives by weights
    for name in wanted:
        expected, mine = leaves[name].grad, getattr(found, name).astype(np.float64)
        expected = np.zeros_like(mine) if expected is None else expected.numpy()
        np.testing.assert_allclose(
            mine, expected, rtol=0, atol=1e-9 * (largest + np.abs(expected).max(initial=0)),
            err_msg=name,
        )  # fmt: skip

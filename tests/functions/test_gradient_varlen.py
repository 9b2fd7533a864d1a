"""Gradients of packed sequences: those of each sequence alone."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnfast
from attnfast import reference
from support.arrays import assert_same, same_bits
from support.family_draws import packed, varlen_calls

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]

QKV = ("query", "key", "value")
OF_HEADS = ("alibi_slopes", "sink_logits")


def loss_of(rng: np.random.Generator, query: Any, value: Any) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives by the output and by lse."""
    rows = query.shape[:2]
    grad_output = rng.standard_normal((*rows, value.shape[-1])).astype(query.dtype)
    return grad_output, rng.standard_normal(rows)


def backward(loss: Any, *arrays: Any, **options: Any) -> Any:
    output, lse, _ = attnfast.attention_varlen(*arrays, return_lse=True, **options)
    return attnfast.attention_varlen_backward(
        loss[0],
        *(*arrays[:3], output, lse, *arrays[3:]),
        grad_lse=loss[1],
        wanted=(*QKV, *(name for name in OF_HEADS if name in options)),
        **options,
    )


def alone(loss: Any, query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, **options: Any) -> Any:
    """The rows of each sequence, and its gradients by itself."""
    bounds = zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True)
    wanted = (*QKV, *(name for name in OF_HEADS if name in options))
    for s, ((a, b), (c, d)) in enumerate(bounds):
        own = dict(options)
        for name, axes in (("q_offset", 1), ("alibi_slopes", 2)):
            if np.ndim(own.get(name)) == axes:
                own[name] = own[name][s]
        g, q, k, v = (x.swapaxes(0, 1) for x in (loss[0][a:b], query[a:b], key[c:d], value[c:d]))
        output, lse, _ = attnfast.attention(q, k, v, return_lse=True, **own)
        own |= {"grad_lse": loss[1][a:b].T, "wanted": wanted}
        yield slice(a, b), slice(c, d), attnfast.attention_backward(g, q, k, v, output, lse, **own)


@given(call=varlen_calls(), seed=st.integers(0, 2**32))
def test_any_call_has_the_bits_of_each_sequence_alone(call, seed):
    arrays, options = call
    loss = loss_of(np.random.default_rng(seed), arrays[0], arrays[2])
    grads = backward(loss, *arrays, **options)
    sums = {n: np.zeros(np.shape(options[n])) for n in OF_HEADS if n in options}
    for s, (queries, keys, own) in enumerate(alone(loss, *arrays, **options)):
        for name, rows in zip(QKV, (queries, keys, keys), strict=True):
            mine = getattr(grads, name)[rows].swapaxes(0, 1)
            assert same_bits(mine, getattr(own, name)), (s, name)
        for name, total in sums.items():
            into = total[s] if total.ndim == 2 else total
            into += getattr(own, name)
    for name, total in sums.items():
        assert same_bits(getattr(grads, name), total), name


def test_against_the_reference(rng):
    arrays = packed(rng, [5, 0, 200, 17], [70, 9, 600, 0], 12, heads=4, kv_heads=2, dtype=float)
    options = {
        "softcap": 2.0,
        "q_offset": "end",
        "is_causal": True,
        "alibi_slopes": abs(rng.standard_normal((4, 4))) / 9,
        "sink_logits": rng.standard_normal(4),
    }
    loss = loss_of(rng, arrays[0], arrays[2])
    grads = backward(loss, *arrays, **options)
    exact = reference.attention_varlen_backward(
        loss[0],
        *(*arrays[:3], None, None, *arrays[3:]),
        grad_lse=loss[1],
        wanted=(*QKV, *OF_HEADS),
        **options,
    )
    for name in (*QKV, *OF_HEADS):
        got, expected = getattr(grads, name), getattr(exact, name)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11, err_msg=name)
    assert grads.bias is None


def test_the_same_bits_for_any_number_of_threads(rng):
    arrays = packed(rng, [300, 1, 64], [300, 1, 64], 16, heads=4, kv_heads=2, dtype=np.float32)
    loss = loss_of(rng, arrays[0], arrays[2])
    one, three = (
        backward(loss, *arrays, is_causal=True, sink_logits=[1.0, 2, 3, 4], num_threads=n)
        for n in (1, 3)
    )
    assert_same(one, three)


def test_arguments_are_checked():
    x = np.ones((5, 2, 8), np.float32)
    arguments: dict[str, Any] = {
        **{"grad_output": x, "query": x, "key": x, "value": x, "output": x},
        **{"lse": np.zeros((5, 2)), "cu_q": [0, 2, 5], "cu_k": [0, 2, 5]},
    }
    for wrong, error, message in [
        ({"grad_output": x[:4]}, ValueError, r"grad_output must have shape \(5, 2, 8\), got"),
        ({"output": x.swapaxes(0, 1)}, ValueError, r"output must have shape \(5, 2, 8\), got \(2"),
        ({"lse": np.zeros((2, 5))}, ValueError, r"lse must have shape \(5, 2\), got \(2, 5\)"),
        ({"cu_q": [0, 2, 4]}, ValueError, "cu_q"),
        ({"wanted": ("bias",)}, ValueError, "wanted names bias"),
        ({"grad_weights": x}, TypeError, "grad_weights"),
        ({"bias": x}, TypeError, "bias"),
    ]:
        with pytest.raises(error, match=message):
            attnfast.attention_varlen_backward(**{**arguments, **wrong})

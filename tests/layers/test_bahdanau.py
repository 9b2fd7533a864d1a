"""``attnfast.layers.BahdanauAttention`` against its formula in float64."""

import numpy as np
import pytest

from attnfast.layers import BahdanauAttention

pytestmark = pytest.mark.quick


TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def make(dtype="float64", use_bias=True):
    layer = BahdanauAttention(10, 14, 24, use_bias=use_bias, dtype=dtype, seed=3)
    if use_bias:
        layer.weights["b"] += np.linspace(-1, 1, 24, dtype=dtype)
    return layer


def draw(dtype="float64", batch=(3,), Lq=5, Lk=33):
    rng = np.random.default_rng(4)
    return [rng.standard_normal((*batch, *s)).astype(dtype) for s in ((Lq, 10), (Lk, 14))]


def formula(layer, query, states, visible=True):
    w = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    s, h = query.astype(np.float64), states.astype(np.float64)
    inner = (s @ w["w_query"])[..., :, None, :] + (h @ w["w_key"])[..., None, :, :]
    e = np.where(visible, np.exp(np.tanh(inner + w.get("b", 0)) @ w["v"]), 0)
    a = e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300)
    return a @ h, a


def agree(layer, inputs, visible=True, **options):
    dtype = layer.weights["v"].dtype
    expected = formula(layer, *inputs, visible)
    results = layer(*inputs, return_weights=True, **options)
    for actual, exact in zip(results, expected, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == exact.shape
        np.testing.assert_allclose(actual, exact, rtol=0, atol=TOLERANCE[dtype.name])
    alone = layer(*inputs, **options)
    np.testing.assert_allclose(alone, expected[0], rtol=0, atol=TOLERANCE[dtype.name])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("use_bias", [False, True])
def test_formula(use_bias, dtype):
    layer = make(dtype, use_bias)
    for batch in ((3,), (), (2, 3)):
        agree(layer, draw(dtype, batch))
    agree(layer, draw(dtype, Lq=1))
    real = np.arange(33) < np.array([[33], [0], [12]])
    agree(layer, draw(dtype), real[:, None], key_mask=real)
    agree(layer, draw(dtype), real[:, None], kv_lengths=[33, 0, 12])
    agree(layer, draw(dtype), ~real[:, None], kv_starts=[33, 0, 12])
    real = np.random.default_rng(0).random((3, 33)) < 0.6
    real[:, 20:] &= np.arange(20, 33) < np.array([[33], [25], [20]])
    agree(layer, draw(dtype), real[:, None], key_mask=real, kv_lengths=[33, 25, 20])


def test_large_states():
    """Sums whose terms are far outside the range of exp."""
    layer = make("float32", use_bias=False)
    query, states = draw("float32")
    for scale in (30, 1e3, 1e30):
        context, weights = layer(query * scale, states, return_weights=True)
        expected = formula(layer, query * np.float32(scale), states)
        np.testing.assert_allclose(weights, expected[1], rtol=0, atol=2e-5)
        np.testing.assert_allclose(context, expected[0], rtol=0, atol=2e-5)
    # Large terms that cancel: queries and keys that are opposites but for a little.
    weights = {"w_query": np.eye(10), "w_key": np.eye(10), "v": np.ones(10)}
    layer = BahdanauAttention(10, 10, 10, weights=weights, dtype=np.float32)
    for size in (20, 60, 200):
        states = np.linspace(-1, 1, 33, dtype=np.float32)[:, None] + np.float32(size)
        states = np.repeat(states, 10, axis=1)
        query = np.full((1, 10), -size, np.float32)
        context, a = layer(query, states, return_weights=True)
        expected = formula(layer, query, states)
        np.testing.assert_allclose(a, expected[1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(context, expected[0], rtol=2e-6)


def test_keys_made_once():
    layer = make()
    query, states = draw()
    keys = layer.project_keys(states)
    assert keys.shape == (3, 33, 24)
    assert (layer(query, states, keys=keys) == layer(query, states)).all()
    agree(layer, (query, states), keys=keys)


def test_padding_never_leaks():
    layer = make("float32")
    query, states = draw("float32")
    real = np.arange(33) < np.array([[33], [12], [0]])
    expected = layer(query, states, key_mask=real)
    states[~real] = np.nan
    assert (layer(query, states, key_mask=real) == expected).all()
    assert (layer(query, states, kv_lengths=[33, 12, 0]) == expected).all()
    assert not expected[2].any()


def test_weights():
    layer = BahdanauAttention(10, 14, 24, seed=3)
    assert {n: a.shape for n, a in layer.weights.items()} == {
        "w_query": (10, 24), "w_key": (14, 24), "v": (24,),
    }  # fmt: skip
    assert np.abs(layer.weights["v"]).max() <= np.sqrt(6 / 25)
    assert not BahdanauAttention(10, 14, 24, use_bias=True).weights["b"].any()
    same = BahdanauAttention(10, 14, 24, weights=layer.weights)
    query, states = draw("float32")
    assert (same(query, states) == layer(query, states)).all()
    assert same.weights["v"] is not layer.weights["v"]
    with pytest.raises(ValueError, match="weights must be w_query, w_key, v, b, got w_query"):
        BahdanauAttention(10, 14, 24, use_bias=True, weights=layer.weights)
    with pytest.raises(ValueError, match=r"weights\['w_query'\] must have shape \(14, 24\)"):
        BahdanauAttention(14, 14, 24, weights=layer.weights)


def test_bad_calls():
    layer = make()
    query, states = draw()
    for arguments, options, error, message in (
        ((states, states), {}, ValueError, r"query must have shape \(..., length, 10\)"),
        ((query, query), {}, ValueError, "states must have shape"),
        ((query.astype(np.float32), states), {}, TypeError, "query must be float64 .*float32"),
        ((query, states), {"keys": states}, ValueError, "keys must have shape"),
        ((query, states), {"key_mask": np.ones((3, 33))}, TypeError, "key_mask must be bool"),
        ((query, states), {"kv_lengths": [34, 0, 0]}, ValueError, "kv_lengths must be within"),
    ):
        with pytest.raises(error, match=message):
            layer(*arguments, **options)
    with pytest.raises(ValueError, match="units must be at least 1"):
        BahdanauAttention(10, 14, 0)


def test_repr():
    assert repr(make()) == "BahdanauAttention(10, 14, 24, use_bias=True, dtype=float64)"

"""Layers with the semantics and the weights of Keras, against their formulas."""

import ml_dtypes
import numpy as np
import pytest

from attnfast.layers import AdditiveAttention, Attention, MultiHeadAttention

pytestmark = pytest.mark.quick


KERNELS = [(6, 2, 3), (2, 3), (4, 2, 3), (2, 3), (4, 2, 2), (2, 2), (2, 2, 5), (5,)]


def draw(rng, *shapes):
    return [0.5 * rng.standard_normal(shape) for shape in shapes]


def near(actual, expected, tolerance=1e-10):
    expected = np.reshape(expected, actual.shape)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def formula(layer, query, key):
    """All scores, in float64."""
    q, k = (x.astype(np.float64) for x in (query, key))
    pairs = q[..., :, None, :] + k[..., None, :, :]
    if isinstance(layer, AdditiveAttention):
        return (np.tanh(pairs) * (1 if layer.scale is None else layer.scale)).sum(axis=-1)
    scale = layer.scale if layer.use_scale else 1
    if layer.score_mode == "dot":
        return scale * (q @ k.swapaxes(-1, -2))
    return layer.concat_score_weight * np.tanh(scale * pairs).sum(axis=-1)


def made(name):
    if name == "additive":
        return AdditiveAttention(16, seed=1)
    if name == "additive, no scale":
        return AdditiveAttention(16, use_scale=False)
    layer = Attention("scale" in name, "concat" if "concat" in name else "dot")
    layer.scale, layer.concat_score_weight = 0.3, 0.8
    return layer


NAMES = ["dot", "dot, scale", "concat", "concat, scale", "additive", "additive, no scale"]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
class TestFormula:
    def check(self, name, dtype, value_mask=None, query_mask=None, causal=False, batch=(3,)):
        layer, rng = made(name), np.random.default_rng(0)
        shapes = (*batch, 20, 16), (*batch, 31, 9), (*batch, 31, 16)
        query, value, key = (rng.standard_normal(s).astype(dtype) for s in shapes)
        scores = formula(layer, query, key)
        if value_mask is not None:
            scores = np.where(value_mask[..., None, :], scores, -np.inf)
        if causal:
            scores = np.where(np.tri(20, 31, dtype=bool), scores, -np.inf)
        exact = np.exp(scores - scores.max(axis=-1, keepdims=True))
        exact /= exact.sum(axis=-1, keepdims=True)
        expected = exact @ value
        if query_mask is not None:
            expected *= query_mask[..., None]
        masks = None if value_mask is None and query_mask is None else [query_mask, value_mask]
        inputs = [query, value, key]
        output, weights = layer(
            inputs, mask=masks, return_attention_scores=True, use_causal_mask=causal
        )
        alone = layer(inputs, mask=masks, use_causal_mask=causal)
        tolerance = 1e-13 if dtype == "float64" else 2e-5
        assert output.dtype == weights.dtype == alone.dtype == np.dtype(dtype)
        near(weights, exact, tolerance)
        near(output, expected, tolerance)
        near(alone, expected, tolerance)

    def test_full(self, name, dtype):
        self.check(name, dtype)
        self.check(name, dtype, batch=())
        self.check(name, dtype, batch=(2, 3))

    def test_causal(self, name, dtype):
        self.check(name, dtype, causal=True)

    def test_padding(self, name, dtype):
        lengths = np.array([[31], [4], [12]])
        queries = np.arange(20) < np.array([[20], [0], [7]])
        self.check(name, dtype, np.arange(31) < lengths, queries)

    def test_holes(self, name, dtype):
        rng = np.random.default_rng(2)
        keys = rng.random((3, 31)) < 0.6
        keys[:, 0] = True
        self.check(name, dtype, keys, rng.random((3, 20)) < 0.6, causal=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_key_is_the_value(name):
    query, value = np.random.default_rng(0).standard_normal((2, 3, 9, 16))
    layer = made(name)
    assert (layer([query, value]) == layer((query, value, value))).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 4e-3), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, dtype, tolerance):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    query, value = np.random.default_rng(0).standard_normal((2, 3, 9, 16)).astype(dtype)
    layer = made(name)
    output = layer([query, value], mask=[np.ones((3, 9), bool), None])
    assert output.dtype == dtype
    expected = layer([query.astype(np.float32), value.astype(np.float32)])
    near(output.astype(np.float32), expected, tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_visible_gives_zeros(name):
    query, value = np.random.default_rng(0).standard_normal((2, 2, 5, 16))
    value[0, :3] = np.nan
    value[1] = np.nan
    masks = [None, [[False] * 3 + [True] * 2, [False] * 5]]
    output, weights = made(name)([query, value], mask=masks, return_attention_scores=True)
    assert np.isfinite(output[0]).all()
    assert not output[1].any()
    assert not weights[1].any()


# ---- weights ----


@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_round_trip(bias):
    weights = draw(np.random.default_rng(0), *KERNELS)[:: 1 if bias else 2]
    back = MultiHeadAttention.from_keras(weights).to_keras()
    assert [a.shape for a in back] == [a.shape for a in weights]
    for a, b in zip(back, weights, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.shares_memory(a, b)


def test_grouped_query_round_trip():
    shapes = (16, 6, 4), (6, 4), (16, 2, 4), (2, 4), (16, 2, 4), (2, 4), (6, 4, 16), (16,)
    weights = draw(np.random.default_rng(0), *shapes)
    layer = MultiHeadAttention.from_keras(weights, dtype=np.float32)
    assert (layer.weights.num_heads, layer.weights.num_kv_heads) == (6, 2)
    for a, b in zip(layer.to_keras(), weights, strict=True):
        np.testing.assert_array_equal(a, b.astype(np.float32))


def test_torch_to_keras():
    layer = MultiHeadAttention(12, 3, seed=0)
    again = MultiHeadAttention.from_keras(layer.to_keras())
    back = MultiHeadAttention.from_torch(again.to_torch(), 3)
    x = np.random.default_rng(0).standard_normal((2, 5, 12), dtype=np.float32)
    np.testing.assert_allclose(back(x), layer(x), rtol=0, atol=1e-6)


def test_token_attention_round_trip():
    for weights, options in (
        ([], {}),
        ([0.5], {"use_scale": True}),
        ([2.0], {"score_mode": "concat"}),
        ([0.5, 2.0], {"use_scale": True, "score_mode": "concat"}),
    ):
        back = Attention.from_keras(weights, **options).to_keras()
        assert [float(a) for a in back] == weights
        assert all(a.shape == () for a in back)
    scale = np.arange(4, dtype=np.float32)
    (back,) = AdditiveAttention.from_keras([scale]).to_keras()
    np.testing.assert_array_equal(back, scale)
    assert AdditiveAttention.from_keras([], dim=4).to_keras() == []
    drawn = AdditiveAttention(300, seed=0).scale
    assert 0.09 < np.abs(drawn).max() <= 0.1
    assert drawn.dtype == np.float32


def test_repr():
    assert repr(Attention(score_mode="concat")) == "Attention(use_scale=False, score_mode='concat')"
    assert repr(AdditiveAttention(5)) == "AdditiveAttention(5, use_scale=True)"


# ---- errors ----

X = np.ones((2, 5, 16), np.float32)


@pytest.mark.parametrize(
    ("inputs", "mask", "error", "message"),
    [
        (X, None, TypeError, r"inputs must be \[query, value\] or .* got ndarray"),
        ([X], None, ValueError, "inputs must be .* got 1"),
        ([X, X[0, 0]], None, ValueError, "value must have shape"),
        ([X, X.astype(np.float64)], None, TypeError, "dtype float64"),
        ([X, X], np.ones((2, 5), bool), TypeError, r"mask must be \[query_mask, value_mask\]"),
        ([X, X], [None], ValueError, r"mask must be \[query_mask, value_mask\], got 1"),
        ([X, X], [np.ones((2, 5)), None], TypeError, "query_mask must be bool"),
        ([X, X], [None, np.ones(5, bool)], ValueError, r"value_mask must have shape \(2, 5\)"),
        ([X[..., :9], X[..., :9]], None, ValueError, "query must have width 16, got 9"),
    ],
)
def test_bad_calls(inputs, mask, error, message):
    with pytest.raises(error, match=message):
        AdditiveAttention(16)(inputs, mask=mask)


def test_bad_weights():
    with pytest.raises(ValueError, match="score_mode must be"):
        Attention(score_mode="additive")
    with pytest.raises(ValueError, match=r"weights must be \[scale\], got 0"):
        Attention.from_keras([], use_scale=True)
    with pytest.raises(ValueError, match=r"weights must be \[scale\]"):
        AdditiveAttention.from_keras([])
    with pytest.raises(ValueError, match=r"scale must have shape \(4,\)"):
        AdditiveAttention.from_keras([np.ones(3)], dim=4)
    good = draw(np.random.default_rng(0), *KERNELS)
    for at, shape, message in (
        (0, (6, 6), "kernels of 3 axes"),
        (2, (4, 3, 3), "the same heads"),
        (6, (2, 3, 5), "the same heads"),
        (2, (4, 2, 2), r"bias must have shape \(4,\), got \(6,\)"),
        (1, (5,), r"bias must have shape \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiHeadAttention.from_keras([*good[:at], np.ones(shape), *good[at + 1 :]])
    with pytest.raises(ValueError, match="got 10 arrays"):
        MultiHeadAttention.from_keras([*good, *good[:2]])

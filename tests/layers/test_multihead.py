"""``attnfast.layers.MultiHeadAttention`` against its formula, written out head by head."""

import numpy as np
import pytest

import attnfast
from attnfast import BlockMask
from attnfast.layers import Linear, MultiHeadAttention, Projections, forward

pytestmark = pytest.mark.quick


TOLERANCE = {"float32": 2e-5, "float64": 1e-13}

# B, H, Hk, Lq, Lk, D, Dv, widths of query, key, value and output
SHAPES = [
    (2, 4, 4, 17, 17, 8, 8, 32, 32, 32, 32),
    (3, 6, 2, 20, 33, 16, 16, 48, 48, 48, 48),
    (1, 4, 1, 1, 70, 8, 12, 20, 30, 25, 7),
    (2, 2, 2, 5, 9, 3, 2, 6, 4, 5, 10),
]


def draw(shape, dtype="float64", seed=0):
    """A layer with random weights and biases, and its three inputs."""
    B, H, Hk, Lq, Lk, D, Dv, Eq, Ek, Ev, Eo = shape
    rng = np.random.default_rng(seed)
    maps = [
        Linear(
            (rng.standard_normal((n_in, n_out)) / np.sqrt(n_in)).astype(dtype),
            rng.standard_normal(n_out).astype(dtype),
        )
        for n_in, n_out in ((Eq, H * D), (Ek, Hk * D), (Ev, Hk * Dv), (H * Dv, Eo))
    ]
    inputs = [rng.standard_normal(s).astype(dtype) for s in ((B, Lq, Eq), (B, Lk, Ek), (B, Lk, Ev))]
    return MultiHeadAttention.from_projections(Projections(*maps, H, Hk)), inputs


def formula(layer, query, key, value, visible=True, extra=False):
    """Output and weights in float64, one head at a time; `visible` broadcasts to (B, H, Lq, Lk)."""
    w = layer.weights
    x = [np.asarray(a, np.float64) for a in (query, key, value)]
    q, k, v = (
        a @ m.weight.astype(np.float64) + (0 if m.bias is None else m.bias)
        for a, m in zip(x, (w.query, w.key, w.value), strict=True)
    )
    B, Lq, Lk = len(q), q.shape[1], k.shape[1]
    visible = np.broadcast_to(visible, (B, w.num_heads, Lq, Lk))
    if extra:
        k = np.concatenate([k, np.broadcast_to(w.extra_key, (B, 1, k.shape[2]))], axis=1)
        v = np.concatenate([v, np.broadcast_to(w.extra_value, (B, 1, v.shape[2]))], axis=1)
        visible = np.concatenate([visible, np.ones((B, w.num_heads, Lq, 1), bool)], axis=-1)
    outputs, weights = [], []
    for h in range(w.num_heads):
        g = h // (w.num_heads // w.num_kv_heads)
        D, Dv = w.head_dim, w.value_head_dim
        score = q[..., h * D : (h + 1) * D] @ k[..., g * D : (g + 1) * D].swapaxes(1, 2)
        p = np.where(visible[:, h], np.exp(score / np.sqrt(D)), 0)
        p /= np.maximum(p.sum(axis=-1, keepdims=True), 1e-300)
        outputs.append(p @ v[..., g * Dv : (g + 1) * Dv])
        weights.append(p)
    output = np.concatenate(outputs, axis=-1) @ w.output.weight.astype(np.float64)
    return output + (0 if w.output.bias is None else w.output.bias), np.stack(weights, axis=1)


def agree(layer, inputs, visible=True, extra=False, **options):
    """Output and weights of a call are those of the formula."""
    dtype = layer.weights.dtype
    output, weights = layer(*inputs, return_weights=True, **options)
    expected = formula(layer, *inputs, visible=visible, extra=extra)
    for actual, exact in zip((output, weights), expected, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == exact.shape
        np.testing.assert_allclose(actual, exact, rtol=0, atol=TOLERANCE[dtype.name])
    alone = layer(*inputs, **options)
    np.testing.assert_allclose(alone, output, rtol=0, atol=TOLERANCE[dtype.name])
    return output


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestFormula:
    def test_full(self, shape, dtype):
        agree(*draw(shape, dtype))

    def test_causal(self, shape, dtype):
        Lq, Lk = shape[3:5]
        visible = np.arange(Lk) <= np.arange(Lq)[:, None] + 2
        agree(*draw(shape, dtype), visible, is_causal=True, q_offset=2)

    def test_window(self, shape, dtype):
        Lq, Lk = shape[3:5]
        far = np.arange(Lk) - np.arange(Lq)[:, None]
        agree(*draw(shape, dtype), (far >= -3) & (far <= 1), window_size=(3, 1), q_offset=0)

    def test_mask_and_key_mask(self, shape, dtype):
        B, H, _, Lq, Lk, *_ = shape
        rng = np.random.default_rng(1)
        mask, key_mask = rng.random((B, H, Lq, Lk)) < 0.7, rng.random((B, Lk)) < 0.8
        visible = mask & key_mask[:, None, None]
        agree(*draw(shape, dtype), visible, mask=mask, key_mask=key_mask)

    def test_lengths(self, shape, dtype):
        B, Lk = shape[0], shape[4]
        lengths = np.linspace(1, Lk, B).astype(int)
        real = np.arange(Lk) < lengths[:, None]
        layer, inputs = draw(shape, dtype)
        outputs = [
            agree(layer, inputs, real[:, None, None], **options)
            for options in (
                {"kv_lengths": lengths},
                {"key_mask": real},
                {"key_mask": real, "mask": np.True_},
                {"key_mask": real, "kv_lengths": lengths},
            )
        ]
        for output in outputs[1:]:
            assert (output == outputs[0]).all()

    def test_starts(self, shape, dtype):
        B, Lk = shape[0], shape[4]
        starts, lengths = np.linspace(0, Lk // 2, B).astype(int), np.full(B, Lk - 1)
        real = (np.arange(Lk) >= starts[:, None]) & (np.arange(Lk) < Lk - 1)
        layer, inputs = draw(shape, dtype)
        outputs = [
            agree(layer, inputs, real[:, None, None], **options)
            for options in (
                {"kv_starts": starts, "kv_lengths": lengths},
                {"key_mask": real},
                {"key_mask": real, "mask": np.True_},
            )
        ]
        assert (outputs[2] == outputs[0]).all()

    def test_extra_key(self, shape, dtype):
        layer, inputs = draw(shape, dtype)
        w, rng = layer.weights, np.random.default_rng(2)
        extra = [rng.standard_normal(m.n_out).astype(dtype) for m in (w.key, w.value)]
        maps = w.query, w.key, w.value, w.output
        layer = MultiHeadAttention.from_projections(
            Projections(*maps, w.num_heads, w.num_kv_heads, *extra)
        )
        Lq, Lk = shape[3:5]
        agree(layer, inputs, extra=True)
        # Queries before the first key see the extra key alone.
        visible = np.arange(Lk) <= np.arange(Lq)[:, None] - 3
        agree(layer, inputs, visible, extra=True, is_causal=True, q_offset=-3)


def with_extra_key(shape):
    """A layer with an extra key, its inputs, and a layer without, whose inputs hold it."""
    layer, (q, k, v) = draw(shape)
    w, rng = layer.weights, np.random.default_rng(2)
    x_k, x_v = rng.standard_normal(k.shape[-1]), rng.standard_normal(v.shape[-1])
    extra = w.key(x_k[None])[0], w.value(x_v[None])[0]
    maps = w.query, w.key, w.value, w.output
    other = MultiHeadAttention.from_projections(
        Projections(*maps, w.num_heads, w.num_kv_heads, *extra)
    )
    longer = [
        np.concatenate([a, np.broadcast_to(x, (len(a), 1, len(x)))], axis=1)
        for a, x in ((k, x_k), (v, x_v))
    ]
    return other, (q, k, v), layer, (q, *longer)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "options", [{"scale": 0.1}, {"softcap": 0.5}, {"q_lengths": 0}, {"num_threads": 1}], ids=str
)
def test_options_reach_the_extra_key(shape, options):
    layer, inputs, plain, longer = with_extra_key(shape)
    if "q_lengths" in options:
        options = {"q_lengths": np.linspace(0, shape[3], shape[0]).astype(int)}
    results = layer(*inputs, return_weights=True, **options)
    expected = plain(*longer, return_weights=True, **options)
    for actual, exact in zip(results, expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-13)


def test_a_sink_enters_once_beside_an_extra_key():
    layer, inputs, plain, longer = with_extra_key(SHAPES[1])
    sink = np.linspace(-1, 2, 6)
    results = layer(*inputs, return_weights=True, sink_logits=sink)
    for actual, exact in zip(
        results, plain(*longer, return_weights=True, sink_logits=sink), strict=True
    ):
        np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-13)


def test_key_mask_and_lengths():
    layer, inputs = draw(SHAPES[1])
    rng = np.random.default_rng(3)
    holes, mask = rng.random((3, 33)) < 0.7, rng.random((20, 33)) < 0.8
    lengths = [33, 20, 4]
    visible = (holes & (np.arange(33) < np.array(lengths)[:, None]))[:, None, None]
    agree(layer, inputs, visible, key_mask=holes, kv_lengths=lengths)
    agree(layer, inputs, visible & mask, key_mask=holes, kv_lengths=lengths, mask=mask)


def test_bias_and_softcap():
    layer, (q, k, v) = draw(SHAPES[0])
    bias = np.where(np.arange(17) % 3 == 0, -np.inf, 0.0)
    agree(layer, (q, k, v), np.arange(17) % 3 != 0, bias=bias)
    assert np.abs(layer(q, k, v, softcap=0.1) - layer(q, k, v)).max() > 0.01


def test_block_mask():
    layer, (q, k, v) = draw((2, 2, 2, 64, 96, 8, 8, 16, 16, 16, 16))
    mask = BlockMask(np.tri(2, 3, 1, dtype=bool), 32)
    visible = mask.dense(64, 96)
    agree(layer, (q, k, v), visible, mask=mask)
    real = np.arange(96) < np.array([[96], [50]])
    agree(layer, (q, k, v), visible & real[:, None, None], mask=mask, key_mask=real)
    agree(
        *(layer, (q, k, v), visible & real[:, None, None, ::-1]), mask=mask, key_mask=real[:, ::-1]
    )
    real[1, 20] = False
    with pytest.raises(TypeError, match=r"mask must be a bool array .*mask.dense\(Lq, Lk\)"):
        layer(q, k, v, mask=mask, key_mask=real)


def test_mean_weights():
    layer, inputs = draw(SHAPES[1])
    _, weights = layer(*inputs, return_weights=True)
    output, mean = layer(*inputs, return_weights="mean")
    assert mean.shape == (3, 20, 33)
    np.testing.assert_allclose(mean, weights.mean(axis=1), rtol=0, atol=1e-15)
    assert output.shape == (3, 20, 48)


def test_self_attention_is_cross_attention_to_itself():
    layer, (x, *_) = draw(SHAPES[0])
    assert (layer(x) == layer(x, x, x)).all()
    assert (layer(x, x[:, :5]) == layer(x, x[:, :5], x[:, :5])).all()


def test_batch_axes():
    layer, (q, k, v) = draw((6, 4, 2, 7, 7, 8, 8, 32, 32, 32, 32))
    real = np.random.default_rng(1).random((6, 7)) < 0.7
    together = layer(q, k, v, key_mask=real)
    deep = [x.reshape(2, 3, *x.shape[1:]) for x in (q, k, v)]
    output = layer(*deep, key_mask=real.reshape(2, 3, 7))
    np.testing.assert_allclose(output.reshape(6, 7, 32), together, rtol=0, atol=1e-14)
    for b in range(6):
        alone = layer(q[b], k[b], v[b], key_mask=real[b])
        np.testing.assert_allclose(alone, together[b], rtol=0, atol=1e-14)


def test_one_memory_for_all_batch_rows():
    layer, (q, k, v) = draw(SHAPES[0])
    real, causal = np.arange(17) < 11, np.tri(17, dtype=bool)
    output = layer(q, k[0], v[0], key_mask=real, mask=causal)
    twice = [np.broadcast_to(x[0], x.shape) for x in (k, v)]
    expected = layer(q, *twice, kv_lengths=[11, 11], is_causal=True)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-14)


def test_heads_are_views(monkeypatch):
    """Between the projections and the kernels nothing is copied."""
    layer, (q, k, v) = draw(SHAPES[1])
    calls = []

    def attention(*arrays, **options):
        calls.append((*arrays, attnfast.attention(*arrays, **options)))
        return calls[0][-1]

    monkeypatch.setattr(forward, "attention", attention)
    layer(q, k, v)
    for x in calls[0]:
        assert not x.flags.c_contiguous
        assert x.swapaxes(1, 2).flags.c_contiguous


def test_any_strides():
    layer, (q, k, v) = draw(SHAPES[0], "float32")
    expected = layer(q, k, v)
    turned = [np.asfortranarray(x) for x in (q, k, v)]
    np.testing.assert_allclose(layer(*turned), expected, rtol=0, atol=1e-6)
    swapped = [x.astype(">f4") for x in (q, k, v)]
    assert (layer(*swapped) == expected).all()


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 3e38])
def test_padding_never_leaks(junk):
    layer, (q, k, v) = draw(SHAPES[1], "float32")
    real = np.arange(33) < np.array([[33], [12], [1]])
    expected = layer(q, k, v, key_mask=real)
    for x in (k, v):
        x[~real] = junk
    assert (layer(q, k, v, key_mask=real) == expected).all()
    assert (layer(q, k, v, kv_lengths=[33, 12, 1]) == expected).all()


def test_nothing_visible_gives_the_output_bias():
    layer, (q, k, v) = draw(SHAPES[0])
    output, weights = layer(q, k, v, kv_lengths=[0, 17], q_lengths=[17, 9], return_weights=True)
    assert not weights[0].any()
    assert not weights[1, :, 9:].any()
    np.testing.assert_array_equal(output[0], np.tile(layer.weights.output.bias, (17, 1)))
    np.testing.assert_array_equal(output[1, 9:], np.tile(layer.weights.output.bias, (8, 1)))


def test_empty():
    layer, _ = draw(SHAPES[0])
    assert layer(np.zeros((2, 0, 32))).shape == (2, 0, 32)
    assert layer(np.zeros((0, 5, 32))).shape == (0, 5, 32)
    output = layer(np.ones((2, 3, 32)), np.zeros((2, 0, 32)))
    np.testing.assert_array_equal(output, np.tile(layer.weights.output.bias, (2, 3, 1)))


def test_drawn_weights():
    layer = MultiHeadAttention(
        48, 6, num_kv_heads=2, value_head_dim=5, key_dim=20, value_dim=30, output_dim=7, seed=3
    )
    w = layer.weights
    sizes = [(m.n_in, m.n_out) for m in (w.query, w.key, w.value, w.output)]
    assert sizes == [(48, 48), (20, 16), (30, 10), (30, 7)]
    assert (w.head_dim, w.value_head_dim, w.dtype) == (8, 5, np.float32)
    for m in (w.query, w.key, w.value, w.output):
        limit = np.sqrt(6 / (m.n_in + m.n_out))
        assert 0.9 * limit < np.abs(m.weight).max() <= limit
        assert not m.bias.any()
    again = MultiHeadAttention(
        *(48, 6), num_kv_heads=2, value_head_dim=5, key_dim=20, value_dim=30, output_dim=7,
        seed=np.random.default_rng(3),
    )  # fmt: skip
    assert (again.weights.output.weight == w.output.weight).all()
    wide = MultiHeadAttention(10, 3, head_dim=4, use_bias=False, dtype=np.float64)
    assert wide.weights.query.weight.shape == (10, 12)
    assert wide.weights.query.bias is None
    assert wide(np.ones((1, 4, 10))).dtype == np.float64


def test_repr():
    layer = MultiHeadAttention(32, 4, num_kv_heads=2)
    assert repr(layer) == (
        "MultiHeadAttention(32, 4, num_kv_heads=2, head_dim=8, use_bias=True, dtype=float32)"
    )

"""``attnfast.layers.LuongAttention`` against the formulas of the paper, in float64."""

import numpy as np
import pytest

from attnfast import plan
from attnfast.layers import LuongAttention

pytestmark = pytest.mark.quick


SCORES = ["dot", "general", "concat"]
ALIGNMENTS = ["global", "local-m", "local-p"]
TOLERANCE = {"float32": 3e-5, "float64": 1e-12}


def make(score, alignment, dtype="float64", window=5, source_dim=12):
    source_dim = 12 if score == "dot" else source_dim
    layer = LuongAttention(
        12, source_dim, score=score, alignment=alignment, units=7,
        window=None if alignment == "global" else window, dtype=dtype, seed=5,
    )  # fmt: skip
    if alignment == "local-p":
        layer.weights["v_p"] *= 5  # places from one end of the source to the other
    return layer


def draw(layer, batch=(3,), Lq=9, Lk=40):
    rng = np.random.default_rng(6)
    shapes = (*batch, Lq, layer.dim), (*batch, Lk, layer.source_dim)
    return [rng.standard_normal(s).astype(layer.weights["w_c"].dtype) for s in shapes]


def formula(layer, hidden, source, visible=True, lengths=None, start=0):
    """Context and weights for one batch axis; `lengths (B,)` is S, `start` the first t."""
    w = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    h, s = hidden.astype(np.float64), source.astype(np.float64)
    (B, Lq, d), Lk = h.shape, s.shape[1]
    if layer.score == "concat":
        both = np.concatenate(
            [
                np.broadcast_to(h[:, :, None], (B, Lq, Lk, d)),
                np.broadcast_to(s[:, None], (B, Lq, Lk, s.shape[-1])),
            ],
            axis=-1,
        )
        score = np.tanh(both @ w["w_a"]) @ w["v_a"]
    else:
        score = (h @ w["w_a"] if layer.score == "general" else h) @ s.swapaxes(1, 2)
    visible = np.broadcast_to(visible, score.shape)
    j, factor = np.arange(Lk), 1
    if layer.alignment != "global":
        if layer.alignment == "local-m":
            p = np.broadcast_to(np.arange(Lq) + np.reshape(start, (-1, 1)), (B, Lq))
        else:
            share = 1 / (1 + np.exp(-np.tanh(h @ w["w_p"]) @ w["v_p"]))
            p = np.reshape(Lk if lengths is None else lengths, (-1, 1)) * share
            factor = np.exp(-((j - p[..., None]) ** 2) / (2 * (layer.window / 2) ** 2))
        visible = visible & (np.abs(j - p[..., None]) <= layer.window)
    a = np.where(visible, np.exp(score), 0)
    a = a / np.maximum(a.sum(axis=-1, keepdims=True), 1e-300) * factor
    return a @ s, a


def agree(layer, inputs, visible=True, lengths=None, start=0, **options):
    dtype = layer.weights["w_c"].dtype
    expected = formula(layer, *inputs, visible, lengths, start)
    results = layer(*inputs, return_weights=True, **options)
    for actual, exact in zip(results, expected, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == exact.shape
        np.testing.assert_allclose(actual, exact, rtol=0, atol=TOLERANCE[dtype.name])
    alone = layer(*inputs, **options)
    np.testing.assert_allclose(alone, expected[0], rtol=0, atol=TOLERANCE[dtype.name])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("score", SCORES)
class TestFormula:
    def test_full(self, score, alignment, dtype):
        for source_dim in (12, 20):
            layer = make(score, alignment, dtype, source_dim=source_dim)
            agree(layer, draw(layer))

    def test_lengths(self, score, alignment, dtype):
        layer = make(score, alignment, dtype)
        lengths = np.array([40, 0, 11])
        real = np.arange(40) < lengths[:, None]
        inputs = draw(layer)
        agree(layer, inputs, real[:, None], lengths, kv_lengths=lengths)
        agree(layer, inputs, real[:, None], lengths, key_mask=real)

    def test_holes(self, score, alignment, dtype):
        layer = make(score, alignment, dtype)
        real = np.random.default_rng(1).random((3, 40)) < 0.7
        real[0, 30:], real[1, 39] = False, True
        lengths = np.minimum([39, 40, 25], 40 - real[:, ::-1].argmax(axis=1))
        visible = real & (np.arange(40) < np.array([[39], [40], [25]]))
        agree(
            *(layer, draw(layer), visible[:, None], lengths),
            key_mask=real, kv_lengths=[39, 40, 25],
        )  # fmt: skip

    def test_keys_made_once(self, score, alignment, dtype):
        layer = make(score, alignment, dtype)
        inputs = draw(layer)
        agree(layer, inputs, keys=layer.project_keys(inputs[1]))

    def test_batch_axes(self, score, alignment, dtype):
        layer = make(score, alignment, dtype)
        hidden, source = draw(layer, batch=(6,))
        lengths = [40, 30, 20, 10, 5, 1]
        expected = layer(hidden, source, kv_lengths=lengths, return_weights=True)
        deep = [x.reshape(2, 3, *x.shape[1:]) for x in (hidden, source)]
        results = layer(*deep, kv_lengths=np.reshape(lengths, (2, 3)), return_weights=True)
        for actual, exact in zip(results, expected, strict=True):
            flat = actual.reshape(exact.shape)
            np.testing.assert_allclose(flat, exact, rtol=0, atol=TOLERANCE[dtype])
        alone = layer(hidden[3], source[3], kv_lengths=10)
        np.testing.assert_allclose(alone, expected[0][3], rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("score", SCORES)
def test_monotonic_alignment_step_by_step(score):
    layer = make(score, "local-m")
    hidden, source = draw(layer)
    agree(layer, (hidden, source), start=[3, 0, 35], q_offset=[3, 0, 35])
    together = layer(hidden, source, q_offset=20)
    for t in range(hidden.shape[1]):
        step = layer(hidden[:, t : t + 1], source, q_offset=20 + t)
        np.testing.assert_allclose(step, together[:, t : t + 1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("window", [1, 39, 1000])
def test_narrow_and_wide_windows(score, window):
    for alignment in ("local-m", "local-p"):
        layer = make(score, alignment, window=window)
        agree(layer, draw(layer))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("score", SCORES)
def test_padding_never_leaks(score, alignment):
    layer = make(score, alignment, "float32")
    hidden, source = draw(layer)
    real = np.arange(40) < np.array([[40], [12], [1]])
    expected = layer(hidden, source, key_mask=real)
    source[~real] = np.nan
    assert (layer(hidden, source, key_mask=real) == expected).all()


def test_predicted_centers():
    layer = make("general", "local-p")
    hidden, _ = draw(layer)
    w = layer.weights
    exact = 30 / (1 + np.exp(-np.tanh(hidden @ w["w_p"]) @ w["v_p"]))
    np.testing.assert_allclose(layer.centers(hidden, [30, 30, 30]), exact, rtol=0, atol=1e-13)
    assert ((exact > 0) & (exact < 30)).all()
    w["v_p"] *= 1e6
    edges = layer.centers(hidden, [30, 0, 30])
    assert set(edges[0]) <= {0.0, 30.0}
    assert not edges[1].any()
    with pytest.raises(ValueError, match='alignment must be "local-p"'):
        make("general", "global").centers(hidden, 30)


@pytest.mark.parametrize("score", SCORES)
def test_no_position_from_nan(score):
    layer = make(score, "local-p")
    hidden, source = draw(layer)
    hidden[1, 2, 3] = np.nan
    with pytest.raises(
        ValueError, match="hidden must be finite where positions are predicted, got NaN or inf"
    ):
        layer(hidden, source)


def test_attentional_vector():
    layer = make("general", "global", source_dim=20)
    hidden, source = draw(layer)
    context = layer(hidden, source)
    w_c = layer.weights["w_c"]
    exact = np.tanh(context @ w_c[:20] + hidden @ w_c[20:])
    np.testing.assert_allclose(layer.attentional(context, hidden), exact, rtol=0, atol=1e-14)


def test_paper_example_by_hand():
    """Scores of 0: the mean over the window, times the Gaussian."""
    weights = {
        "w_c": np.zeros((2, 1)), "w_a": np.zeros((1, 1)), "w_p": np.zeros((1, 1)),
        "v_p": np.zeros(1),
    }  # fmt: skip
    layer = LuongAttention(1, alignment="local-p", window=2, weights=weights)
    source = np.arange(9.0)[:, None]
    context, a = layer(np.ones((1, 1)), source, return_weights=True)
    gauss = np.exp(-((np.arange(9) - 4.5) ** 2) / 2) * (np.abs(np.arange(9) - 4.5) <= 2)
    np.testing.assert_allclose(a[0], gauss / 4, rtol=0, atol=1e-15)
    np.testing.assert_allclose(context[0, 0], (gauss / 4) @ np.arange(9), rtol=0, atol=1e-14)


def test_local_alignment_is_local():
    """What a local alignment passes on costs a window, not the source."""
    x = np.zeros((1, 1, 20_000, 4), np.float32)
    local = plan(x, x, x, window_size=10, q_offset=0).visited_pairs
    assert local < plan(x, x, x).visited_pairs / 100
    for score in SCORES:
        for alignment in ("local-m", "local-p"):
            layer = LuongAttention(4, score=score, alignment=alignment, window=10, seed=0)
            assert layer(x[0], x[0]).shape == (1, 20_000, 4)


def test_empty_source():
    for score in SCORES:
        for alignment in ALIGNMENTS:
            layer = make(score, alignment)
            hidden, source = draw(layer, Lk=0)
            context, weights = layer(hidden, source, return_weights=True)
            assert context.shape == (3, 9, layer.source_dim)
            assert weights.shape == (3, 9, 0)
            assert not context.any()


def test_given_weights():
    drawn = make("concat", "local-p", "float32", source_dim=20).weights
    shapes = {name: array.shape for name, array in drawn.items()}
    assert shapes == {"w_c": (32, 12), "w_a": (32, 7), "v_a": (7,), "w_p": (12, 7), "v_p": (7,)}
    options = {"score": "concat", "alignment": "local-p", "window": 5, "units": 7}
    layer = LuongAttention(12, 20, weights=drawn, **options)
    hidden, source = draw(layer)
    assert layer.weights["w_c"].dtype == np.float32
    expected = make("concat", "local-p", "float32", source_dim=20)(hidden, source)
    assert (layer(hidden, source) == expected).all()
    wide = LuongAttention(12, 20, weights=drawn, dtype=np.float64, **options)
    assert wide.weights["v_p"].dtype == np.float64
    with pytest.raises(ValueError, match="weights must be w_c, w_a, v_a, w_p, v_p, got w_c"):
        LuongAttention(12, 20, weights={"w_c": drawn["w_c"]}, **options)
    with pytest.raises(ValueError, match=r"weights\['v_a'\] must have shape \(7,\), got \(8,\)"):
        LuongAttention(12, 20, weights={**drawn, "v_a": np.ones(8)}, **options)
    with pytest.raises(TypeError, match=r"weights\['v_a'\] must be float32 like"):
        LuongAttention(12, 20, weights={**drawn, "v_a": np.ones(7)}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "additive"}, "score must be"),
        ({"alignment": "local"}, "alignment must be"),
        ({"score": "dot", "source_dim": 9}, "source_dim must be dim, 12, for score .dot., got 9"),
        ({"alignment": "local-m"}, "window must be given for alignment 'local-m'"),
        ({"window": 3}, 'window must be None for alignment "global", got 3'),
        ({"alignment": "local-p", "window": 0}, "window must be at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LuongAttention(12, **options)


def test_bad_calls():
    layer = make("concat", "global", source_dim=20)
    hidden, source = draw(layer)
    for arguments, options, error, message in (
        ((source, source), {}, ValueError, r"hidden must have shape \(..., length, 12\)"),
        ((hidden, hidden), {}, ValueError, "source must have shape"),
        ((hidden, source[:2]), {}, ValueError, "source must have the batch axes of hidden"),
        ((hidden, source.astype(np.float32)), {}, TypeError, "source must be float64 .*float32"),
        ((hidden, source), {"keys": source}, ValueError, "keys must have shape"),
        (
            (hidden, source),
            {"keys": source[:, :5, :7]},
            ValueError,
            "keys must have the shape of source",
        ),
        ((hidden, source), {"key_mask": np.ones((3, 9), bool)}, ValueError, "key_mask must have"),
        ((hidden, source), {"kv_lengths": [3, 4]}, ValueError, "kv_lengths must have shape"),
        ((hidden, source), {"kv_lengths": [3, 4, 41]}, ValueError, r"within 0 \.\. 40"),
        ((hidden, source), {"kv_lengths": [-1, 4, 40]}, ValueError, "kv_lengths must be within"),
        ((hidden, source), {"kv_lengths": [3.0, 4, 4]}, TypeError, "kv_lengths must be integers"),
    ):
        with pytest.raises(error, match=message):
            layer(*arguments, **options)


def test_repr():
    assert repr(make("dot", "local-m")) == (
        "LuongAttention(12, 12, score='dot', alignment='local-m', window=5, dtype=float64)"
    )

"""Layers with the semantics and the weights of Keras, against Keras.

The numbers written here were computed by Keras 3.15.1 on PyTorch 2.13.0 in float64, so they hold
without it. Where Keras is installed it is asked too.
"""

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


def test_multi_head_numbers():
    rng = np.random.default_rng(8)
    layer = MultiHeadAttention.from_keras(draw(rng, *KERNELS))
    query, value = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 3, 4))
    real = np.array([[True, True, False], [True, True, True]])
    output, weights = layer(query, value, key_mask=real, is_causal=True, return_weights=True)
    near(output, [
        -0.5872317876, -0.7130470162, 0.2464501536, -0.7323895600, -0.3072528347, -0.4316614308,
        -0.6587563186, 0.0475053255, -0.6863033583, -0.1720435974, -0.2550532693, -0.5545711234,
        -0.0306262249, -0.7417824184, 0.0795927707, -0.8296940746, -0.4868904597, 1.4338169114,
        -0.2200926814, 0.2995544771, -1.2591194398, -0.8026914006, 0.4375602439, 0.4081899704,
        -0.3522037400, 1.5155498358, -0.8650433226, -1.1896424326, -0.8925956878, -1.0809443208,
    ])  # fmt: skip
    near(weights, [
        1.0000000000, 0.0000000000, 0.0000000000, 0.8597162492, 0.1402837508, 0.0000000000,
        0.8953226319, 0.1046773681, 0.0000000000, 1.0000000000, 0.0000000000, 0.0000000000,
        0.4634842752, 0.5365157248, 0.0000000000, 0.0019393319, 0.9980606681, 0.0000000000,
        1.0000000000, 0.0000000000, 0.0000000000, 0.3447156008, 0.6552843992, 0.0000000000,
        0.1512009818, 0.6677106818, 0.1810883365, 1.0000000000, 0.0000000000, 0.0000000000,
        0.9888540565, 0.0111459435, 0.0000000000, 0.1475485119, 0.1390999797, 0.7133515084,
    ])  # fmt: skip


NUMBERS = {
    "dot": (
        [
            -0.0940258279, -0.3851135969, 0.3354283571, -0.6253844500, 0, 0,
            -1.8370680809, -0.5937675834, -1.8370680809, -0.5937675834, -0.2618182302, 0.3411875665,
        ],
        [
            1, 0, 0, 0, 0.5253986716, 0.4746013582, 0, 0, 0.0089461002, 0.7737230062, 0.2173309475,
            0, 1, 0, 0, 0, 1, 0, 0, 0, 0.1525170058, 0, 0.8474829793, 0,
        ],
    ),
    "concat": (
        [
            -0.0940258279, -0.3851135969, 0.5097587109, -0.7229186893, 0, 0,
            -1.8370680809, -0.5937675834, -1.8370680809, -0.5937675834, -0.7235162258, 0.0671567917,
        ],
        [
            1, 0, 0, 0, 0.3327414781, 0.6672585219, 0, 0, 0.1271913371, 0.3393424227, 0.5334662403,
            0, 1, 0, 0, 0, 1, 0, 0, 0, 0.4009101305, 0, 0.5990898695, 0,
        ],
    ),
    "additive": (
        [
            -0.0940258279, -0.3851135969, 0.3712003231, -0.6453981400, 0, 0,
            -1.8370680809, -0.5937675834, -1.8370680809, -0.5937675834, -1.2698016167,
            -0.2570788860,
        ],
        [
            1, 0, 0, 0, 0.4858660419, 0.5141339581, 0, 0, 0.1721989406, 0.3809831187, 0.4468179408,
            0, 1, 0, 0, 0, 1, 0, 0, 0, 0.6948110935, 0, 0.3051889065, 0,
        ],
    ),
}  # fmt: skip
LAYERS = {
    "dot": Attention.from_keras([0.7], use_scale=True),
    "concat": Attention.from_keras([0.7, -1.3], use_scale=True, score_mode="concat"),
    "additive": AdditiveAttention.from_keras([np.array([0.5, -1.0, 2.0, 0.25])]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_token_attention_numbers(name):
    rng = np.random.default_rng(9)
    query, value, key = (rng.standard_normal(s) for s in ((2, 3, 4), (2, 4, 2), (2, 4, 4)))
    query_mask = [[True, True, False], [True, True, True]]
    value_mask = [[True, True, True, False], [True, False, True, True]]
    output, weights = LAYERS[name](
        [query, value, key], mask=[query_mask, value_mask],
        return_attention_scores=True, use_causal_mask=True,
    )  # fmt: skip
    expected_output, expected_weights = NUMBERS[name]
    # Keras subtracts 1e9 from the scores of hidden keys, here and there from visible ones too.
    near(output, expected_output, 3e-7)
    near(weights, expected_weights, 3e-7)


# ---- with Keras itself ----


@pytest.fixture(scope="module")
def keras():
    """Keras in float64, which its backend numpy does not compute in."""
    keras = pytest.importorskip("keras", reason="only a check of the semantics")
    if keras.backend.backend() == "numpy":
        pytest.skip("Keras on NumPy computes in float32")
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield keras
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def asked(keras, layer, weights, *arguments, **options):
    """What a Keras layer with these weights answers."""
    shapes = [a.shape for a in (arguments if len(arguments) > 1 else arguments[0])]
    layer.build(*shapes) if len(arguments) > 1 else layer.build(shapes)
    layer.set_weights([np.asarray(w) for w in weights])
    results = layer(*arguments, **options)
    return [keras.ops.convert_to_numpy(r) for r in results]


of_keras = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@of_keras
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
def test_multi_head_parity(keras, heads, causal):
    H, Hk = heads
    rng = np.random.default_rng(4)
    shapes = (12, H, 5), (H, 5), (8, Hk, 5), (Hk, 5), (8, Hk, 5), (Hk, 5), (H, 5, 12), (12,)
    weights = draw(rng, *shapes)
    query, value = rng.standard_normal((3, 7, 12)), rng.standard_normal((3, 10, 8))
    mask = rng.random((3, 7, 10)) < 0.7
    mask[..., 0] = True
    if Hk == H:
        layer = keras.layers.MultiHeadAttention(H, 5)
    else:
        layer = keras.layers.GroupQueryAttention(5, H, Hk)
    masks = {"attention_mask": mask, "use_causal_mask": causal}
    expected = asked(keras, layer, weights, query, value, return_attention_scores=True, **masks)
    q_offset = 0 if causal else None
    ours = MultiHeadAttention.from_keras(layer.get_weights())
    options = {"is_causal": causal, "q_offset": q_offset}
    output, scores = ours(query, value, mask=mask[:, None], return_weights=True, **options)
    near(output, expected[0], 1e-12)
    near(scores, expected[1], 1e-12)
    layer.set_weights(ours.to_keras())


@of_keras
def test_sliding_window_parity(keras):
    rng = np.random.default_rng(5)
    weights = draw(
        rng, (12, 2, 5), (2, 5), (12, 2, 5), (2, 5), (12, 2, 5), (2, 5), (2, 5, 12), (12,)
    )
    x = rng.standard_normal((2, 20, 12))
    layer = keras.layers.MultiHeadAttention(2, 5, sliding_window=4)
    expected = asked(keras, layer, weights, x, x, return_attention_scores=True)
    near(MultiHeadAttention.from_keras(weights)(x, window_size=3), expected[0], 1e-12)


CASES = {  # class, arguments of its constructor, weights
    "dot": (Attention, {}, []),
    "dot, scale": (Attention, {"use_scale": True}, [0.3]),
    "concat": (Attention, {"score_mode": "concat"}, [0.8]),
    "concat, scale": (Attention, {"score_mode": "concat", "use_scale": True}, [0.3, 0.8]),
    "additive": (AdditiveAttention, {}, [np.linspace(-1, 1, 16)]),
    "additive, no scale": (AdditiveAttention, {"use_scale": False}, []),
}


@of_keras
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_token_attention_parity(keras, name, causal):
    kind, arguments, weights = CASES[name]
    layer = getattr(keras.layers, kind.__name__)(**arguments)
    ours = kind.from_keras(weights, **(arguments if kind is Attention else {"dim": 16}))
    rng = np.random.default_rng(6)
    inputs = [rng.standard_normal(s) for s in ((3, 7, 16), (3, 10, 6), (3, 10, 16))]
    real = rng.random((3, 10)) < 0.6
    real[:, 0] = True
    masks = [rng.random((3, 7)) < 0.6, real]
    options = {"mask": masks, "return_attention_scores": True, "use_causal_mask": causal}
    expected = asked(keras, layer, ours.to_keras(), inputs, **options)
    for actual, theirs in zip(ours(inputs, **options), expected, strict=True):
        near(actual, theirs, 1e-6)

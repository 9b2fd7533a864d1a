"""additive_attention: scores that are sums of tanh, and the rest as in attention."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings

import attnfast
from attnfast import AttentionResult, reference
from support.arrays import (
    DTYPE_IDS,
    DTYPES,
    assert_same,
    compute_dtype,
    qkv,
    randn,
    same_bits,
)
from support.criterion import Criterion
from support.drawn_call import Call
from support.draws import additive_calls
from support.layouts import LAYOUTS, lay_out, paired

EXAMPLES = settings.default.max_examples
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
FLAGS = {"return_lse": True, "return_weights": True}
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


@pytest.mark.quick
@EACH_DTYPE
def test_any_call(dtype, each_isa):
    @settings(max_examples=EXAMPLES if dtype == np.float32 else EXAMPLES // 3)
    @given(call=additive_calls(dtypes=(dtype,)))
    def run(call: Call) -> None:
        criterion = call.criterion()
        each_isa(lambda: criterion.check(call.run()))

    run()


def keras_additive_attention(query, value, key, scale, mask):
    """The formula of the Keras layer AdditiveAttention, for (batch, length, dim)."""
    q_reshaped = np.expand_dims(query, axis=-2)
    k_reshaped = np.expand_dims(key, axis=-3)
    scores = np.sum(scale * np.tanh(q_reshaped + k_reshaped), axis=-1)
    scores -= 1e9 * ~mask[:, None, :]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights @ value, weights


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
class TestFormulas:
    """Against the formulas of others, written out."""

    def test_keras(self, rng):
        query, key, value = (randn(rng, s, np.float64) for s in [(3, 5, 8), (3, 20, 8), (3, 20, 4)])
        scale, mask = randn(rng, 8, np.float64), np.arange(20) < np.array([[20], [7], [13]])
        expected, expected_weights = keras_additive_attention(query, value, key, scale, mask)
        heads = (a[:, None] for a in (query, key, value))
        output, _, weights = attnfast.additive_attention(
            *heads, scale, mask=mask[:, None, None, :], return_weights=True
        )
        np.testing.assert_allclose(output[:, 0], expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(weights[:, 0], expected_weights, rtol=1e-12, atol=1e-15)

    def test_bahdanau(self, rng):
        """e_ij = v tanh(W s_i + U h_j + b): the products come before, W and U apart."""
        states, annotations = randn(rng, (6, 10), np.float64), randn(rng, (15, 12), np.float64)
        w, u = randn(rng, (8, 10), np.float64), randn(rng, (8, 12), np.float64)
        v, b = randn(rng, 8, np.float64), randn(rng, 8, np.float64)
        query, key = states @ w.T, annotations @ u.T
        output = attnfast.additive_attention(query, key, annotations, v, score_bias=b)
        for i in range(6):
            e = np.array([v @ np.tanh(w @ states[i] + u @ h + b) for h in annotations])
            weights = np.exp(e) / np.exp(e).sum()
            np.testing.assert_allclose(output[i], weights @ annotations, rtol=1e-12, atol=1e-14)

    def test_one_pair(self):
        """A single key has weight 1 and its score is the lse."""
        q, k = np.array([[0.5, -1.0, 3.0]]), np.array([[0.25, 1.5, -20.0]])
        lse = attnfast.additive_attention(q, k, k, [2.0, -1.0, 0.5], return_lse=True).lse
        expected = 2 * np.tanh(0.75) - np.tanh(0.5) + 0.5 * np.tanh(-17.0)
        np.testing.assert_allclose(lse, [expected], rtol=1e-14)

    def test_defaults_are_ones_and_zeros(self, rng):
        q, k, v = qkv(rng, 30, 50, 24)
        default = attnfast.additive_attention(q, k, v, **FLAGS)
        for shape in ((24,), (2, 24)):
            options = {"score_weight": np.ones(shape), "score_bias": np.zeros(shape)}
            assert_same(default, attnfast.additive_attention(q, k, v, **options, **FLAGS))
        assert_same(default, attnfast.additive_attention(q, k, v, None, score_bias=None, **FLAGS))

    def test_parameters_of_any_real_type(self, rng):
        q, k, v = qkv(rng, 30, 50, 3)
        expected = attnfast.additive_attention(q, k, v, [1.0, -2.0, 3.0], score_bias=[0.5, 0, 1])
        for dtype in (np.float64, np.float16, ">f4", np.int64, np.int8, DTYPES[3]):
            w = np.array([1, -2, 3]).astype(dtype)
            assert same_bits(
                attnfast.additive_attention(q, k, v, w, score_bias=[0.5, 0, 1]), expected
            )

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_parameters_of_any_layout(self, layout, rng):
        q, k, v = qkv(rng, 30, 50, 24, heads=4)
        w, b = randn(rng, (4, 24)), randn(rng, (4, 24))
        expected = attnfast.additive_attention(q, k, v, w, score_bias=b)
        w, b = lay_out(w, layout), lay_out(b, layout)
        assert same_bits(attnfast.additive_attention(q, k, v, w, score_bias=b), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_criterion_rejects_small_errors(dtype, rng):
    arrays, weight = qkv(rng, 30, 60, 16, dtype=dtype), rng.standard_normal(16)
    criterion = Criterion(*arrays, function="additive_attention", score_weight=weight)

    def plain(weight, **options):
        result = reference.additive_attention(
            *arrays, weight, **options, **FLAGS, compute_dtype=dtype
        )
        return AttentionResult(*result)

    criterion.check(plain(weight))
    for wrong in (plain(weight * (1 + 100 * np.finfo(dtype).eps)), plain(weight, softcap=300.0)):
        with pytest.raises(AssertionError, match=r"output|lse"):
            criterion.check(wrong)


# Wherever the score of a pair is computed from exponentials or otherwise, and where they meet.
@EACH_DTYPE
@pytest.mark.parametrize("q_size", [1e-4, 1, 15, 60])
@pytest.mark.parametrize("k_size", [1, 15, 25, 1e4])
@pytest.mark.parametrize("lq", [1, 40])
def test_sizes_of_the_inputs(lq, k_size, q_size, dtype, each_isa, rng):
    q, k, v = qkv(rng, lq, 70, 16, batch=(), dtype=dtype)
    q = (q_size * q.astype(np.float64)).astype(dtype)
    k = (k_size * k.astype(np.float64)).astype(dtype)
    options = {"score_weight": randn(rng, (2, 16)), **FLAGS}
    criterion = Criterion(q, k, v, function="additive_attention", **options)
    each_isa(lambda: criterion.check(attnfast.additive_attention(q, k, v, **options)))


@EACH_DTYPE
@pytest.mark.parametrize("size", [10, 100, 1000])
@pytest.mark.parametrize("lq", [1, 70])
def test_large_weights(lq, size, dtype, each_isa, rng):
    q, k, v = qkv(rng, lq, 90, 16, batch=(), dtype=dtype)
    options = {"score_weight": size * randn(rng, (2, 16)), **FLAGS}
    criterion = Criterion(q, k, v, function="additive_attention", **options)
    each_isa(lambda: criterion.check(attnfast.additive_attention(q, k, v, **options)))


@EACH_DTYPE
@pytest.mark.parametrize("size", [1, 9, 19.9, 20.1, 40, 300])
def test_sums_that_cancel(size, dtype, each_isa, rng):
    """Query and key are large and opposite, and what is left decides."""
    q, k, v = qkv(rng, 40, 70, 16, batch=(), dtype=np.float64)
    q, k = (size + q / 3).astype(dtype), (-size + k / 3).astype(dtype)
    v = v.astype(dtype)
    criterion = Criterion(q, k, v, function="additive_attention")
    each_isa(lambda: criterion.check(attnfast.additive_attention(q, k, v, **FLAGS)))


@EACH_DTYPE
@pytest.mark.parametrize("size", [1, 18, 22, 500])
def test_biases_that_cancel(size, dtype, each_isa, rng):
    q, k, v = qkv(rng, 40, 70, 16, batch=(), dtype=np.float64)
    q, v = (size + q).astype(dtype), v.astype(dtype)
    k = k.astype(dtype)
    options = {"score_bias": -size + randn(rng, (2, 16)), **FLAGS}
    criterion = Criterion(q, k, v, function="additive_attention", **options)
    each_isa(lambda: criterion.check(attnfast.additive_attention(q, k, v, **options)))


# Both sides of every multiple of a tile; one to four queries go another way.
@pytest.mark.parametrize("lq", [1, 2, 4, 5, 11, 13, 16, 17, 23, 25, 47, 49, 97])
def test_shapes(lq, each_isa, rng):
    for lk, d in paired([1, 15, 17, 63, 65, 130], [1, 33], times=1):
        q, k, v = qkv(rng, lq, lk, d, 11, heads=2, kv_heads=1, batch=())
        options = {"score_weight": randn(rng, d), **FLAGS}
        criterion = Criterion(q, k, v, function="additive_attention", **options)

        def check(arrays=(q, k, v), options=options, criterion=criterion) -> None:
            criterion.check(attnfast.additive_attention(*arrays, **options))

        each_isa(check)


@EACH_DTYPE
def test_every_option_at_once(dtype, each_isa, rng):
    q, k, v = qkv(rng, 61, 130, 20, heads=4, kv_heads=2, dtype=dtype)
    bias = randn(rng, (4, 61, 130))
    bias[rng.random(bias.shape) < 0.1] = -np.inf
    options = {
        "score_weight": randn(rng, (4, 20)),
        "score_bias": randn(rng, 20),
        "mask": rng.random((2, 1, 61, 130)) < 0.8,
        "bias": bias,
        "is_causal": True,
        "window_size": (40, 30),
        "q_offset": [69, 9],
        "q_lengths": [61, 60],
        "kv_lengths": [125, 130],
        "softcap": 2.0,
        "alibi_slopes": [0.05, -0.2, 0.1, 0.0],
        "sink_logits": [0.3, -1.0, 2.0, 0.0],
        **FLAGS,
    }
    criterion = Criterion(q, k, v, function="additive_attention", **options)
    each_isa(lambda: criterion.check(attnfast.additive_attention(q, k, v, **options)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 4, 60])
@pytest.mark.parametrize("name", ["score_weight", "score_bias"])
def test_nan_in_a_parameter_reaches_its_head_only(name, lq, rng):
    numbers = np.zeros((2, 20), np.float32)
    numbers[1, 3] = np.nan
    output = attnfast.additive_attention(*qkv(rng, lq, 70, 20), **{name: numbers})
    assert np.isnan(output[:, 1]).all() and np.isfinite(output[:, 0]).all()


@pytest.mark.usefixtures("isa")
@EACH_DTYPE
@pytest.mark.parametrize("lq", [1, 30])
def test_infinite_inputs_saturate(lq, dtype, rng):
    """tanh is 1 at infinity: that is a score like any other."""
    q, k, v = qkv(rng, lq, 50, 6, dtype=dtype)
    big_k, big_q = k.copy(), q.copy()
    big_k[..., 9, 2], big_q[..., 0, 4] = np.inf, -np.inf
    result = attnfast.additive_attention(big_q, big_k, v, **FLAGS)
    big_k[..., 9, 2], big_q[..., 0, 4] = 1000, -1000
    finite = attnfast.additive_attention(big_q, big_k, v, **FLAGS)
    tolerance = 1e-6 if dtype == np.float64 else 1e-5 if dtype == np.float32 else 1e-2
    for a, b in zip(result, finite, strict=True):
        a, b = (np.asarray(x).astype(np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 3, 150])
def test_the_same_bits_beside_a_large_key(lq, rng):
    """Its neighbours are computed the quick way, whichever thread computes it."""
    q, k, v = qkv(rng, lq, 1500, 24, heads=2, kv_heads=1, batch=(1,))
    k[..., 700, 3] = 50
    first = attnfast.additive_attention(q, k, v, **FLAGS, num_threads=1)
    for n in (2, 3, 5):
        assert_same(first, attnfast.additive_attention(q, k, v, **FLAGS, num_threads=n))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", [1, 25])
@pytest.mark.parametrize("lq", [1, 40])
def test_a_batch_row_beside_one_with_large_numbers(lq, size, rng):
    q, k, v = qkv(rng, lq, 90, 24, batch=(3,))
    q[1] *= size
    k[1] *= 40
    k[2, 1] *= size
    whole = attnfast.additive_attention(q, k, v, **FLAGS)
    for row in range(3):
        alone = attnfast.additive_attention(q[row], k[row], v[row], **FLAGS)
        assert_same(AttentionResult(*(a[row] for a in whole)), alone)


@pytest.mark.usefixtures("isa")
@EACH_DTYPE
def test_results_and_flags(dtype, rng):
    q, k, v = qkv(rng, 70, 70, 16, 9, dtype=dtype)
    output = attnfast.additive_attention(q, k, v)
    assert isinstance(output, np.ndarray) and output.dtype == dtype
    result = attnfast.additive_attention(q, k, v, return_lse=True)
    assert isinstance(result, AttentionResult) and result.weights is None
    assert same_bits(result.output, output) and result.lse.dtype == compute_dtype(dtype)
    result = attnfast.additive_attention(q, k, v, **FLAGS)
    assert same_bits(result.output, output) and result.weights.dtype == dtype
    swapped = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (q, k, v)]
    again = attnfast.additive_attention(*swapped)
    assert same_bits(again, output) and again.swapaxes(1, 2).flags.c_contiguous


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", ["query", "key", "value", "bias", "score_weight"])
@pytest.mark.parametrize("lq", [1, 40])
def test_out_may_be_an_input(lq, name, rng):
    arguments = dict(zip(("query", "key", "value"), qkv(rng, lq, lq, lq), strict=True))
    arguments["bias"] = randn(rng, (2, 2, lq, lq))
    memory = randn(rng, (2, 2, lq, lq))
    arguments["score_weight"] = memory[1, :, 0]
    out = memory if name == "score_weight" else arguments[name]
    expected = attnfast.additive_attention(**arguments)
    assert attnfast.additive_attention(**arguments, out=out) is out
    assert same_bits(out, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("empty", ["B", "H", "Lq", "Lk", "D", "Dv"])
@EACH_DTYPE
def test_empty_axes(dtype, empty):
    n = {"B": 2, "H": 2, "Lq": 3, "Lk": 4, "D": 5, "Dv": 6, empty: 0}
    q, k = (np.ones((n["B"], n["H"], n[length], n["D"]), dtype) for length in ("Lq", "Lk"))
    v = np.ones((n["B"], n["H"], n["Lk"], n["Dv"]), dtype)
    options = {"score_weight": np.ones((n["H"], n["D"])), "score_bias": np.ones(n["D"]), **FLAGS}
    output, lse, weights = attnfast.additive_attention(q, k, v, **options)
    assert output.shape == (n["B"], n["H"], n["Lq"], n["Dv"])
    assert lse.shape == output.shape[:-1] and weights.shape == (*lse.shape, n["Lk"])
    if empty == "Lk":
        assert not output.any() and np.isneginf(lse).all()
    else:
        assert (output == 1).all()
        np.testing.assert_allclose(lse, n["D"] * np.tanh(3) + np.log(4), rtol=1e-5)


@pytest.mark.parametrize("lq", [2, 40])
@pytest.mark.parametrize(("weight", "output"), [(1e25, 2.25), (-1e25, 1.0)])
def test_weights_that_decide_alone(weight, output, lq, each_isa):
    """Four keys pull all the weight, or one does; the products of the short way would overflow."""
    q, k = np.full((lq, 4), 9, np.float32), np.full((5, 4), 9, np.float32)
    k[1] = -9
    value = np.arange(5, dtype=np.float32)[:, None]
    result = attnfast.additive_attention(q, k, value, [weight, 0, 0, 0])
    np.testing.assert_allclose(result, output, rtol=1e-6)

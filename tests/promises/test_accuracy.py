"""Random calls of every kind against the exact result, by the criterion of `support`."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import attnfast
from attnfast import AttentionResult, reference
from support.arrays import DTYPE_IDS, DTYPES, compute_dtype, qkv, same_batch, truth_dtype
from support.criterion import SCORE_OPTIONS, Criterion, check
from support.drawn_call import Call
from support.draws import calls

EXAMPLES = settings.default.max_examples


@pytest.mark.quick
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_any_call(dtype, each_isa):
    @settings(max_examples=10 * EXAMPLES if dtype == np.float32 else 4 * EXAMPLES)
    @given(call=calls(dtypes=(dtype,)))
    def run(call: Call) -> None:
        criterion = Criterion(call.query, call.key, call.value, **call.options)
        each_isa(lambda: criterion.check(call.run()))

    run()


@pytest.mark.quick
@given(call=calls())
def test_any_call_of_attention_weights(call, each_isa):
    options = {n: x for n, x in call.options.items() if n in SCORE_OPTIONS}
    query, _, _ = same_batch(call.query, call.key, call.value)  # lengths have one entry per row
    criterion = Criterion(query, call.key, call.key[..., :1], **options)

    def check_stages() -> None:
        weights = attnfast.attention_weights(query, call.key, **options)
        criterion.check_weights(weights)
        biased = attnfast.attention_weights(query, call.key, stage="biased", **options)
        criterion.check_biased(biased)

    each_isa(check_stages)


# Over many rows luck evens out, so that the errors of both can be compared as they are: on average
# to a factor of 2, at worst (where one unlucky row decides) to a factor of 3. At large logits most
# rows are their best value, exactly, and the few whose two best scores nearly tie decide: over 16
# rows the ratio was anything from 0.1 to 9, on any instruction set, over 100 it is 0.5 to 1.6.
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("amplitude", [1, 50])
@pytest.mark.parametrize(
    ("lq", "lk", "batch", "options"),
    [
        (64, 64, 8, {}),
        (200, 1500, 1, {"softcap": 20.0}),
        (400, 400, 1, {"is_causal": True, "alibi_slopes": [0.1, 0.9]}),
        (400, 400, 1, {"window_size": (100, 20)}),
        (30, 8000, 2, {}),
        (1, 500, 100, {}),
        (4, 900, 20, {"sink_logits": [0.0, 3.0]}),
        (1, 8000, 56, {}),
    ],
    ids=["short", "softcap", "causal", "window", "long", "decode", "decode-sink", "decode-long"],
)
def test_error_is_within_twice_that_of_plain_numpy(
    lq, lk, batch, options, amplitude, dtype, rng, each_isa
):
    """The batch rows share their keys, so that for the reference they are one long query."""
    options = {"return_lse": True, "return_weights": True, **options}
    q, k, v = qkv(rng, batch * lq, lk, 48, batch=(), dtype=dtype)
    q = (amplitude * q.astype(np.float32)).astype(dtype)
    exact = reference.attention(q, k, v, compute_dtype=truth_dtype(dtype), **options)
    plain = reference.attention(q, k, v, compute_dtype=compute_dtype(dtype), **options)
    rows = q.reshape((2, batch, lq, 48)).swapaxes(0, 1)

    def compare() -> None:
        result = attnfast.attention(rows, k, v, **options)
        for name, y, x, p in zip(AttentionResult._fields, result, exact, plain, strict=True):
            y = y.swapaxes(0, 1).reshape(x.shape)
            error = np.abs(y.astype(x.dtype) - x)
            plain_error = np.abs(p.astype(y.dtype).astype(x.dtype) - x)
            eps = float(np.finfo(p.dtype).eps)
            assert rms(error) <= 2 * rms(plain_error) + eps * rms(x), name
            assert error.max() <= 3 * plain_error.max() + eps * np.abs(x).max(), name

    each_isa(compare)


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


@pytest.mark.quick
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("amplitude", [100, 1000])
@pytest.mark.parametrize("lq", [1, 70])
def test_large_logits(lq, amplitude, dtype, rng, each_isa):
    q, k, v = qkv(rng, lq, 300, 64, dtype=dtype)
    q = (amplitude * q.astype(np.float32)).astype(dtype)
    criterion = Criterion(q, k, v)
    each_isa(
        lambda: criterion.check(attnfast.attention(q, k, v, return_lse=True, return_weights=True))
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("offset", [100.0, -3e4])
def test_values_that_nearly_cancel(dtype, offset, rng, each_isa):
    q, k, v = qkv(rng, 40, 700, 32, dtype=dtype)
    v = (v.astype(np.float32) + offset).astype(dtype)
    criterion = Criterion(q, k, v)
    each_isa(lambda: criterion.check(attnfast.attention(q, k, v, return_lse=True)))


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 60])
@pytest.mark.parametrize("keys", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=DTYPE_IDS[2:])
def test_results_are_rounded_to_the_nearest_even(dtype, keys, lq):
    """Means of neighbouring numbers, which lie half or a quarter of the way between them."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        every = np.sort(every[np.abs(every.astype(np.float32)) < ml_dtypes.finfo(dtype).max / 8])
    v = np.repeat(every[None, :-1], keys, axis=0)
    v[-1] = every[1:]
    expected = v.astype(np.float64).mean(axis=0).astype(np.float32).astype(dtype)
    q, k = np.zeros((lq, 1), dtype), np.zeros((keys, 1), dtype)
    output = attnfast.attention(q, k, v)
    assert (output == expected).all() and (output.shape == (lq, len(expected)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 60])
@pytest.mark.parametrize("fill", [-1e9, float(np.finfo(np.float32).min), -1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_finite_bias_on_every_key_is_data(dtype, fill, lq, rng):
    """Many codes mask with such numbers: a row full of them is a mean of its values, not zero."""
    q, k, v = qkv(rng, lq, 90, 8, dtype=dtype)
    bias = np.zeros((lq, 90), dtype)
    bias[0] = fill
    bias[1:, 50:] = fill
    result = attnfast.attention(q, k, v, bias=bias, return_lse=True, return_weights=True)
    check(result, q, k, v, bias=bias)
    np.testing.assert_allclose(result.weights[..., 0, :].sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(result.lse[..., 0], fill, rtol=1e-3)
    if lq > 1 and fill != -1e4:
        assert not result.weights[..., 1:, 50:].any()
    if dtype == np.float32 and fill != -1e4:  # the scores are lost beside it, in any float32
        np.testing.assert_allclose(result.weights[..., 0, :], 1 / 90, rtol=1e-5)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 48, 60])
def test_windows_that_end_anywhere_in_the_keys(lq):
    """Wherever blocks of keys begin and end, some window ends one key before, with it, or after."""
    q, k = np.zeros((lq, 1), np.float32), np.zeros((300, 1), np.float32)
    v = np.eye(300, dtype=np.float32)
    for offset in range(-9, 309):
        places, j = np.arange(lq)[:, None] + offset, np.arange(300)
        seen = (places - 5 <= j) & (j <= places + 5)
        weights = seen / np.maximum(seen.sum(axis=-1, keepdims=True), 1)
        output = attnfast.attention(q, k, v, window_size=5, q_offset=offset)
        assert np.abs(output - weights).max() < 1e-6
        total = attnfast.key_importance(q, k, window_size=5, q_offset=offset)
        assert np.abs(total - weights.sum(axis=-2)).max() < 1e-6


@pytest.mark.usefixtures("isa")
def test_a_bias_of_minus_infinity_equals_a_mask(rng):
    q, k, v = qkv(rng, 50, 120)
    mask = rng.random((2, 2, 50, 120)) < 0.3
    mask[0, 0, 7] = False
    bias = np.where(mask, 0, -np.inf).astype(np.float32)
    masked = attnfast.attention(q, k, v, mask=mask, return_lse=True)
    biased = attnfast.attention(q, k, v, bias=bias, return_lse=True)
    np.testing.assert_allclose(masked.output, biased.output, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(masked.lse, biased.lse, rtol=1e-5, atol=1e-5)


@pytest.mark.quick
class TestCriterion:
    """It accepts plain NumPy and rejects what a broken kernel would give."""

    @pytest.fixture(params=DTYPES, ids=DTYPE_IDS)
    def case(self, request, rng):
        q, k, v = qkv(rng, 30, 200, 32, dtype=request.param)
        options = {"window_size": (20, 0), "q_offset": 100}
        flags = {"return_lse": True, "return_weights": True}
        plain = reference.attention(
            q, k, v, compute_dtype=compute_dtype(request.param), **options, **flags
        )
        lse = plain.lse
        return (
            (q, k, v),
            options,
            AttentionResult(*(a.astype(q.dtype) for a in plain))._replace(lse=lse),
        )

    def test_accepts_plain_numpy(self, case):
        arrays, options, plain = case
        check(plain, *arrays, **options)

    @pytest.mark.parametrize("name", ["output", "lse", "weights"])
    def test_rejects_small_errors(self, case, name):
        arrays, options, plain = case
        a = getattr(plain, name)
        factor = 1 + 100 * float(ml_dtypes.finfo(a.dtype).eps)
        with pytest.raises(AssertionError, match=name):
            check(plain._replace(**{name: (a * factor).astype(a.dtype)}), *arrays, **options)

    @pytest.mark.parametrize(
        "changed", [{"window_size": (19, 0)}, {"q_offset": 101}, {"scale": 0.2}]
    )
    def test_rejects_another_mask_or_scale(self, case, changed):
        arrays, options, _ = case
        other = reference.attention(*arrays, **{**options, **changed})
        with pytest.raises(AssertionError, match="output"):
            check(other.astype(arrays[0].dtype), *arrays, **options)

    def test_rejects_one_wrong_element(self, case):
        arrays, options, plain = case
        plain.output[1, 0, 29, 31] *= 1.5
        with pytest.raises(AssertionError, match=r"output\[1, 0, 29, 31\]"):
            check(plain, *arrays, **options)

    def test_rejects_nan_and_a_trace_of_an_excluded_key(self, case):
        arrays, options, plain = case
        with pytest.raises(AssertionError, match="output"):
            check(plain.output * plain.output.dtype.type(np.nan), *arrays, **options)
        plain.weights[0, 0, 0, 0] = 1e-7
        with pytest.raises(AssertionError, match="weights"):
            check(plain, *arrays, **options)

"""Random calls of every kind against the exact result, by the criterion of `support`."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import attnfast
from attnfast import AttentionResult, reference
from draws import Call, calls
from support import (
    DTYPE_IDS,
    DTYPES,
    SCORE_OPTIONS,
    Criterion,
    check,
    compute_dtype,
    qkv,
    same_batch,
    truth_dtype,
)

pytestmark = pytest.mark.usefixtures("isa")

EXAMPLES = settings.default.max_examples


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_any_call(dtype):
    @settings(max_examples=5 * EXAMPLES if dtype == np.float32 else 2 * EXAMPLES)
    @given(call=calls(dtypes=(dtype,)))
    def run(call: Call) -> None:
        check(call.run(), call.query, call.key, call.value, **call.options)

    run()


@given(call=calls())
def test_any_call_of_attention_weights(call):
    options = {n: x for n, x in call.options.items() if n in SCORE_OPTIONS}
    query, _, _ = same_batch(call.query, call.key, call.value)  # lengths have one entry per row
    criterion = Criterion(query, call.key, call.key[..., :1], **options)
    criterion.check_biased(attnfast.attention_weights(query, call.key, stage="biased", **options))
    criterion.check_weights(attnfast.attention_weights(query, call.key, **options))


# Over thousands of elements luck evens out, so that the errors of both can be compared as they are.
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("amplitude", [1, 30, 1000])
@pytest.mark.parametrize(
    ("lq", "lk", "options"),
    [
        (64, 64, {}),
        (200, 1500, {"softcap": 20.0}),
        (500, 500, {"is_causal": True, "alibi_slopes": [0.1, 0.9]}),
        (600, 600, {"window_size": (100, 20)}),
        (1, 8000, {}),
        (4, 3000, {"sink_logits": [0.0, 3.0]}),
    ],
    ids=["short", "softcap", "causal-alibi", "window", "decode", "decode-sink"],
)
def test_error_is_within_twice_that_of_plain_numpy(lq, lk, options, amplitude, dtype, rng):
    q, k, v = qkv(rng, lq, lk, 64, batch=(1 if lq > 4 else 12,), dtype=dtype)
    q = (amplitude * q.astype(np.float32)).astype(dtype)
    flags = {"return_lse": True, "return_weights": True, **options}
    actual = attnfast.attention(q, k, v, **flags)
    exact = reference.attention(q, k, v, compute_dtype=truth_dtype(dtype), **flags)
    plain = reference.attention(q, k, v, compute_dtype=compute_dtype(dtype), **flags)
    for name in ("output", "lse", "weights"):
        y, x, p = (getattr(r, name) for r in (actual, exact, plain))
        error = np.abs(y.astype(x.dtype) - x)
        plain_error = np.abs(p.astype(y.dtype).astype(x.dtype) - x)
        ulps = 4 * float(np.finfo(p.dtype).eps)
        assert rms(error) <= 2 * rms(plain_error) + ulps * rms(x), name
        assert error.max() <= 2 * plain_error.max() + ulps * np.abs(x).max(), name


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("offset", [100.0, -3e4])
def test_values_that_nearly_cancel(dtype, offset, rng):
    q, k, v = qkv(rng, 40, 700, 32, dtype=dtype)
    v = (v.astype(np.float32) + offset).astype(dtype)
    check(attnfast.attention(q, k, v, return_lse=True), q, k, v)


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


def test_a_bias_of_minus_infinity_equals_a_mask(rng):
    q, k, v = qkv(rng, 50, 120)
    mask = rng.random((2, 2, 50, 120)) < 0.3
    mask[0, 0, 7] = False
    bias = np.where(mask, 0, -np.inf).astype(np.float32)
    masked = attnfast.attention(q, k, v, mask=mask, return_lse=True)
    biased = attnfast.attention(q, k, v, bias=bias, return_lse=True)
    np.testing.assert_array_equal(masked.output, biased.output)
    np.testing.assert_array_equal(masked.lse, biased.lse)


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

"""Scores and weights: the stages of attention_weights, return_weights and return_lse."""

import numpy as np
import pytest

import attnfast
from attnfast import reference
from support.arrays import DTYPE_IDS, DTYPES, compute_dtype, qkv, same_bits
from support.criterion import Criterion

pytestmark = pytest.mark.usefixtures("isa")

LENGTHS = pytest.mark.parametrize("lq", [1, 3, 61])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
EPS = {"float32": 0, "float64": 0, "float16": 2**-10, "bfloat16": 2**-7}  # of 16-bit results
STAGES = ("scores", "capped", "biased", "weights")


def options(rng, lq, lk):
    """Every option at once, so that order and sign of each count."""
    bias = rng.standard_normal((1, 2, lq, lk)).astype(np.float32)
    bias[rng.random(bias.shape) < 0.1] = -np.inf
    return {
        "mask": rng.random((2, 1, lq, lk)) < 0.8,
        "bias": bias,
        "is_causal": True,
        "window_size": (40, 30),
        "q_offset": [lk - lq, 9],
        "q_lengths": [lq, lq - 1],
        "kv_lengths": [lk - 5, lk],
        "scale": 0.7,
        "softcap": 2.0,
        "alibi_slopes": [0.05, -0.2],
    }


@pytest.mark.quick
@EACH_DTYPE
@LENGTHS
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("lk", [5, 130])
def test_stages(stage, lk, lq, dtype, rng):
    q, k, _ = qkv(rng, lq, lk, 20, heads=2, kv_heads=1, dtype=dtype)
    case = options(rng, lq, lk)
    actual = attnfast.attention_weights(q, k, stage=stage, **case)
    exact = reference.attention_weights(q, k, stage=stage, **case)
    assert actual.shape == exact.shape == (2, 2, lq, lk) and actual.dtype == dtype
    tolerance = max(float(np.finfo(compute_dtype(dtype)).eps) * 60, EPS[actual.dtype.name])
    np.testing.assert_array_equal(np.isneginf(actual), np.isneginf(exact))
    np.testing.assert_allclose(actual.astype(np.float64), exact, rtol=tolerance, atol=tolerance)


@LENGTHS
def test_scores_and_capped_hold_every_pair(lq, rng):
    q, k, _ = qkv(rng, lq, 70)
    hidden = {"mask": np.zeros((lq, 70), bool), "kv_lengths": [0, 0], "q_lengths": [0, 0]}
    for stage, more in [("scores", {}), ("scores", {"softcap": 0.5}), ("capped", {"softcap": 0.5})]:
        plain = attnfast.attention_weights(q, k, stage=stage, **more)
        assert same_bits(attnfast.attention_weights(q, k, stage=stage, **more, **hidden), plain)
        assert (plain != 0).all()
    scores = attnfast.attention_weights(q, k, stage="scores")
    assert same_bits(attnfast.attention_weights(q, k, stage="capped"), scores)
    assert same_bits(attnfast.attention_weights(q, k, stage="scores", softcap=0.5), scores)
    capped = attnfast.attention_weights(q, k, stage="capped", softcap=0.5)
    np.testing.assert_allclose(capped, 0.5 * np.tanh(scores / 0.5), rtol=1e-5)


@LENGTHS
def test_hidden_pairs_are_minus_infinity_then_zero(lq, rng):
    q, k, _ = qkv(rng, lq, 70)
    k[..., 13, :] = np.nan
    mask = rng.random((lq, 70)) < 0.5
    mask[:, 13] = False
    biased = attnfast.attention_weights(q, k, stage="biased", mask=mask)
    np.testing.assert_array_equal(np.isneginf(biased), np.broadcast_to(~mask, biased.shape))
    weights = attnfast.attention_weights(q, k, mask=mask)
    np.testing.assert_array_equal(weights == 0, np.broadcast_to(~mask, weights.shape))
    scores = attnfast.attention_weights(q, k, stage="scores", mask=mask)
    assert np.isnan(scores[..., 13]).all() and np.isfinite(np.delete(scores, 13, axis=-1)).all()


@EACH_DTYPE
@LENGTHS
@pytest.mark.parametrize("amplitude", [1, 50])
def test_rows_of_weights_sum_to_one(amplitude, lq, dtype, rng):
    q, k, v = qkv(rng, lq, 700, 48, dtype=dtype)
    q = (amplitude * q.astype(np.float32)).astype(dtype)
    eps = max(float(np.finfo(compute_dtype(dtype)).eps) * 30, 2 * EPS[q.dtype.name])
    returned = attnfast.attention(q, k, v, return_weights=True).weights
    for weights in (returned, attnfast.attention_weights(q, k)):
        np.testing.assert_allclose(weights.astype(np.float64).sum(axis=-1), 1, rtol=eps)
    sinks = np.array([0.5, 3.0])
    result = attnfast.attention(q, k, v, sink_logits=sinks, return_lse=True, return_weights=True)
    share = np.exp(sinks[:, None] - result.lse.astype(np.float64))
    total = result.weights.astype(np.float64).sum(axis=-1) + share
    np.testing.assert_allclose(total, 1, rtol=max(eps, 1e-4 if q.dtype != np.float64 else 0))


@EACH_DTYPE
@LENGTHS
def test_returned_weights_equal_attention_weights(lq, dtype, rng):
    q, k, v = qkv(rng, lq, 130, 20, dtype=dtype)
    case = {**options(rng, lq, 130), "sink_logits": [0.3, -1.0]}
    returned = attnfast.attention(q, k, v, return_weights=True, **case).weights
    weights = attnfast.attention_weights(q, k, **case)
    criterion = Criterion(q, k, v, **case)
    criterion.check_weights(returned)
    criterion.check_weights(weights)


@EACH_DTYPE
@LENGTHS
def test_weights_times_value_is_the_output(lq, dtype, rng):
    q, k, v = qkv(rng, lq, 130, 20, dtype=dtype)
    output, _, weights = attnfast.attention(q, k, v, return_weights=True, **options(rng, lq, 130))
    product = weights.astype(np.float64) @ v.astype(np.float64)
    tolerance = max(2e-6, 4 * EPS[q.dtype.name])
    np.testing.assert_allclose(output.astype(np.float64), product, rtol=0, atol=tolerance)


@EACH_DTYPE
@LENGTHS
def test_lse_is_the_log_of_the_sum_of_the_biased_scores(lq, dtype, rng):
    q, k, v = qkv(rng, lq, 130, 20, dtype=dtype)
    case = options(rng, lq, 130)
    lse = attnfast.attention(q, k, v, return_lse=True, **case).lse
    assert lse.shape == (2, 2, lq) and lse.dtype == compute_dtype(dtype)
    biased = reference.attention_weights(q, k, stage="biased", **case)
    with np.errstate(divide="ignore"):
        expected = np.log(np.exp(biased).sum(axis=-1))
    np.testing.assert_allclose(lse, expected, rtol=0, atol=5e-6 if dtype != np.float64 else 1e-13)


@LENGTHS
def test_weights_over_more_keys_than_one_task_takes(lq, rng):
    q, k, v = qkv(rng, lq, 20000, 8, heads=1, batch=())
    mask = np.arange(20000) % 1000 < 600
    result = attnfast.attention(q, k, v, mask=mask, return_lse=True, return_weights=True)
    criterion = Criterion(q, k, v, mask=mask)
    criterion.check(result)
    criterion.check_weights(attnfast.attention_weights(q, k, mask=mask))


@LENGTHS
def test_hidden_pairs_weigh_nothing_beside_a_visible_nan(lq, rng):
    q, k, v = qkv(rng, lq, 70)
    k[..., 13, :] = np.nan
    mask = rng.random((lq, 70)) < 0.5
    mask[:, 13] = True
    for weights in (
        attnfast.attention(q, k, v, mask=mask, return_weights=True).weights,
        attnfast.attention_weights(q, k, mask=mask),
    ):
        assert np.isnan(weights[..., mask]).all()
        assert (weights[..., ~mask] == 0).all()

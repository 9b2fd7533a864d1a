"""csrc/kernel/score.h and option arrays: extreme but legal values, repeated axes, integer types."""

import tracemalloc

import numpy as np
import pytest

import attnfast
from attnfast import reference

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]


def qkv(lq, lk=40, heads=2, dtype=np.float32):
    rng = np.random.default_rng(lq)
    return [rng.standard_normal((heads, n, 16)).astype(dtype) for n in (lq, lk, lk)]


@pytest.mark.parametrize("lq", [1, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 1e-300},
        {"softcap": 1e-40},
        {"softcap": 1e39},
        {"softcap": 1e300},
        {"sink_logits": [3e38, -3e38]},
        {"sink_logits": [1e39, -1e39]},
        {"sink_logits": [-np.inf, 0.5]},
        {"alibi_slopes": [1e39, 1e-39], "q_offset": 0},
        {"bias": np.array([[[3.4e38]], [[-3.4e38]]], np.float32)},
        {"scale": 0.0},
        {"scale": -3.0},
    ],
    ids=str,
)
def test_extremes_stay_finite(lq, dtype, options):
    q, k, v = qkv(lq, dtype=dtype)
    actual = attnfast.attention(q, k, v, **options)
    exact = reference.attention(q, k, v, **options)
    assert np.allclose(actual, exact, rtol=0, atol=2e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("lq", [1, 60])
@pytest.mark.parametrize("stage", ["weights", "biased"])
def test_a_hidden_key_keeps_its_place_in_a_row_of_nan(lq, stage):
    q, k, _ = qkv(lq)
    k[:, 3] = np.nan
    mask = np.ones((lq, 40), bool)
    mask[:, [5, 39]] = False
    weights = attnfast.attention_weights(q, k, mask=mask, stage=stage)
    assert (weights[:, :, [5, 39]] == (0 if stage == "weights" else -np.inf)).all()
    assert np.isnan(weights[:, :, 3]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_repeated_bias_is_not_written_out(dtype):
    q, k, v = qkv(600, 600)
    row = np.random.default_rng(0).standard_normal(600).astype(dtype)
    expected = attnfast.attention(q, k, v, bias=row)
    tracemalloc.start()
    output = attnfast.attention(q, k, v, bias=np.broadcast_to(row, (2, 600, 600)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (output == expected).all()
    assert peak < 600 * 600


@pytest.mark.parametrize(
    "dtype", [f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)]
)
def test_lengths_and_offsets_of_every_integer_type(dtype):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 1, 50, 8))
    lengths, offsets = np.array([50, 7], dtype), np.array([3, 11], dtype)
    options = {"kv_lengths": lengths, "q_lengths": lengths, "q_offset": offsets, "is_causal": True}
    plain = {name: x if x is True else x.tolist() for name, x in options.items()}
    assert (attnfast.attention(q, k, v, **options) == attnfast.attention(q, k, v, **plain)).all()


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_lengths_of_several_batch_axes(shape):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 3, 1, 20, 8))
    lengths = np.array([1, 5, 20, 0, 7, 9])
    output = attnfast.attention(q, k, v, kv_lengths=lengths.reshape(shape))
    flat = [x.reshape(6, 1, 20, 8) for x in (q, k, v)]
    assert (output.reshape(6, 1, 20, 8) == attnfast.attention(*flat, kv_lengths=lengths)).all()

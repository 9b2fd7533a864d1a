"""merge_attention: attention over parts of the keys, joined."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnfast
from attnfast import AttentionResult, reference
from support.arrays import DTYPE_IDS, DTYPES, compute_dtype, qkv, randn, same_bits
from support.criterion import check

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]


def parts_of(q, k, v, cuts, **options):
    """Attention over each stretch of keys between the cuts."""
    return [
        attnfast.attention(
            q,
            k[..., a:b, :],
            v[..., a:b, :],
            return_lse=True,
            **{n: f(a, b) for n, f in options.items()},
        )
        for a, b in zip([0, *cuts], [*cuts, k.shape[-2]], strict=True)
    ]


def merged(parts):
    return attnfast.merge_attention([p.output for p in parts], [p.lse for p in parts])


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("lq", [1, 40])
@pytest.mark.parametrize("cuts", [[50], [0], [1, 2, 3], [30, 30, 99], []])
def test_the_union_of_parts_is_the_whole(cuts, lq, dtype, rng):
    q, k, v = qkv(rng, lq, 100, 16, 12, dtype=dtype)
    result = merged(parts_of(q, k, v, cuts))
    assert isinstance(result, AttentionResult) and result.weights is None
    assert result.output.dtype == dtype and result.lse.dtype == compute_dtype(dtype)
    assert result.output.shape == (2, 2, lq, 12) and result.lse.shape == (2, 2, lq)
    whole = attnfast.attention(q, k, v, return_lse=True)
    tolerance = {"float64": 1e-13, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}[
        np.dtype(dtype).name
    ]
    for a, b in [(result.output, whole.output), (result.lse, whole.lse)]:
        np.testing.assert_allclose(
            a.astype(np.float64), b.astype(np.float64), rtol=tolerance, atol=tolerance
        )


@given(
    seed=st.integers(0, 2**32 - 1),
    lq=st.sampled_from([1, 2, 17, 60]),
    cuts=st.lists(st.integers(0, 200), max_size=5).map(sorted),
)
def test_parts_with_rows_that_see_nothing(seed, lq, cuts):
    rng = np.random.default_rng(seed)
    q, k, v = qkv(rng, lq, 200, 8, dtype=np.float64)
    mask = rng.random((2, 1, lq, 200)) < rng.choice([0.0, 0.02, 0.5])
    result = merged(parts_of(q, k, v, cuts, mask=lambda a, b: mask[..., a:b]))
    check(AttentionResult(result.output, result.lse, None), q, k, v, mask=mask)


def test_stacked_arrays_and_sequences_are_the_same(rng):
    outputs, lses = randn(rng, (3, 2, 5, 4)), randn(rng, (3, 2, 5))
    first = attnfast.merge_attention(outputs, lses)
    for o, s in [(list(outputs), list(lses)), (tuple(outputs), lses), (outputs, list(lses))]:
        again = attnfast.merge_attention(o, s)
        assert same_bits(first.output, again.output) and same_bits(first.lse, again.lse)
    lists = attnfast.merge_attention([[[1.0]], [[3.0]]], [[0.0], [0.0]])
    assert lists.output.tolist() == [[2.0]] and lists.output.dtype == np.float64


def test_empty_parts_are_neutral_whatever_they_hold(rng):
    outputs, lses = randn(rng, (3, 2, 5, 4)), randn(rng, (3, 2, 5))
    two = attnfast.merge_attention(outputs[[0, 2]], lses[[0, 2]])
    outputs[1], lses[1] = np.nan, -np.inf
    three = attnfast.merge_attention(outputs, lses)
    np.testing.assert_allclose(three.output, two.output, rtol=1e-6)
    np.testing.assert_allclose(three.lse, two.lse, rtol=1e-6)
    nothing = attnfast.merge_attention(outputs, np.full_like(lses, -np.inf))
    assert not nothing.output.any() and np.isneginf(nothing.lse).all()


def test_visible_nan_stays(rng):
    outputs, lses = randn(rng, (2, 3, 4)), randn(rng, (2, 3))
    outputs[0, 1, 2] = np.nan
    assert np.isnan(attnfast.merge_attention(outputs, lses).output).sum() == 1
    lses[1, 0] = np.nan
    result = attnfast.merge_attention(outputs, lses)
    assert np.isnan(result.output[0]).all() and np.isnan(result.lse[0])


@pytest.mark.parametrize("shift", [1e4, -1e4, 3e38, -3e38])
def test_large_lse_does_not_overflow(shift, rng):
    outputs = randn(rng, (4, 6, 5))
    lses = np.full((4, 6), shift, np.float32)
    result = attnfast.merge_attention(outputs, lses)
    np.testing.assert_allclose(result.output, outputs.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.lse, shift + np.log(4), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_against_the_reference(dtype, rng):
    outputs = randn(rng, (5, 2, 7, 4), dtype)
    lses = (10 * rng.standard_normal((5, 2, 7))).astype(compute_dtype(dtype))
    lses[1, :, 3], lses[:, 1, 2] = -np.inf, -np.inf
    result = attnfast.merge_attention(outputs, lses)
    exact = reference.merge_attention(outputs, lses)
    eps = max(1e-5 if dtype != np.float64 else 1e-13, {2: 1e-2}.get(np.dtype(dtype).itemsize, 0))
    np.testing.assert_allclose(result.output.astype(np.float64), exact.output, rtol=eps, atol=eps)
    np.testing.assert_allclose(result.lse, exact.lse, rtol=1e-5)


def test_empty_axes_and_one_part(rng):
    output, lse = randn(rng, (2, 0, 4)), randn(rng, (2, 0))
    result = attnfast.merge_attention([output, output], [lse, lse])
    assert result.output.shape == (2, 0, 4) and result.lse.shape == (2, 0)
    output, lse = randn(rng, (3, 4)), randn(rng, (3,))
    one = attnfast.merge_attention([output], [lse])
    np.testing.assert_array_equal(one.output, output)
    np.testing.assert_array_equal(one.lse, lse)
    assert not np.shares_memory(one.output, output)


def test_gradients_against_the_reference(rng):
    outputs, lses = rng.standard_normal((3, 2, 40, 5)), 9 * rng.standard_normal((3, 2, 40))
    lses[0, 0, 0] = lses[:, 1, 1] = -np.inf
    outputs[0, 0, 0] = outputs[:, 1, 1] = np.nan
    loss = {
        "grad_output": rng.standard_normal((2, 40, 5)),
        "grad_lse": rng.standard_normal((2, 40)),
    }
    clean = np.nan_to_num(outputs)
    exact = reference.merge_attention_backward(outputs=clean, lses=lses, **loss)
    grads = attnfast.merge_attention_backward(outputs=list(outputs), lses=list(lses), **loss)
    np.testing.assert_allclose(grads.outputs, exact[0], atol=1e-14)
    np.testing.assert_allclose(grads.lses, exact[1], atol=1e-13)
    assert not grads.outputs[0, 0, 0].any() and not grads.lses[:, 1, 1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_gradients_of_parts_are_those_of_the_whole(dtype, rng):
    q, k, v = qkv(rng, 30, 100, 16, 12, dtype=dtype)
    g = rng.standard_normal((*q.shape[:-1], 12)).astype(dtype)
    by_lse = rng.standard_normal(q.shape[:-1])
    parts = parts_of(q, k, v, [30, 31])
    by_part = attnfast.merge_attention_backward(
        g, [p.output for p in parts], [p.lse for p in parts], grad_lse=by_lse
    )
    assert by_part.outputs.dtype == dtype and by_part.lses.dtype == compute_dtype(dtype)
    query = np.zeros(q.shape)
    cuts = [slice(0, 30), slice(30, 31), slice(31, 100)]
    whole = reference.attention_backward(g, q, k, v, None, None, grad_lse=by_lse)
    tolerance = 40 * float(ml_dtypes.finfo(dtype).eps)
    for cut, part, by_output, by_part_lse in zip(cuts, parts, *by_part, strict=True):
        own = q, k[..., cut, :], v[..., cut, :], *part[:2]
        grads = attnfast.attention_backward(by_output, *own, grad_lse=by_part_lse)
        query += grads.query.astype(np.float64)
        for name in ("key", "value"):
            got, expected = getattr(grads, name), getattr(whole, name)[..., cut, :]
            np.testing.assert_allclose(got.astype(float), expected, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(query, whole.query, atol=tolerance)

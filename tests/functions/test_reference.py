"""The reference itself: values worked out by hand, and loops over single numbers."""

import ast
import importlib
import inspect
import math
import pkgutil

import numpy as np
import pytest

from attnfast import reference
from support.arrays import BFLOAT16, qkv

pytestmark = pytest.mark.quick


E = math.e


def test_two_keys_by_hand():
    # Scores 0 and ln 3: weights 1/4 and 3/4.
    out, lse, weights = reference.attention(
        [[1.0]], [[0.0], [math.log(3)]], [[4.0], [8.0]], return_lse=True, return_weights=True
    )
    np.testing.assert_allclose(weights, [[0.25, 0.75]], rtol=1e-15)
    np.testing.assert_allclose(out, [[7.0]], rtol=1e-15)
    np.testing.assert_allclose(lse, [math.log(4)], rtol=1e-15)


def test_default_scale_is_one_over_root_d():
    scores = reference.attention_weights([[1.0] * 4], [[1.0] * 4], stage="scores")
    assert scores == 2.0
    assert reference.attention_weights([[1.0]], [[3.0]], stage="scores", scale=-2) == -6.0


def test_order_is_scale_softcap_bias():
    options = {"scale": 2.0, "softcap": 3.0, "bias": [[10.0]]}
    stages = [
        reference.attention_weights([[1.0]], [[5.0]], stage=s, **options)
        for s in ("scores", "capped", "biased", "weights")
    ]
    capped = 3 * math.tanh(10 / 3)
    np.testing.assert_allclose(np.ravel(stages), [10.0, capped, capped + 10, 1.0], rtol=1e-15)


def visible(lq, lk, **options):
    """Which pairs have weight when all scores are equal."""
    weights = reference.attention_weights(np.zeros((lq, 1)), np.zeros((lk, 1)), **options)
    return (weights > 0).astype(int).tolist()


def test_causal():
    assert visible(3, 3, is_causal=True) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert visible(2, 3, is_causal=True, q_offset=0) == [[1, 0, 0], [1, 1, 0]]
    assert visible(2, 3, is_causal=True, q_offset="end") == [[1, 1, 0], [1, 1, 1]]
    assert visible(3, 2, is_causal=True, q_offset="end") == [[0, 0], [1, 0], [1, 1]]
    assert visible(2, 2, is_causal=True, q_offset=-1) == [[0, 0], [1, 0]]


def test_window_bounds_are_inclusive_and_beyond_the_query():
    assert visible(4, 4, window_size=(1, 0)) == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]
    assert visible(1, 6, window_size=(1, 2), q_offset=2) == [[0, 1, 1, 1, 1, 0]]
    assert visible(1, 6, window_size=1, q_offset=4) == [[0, 0, 0, 1, 1, 1]]
    assert visible(1, 4, window_size=0, q_offset=2) == [[0, 0, 1, 0]]
    for unbounded in (-1, None):
        assert visible(1, 4, window_size=(unbounded, 0), q_offset=1) == [[1, 1, 0, 0]]
        assert visible(1, 4, window_size=(0, unbounded), q_offset=1) == [[0, 1, 1, 1]]
        assert visible(2, 2, window_size=unbounded) == [[1, 1], [1, 1]]
    assert visible(1, 6, window_size=(1, 2), q_offset=2, is_causal=True) == [[0, 1, 1, 0, 0, 0]]
    assert visible(1, 3, window_size=(0, 0), q_offset=7) == [[0, 0, 0]]


def test_lengths():
    assert visible(3, 3, q_lengths=2, kv_lengths=[1]) == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert visible(3, 4, q_lengths=2, kv_lengths=3, q_offset="end", is_causal=True) == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]


def test_starts():
    assert visible(2, 3, kv_starts=[1]) == [[0, 1, 1], [0, 1, 1]]
    assert visible(3, 3, kv_starts=2, is_causal=True) == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert visible(1, 4, kv_starts=1, kv_lengths=3) == [[0, 1, 1, 0]]
    assert visible(1, 4, kv_starts=3, kv_lengths=3) == [[0, 0, 0, 0]]
    # They move neither positions nor what "end" means.
    assert visible(1, 4, kv_starts=1, window_size=(2, 0), q_offset="end") == [[0, 1, 1, 1]]


def test_offset_from_the_end_is_per_batch_row():
    weights = reference.attention_weights(
        np.zeros((2, 1, 2, 1)),
        np.zeros((2, 1, 4, 1)),
        is_causal=True,
        q_offset="end",
        q_lengths=[2, 1],
        kv_lengths=[4, 2],
    )
    assert (weights[:, 0] > 0).astype(int).tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[1, 1, 0, 0], [0, 0, 0, 0]],
    ]


def test_alibi_falls_with_distance_on_both_sides():
    biased = reference.attention_weights(
        np.zeros((2, 1, 1)), np.zeros((1, 4, 1)), stage="biased", alibi_slopes=[2, -0.5], q_offset=1
    )
    np.testing.assert_array_equal(biased[:, 0], [[-2, 0, -2, -4], [0.5, 0, 0.5, 1]])


def test_sink_is_one_more_logit_without_a_value():
    out, lse, weights = reference.attention(
        [[0.0]], [[0.0]], [[6.0]], sink_logits=[math.log(2)], return_lse=True, return_weights=True
    )
    np.testing.assert_allclose([out[0, 0], lse[0], weights[0, 0]], [2.0, math.log(3), 1 / 3])


def test_rows_that_see_nothing():
    flags = {"return_lse": True, "return_weights": True}
    q, k, v = np.ones((3, 2)), np.ones((3, 2)), np.ones((3, 2))
    out, lse, weights = reference.attention(q, k, v, mask=[[True], [False], [True]], **flags)
    assert not out[1].any() and not weights[1].any() and lse[1] == -np.inf
    out, lse, weights = reference.attention(
        q, k, v, mask=[[True], [False], [True]], q_lengths=2, sink_logits=[-4.0], **flags
    )
    assert not out[1:].any() and not weights[1:].any()
    assert lse[1] == -4.0, "the sink is the whole denominator"
    assert lse[2] == -np.inf, "padding, sink or not"


def test_grouped_heads_are_contiguous():
    k = np.zeros((2, 1, 1))
    v = np.array([[[1.0]], [[2.0]]])
    assert reference.attention(np.zeros((6, 1, 1)), k, v).ravel().tolist() == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("stored", [np.nan, np.inf, -np.inf])
def test_excluded_keys_do_not_count_and_visible_ones_do(stored):
    q, k, v = np.ones((2, 1)), np.ones((3, 1)), np.array([[1.0], [2.0], [4.0]])
    k[2] = v[2] = stored
    mask = [[True, True, False], [True, True, True]]
    out = reference.attention(q, k, v, mask=mask)
    assert out[0] == 1.5
    k[2] = 1
    out = reference.attention(q, k, v, mask=mask)
    assert out[0] == 1.5
    np.testing.assert_array_equal(out[1], stored)
    bias = [[0, 0, -np.inf], [0, 0, 0]]
    k[2] = np.nan
    out = reference.attention(q, k, v, bias=bias)
    assert out[0] == 1.5 and np.isnan(out[1])


def test_an_infinite_score_gives_nan():
    out = reference.attention([[1.0]], [[0.0], [np.inf]], [[1.0], [1.0]])
    assert np.isnan(out).all()
    assert reference.attention([[1.0]], [[0.0], [-np.inf]], [[1.0], [5.0]]) == 1.0
    assert reference.attention([[1.0]], [[-np.inf]], [[5.0]]) == 0.0


@pytest.mark.parametrize(
    "option", [{"is_causal": True}, {"window_size": (3, -1)}, {"alibi_slopes": [1.0]}]
)
def test_position_must_be_given_where_it_is_not_evident(option):
    q, k, v = np.ones((2, 1)), np.ones((3, 1)), np.ones((3, 1))
    with pytest.raises(ValueError, match=r'q_offset.*q_offset=0.*"end"'):
        reference.attention(q, k, v, **option)
    with pytest.raises(ValueError, match="q_offset"):
        reference.attention_weights(q, k, **option)
    reference.attention(k, k, v, **option)
    reference.attention(q, k, v, q_offset=0, **option)


def test_merge_of_two_halves_by_hand():
    merged = reference.merge_attention(
        [[[1.0]], [[5.0]], [[9.0]]], [[0.0], [math.log(3)], [-math.inf]]
    )
    np.testing.assert_allclose(merged.output, [[4.0]])
    np.testing.assert_allclose(merged.lse, [math.log(4)])
    assert merged.weights is None
    empty = reference.merge_attention(np.full((2, 1, 1), np.nan), np.full((2, 1), -np.inf))
    assert empty.output == 0 and empty.lse == -np.inf


def by_loops(q, k, v, *, mask, bias, causal, window, offset, q_len, kv_len, cap, slopes, sinks):
    """The same in Python floats, one pair at a time; all arrays of rank 4."""
    batch, heads, lq, d = q.shape
    kv_heads, _, dv = v.shape[1:]
    out, lse = np.zeros((batch, heads, lq, dv)), np.full((batch, heads, lq), -np.inf)
    for b in range(batch):
        for h in range(heads):
            g = h * kv_heads // heads
            for i in range(int(q_len[b])):
                scores = {}
                for j in range(int(kv_len[b])):
                    p = i + int(offset[b])
                    inside = p - window[0] <= j <= p + window[1] and (j <= p or not causal)
                    if not inside or not mask[b, h, i, j] or bias[b, h, i, j] == -math.inf:
                        continue
                    s = sum(float(q[b, h, i, c]) * float(k[b, g, j, c]) for c in range(d))
                    s = cap * math.tanh(s / math.sqrt(d) / cap)
                    scores[j] = s + float(bias[b, h, i, j]) - float(slopes[b, h]) * abs(p - j)
                total = math.exp(sinks[h]) + sum(math.exp(s) for s in scores.values())
                lse[b, h, i] = math.log(total)
                for c in range(dv):
                    numerator = sum(math.exp(s) * float(v[b, g, j, c]) for j, s in scores.items())
                    out[b, h, i, c] = numerator / total
    return out, lse


@pytest.mark.parametrize("dtype", [np.float64, np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_against_loops(seed, causal, dtype):
    rng = np.random.default_rng(seed)
    q, k, v = qkv(rng, 6, 9, 3, 2, heads=4, kv_heads=2, batch=(3,), dtype=dtype)
    full = (3, 4, 6, 9)
    bias = rng.standard_normal(full)
    bias[rng.random(full) < 0.2] = -np.inf
    case = {
        "mask": rng.random(full) < 0.7,
        "bias": bias,
        "q_lengths": rng.integers(0, 7, 3),
        "kv_lengths": rng.integers(0, 10, 3),
        "q_offset": rng.integers(-4, 8, 3),
        "alibi_slopes": rng.random((3, 4)),
        "sink_logits": rng.standard_normal(4),
    }
    out, lse, weights = reference.attention(
        *(q, k, v),
        **case,
        is_causal=causal,
        window_size=(3, 2),
        softcap=2.5,
        return_lse=True,
        return_weights=True,
    )
    expected, expected_lse = by_loops(
        *(q, k, v),
        mask=case["mask"],
        bias=bias,
        causal=causal,
        window=(3, 2),
        offset=case["q_offset"],
        q_len=case["q_lengths"],
        kv_len=case["kv_lengths"],
        cap=2.5,
        slopes=case["alibi_slopes"],
        sinks=case["sink_logits"],
    )
    assert out.dtype == lse.dtype == weights.dtype == np.float64
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12)
    repeated = np.repeat(v.astype(np.float64), 2, axis=1)
    np.testing.assert_allclose(weights @ repeated, expected, rtol=1e-12, atol=1e-14)


def test_batch_axes_broadcast_and_ranks_align(rng):
    q, k, v = qkv(rng, 4, 5, batch=(2, 3))
    k, v = k[:, :1], v[0]
    out, lse, weights = reference.attention(q, k, v, return_lse=True, return_weights=True)
    assert (out.shape, lse.shape, weights.shape) == (
        (2, 3, 2, 4, 16),
        (2, 3, 2, 4),
        (2, 3, 2, 4, 5),
    )
    np.testing.assert_array_equal(out[1, 2], reference.attention(q[1, 2], k[1, 0], v[2]))
    assert reference.attention(q[0, 0, 0], k[0, 0, 0], v[0, 0]).shape == (4, 16)


@pytest.mark.parametrize("lq", [0, 2])
@pytest.mark.parametrize("lk", [0, 3])
@pytest.mark.parametrize("d", [0, 4])
@pytest.mark.parametrize("dv", [0, 5])
def test_empty_axes(lq, lk, d, dv):
    q, k, v = np.ones((2, 1, lq, d)), np.ones((2, 1, lk, d)), np.ones((2, 1, lk, dv))
    out, lse, _ = reference.attention(q, k, v, return_lse=True)
    assert out.shape == (2, 1, lq, dv)
    assert (out == (lk > 0)).all()
    assert np.isneginf(lse).all() if lk == 0 else np.isfinite(lse).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_compute_dtype_is_the_dtype_of_everything(dtype, rng):
    q, k, v = qkv(rng, 4, 4)
    options = {
        "bias": np.zeros((4, 4), np.float64),
        "alibi_slopes": np.ones(2, np.float64),
        "softcap": np.float64(3.0),
        "scale": np.float64(0.5),
        "sink_logits": np.zeros(2, np.float64),
    }
    result = reference.attention(
        q, k, v, compute_dtype=dtype, return_lse=True, return_weights=True, **options
    )
    assert [a.dtype for a in result] == [dtype] * 3
    del options["sink_logits"]
    for stage in reference.STAGES:
        scores = reference.attention_weights(q, k, stage=stage, compute_dtype=dtype, **options)
        assert scores.dtype == dtype
    assert reference.merge_attention([q], [q[..., 0]], compute_dtype=dtype).output.dtype == dtype


FILES = [m.name for m in pkgutil.iter_modules(reference.__path__)]


@pytest.mark.parametrize("name", FILES)
def test_a_file_stands_alone(name):
    """It is read in one sitting and needs NumPy alone."""
    source = inspect.getsource(importlib.import_module(f"attnfast.reference.{name}"))
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    docstrings = [
        node.body[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node)
    ]
    assert source.count("\n") - sum(d.end_lineno - d.lineno + 1 for d in docstrings) <= 150
    imports = {
        name
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else ["." * node.level + (node.module or "")]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    plain = {"math", "typing", "collections.abc", "numpy", "numpy.typing"}
    assert imports <= {*plain, "..result", *(f".{file}" for file in FILES)}

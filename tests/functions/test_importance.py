"""key_importance: the weight that each key receives from all queries together."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attnfast
from attnfast import reference
from support.arrays import (
    DTYPE_IDS,
    DTYPES,
    POISON,
    compute_dtype,
    qkv,
    same_batch,
    same_bits,
)
from support.criterion import SCORE_OPTIONS
from support.draws import calls
from support.key_criteria import Importance

EXAMPLES = settings.default.max_examples
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
OPTIONS = (*SCORE_OPTIONS, "sink_logits")


@pytest.mark.quick
@EACH_DTYPE
def test_any_call(dtype, each_isa):
    @settings(max_examples=EXAMPLES if dtype == np.float32 else EXAMPLES // 3)
    @given(call=calls(dtypes=(dtype,), most_pairs=40_000), per_kv_head=st.booleans())
    def run(call, per_kv_head) -> None:
        options = {n: x for n, x in call.options.items() if n in OPTIONS}
        query, _, _ = same_batch(call.query, call.key, call.value)
        expected = Importance(query, call.key, **options)
        options["per_kv_head"] = per_kv_head
        each_isa(
            lambda: expected.check(attnfast.key_importance(query, call.key, **options), per_kv_head)
        )

    run()


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
class TestLiteral:
    def test_equal_scores(self):
        zeros = np.zeros((3, 2), np.float32)
        total = attnfast.key_importance(zeros, zeros, is_causal=True)
        assert total.shape == (3,) and total.dtype == np.float32
        np.testing.assert_allclose(total, [1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3], rtol=1e-6)

    def test_two_queries_by_hand(self):
        # Weights (1/4, 3/4) and (1/2, 1/2).
        total = attnfast.key_importance([[1.0], [0.0]], [[0.0], [np.log(3)]])
        np.testing.assert_allclose(total, [0.75, 1.25], rtol=1e-14)

    def test_a_sink_takes_its_share(self):
        zeros = np.zeros((4, 1))
        total = attnfast.key_importance(zeros, zeros, sink_logits=[np.log(4)])
        np.testing.assert_allclose(total, 4 / 8, rtol=1e-14)

    def test_hidden_keys_have_none_and_padding_gives_none(self):
        zeros = np.zeros((2, 1, 5, 1), np.float32)
        lengths = {"q_lengths": [5, 2], "kv_lengths": [4, 5]}
        total = attnfast.key_importance(zeros, zeros, **lengths)
        np.testing.assert_allclose(total[0, 0], [1.25] * 4 + [0], rtol=1e-6)
        np.testing.assert_allclose(total[1, 0], [0.4] * 5, rtol=1e-6)


@EACH_DTYPE
@pytest.mark.parametrize("lq", [1, 3, 49, 200])
@pytest.mark.parametrize("lk", [1, 65, 500])
def test_it_adds_up_the_weights(lk, lq, dtype, each_isa, rng):
    q, k, _ = qkv(rng, lq, lk, 24, heads=6, kv_heads=2, dtype=dtype)
    expected = [reference.key_importance(q, k, per_kv_head=grouped) for grouped in (False, True)]
    eps = np.finfo(compute_dtype(dtype)).eps

    def run():
        total = attnfast.key_importance(q, k)
        assert total.shape == (2, 6, lk) and total.dtype == compute_dtype(dtype)
        np.testing.assert_allclose(total.sum(axis=-1, dtype=np.float64), lq, rtol=60 * eps)
        np.testing.assert_allclose(total, expected[0], rtol=400 * eps)
        grouped = attnfast.key_importance(q, k, per_kv_head=True)
        assert grouped.shape == (2, 2, lk)
        np.testing.assert_allclose(grouped, expected[1], rtol=400 * eps)

    each_isa(run)


@EACH_DTYPE
@pytest.mark.parametrize("amplitude", [30, 100, 1000])
@pytest.mark.parametrize("lq", [1, 70])
def test_large_logits(lq, amplitude, dtype, each_isa, rng):
    q, k, _ = qkv(rng, lq, 90, 64, batch=(), dtype=dtype)
    q = (amplitude * q.astype(np.float32)).astype(dtype)
    expected = Importance(q, k)
    each_isa(lambda: expected.check(attnfast.key_importance(q, k)))
    # One key takes all, with a score around the largest exponent of float32.
    zeros, shifts = np.zeros((lq, 2), dtype), np.arange(80, 100, 0.37)

    def run():
        for shift in (*shifts, *-shifts, 700.0, -700.0):
            bias = np.where(np.arange(20) == 7, shift, 0.0).astype(np.float32)
            total = attnfast.key_importance(zeros, np.zeros((20, 2), dtype), bias=bias)
            assert np.isclose(total.sum(), lq) and np.isclose(total[7], lq if shift > 0 else 0)

    each_isa(run)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("per_kv_head", [False, True])
@pytest.mark.parametrize("poison", POISON)
def test_padded_queries_change_no_bit(poison, per_kv_head, rng):
    q, k, _ = qkv(rng, 60, 90, heads=4, kv_heads=2)
    options = {"q_lengths": [60, 21], "per_kv_head": per_kv_head}
    before = attnfast.key_importance(q, k, **options)
    q[1, :, 21:] = poison
    assert same_bits(before, attnfast.key_importance(q, k, **options))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 4, 60])
@pytest.mark.parametrize("lk", [7, 64, 500])
def test_visible_nan_reaches_the_keys_of_those_who_see_it(lk, lq, rng):
    for place in {0, lk // 2, lk - 1}:
        q, k, _ = qkv(rng, lq, lk, 20)
        k[0, 1, place, 7] = np.nan
        total = attnfast.key_importance(q, k)
        assert np.isnan(total[0, 1]).all()
        assert np.isfinite(total[0, 0]).all() and np.isfinite(total[1]).all()
    q, k, _ = qkv(rng, lq, lk, 20)
    q[0, 0, -1] = np.nan
    mask = np.ones((lq, lk), bool)
    mask[-1, : lk // 2] = False
    total = attnfast.key_importance(q, k, mask=mask)
    assert np.isnan(total[0, 0, lk // 2 :]).all()
    assert np.isfinite(total[0, 0, : lk // 2]).all(), "it does not see these"
    assert np.isfinite(total[0, 1]).all() and np.isfinite(total[1]).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 5, 60])
def test_an_infinite_key_whose_scores_are_minus_infinity(lq):
    query, key = -np.ones((lq, 1), np.float32), np.ones((70, 1), np.float32)
    key[3] = np.inf
    expected = np.where(np.arange(70) == 3, 0, lq / 69)
    np.testing.assert_allclose(attnfast.key_importance(query, key), expected, rtol=1e-6)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("empty", ["B", "H", "Lq", "Lk", "D"])
@pytest.mark.parametrize("per_kv_head", [False, True])
@EACH_DTYPE
def test_empty_axes(dtype, per_kv_head, empty):
    n = {"B": 2, "H": 2, "Lq": 3, "Lk": 4, "D": 5, empty: 0}
    q, k = (np.ones((n["B"], n["H"], n[length], n["D"]), dtype) for length in ("Lq", "Lk"))
    total = attnfast.key_importance(q, k, per_kv_head=per_kv_head)
    assert total.shape == (n["B"], n["H"], n["Lk"]) and total.dtype == compute_dtype(dtype)
    np.testing.assert_allclose(total, 0.0 if empty == "Lq" else 0.75, rtol=1e-6)


def test_sums_of_many_weights_are_exact_to_a_few_eps(isa):
    """Three equal keys, more queries than one stretch."""
    n = 200_000
    total = attnfast.key_importance(np.zeros((n, 1), np.float32), np.zeros((3, 1), np.float32))
    np.testing.assert_allclose(total, n / 3, rtol=4e-6)

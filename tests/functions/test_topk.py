"""attention_topk: the heaviest keys of each query and their exact weights."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attnfast
from attnfast import AttentionTopK, reference
from support.arrays import DTYPE_IDS, DTYPES, POISON, assert_same, qkv, randn, same_batch
from support.criterion import SCORE_OPTIONS, Criterion
from support.draws import calls
from support.key_criteria import check_topk

EXAMPLES = settings.default.max_examples
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
OPTIONS = (*SCORE_OPTIONS, "sink_logits")


@pytest.mark.quick
@EACH_DTYPE
def test_any_call(dtype, each_isa):
    @settings(max_examples=EXAMPLES if dtype == np.float32 else EXAMPLES // 3)
    @given(call=calls(dtypes=(dtype,), most_pairs=40_000), data=st.data())
    def run(call, data) -> None:
        options = {n: x for n, x in call.options.items() if n in OPTIONS}
        query, _, _ = same_batch(call.query, call.key, call.value)
        lk = call.key.shape[-2]
        k = min(lk, data.draw(st.sampled_from([1, 2, 5, 8, 17, 64, lk]) | st.integers(0, lk)))
        criterion = Criterion(query, call.key, call.key[..., :1], **options)
        each_isa(
            lambda: check_topk(attnfast.attention_topk(query, call.key, k, **options), criterion, k)
        )

    run()


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
class TestOrder:
    """Where keys are alike or far apart there is one right answer."""

    @EACH_DTYPE
    @pytest.mark.parametrize("lq", [1, 4, 5, 60])
    @pytest.mark.parametrize(("lk", "k"), [(1, 1), (40, 3), (130, 16), (300, 33), (90, 90)])
    def test_equal_keys_go_by_index(self, lk, k, lq, dtype, rng):
        query = rng.uniform(0.5, 1.5, (2, 4, lq, 8)).astype(dtype)
        size = rng.integers(-6, 7, (2, 4, 1, lk))
        key = np.repeat(size[:, :, 0, :, None], 8, axis=-1).astype(dtype)
        mask = np.broadcast_to(rng.random((4, lq, lk)) < 0.8, (2, 4, lq, lk))
        indices, weights = attnfast.attention_topk(query, key, k, mask=mask, scale=0.25)
        order = np.lexsort((np.broadcast_to(-size, mask.shape), ~mask), axis=-1)[..., :k]
        expected = np.where(np.take_along_axis(mask, order, axis=-1), order, -1)
        np.testing.assert_array_equal(indices, expected)
        _, exact = reference.attention_topk(query, key, k, mask=mask, scale=0.25)
        tolerance = {8: 1e-12, 4: 2e-5}.get(np.dtype(dtype).itemsize, 2e-2)
        np.testing.assert_allclose(weights.astype(np.float64), exact, rtol=tolerance, atol=1e-7)

    @pytest.mark.parametrize("lq", [1, 50])
    def test_all_scores_equal(self, lq):
        zeros = np.zeros((lq, 4), np.float32), np.zeros((200, 4), np.float32)
        for k in (0, 1, 7, 64, 200):
            indices, weights = attnfast.attention_topk(*zeros, k)
            assert (indices == np.arange(k)).all()
            np.testing.assert_allclose(weights, 1 / 200, rtol=1e-6)
        seen = np.arange(200) % 3 == 1
        indices, _ = attnfast.attention_topk(*zeros, 20, mask=seen)
        assert (indices == np.flatnonzero(seen)[:20]).all()

    @pytest.mark.parametrize("lq", [1, 50])
    @pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
    def test_sorted_keys(self, order, lq, rng):
        """Every new key displaces another, or none does."""
        scores = np.arange(500.0, dtype=np.float32)
        scores = {"rising": scores, "falling": scores[::-1], "shuffled": rng.permutation(scores)}[
            order
        ]
        query = np.ones((lq, 1), np.float32)
        indices, _ = attnfast.attention_topk(query, scores[:, None], 40, scale=0.01)
        assert (indices == np.argsort(-scores)[:40]).all()

    @pytest.mark.parametrize("lq", [1, 50])
    def test_ties_across_the_whole_length(self, lq):
        """A tie with a key of another block, or of another task, goes to the lower index too."""
        lk = 20_000
        key = np.zeros((lk, 2), np.float32)
        at = np.array([3, 64, 4097, 12_000, 19_999])
        key[at] = 1.0
        query = np.ones((lq, 2), np.float32)
        indices, weights = attnfast.attention_topk(query, key, 8)
        assert (indices == [*at, 0, 1, 2]).all()
        assert (weights[:, 0] == weights[:, 4]).all() and (weights[:, 4] > weights[:, 5]).all()

    def test_literal(self):
        indices, weights = attnfast.attention_topk(
            [[1.0]], [[1.0], [3.0], [2.0], [3.0], [0.0]], 4, scale=1.0
        )
        e = np.exp([1, 3, 2, 3, 0])
        assert indices.tolist() == [[1, 3, 2, 0]]
        np.testing.assert_allclose(weights, [e[[1, 3, 2, 0]] / e.sum()], rtol=1e-14)

    def test_a_key_whose_weight_underflows_is_still_named(self):
        key = np.array([[0.0], [-2000.0], [-1000.0]], np.float32)
        indices, weights = attnfast.attention_topk(np.ones((1, 1), np.float32), key, 3)
        assert indices.tolist() == [[0, 2, 1]] and weights.tolist() == [[1.0, 0.0, 0.0]]


@EACH_DTYPE
@pytest.mark.parametrize("amplitude", [30, 100, 1000])
@pytest.mark.parametrize("lq", [1, 70])
def test_large_logits(lq, amplitude, dtype, each_isa, rng):
    q, key, _ = qkv(rng, lq, 90, 64, batch=(), dtype=dtype)
    q = (amplitude * q.astype(np.float32)).astype(dtype)
    criterion = Criterion(q, key, key[..., :1])
    each_isa(lambda: check_topk(attnfast.attention_topk(q, key, 12), criterion, 12))


@pytest.mark.usefixtures("isa")
@EACH_DTYPE
@pytest.mark.parametrize("lq", [1, 40])
def test_weights_are_those_of_the_whole_softmax(lq, dtype, rng):
    q, key, _ = qkv(rng, lq, 300, 24, heads=4, kv_heads=2, dtype=dtype)
    sinks = [0.0, 5.0, -2.0, 1.0]
    weights = attnfast.attention_weights(q, key, sink_logits=sinks).astype(np.float64)
    indices, heaviest = attnfast.attention_topk(q, key, 9, sink_logits=sinks)
    tolerance = {8: 1e-12, 4: 2e-5}.get(np.dtype(dtype).itemsize, 2e-2)
    expected = np.take_along_axis(weights, indices, axis=-1)
    np.testing.assert_allclose(heaviest.astype(np.float64), expected, rtol=tolerance)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 60])
@pytest.mark.parametrize("poison", POISON)
def test_only_those_who_see_a_key_feel_it(poison, lq, rng):
    q, key, _ = qkv(rng, lq, 200, 24)
    mask = rng.random((lq, 200)) < 0.7
    mask[: lq // 2 + 1, 77] = False
    clean = attnfast.attention_topk(q, key, 12, mask=mask)
    key[..., 77, :] = poison
    dirty = attnfast.attention_topk(q, key, 12, mask=mask)
    hidden = ~mask[:, 77]
    for a, b in zip(clean, dirty, strict=True):
        assert_same(a[:, :, hidden], b[:, :, hidden])
    assert not (dirty.indices[:, :, hidden] == 77).any()
    if np.isnan(poison):
        seen = dirty.weights[:, :, ~hidden]
        assert np.isnan(seen).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 4, 60])
@pytest.mark.parametrize("lk", [1, 7, 64, 500])
def test_visible_nan_reaches_the_weights(lk, lq, rng):
    for place in {0, lk // 2, lk - 1}:
        q, key, _ = qkv(rng, lq, lk, 20)
        key[0, 1, place, 7] = np.nan
        weights = attnfast.attention_topk(q, key, 1).weights
        assert np.isnan(weights[0, 1]).all()
        assert np.isfinite(weights[0, 0]).all() and np.isfinite(weights[1]).all()


@pytest.mark.usefixtures("isa")
def test_ranks(rng):
    q, key, _ = qkv(rng, 12, 40, heads=4, kv_heads=2, batch=(2, 3))
    whole = attnfast.attention_topk(q, key, 5)
    assert whole.indices.shape == (2, 3, 4, 12, 5)
    for part in ((0, 1), (1,)):
        alone = attnfast.attention_topk(q[part], key[part], np.int32(5))
        assert_same(AttentionTopK(*(a[part] for a in whole)), alone)
    one = attnfast.attention_topk(q[0, 0, 3], key[0, 0, 1], 5)
    assert one.indices.shape == (12, 5)
    np.testing.assert_array_equal(one.indices, whole.indices[0, 0, 3])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("empty", ["B", "H", "Lq", "Lk", "D", "k"])
@EACH_DTYPE
def test_empty_axes(dtype, empty):
    n = {"B": 2, "H": 2, "Lq": 3, "Lk": 4, "D": 5, "k": 2, empty: 0}
    n["k"] = min(n["k"], n["Lk"])
    q, key = (np.ones((n["B"], n["H"], n[length], n["D"]), dtype) for length in ("Lq", "Lk"))
    indices, weights = attnfast.attention_topk(q, key, n["k"])
    assert indices.shape == weights.shape == (n["B"], n["H"], n["Lq"], n["k"])
    assert indices.dtype == np.int64 and weights.dtype == dtype
    assert (indices == np.arange(n["k"])).all()
    np.testing.assert_allclose(weights.astype(np.float64), 0.25)


@pytest.mark.parametrize("k", [65, 200, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_many_keys_a_query(k, dtype, each_isa, rng):
    """They are chosen from whole rows of scores; every option still holds."""
    query, key, _ = qkv(rng, 60, 300, heads=4, kv_heads=2, dtype=dtype)
    options = {
        "mask": rng.random((2, 1, 60, 300)) < 0.9,
        "bias": rng.standard_normal((4, 1, 300)).astype(np.float32),
        "is_causal": True,
        "q_offset": [240, 100],
        "q_lengths": [60, 31],
        "kv_lengths": [300, 170],
        "softcap": 3.0,
        "alibi_slopes": [0.1, 0.0, 0.2, 0.01],
        "sink_logits": [0.0, 1.0, -1.0, 2.0],
    }
    value = np.zeros((2, 2, 300, 1), dtype)
    for more in ({}, options):
        result = attnfast.attention_topk(query, key, k, **more)
        check_topk(result, Criterion(query, key, value, **more), k)


@pytest.mark.parametrize("k", [1, 16, 300])
def test_sums_that_are_equal_go_by_index(k, isa, rng):
    """Equal in exact arithmetic, of different rows."""
    query, key = (np.round(randn(rng, (1, n, 4))) for n in (50, 1000))
    scores = attnfast.attention_weights(query, key, stage="scores", scale=1.0)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    result = attnfast.attention_topk(query, key, k, scale=1.0)
    np.testing.assert_array_equal(result.indices, order)


@pytest.mark.parametrize("k", [64, 65])
def test_no_key_weighs_more_than_everything(k, rng):
    q, key = (100 * rng.standard_normal((2, 1, 200, 64))).astype(np.float32)
    assert attnfast.attention_topk(q, key, k)[1].max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [65, 3000])
@pytest.mark.parametrize(
    "scores", ["rising", "falling", "equal", "few above", "few below", "poison"]
)
def test_long_lists_of_any_scores(scores, k, dtype, rng):
    """Also where every 63rd score, from which the k-th is guessed, is unlike the others."""
    n = 20_000
    s = np.round(rng.standard_normal(n), 2)
    if scores in ("rising", "falling"):
        s = np.sort(s) if scores == "rising" else -np.sort(-s)
    elif scores == "equal":
        s[:] = 0.5
    elif scores == "poison":
        s[rng.integers(0, n, 90)] = np.inf
        s[rng.integers(0, n, 90)] = np.nan
        s[rng.integers(0, n, 900)] = -0.0
        s[rng.integers(0, n, 900)] = -np.inf
    else:
        s[::63] = 10 if scores == "few above" else -10
    ranked = np.where(np.isnan(s), np.inf, s)
    with np.errstate(invalid="ignore"):
        result = attnfast.attention_topk(
            np.ones((1, 1), dtype), s.astype(dtype)[:, None], k, scale=1.0
        )
    np.testing.assert_array_equal(result.indices[0], np.argsort(-ranked, kind="stable")[:k])


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@EACH_DTYPE
def test_long_lists_of_rows_in_reverse(dtype, rng):
    q, k, _ = qkv(rng, 3, 200, 16, dtype=dtype)
    backward = np.ascontiguousarray(k[:, ::-1, ::-1])[:, ::-1, ::-1]
    attnfast.attention_topk(q, -k, 100)  # what memory holds then is not what comes next
    found = attnfast.attention_topk(q, backward, 100)
    assert_same(attnfast.attention_topk(q, k, 100), found)

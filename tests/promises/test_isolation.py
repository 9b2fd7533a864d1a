"""What a query may not see has no influence, whatever is stored there; what it sees, has."""

import operator

import numpy as np
import pytest
from hypothesis import given, settings

import attnfast
from attnfast import reference
from support.arrays import (
    DTYPE_IDS,
    DTYPES,
    POISON,
    assert_same,
    compute_dtype,
    poisoned,
    qkv,
    same_bits,
)
from support.drawn_call import Call
from support.draws import DRAWN, any_call, calls

EXAMPLES = settings.default.max_examples
FLAGS = {"return_lse": True, "return_weights": True}
NAME = operator.attrgetter("__name__")


@pytest.mark.quick
@pytest.mark.parametrize("name", DRAWN)
def test_poison_in_keys_that_nobody_sees_changes_no_bit(name, each_isa):
    @any_call(name, EXAMPLES)
    def run(call: Call) -> None:
        dirty = call.poisoned(POISON)

        def compare() -> None:
            before = call.run_for_all()
            for poison, after in zip(POISON, dirty, strict=True):
                assert_same(before, after.run_for_all(), str(poison))

        each_isa(compare)

    run()


@given(call=calls())
def test_poison_in_excluded_pairs_changes_no_bit(call, each_isa):
    """Bias that lies under a mask, and queries that are padding."""
    if "bias" not in call.options or "mask" not in call.options:
        call.options["mask"] = np.arange(call.key.shape[-2]) % 3 != 1
        call.options["bias"] = np.zeros(call.key.shape[-2], np.float32)
    mask, bias = np.broadcast_arrays(call.options["mask"], call.options["bias"])
    q_lengths = call.options.get("q_lengths")
    query = call.query
    if q_lengths is not None:
        padding = np.arange(query.shape[-2]) >= np.max(q_lengths)
        query = poisoned(query, padding, np.nan)
    dirty = []
    for poison in (np.nan, np.inf):
        options = {**call.options, "bias": np.where(mask, bias, bias.dtype.type(poison))}
        dirty.append(Call(query, call.key, call.value, options))

    def compare() -> None:
        before = call.run_for_all()
        for after in dirty:
            assert_same(before, after.run_for_all())

    each_isa(compare)


CUTS = {
    "mask per key": {"mask": np.arange(120) != 77},
    "mask per pair": {"mask": np.arange(120) != np.full((60, 1), 77)},
    "bias": {"bias": np.where(np.arange(120) == 77, -np.inf, 0.5).astype(np.float32)},
    "causal": {"is_causal": True, "q_offset": 40},
    "window": {"window_size": (10, 5), "q_offset": 40},
    "window left": {"window_size": (3, -1), "q_offset": 40},
    "length": {"kv_lengths": [77, 77]},
    "start": {"kv_starts": [78, 78]},
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 5, 60])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("function", [attnfast.attention, attnfast.additive_attention], ids=NAME)
def test_only_those_who_see_a_key_feel_it(function, dtype, cut, lq, rng):
    """Row by row, also inside a block where other queries see the key.

    A large key is computed another way in additive attention, its neighbours are not.
    """
    q, k, v = qkv(rng, lq, 120, 10, dtype=dtype)
    options = dict(CUTS[cut])
    if "mask" in options:
        options["mask"] = np.broadcast_to(options["mask"], (60, 120))[:lq].copy()
        options["mask"][lq // 2 + 1 :, 77] = True
    clean = function(q, k, v, return_lse=True, **options)
    zeros = np.zeros_like(q), np.zeros_like(k)
    sees = reference.attention_weights(*zeros, **options)[..., 77] > 0
    assert lq < 60 or (~sees).any()
    for poison in (np.nan, -np.inf, 1e38, 30.0):
        both = [poisoned(a, np.arange(120) == 77, poison) for a in (k, v)]
        dirty = function(q, *both, return_lse=True, **options)
        assert same_bits(dirty.output[~sees], clean.output[~sees])
        assert same_bits(dirty.lse[~sees], clean.lse[~sees])
        if np.isnan(poison):
            assert np.isnan(dirty.output[sees].astype(np.float32)).all()
            assert np.isnan(dirty.lse[sees]).all()
    v[..., 77, 3] = np.inf
    dirty, others = function(q, k, v, **options), np.arange(10) != 3
    assert not np.isfinite(dirty[sees][:, 3].astype(np.float32)).any()
    assert same_bits(dirty[sees][:, others], clean.output[sees][:, others])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("lq", [2, 60])
def test_hidden_values_give_a_zero_no_sign(lq, dtype):
    """Terms of some sums are negative and vanish, others are 0 times what is hidden."""
    hides = np.arange(lq) % 2 == 0
    mask = np.arange(70) < np.where(hides, 2, 70)[:, None]
    bias = np.where(np.arange(70) == 0, -60, 0).astype(np.float32)
    x, v = np.zeros((2, max(lq, 70), 8), dtype), np.zeros((2, 70, 8), np.float64)
    v[:, 0] = -1e-30 if compute_dtype(dtype) == np.float32 else -1e-300
    v[:, 1] = -0.0
    found = []
    for hidden in (1, -1, np.nan):
        v[:, 2:] = hidden
        output = attnfast.attention(x[:, :lq], x[:, :70], v.astype(dtype), bias=bias, mask=mask)
        found.append(output[:, hides])
    assert not found[0].any()
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 4, 60])
@pytest.mark.parametrize("lk", [1, 7, 64, 500])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"sink_logits": [1.0, 2.0]}], ids=str)
@pytest.mark.parametrize("function", [attnfast.attention, attnfast.additive_attention], ids=NAME)
def test_visible_nan_reaches_output_lse_and_weights(function, options, lk, lq, rng):
    """At every place where a maximum taken the wrong way round would drop it."""
    options = {**FLAGS, **options}
    for place in {0, lk // 2, lk - 1}:
        q, k, v = qkv(rng, lq, lk, 20)
        k[0, 1, place, 7] = np.nan
        for a in function(q, k, v, **options):
            assert np.isnan(a[0, 1]).all()
            assert np.isfinite(a[0, 0]).all() and np.isfinite(a[1]).all()
        q, k, v = qkv(rng, lq, lk, 20)
        q[1, 0, lq - 1, 19] = np.nan
        for a in function(q, k, v, **options):
            assert np.isnan(a[1, 0, lq - 1]).all()
            assert np.isnan(a).sum() == a[1, 0, lq - 1].size
    bias = np.zeros((lq, lk), np.float32)
    bias[lq - 1, lk - 1] = np.nan
    output = function(*qkv(rng, lq, lk, 20), bias=bias, **options).output
    assert np.isnan(output[..., lq - 1, :]).all() and np.isfinite(output[..., : lq - 1, :]).all()


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [2, 7, 60])
@pytest.mark.parametrize("large", [50.0, 1e30, np.inf, np.nan])
@pytest.mark.parametrize("function", ["attention", "additive_attention"])
def test_one_query_changes_no_bit_of_its_neighbours(function, large, lq, rng):
    """Additive scores of large elements are worked out another way, for that query only."""
    q, k, v = qkv(rng, lq, 90, 20)
    call = getattr(attnfast, function)
    before = call(q, k, v, return_lse=True, return_weights=True)
    q[0, 1, lq // 2, 7] = large
    after = call(q, k, v, return_lse=True, return_weights=True)
    others = np.ones((2, 2, lq), bool)
    others[0, 1, lq // 2] = False
    for a, b in zip(before, after, strict=True):
        assert same_bits(a[others], b[others]) and not same_bits(a, b)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 50])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflow_to_plus_infinity_gives_nan(dtype, lq, rng):
    q, k, v = qkv(rng, lq, 90, 16, dtype=dtype)
    big = np.sqrt(np.finfo(dtype).max) * 2
    q[..., 0, :] = big
    k[..., 40, :] = big
    output, lse, _ = attnfast.attention(q, k, v, return_lse=True)
    assert np.isnan(output[..., 0, :]).all()
    assert not np.isfinite(lse[..., 0]).any()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 50])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflow_to_minus_infinity_is_no_weight(dtype, lq, rng):
    q, k, v = qkv(rng, lq, 90, 16, dtype=dtype)
    big = np.sqrt(np.finfo(dtype).max) * 2
    q[..., 0, :] = big
    k[:] = rng.random(k.shape) * 1e-3 / big
    expected = attnfast.attention(q, k, v, mask=np.arange(90) != 40)[..., 0, :]
    k[..., 40, :] = -big
    result = attnfast.attention(q, k, v, return_weights=True)
    np.testing.assert_allclose(result.output[..., 0, :], expected, rtol=1e-5, atol=1e-6)
    assert not result.weights[..., 0, 40].any()
    k[:] = -big
    output, lse, weights = attnfast.attention(q, k, v, return_lse=True, return_weights=True)
    assert not output[..., 0, :].any() and not weights[..., 0, :].any()
    assert np.isneginf(lse[..., 0]).all()


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 60])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(
    "nothing",
    [
        {"mask": False},
        {"kv_lengths": [0, 0]},
        {"kv_starts": [130, 130]},
        {"kv_starts": [51, 90], "kv_lengths": [51, 50]},
        {"bias": np.full((1, 130), -np.inf, np.float32)},
        {"window_size": 3, "q_offset": 1000},
        {"is_causal": True, "q_offset": -1000},
    ],
    ids=lambda options: " ".join(options),
)
def test_a_query_that_sees_nothing(nothing, dtype, lq, rng):
    q, k, v = qkv(rng, lq, 130, 24, dtype=dtype)
    k[:], v[:] = np.nan, np.inf
    if "mask" in nothing:
        nothing = {"mask": np.zeros((lq, 130), bool)}
    with_sinks = {**nothing, "sink_logits": np.array([-3.0, 2.5], np.float32)}
    expected = np.broadcast_to(with_sinks["sink_logits"][:, None], (2, 2, lq))
    for function in (attnfast.attention, attnfast.additive_attention):
        output, lse, weights = function(q, k, v, **FLAGS, **nothing)
        assert not output.any() and not weights.any() and np.isneginf(lse).all()
        output, lse, weights = function(q, k, v, **FLAGS, **with_sinks)
        assert not output.any() and not weights.any()
        np.testing.assert_allclose(lse, expected, rtol=1e-6)
        lengths = [lq, lq - 1]
        output, lse, _ = function(q, k, v, q_lengths=lengths, **FLAGS, **with_sinks)
        assert not output.any() and np.isneginf(lse[1, :, -1]).all() and np.isfinite(lse[0]).all()
    for options in (nothing, with_sinks, {"q_lengths": [0, 0]}):
        indices, weights = attnfast.attention_topk(q, k, 7, **options)
        assert (indices == -1).all() and not weights.any()
        assert not attnfast.attention_weights(q, k, **options).any()
        for per_kv_head in (False, True):
            assert not attnfast.key_importance(q, k, per_kv_head=per_kv_head, **options).any()

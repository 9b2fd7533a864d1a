"""What a query may not see has no influence, whatever is stored there; what it sees, has."""

import numpy as np
import pytest
from hypothesis import given

import attnfast
from attnfast import reference
from support.arrays import DTYPE_IDS, DTYPES, qkv, same_batch, same_bits
from support.criterion import SCORE_OPTIONS
from support.draws import Call, calls

pytestmark = pytest.mark.usefixtures("isa")

POISON = (np.nan, np.inf, -np.inf, 1e38, -1e38)


def poisoned(a, where, poison):
    """A copy of `a` in the same layout, with poison in the rows (..., L) that `where` selects."""
    copy = np.copy(a, order="K")
    with np.errstate(over="ignore"):
        copy[np.broadcast_to(where, a.shape[:-1])] = np.array(poison).astype(a.dtype)
    return copy


def reduce_to(flags, shape):
    """Combine flags over the axes along which an array of this shape was broadcast."""
    extra = flags.ndim - len(shape)
    flags = flags.all(axis=tuple(range(extra)))
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return flags.all(axis=axes, keepdims=True)


def unseen_keys(call: Call, array):
    """The rows of `array` (key or value) that no query sees, shaped like its axes without D."""
    options = {n: x for n, x in call.options.items() if n in SCORE_OPTIONS}
    query, key, _ = same_batch(call.query, call.key, call.value)
    biased = reference.attention_weights(query * 0, key * 0, stage="biased", **options)
    unseen = (biased == -np.inf).all(axis=-2)  # (batch..., H, Lk)
    if unseen.ndim > 1:
        kv_heads = key.shape[-3]
        *batch, heads, lk = unseen.shape
        unseen = unseen.reshape((*batch, kv_heads, heads // kv_heads, lk)).all(axis=-2)
    return reduce_to(unseen, array.shape[:-1])


@given(call=calls())
def test_poison_in_excluded_keys_changes_no_bit(call):
    flags = {"return_lse": True, "return_weights": True}
    before = call.run(**flags)
    for poison in POISON:
        key = poisoned(call.key, unseen_keys(call, call.key), poison)
        value = poisoned(call.value, unseen_keys(call, call.value), poison)
        after = Call(call.query, key, value, call.options).run(**flags)
        for name, x, y in zip(before._fields, before, after, strict=True):
            assert same_bits(x, y), (name, poison)


@given(call=calls())
def test_poison_in_excluded_pairs_changes_no_bit(call):
    """Bias that lies under a mask, and queries that are padding."""
    if "bias" not in call.options or "mask" not in call.options:
        call.options["mask"] = np.arange(call.key.shape[-2]) % 3 != 1
        call.options["bias"] = np.zeros(call.key.shape[-2], np.float32)
    before = call.run(return_lse=True)
    mask, bias = np.broadcast_arrays(call.options["mask"], call.options["bias"])
    q_lengths = call.options.get("q_lengths")
    query = call.query
    if q_lengths is not None:
        padding = np.arange(query.shape[-2]) >= np.max(q_lengths)
        query = poisoned(query, padding, np.nan)
    for poison in (np.nan, np.inf):
        options = {**call.options, "bias": np.where(mask, bias, bias.dtype.type(poison))}
        after = Call(query, call.key, call.value, options).run(return_lse=True)
        assert same_bits(before.output, after.output)
        assert same_bits(before.lse, after.lse)


CUTS = {
    "mask per key": {"mask": np.arange(200) != 77},
    "mask per pair": {"mask": np.arange(200) != np.full((100, 1), 77)},
    "bias": {"bias": np.where(np.arange(200) == 77, -np.inf, 0.5).astype(np.float32)},
    "causal": {"is_causal": True, "q_offset": -23},
    "window": {"window_size": (10, 5), "q_offset": 60},
    "window left": {"window_size": (3, -1), "q_offset": 40},
    "length": {"kv_lengths": [77, 77]},
}


@pytest.mark.parametrize("lq", [1, 5, 100])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_only_those_who_see_a_key_feel_it(dtype, cut, poison, lq, rng):
    """Row by row, also inside a block where other queries see the key."""
    q, k, v = qkv(rng, lq, 200, 24, dtype=dtype)
    options = dict(CUTS[cut])
    if "mask" in options:
        options["mask"] = np.broadcast_to(options["mask"], (100, 200))[:lq].copy()
        options["mask"][lq // 2 + 1 :, 77] = True
    clean = attnfast.attention(q, k, v, **options)
    v[..., 77, 3] = poison
    dirty = attnfast.attention(q, k, v, **options)
    zeros = np.zeros_like(q), np.zeros_like(k)
    sees = reference.attention_weights(*zeros, **options)[..., 77] > 0
    assert lq < 100 or (~sees).any()
    assert same_bits(dirty[~sees], clean[~sees])
    assert not np.isfinite(dirty[sees][:, 3].astype(np.float32)).any()
    others = np.arange(24) != 3
    assert same_bits(dirty[sees][:, others], clean[sees][:, others])

    k[..., 77, 5] = np.nan
    dirty = attnfast.attention(q, k, v, **options)
    assert same_bits(dirty[~sees], clean[~sees])
    assert np.isnan(dirty[sees].astype(np.float32)).all()


@pytest.mark.parametrize("lq", [1, 4, 60])
@pytest.mark.parametrize("lk", [1, 7, 64, 500])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"sink_logits": [1.0, 2.0]}], ids=str)
def test_visible_nan_reaches_output_lse_and_weights(options, lk, lq, rng):
    """At every place where a maximum taken the wrong way round would drop it."""
    for place in {0, lk // 2, lk - 1}:
        q, k, v = qkv(rng, lq, lk, 20)
        k[0, 1, place, 7] = np.nan
        result = attnfast.attention(q, k, v, return_lse=True, return_weights=True, **options)
        for a in result:
            assert np.isnan(a[0, 1]).all()
            assert np.isfinite(a[0, 0]).all() and np.isfinite(a[1]).all()
        q, k, v = qkv(rng, lq, lk, 20)
        q[1, 0, lq - 1, 19] = np.nan
        result = attnfast.attention(q, k, v, return_lse=True, return_weights=True, **options)
        for a in result:
            assert np.isnan(a[1, 0, lq - 1]).all()
            assert np.isnan(a).sum() == a[1, 0, lq - 1].size
    bias = np.zeros((lq, lk), np.float32)
    bias[lq - 1, lk - 1] = np.nan
    output = attnfast.attention(*qkv(rng, lq, lk, 20), bias=bias, **options)
    assert np.isnan(output[..., lq - 1, :]).all() and np.isfinite(output[..., : lq - 1, :]).all()


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


@pytest.mark.parametrize("lq", [1, 60])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(
    "nothing",
    [
        {"mask": False},
        {"kv_lengths": [0, 0]},
        {"bias": np.full((1, 130), -np.inf, np.float32)},
        {"window_size": 3, "q_offset": 1000},
        {"is_causal": True, "q_offset": -1000},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_query_that_sees_nothing(nothing, dtype, lq, rng):
    q, k, v = qkv(rng, lq, 130, 24, dtype=dtype)
    k[:], v[:] = np.nan, np.inf
    flags = {"return_lse": True, "return_weights": True, **nothing}
    if "mask" in nothing:
        flags["mask"] = np.zeros((lq, 130), bool)
    output, lse, weights = attnfast.attention(q, k, v, **flags)
    assert not output.any() and not weights.any() and np.isneginf(lse).all()
    sinks = np.array([-3.0, 2.5], np.float32)
    output, lse, weights = attnfast.attention(q, k, v, sink_logits=sinks, **flags)
    assert not output.any() and not weights.any()
    np.testing.assert_allclose(lse, np.broadcast_to(sinks[:, None], lse.shape), rtol=1e-6)
    lengths = [lq, lq - 1]
    output, lse, _ = attnfast.attention(q, k, v, sink_logits=sinks, q_lengths=lengths, **flags)
    assert not output.any() and np.isneginf(lse[1, :, -1]).all() and np.isfinite(lse[0]).all()

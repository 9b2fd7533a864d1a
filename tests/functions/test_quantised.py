"""Keys and values in 8 bits: scales, zero points, every number that a byte can hold, quantize."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import attnfast
from attnfast import (
    attention,
    attention_topk,
    attention_varlen,
    attention_weights,
    key_importance,
    plan,
    quantize,
    reference,
)
from support.arrays import POISON, assert_same, qkv, randn, row_of
from support.criterion import Criterion
from support.fences import fenced
from support.key_criteria import Importance, check_topk
from support.layouts import paired
from support.paged_call import in_pages

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]

FLAGS = {"return_lse": True, "return_weights": True}
QUERIES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
BYTES = {
    name: np.dtype(getattr(ml_dtypes, name, None) or name)
    for name in ("int8", "uint8", "float8_e4m3fn", "float8_e5m2")
}
# Shapes of scales beside (2, 2, 120, 24): one for all, each head, row, column; groups of any axes.
GROUPS = [
    (),
    (2, 1, 1),
    (2, 1, 120, 1),
    (2, 2, 120, 1),
    (24,),
    (2, 2, 1, 24),
    (120, 3),
    (2, 2, 120, 8),
    (2, 1, 4, 24),
    (1, 2, 15, 6),
    (40, 1),
]


def stored(rng, shape, dtype):
    """Every number of a dtype but NaN and infinity."""
    a = rng.integers(0, 256, shape, dtype=np.uint8).view(dtype)
    return np.where(np.isfinite(a.astype(np.float32)), a, np.zeros((), dtype))


def numbers(rng, dtype, shape):
    """Scales with which scores are near 1, and zero points."""
    largest = {"int8": 100, "uint8": 200, "float8_e4m3fn": 200, "float8_e5m2": 2e4}[dtype.name]
    return (rng.uniform(0.5, 1.5, shape) / largest).astype(np.float32)


def real(a, scale, zero, dtype):
    return reference.stored.real_rows(a, dtype, scale=scale, zero_point=zero)


def check(result, query, k, v, options):
    """The criterion, of the real numbers as float32 rounds them."""
    names = ("key_scale", "value_scale", "key_zero_point", "value_zero_point")
    key_scale, value_scale, key_zero, value_zero = (options.get(name) for name in names)
    others = {name: x for name, x in options.items() if name not in names}
    keys = real(k, key_scale, key_zero, np.float64)
    values = real(v, value_scale, value_zero, np.float64)
    Criterion(query, keys, values, **others).check(result)


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("lq", [1, 2, 3, 7, 60])
def test_scales_of_any_shape(lq, dtype, rng):
    for (key_shape, value_shape), query in zip(
        paired(GROUPS, GROUPS, times=1), itertools.cycle(QUERIES), strict=False
    ):
        q = randn(rng, (2, 4, lq, 24), query)
        k, v = (stored(rng, (2, 2, 120, 24), dtype) for _ in range(2))
        options = {
            "key_scale": numbers(rng, dtype, key_shape),
            "value_scale": numbers(rng, dtype, value_shape),
            "kv_lengths": [120, 77],
            "kv_starts": [0, 9],
        }
        if dtype.kind in "iu":
            options["key_zero_point"] = rng.integers(0, 200, value_shape)
            options["value_zero_point"] = rng.uniform(0, 200, key_shape)
        check(attention(q, k, v, **options, **FLAGS), q, k, v, options)


def check_of_keys(q, k, stored_as, options, lists=(5, 70), function_of=real):
    """Weights, heaviest keys and importance against those of the keys as real numbers."""
    keys = function_of(k, stored_as.get("key_scale"), stored_as.get("key_zero_point"), np.float64)
    criterion = Criterion(q, keys, keys[..., :1], **options)
    both = {**stored_as, **options}
    criterion.check_weights(attention_weights(q, k, **both))
    criterion.check_biased(attention_weights(q, k, stage="biased", **both))
    for n in lists:
        check_topk(attention_topk(q, k, n, **both), criterion, n)
    importance = Importance(q, keys, **options)
    for per_kv_head in (False, True):
        importance.check(key_importance(q, k, per_kv_head=per_kv_head, **both), per_kv_head)


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("lq", [1, 3, 60])
def test_functions_of_keys(lq, dtype, rng):
    for (scale_shape, zero_shape), query in zip(
        paired(GROUPS, GROUPS, times=1), itertools.cycle(QUERIES), strict=False
    ):
        q = randn(rng, (2, 4, lq, 24), query)
        k = stored(rng, (2, 2, 120, 24), dtype)
        stored_as = {"key_scale": numbers(rng, dtype, scale_shape)}
        if dtype.kind in "iu":
            stored_as["key_zero_point"] = rng.integers(0, 200, zero_shape)
        options = {"kv_lengths": [120, 77], "kv_starts": [0, 9], "is_causal": True, "q_offset": 70}
        check_of_keys(q, k, stored_as, options)


@pytest.mark.parametrize("stage", ["scores", "capped"])
@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("lq", [1, 2, 60])
def test_scores_of_every_pair(lq, dtype, stage, rng):
    q, k = randn(rng, (2, 4, lq, 40)), stored(rng, (2, 2, 130, 40), dtype)
    options = {"key_scale": numbers(rng, dtype, (2, 2, 130, 1)), "softcap": 3.0, "stage": stage}
    options["kv_lengths"] = [130, 3]
    exact = reference.attention_weights(q, k, **options)
    np.testing.assert_allclose(attention_weights(q, k, **options), exact, rtol=1e-4, atol=1e-5)


# Shapes of scales beside (120, 2, 24).
PACKED_GROUPS = [
    *((), (2, 1), (120, 1, 1), (120, 2, 1), (24,), (2, 24), (1, 2, 24)),
    *((120, 1, 3), (40, 1, 1), (30, 2, 24), (15, 1, 6), (4, 2, 1)),
]


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
def test_packed_sequences(dtype, rng):
    """Their bounds are not those of groups, which count from the first row of all."""
    cu_q, cu_k = np.array([0, 1, 3, 50, 52]), np.array([0, 7, 31, 31, 120])
    for (key_shape, value_shape), query in zip(
        paired(PACKED_GROUPS, PACKED_GROUPS, times=1), itertools.cycle(QUERIES), strict=False
    ):
        q = randn(rng, (52, 4, 24), query)
        k, v = (stored(rng, (120, 2, 24), dtype) for _ in range(2))
        stored_as = {
            "key_scale": numbers(rng, dtype, key_shape),
            "value_scale": numbers(rng, dtype, value_shape),
        }
        if dtype.kind in "iu":
            stored_as["key_zero_point"] = rng.integers(0, 200, value_shape)
            stored_as["value_zero_point"] = rng.uniform(0, 200, key_shape)
        result = attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **stored_as)
        k, v = (
            real(a, stored_as[f"{n}_scale"], stored_as.get(f"{n}_zero_point"), np.float64)
            for n, a in (("key", k), ("value", v))
        )
        for (a, b), (c, d) in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
            own = (x.swapaxes(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
            own_result = type(result)(result.output[a:b].swapaxes(0, 1), result.lse[a:b].T)
            Criterion(*own).check(own_result)


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 30, 9]], ids=str)
def test_packed_sequences_have_the_bits_that_they_have_alone(lengths, dtype, rng):
    cu_q, cu_k = np.cumsum([0, *lengths]), np.array([0, 5, 140, 200])
    q = randn(rng, (cu_q[-1], 4, 64))
    k, v = (stored(rng, (200, 2, 64), dtype) for _ in range(2))
    scales = [numbers(rng, dtype, (200, 2, 1)) for _ in range(2)]
    options = {"is_causal": True, "q_offset": "end"}
    result = attention_varlen(
        *(q, k, v, cu_q, cu_k), key_scale=scales[0], value_scale=scales[1], **options
    )
    for (a, b), (c, d) in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
        own = [x.swapaxes(0, 1) for x in (q[a:b], k[c:d], v[c:d])]
        key_scale, value_scale = (x[c:d].swapaxes(0, 1) for x in scales)
        alone = attention(*own, key_scale=key_scale, value_scale=value_scale, **options)
        assert_same(alone.swapaxes(0, 1), result[a:b])


@pytest.mark.parametrize("lq", [1, 60])
def test_packed_keys_that_are_hidden_have_no_influence(lq, rng):
    q, k = randn(rng, (2 * lq, 2, 32)), stored(rng, (240, 2, 32), BYTES["float8_e4m3fn"])
    cu_q, cu_k = [0, lq, 2 * lq], [0, 100, 240]
    scale = numbers(rng, k.dtype, (240, 2, 1))
    options = {"window_size": (20, 0), "q_offset": "end", "return_lse": True}
    before = attention_varlen(q, k, k, cu_q, cu_k, key_scale=scale, value_scale=scale, **options)
    hidden = np.r_[0 : 80 - lq, 100 : 220 - lq]
    for poison in POISON:
        k[hidden], scale[hidden] = np.nan, poison
        after = attention_varlen(q, k, k, cu_q, cu_k, key_scale=scale, value_scale=scale, **options)
        assert_same(before, after, str(poison))


@pytest.mark.parametrize("lq", [1, 60])
def test_a_key_that_is_nan_and_seen_is_nan_in_functions_of_keys(lq, rng):
    q, k = randn(rng, (2, lq, 16)), stored(rng, (2, 90, 16), np.int8)
    scale = np.full((2, 90, 1), 0.01, np.float32)
    scale[1, 11] = np.nan
    for stage in ("scores", "biased"):
        nan = np.isnan(attention_weights(q, k, key_scale=scale, stage=stage))
        assert nan[1, :, 11].all() and nan.sum() == lq
    for result in (
        attention_weights(q, k, key_scale=scale),
        attention_topk(q, k, 3, key_scale=scale).weights,
        attention_topk(q, k, 80, key_scale=scale).weights,
        key_importance(q, k, key_scale=scale),
    ):
        assert np.isnan(result[1]).all() and np.isfinite(result[0]).all()
    assert (attention_topk(q, k, 3, key_scale=scale).indices[1, :, 0] == 11).all()


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
def test_widths_and_lengths(dtype, rng):
    """Tails of vectors and of blocks; arrays that end at forbidden memory."""
    for lk, d in paired([1, 5, 64, 130, 700], [1, 7, 16, 64, 100, 128, 130, 256], times=2):
        for lq, at_end in [(1, True), (2, False), (50, True)]:
            q = randn(rng, (2, lq, d))
            k, v = (fenced(stored(rng, (1, lk, d), dtype), at_end) for _ in range(2))
            scales = [fenced(numbers(rng, dtype, (1, lk, 1)), at_end) for _ in range(2)]
            options = {"key_scale": scales[0], "value_scale": scales[1]}
            check(attention(q, k, v, **options), q, k, v, options)
            lists = (min(lk, 3), min(lk, 100))
            check_of_keys(q, k, {"key_scale": scales[0]}, {}, lists=lists)


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
def test_several_query_rows(dtype, rng):
    """Up to four of them share what is widened, eight go through the same keys."""
    for rows, d in paired([3, 4, 5, 6, 7, 8], [24, 64, 130], times=2):
        q = randn(rng, (rows, 1, d))
        k, v = (stored(rng, (1, 150, d), dtype) for _ in range(2))
        options = {"key_scale": numbers(rng, dtype, (1, 150, 1)), "value_scale": 0.01}
        if dtype == np.uint8:
            options["key_zero_point"] = rng.integers(0, 200, (1, 150, 1))
            options["value_zero_point"] = 128
        result = attention(q, k, v, **options)
        check(result, q, k, v, options)
        for row in range(rows):
            alone = attention(
                q[row],
                k[0],
                v[0],
                **options
                | {"key_scale": options["key_scale"][0]}
                | ({"key_zero_point": options["key_zero_point"][0]} if dtype == np.uint8 else {}),
            )
            assert_same(alone, result[row])


@pytest.mark.parametrize("dtype", [d for n, d in BYTES.items() if n.startswith("float8")])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_a_number_that_is_not_finite_stays_where_it_is(rows, dtype, rng):
    for d in (24, 64, 130):
        q = np.abs(randn(rng, (rows, 1, d)))
        k, v = (stored(rng, (1, 150, d), dtype) for _ in range(2))
        v[0, 99, d - 2] = v[0, 3, 5] = np.nan
        output = attention(q, k, v, key_scale=0.01, value_scale=0.01)
        columns = np.isnan(output).any(axis=(0, 1))
        assert list(columns.nonzero()[0]) == [5, d - 2] and np.isnan(output[..., [5, d - 2]]).all()
        k[0, 149, 1] = np.nan
        weights = attention(q, k, k, return_weights=True).weights
        assert np.isnan(weights).all()


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("lq", [1, 3, 60])
def test_every_byte(lq, dtype):
    """Of one key, which has all the weight, the output is the value."""
    v = np.arange(256, dtype=np.uint8).view(dtype).reshape(256, 1, 1)
    q = np.zeros((256, lq, 1), np.float32)
    output = attention(q, v, v, key_scale=1.0, value_scale=1.0)
    expected = v.astype(np.float32)
    if dtype.kind != "i" and dtype.kind != "u":  # a key that is not finite has no finite score
        keys = np.zeros_like(v)
        output = attention(q, keys, v)
    np.testing.assert_array_equal(output, np.broadcast_to(expected, output.shape))


@pytest.mark.parametrize("lq", [1, 2, 4, 60])
@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
def test_hidden_keys_have_no_influence(dtype, lq, rng):
    q = randn(rng, (2, 2, lq, 32))
    k, v = (stored(rng, (2, 2, 90, 32), dtype) for _ in range(2))
    scales = [numbers(rng, dtype, (2, 2, 90, 1)) for _ in range(2)]
    lengths, mask = np.array([90, 40]), rng.random((2, 1, lq, 90)) < 0.5
    hidden = ~(mask.any(axis=(1, 2)) & (np.arange(90) < lengths[:, None]))
    options = {"kv_lengths": lengths, "mask": mask, **FLAGS}
    before = attention(q, k, v, key_scale=scales[0], value_scale=scales[1], **options)
    for poison in POISON:
        poisoned = [np.where(hidden[:, None, :, None], np.float32(poison), s) for s in scales]
        after = attention(q, k, v, key_scale=poisoned[0], value_scale=poisoned[1], **options)
        assert_same(before, after, str(poison))
    if dtype.name.startswith("float8"):
        dirty = [np.where(hidden[:, None, :, None], np.array(np.nan, dtype), a) for a in (k, v)]
        assert_same(
            before, attention(q, *dirty, key_scale=scales[0], value_scale=scales[1], **options)
        )


@pytest.mark.parametrize("lq", [1, 60])
@pytest.mark.filterwarnings("error")
def test_scales_beyond_float32(lq, rng):
    """A hidden key's has no influence, and no warning; one that is seen is infinite."""
    q, k = randn(rng, (1, lq, 16)), stored(rng, (1, 40, 16), np.int8)
    scale = np.full((1, 40, 1), 0.01)
    options = {"key_scale": scale, "value_scale": scale, "kv_lengths": [39]}
    before = attention(q, k, k, **options)
    scale[0, 39] = 1e300
    assert_same(attention(q, k, k, **options), before)
    k[0, 39] = 1
    assert not np.isfinite(attention(q, k, k, key_scale=0.01, value_scale=scale)).any()


@pytest.mark.parametrize("lq", [1, 60])
def test_a_scale_that_is_nan_and_seen_is_nan(lq, rng):
    q, k = randn(rng, (1, lq, 16)), stored(rng, (1, 40, 16), np.int8)
    scale = np.full((1, 40, 1), 0.01, np.float32)
    scale[0, 11] = np.nan
    assert np.isnan(attention(q, k, k, key_scale=0.01, value_scale=scale)).all()
    assert np.isnan(attention(q, k, k, key_scale=scale, value_scale=0.01)).all()


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("lq", [1, 2, 30])
def test_in_pages(lq, dtype, rng):
    """Scales are in pages as well, or the same for all."""
    q = randn(rng, (2, 4, lq, 32))
    k, v = (stored(rng, (2, 2, 96, 32), dtype) for _ in range(2))
    key_scale = numbers(rng, dtype, (2, 2, 96, 1))
    value_scale = numbers(rng, dtype, (2, 1, 1))
    options = {"kv_lengths": [96, 50], "is_causal": True, "q_offset": "end"}
    seed = rng.integers(2**32)
    pools, table = in_pages(np.random.default_rng(seed), (k, v), 16, options, fill=0)
    (scales,), _ = in_pages(np.random.default_rng(seed), (key_scale,), 16, options)
    named = {"block_table": table, "key_scale": scales, "value_scale": value_scale}
    result = attention(q, *pools, **named, **options, **FLAGS)
    check(result, q, k, v, {"key_scale": key_scale, "value_scale": value_scale, **options})
    del named["value_scale"]
    keys = real(k, key_scale, None, np.float64)
    check_of_keys(q, pools[0], named, options, function_of=lambda *_: keys)


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 0, 30]], ids=str)
def test_packed_sequences_in_pages(counts, dtype, rng):
    """They have the bits of batch rows of the same lengths."""
    q = randn(rng, (3, 4, max(counts), 32))
    k, v = (stored(rng, (9, 2, 16, 32), dtype) for _ in range(2))
    table, lengths = [[4, 0, -1], [5, 8, 1], [7, -1, -9]], np.array([20, 48, 16])
    named = {
        "block_table": table,
        "key_scale": numbers(rng, dtype, (9, 2, 16, 1)),
        "value_scale": numbers(rng, dtype, (9, 2, 4, 32)),
    }
    cu_q, cu_k = (np.cumsum([0, *n]) for n in (counts, lengths))
    rows = np.concatenate([row[:, :n].swapaxes(0, 1) for row, n in zip(q, counts, strict=True)])
    packed = attention_varlen(rows, k, v, cu_q, cu_k, **named)
    for s, n in enumerate(counts):
        own = {**named, "block_table": table[s : s + 1], "kv_lengths": lengths[s : s + 1]}
        alone = attention(q[s : s + 1, :, :n], k, v, **own)[0].swapaxes(0, 1)
        assert_same(packed[cu_q[s] : cu_q[s + 1]], alone)


@pytest.mark.parametrize("dtype", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("lq", [1, 2, 4, 30])
def test_hidden_keys_have_no_influence_in_pages(lq, dtype, rng):
    """Sums end where pages do, also where values that are not finite are left out."""
    q = randn(rng, (2, 4, lq, 128))
    k, v = (stored(rng, (2, 2, 240, 128), dtype) for _ in range(2))
    scales = [numbers(rng, dtype, (2, 2, 240, 1)) for _ in range(2)]
    mask = rng.random((2, 1, 1, 240)) < 0.8
    options = {"kv_lengths": [240, 200], "kv_starts": [0, 5], "mask": mask}
    poisoned = [np.where(mask[:, 0, 0][:, None, :, None], s, np.nan) for s in scales]
    for size in (5, 24, 48, 80):
        seed = rng.integers(2**32)
        pools, table = in_pages(np.random.default_rng(seed), (k, v), size, options, fill=0)
        before, after = (
            in_pages(np.random.default_rng(seed), some, size, options)[0]
            for some in (scales, poisoned)
        )
        named = {"block_table": table, **options, **FLAGS}
        assert_same(
            attention(q, *pools, key_scale=before[0], value_scale=before[1], **named),
            attention(q, *pools, key_scale=after[0], value_scale=after[1], **named),
            f"pages of {size}",
        )


def test_bits_do_not_depend_on_threads_or_batch(rng):
    for dtype, lq in itertools.product(BYTES.values(), (1, 40)):
        q = randn(rng, (3, 4, lq, 64))
        k, v = (stored(rng, (3, 2, 3000, 64), dtype) for _ in range(2))
        options = {"key_scale": numbers(rng, dtype, (3, 2, 3000, 1)), "value_scale": 0.01}
        first = attention(q, k, v, num_threads=1, **options, **FLAGS)
        for n in (2, 3):
            assert_same(first, attention(q, k, v, num_threads=n, **options, **FLAGS))
        options["key_scale"] = options["key_scale"][1]
        alone = attention(q[1], k[1], v[1], **options, **FLAGS)
        assert_same(alone, type(first)(*(a[1] for a in first)))


@pytest.mark.parametrize("lq", [1, 40])
def test_bits_of_functions_of_keys_do_not_depend_on_threads_or_batch(lq, rng):
    for dtype in BYTES.values():
        q, k = randn(rng, (3, 4, lq, 64)), stored(rng, (3, 2, 3000, 64), dtype)
        scale = numbers(rng, dtype, (3, 2, 3000, 1))
        for function in (
            attention_weights,
            key_importance,
            lambda *a, **o: attention_topk(*a, 9, **o),
            lambda *a, **o: attention_topk(*a, 99, **o),
        ):
            first = function(q, k, key_scale=scale, num_threads=1)
            for n in (2, 3):
                assert_same(first, function(q, k, key_scale=scale, num_threads=n))
            alone = function(q[1], k[1], key_scale=scale[1])
            assert_same(alone, row_of(first, 1))


def test_layouts(rng):
    q = randn(rng, (2, 4, 3, 32))
    k, v = (stored(rng, (2, 2, 50, 32), np.int8) for _ in range(2))
    scale = numbers(rng, np.dtype(np.int8), (2, 2, 50, 1))
    expected = attention(q, k, v, key_scale=scale, value_scale=scale)
    for change in (
        lambda a: np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2),
        lambda a: np.ascontiguousarray(a[:, :, ::-1])[:, :, ::-1],
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    ):
        actual = attention(
            q, change(k), change(v), key_scale=change(scale), value_scale=change(scale)
        )
        assert_same(actual, expected)


def test_a_plan(rng):
    q, k, v = qkv(rng, 40, 96, 16)
    small = plan(q, *(quantize(a)[0] for a in (k, v)), key_scale=1.0, value_scale=1.0)
    whole = plan(q, k, v)
    assert small.flops == whole.flops and small.visible_pairs == whole.visible_pairs
    assert whole.bytes - small.bytes == 3 * (k.size + v.size)


@pytest.mark.parametrize("name", ["attention_weights", "attention_topk", "key_importance"])
def test_a_plan_of_functions_of_keys(name, rng):
    function, more = getattr(attnfast, name), {"k": 9} if name == "attention_topk" else {}
    q, k, _ = qkv(rng, 40, 96, 16)
    small = plan(function, q, quantize(k)[0], key_scale=1.0, is_causal=True, q_offset=3, **more)
    whole = plan(function, q, k, is_causal=True, q_offset=3, **more)
    assert small.flops == whole.flops and small.visible_pairs == whole.visible_pairs
    assert whole.bytes - small.bytes == 3 * k.size
    assert small.kernel == whole.kernel and small.tasks == whole.tasks


def test_a_plan_of_packed_sequences(rng):
    q, k = randn(rng, (40, 2, 16)), randn(rng, (90, 2, 16))
    arrays, cu = (q, k, k), ([0, 1, 40], [0, 60, 90])
    options = {"is_causal": True, "q_offset": "end", "return_blocks": True}
    whole = plan(attention_varlen, *arrays, *cu, **options)
    bytes_, scale = quantize(k)
    small = plan(
        attention_varlen, q, bytes_, bytes_, *cu, key_scale=scale, value_scale=scale, **options
    )
    assert whole.bytes - small.bytes == 3 * 2 * k.size
    assert small.visible_pairs == whole.visible_pairs and small.tasks == whole.tasks
    pool = randn(rng, (9, 2, 20, 16))
    table = [[4, 1, 0], [7, 2, -1]]
    paged = plan(attention_varlen, q, pool, pool, *cu, block_table=table, **options)
    assert paged.bytes == whole.bytes and paged.visible_pairs == whole.visible_pairs
    seen = np.zeros((2, 40, 90), int)  # of both, whose blocks may be cut elsewhere
    for described, found in zip((whole, paged), seen, strict=True):
        for _, hk, i0, i1, j0, j1, _ in described.blocks:
            found[i0:i1, j0:j1] += hk == 0
    np.testing.assert_array_equal(seen[0] > 0, seen[1] > 0)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize(
    ("axis", "group", "shape"),
    [
        (-1, None, (2, 3, 40, 1)),
        (-2, None, (2, 3, 1, 64)),
        ((-2, -1), None, (2, 3, 1, 1)),
        ([0, 2, 3], None, (1, 3, 1, 1)),
        (None, None, (1, 1, 1, 1)),
        (-1, 32, (2, 3, 40, 2)),
        (2, 8, (2, 3, 5, 64)),
    ],
)
def test_quantize(axis, group, shape, dtype, rng):
    x = 100 * randn(rng, (2, 3, 40, 64))
    x[0, 0, 0] = 0
    small, scale = quantize(x, dtype, axis=axis, group=group)
    assert small.dtype == BYTES[dtype] and small.shape == x.shape
    assert scale.dtype == np.float32 and scale.shape == shape
    back = real(small, scale, None, np.float64)
    steps = np.broadcast_to(real(np.ones(x.shape), scale, None, np.float64), x.shape)
    # Half a step of int8; of float8 half a unit of the last place, or of the smallest number.
    places = {"int8": 0, "float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3}[dtype]
    least = {"int8": 0.5, "float8_e4m3fn": 2.0**-10, "float8_e5m2": 2.0**-17}[dtype]
    assert (np.abs(back - x) <= 1.001 * np.maximum(places * np.abs(x), least * steps)).all()
    assert (back[0, 0, 0] == 0).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_quantize_of_other_dtypes(dtype, rng):
    small, scale = quantize(randn(rng, (3, 5, 8), dtype))
    assert small.dtype == np.int8 and scale.dtype == np.float32
    assert quantize(np.zeros((0, 8), dtype))[1].shape == (0, 1)


def test_there_are_no_gradients(rng):
    q, k = randn(rng, (1, 2, 3, 8)), np.zeros((1, 2, 5, 8), np.int8)
    with pytest.raises(ValueError, match=r"^key_scale must be left out.*no gradients"):
        attnfast.vjp(attention, q, k, k, key_scale=1.0, value_scale=1.0)
    with pytest.raises(TypeError, match=r"key must be float32.*int8"):
        attnfast.vjp(attnfast.local_attention, q, k, k, 3)

"""Keys and values in 8 bits: scales, zero points, every number that a byte can hold, quantize."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import attnfast
from attnfast import attention, plan, quantize, reference
from support.arrays import POISON, assert_same, qkv, randn
from support.criterion import Criterion
from support.fences import fenced
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

"""KVCache: options of attend, memory, dtypes, rows, files. Histories are in test_cache_model.py."""

import copy
import io
import pickle

import numpy as np
import pytest

import attnfast
from attnfast import KVCache, quantize, reference
from support.arrays import BFLOAT16, BYTES, DTYPE_IDS, DTYPES, assert_same, randn, same_bits
from support.criterion import check

pytestmark = pytest.mark.quick
STORED = pytest.mark.parametrize(
    "dtype", [*DTYPES, *BYTES], ids=[d.name for d in (*DTYPES, *BYTES)]
)
IN_BYTES = pytest.mark.parametrize("dtype", BYTES, ids=[d.name for d in BYTES])


def filled(rng, n=20, batch=(2,), heads=2, d=16, dv=12, dtype=np.float32, **options):
    """A cache with n tokens, and these."""
    options.setdefault("capacity", 32)
    cache = KVCache(batch, heads, d, dv, dtype=dtype, **options)
    given = np.float32 if dtype in BYTES else dtype
    k, v = (randn(rng, (*batch, heads, n, width), given) for width in (d, dv))
    cache.append(k, v)
    return cache, k, v


def queries(rng, n, batch=(2,), heads=4, d=16, dtype=np.float32):
    return randn(rng, (*batch, heads, n, d), dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2)])
@pytest.mark.parametrize("n", [1, 2, 20])
def test_it_is_attention_over_what_was_appended(n, batch, dtype, rng):
    cache, k, v = filled(rng, batch=batch, dtype=dtype)
    q = queries(rng, n, batch, dtype=dtype)
    flags = {"return_lse": True, "return_weights": True}
    result = cache.attend(q, **flags)
    assert_same(result, attnfast.attention(q, k, v, is_causal=True, q_offset="end", **flags))
    check(result, q, k, v, is_causal=True, q_offset="end")
    assert cache.lengths.shape == batch and (cache.lengths == 20).all()
    assert same_bits(cache.key, k) and same_bits(cache.value, v)


@pytest.mark.usefixtures("isa")
@IN_BYTES
@pytest.mark.parametrize("given", [np.float32, np.float64, np.float16, BFLOAT16])
def test_it_stores_eight_bits(given, dtype, rng):
    """As `quantize` does, with a scale for each token and head; within the error that it states."""
    cache = KVCache(2, 2, 16, 12, capacity=32, dtype=dtype)
    k, v = 30 * randn(rng, (2, 2, 20, 16), given), randn(rng, (2, 2, 20, 12), given)
    k[0, 1, 3] = 0
    k, v = k.astype(given), v.astype(given)
    cache.append(k, v)
    assert cache.dtype == dtype and cache.nbytes == 2 * 2 * 32 * (16 + 12 + 2 * 4)
    nearest = {"int8": 0, "float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3}[dtype.name]
    least = {"int8": 0.5, "float8_e4m3fn": 2.0**-10, "float8_e5m2": 2.0**-17}[dtype.name]
    for held, x in ((cache.key, k), (cache.value, v)):
        small, scale = quantize(x, dtype.name)
        assert held.dtype == np.float32 and same_bits(held, small.astype(np.float32) * scale)
        x = x.astype(np.float64)
        assert (np.abs(held - x) <= 1.001 * np.maximum(nearest * np.abs(x), least * scale)).all()
    small = [quantize(x, dtype.name) for x in (k, v)]
    options = {"key_scale": small[0][1], "value_scale": small[1][1]}
    for n, query in ((1, np.float32), (3, np.float16), (20, BFLOAT16)):
        q = queries(rng, n, dtype=query)
        options |= {"is_causal": True, "q_offset": "end"}
        assert_same(cache.attend(q), attnfast.attention(q, small[0][0], small[1][0], **options))


@IN_BYTES
def test_numbers_that_are_not_finite_are_refused_in_eight_bits(dtype, rng):
    cache, k, v = filled(rng, dtype=dtype, grow=True)
    for name, bad in (("key", np.nan), ("value", -np.inf), ("key", 1e300)):
        before = pickle.dumps(cache)
        new = {"key": k.astype(np.float64), "value": v.astype(np.float64)}
        new[name][1, 0, 7, 3] = bad
        for call in (cache.append, lambda **a: cache.extend(queries(rng, 20), **a)):
            with pytest.raises(
                ValueError, match=rf"{name} must be finite in float32 to be stored in 8 bits"
            ):
                call(**new)
            assert pickle.dumps(cache) == before
        call(**new, lengths=[20, 7])  # it is padding
        cache.truncate(20)
    with pytest.raises(TypeError, match=r"key must be floating point.*int64.*astype"):
        cache.append(k.astype(int), v)


@IN_BYTES
@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("given", [np.float32, np.float16])
def test_long_queries_over_a_ring_of_eight_bits(given, sinks, dtype, rng):
    """By way of a copy in order, which windows beside sinks need in float32."""
    cache = KVCache(2, 2, 16, 12, capacity=9 + sinks, window=9, sinks=sinks, dtype=dtype)
    plain = KVCache(2, 2, 16, 12, capacity=9 + sinks, window=9, sinks=sinks)
    arrays = [randn(rng, (2, heads, 90, d), given) for heads, d in ((4, 16), (2, 16), (2, 12))]
    arrays[1] = -np.abs(arrays[1])
    real = [quantize(x, dtype.name) for x in arrays[1:]]
    real = [small.astype(np.float32) * scale for small, scale in real]
    out = np.zeros((2, 4, 90, 12), given)
    lengths = np.array([90, 77])
    result = cache.extend(*arrays, lengths, return_lse=True, out=out)
    expected = plain.extend(arrays[0].astype(np.float32), *real, lengths, return_lse=True)
    assert result.output is out
    close = {"rtol": 1e-5 if given == np.float32 else 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(out, expected.output, **close)
    np.testing.assert_allclose(result.lse, expected.lse, rtol=1e-5, atol=1e-5)
    before = pickle.dumps(cache)
    for bad, error in ((np.zeros((2, 4, 3, 12), given), ValueError), (out.astype("f8"), TypeError)):
        with pytest.raises(error, match="out must have"):
            cache.extend(*arrays, out=bad)
        with pytest.raises(TypeError, match="query must be float32, float16 or bfloat16"):
            cache.extend(arrays[0].astype(float), *arrays[1:])
        assert pickle.dumps(cache) == before


OPTIONS = {
    "mask": np.arange(20) % 3 > 0,
    "bias": np.linspace(-1, 1, 20, dtype=np.float32),
    "window_size": (5, 0),
    "q_lengths": np.array([3, 1]),
    "kv_starts": np.array([4, 0]),
    "scale": 0.5,
    "softcap": 3.0,
    "alibi_slopes": np.array([0.5, 0.1, 1, 2]),
    "sink_logits": np.ones(4),
    "return_lse": True,
    "return_weights": True,
    "num_threads": 2,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_attention(name, rng):
    cache, k, v = filled(rng)
    q, options = queries(rng, 3), {name: OPTIONS[name]}
    expected = attnfast.attention(q, k, v, is_causal=True, q_offset="end", **options)
    assert_same(cache.attend(q, **options), expected)
    again = KVCache(2, 2, 16, 12, capacity=20)
    again.append(k[:, :, :17], v[:, :, :17])
    if name == "q_lengths":
        options = {"lengths": OPTIONS[name]}
        expected[1] = attnfast.attention(
            *(q[1], k[1, :, :18], v[1, :, :18]), q_lengths=1, is_causal=True, q_offset="end"
        )
    found = again.extend(q, k[:, :, 17:], v[:, :, 17:], **options)
    if name == "q_lengths":
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    else:
        assert_same(found, expected)
    out = np.zeros_like(found[0] if isinstance(found, tuple) else found)
    assert cache.attend(q, out=out) is out


@pytest.mark.parametrize("name", [n for n in OPTIONS if n != "window_size"])
@pytest.mark.parametrize("n", [1, 3, 18, 70])
@pytest.mark.parametrize("extra", [0, 90])
def test_options_of_a_ring(extra, n, name, rng):
    """Beside the reference over the whole text; n = 70 goes through a copy in order."""
    window, sinks, total = 8, 2, 100
    cache = KVCache(2, 2, 16, 12, capacity=window + sinks + extra, window=window, sinks=sinks)
    k, v = randn(rng, (2, 2, total, 16)), randn(rng, (2, 2, total, 12))
    cache.append(k, v)
    q, options = queries(rng, n), {name: OPTIONS[name]}
    if n > 1 and extra == 0:
        with pytest.raises(ValueError, match=rf"query has {n} tokens.*last 1 only.*extend\("):
            cache.attend(q)
        return
    if name == "q_lengths":
        options = {"q_lengths": np.array([n, 1])}
    i, j = np.arange(total - n, total)[:, None], np.arange(total)
    visible = (j <= i) & ((j < sinks) | (j > i - window))
    counts = options.get("q_lengths", np.array([n, n]))
    if name == "q_lengths":
        i = total - counts[:, None, None] + np.arange(n)[:, None]
        visible = ((j <= i) & ((j < sinks) | (j > i - window)))[:, None]
    whole, held = dict(options), cache.positions
    for pair in ("mask", "bias"):
        if pair in options:
            numbers = OPTIONS[pair][np.arange(total) % 20]
            whole[pair] = numbers
            options[pair] = numbers[held][:, None, None]
    whole["mask"] = whole.get("mask", np.True_) & visible
    whole["q_offset"] = total - counts
    whole.pop("num_threads", None)
    result, exact = cache.attend(q, **options), reference.attention(q, k, v, **whole)
    if name.startswith("return"):
        if name == "return_weights":
            weights = np.take_along_axis(exact.weights, held[:, None, None], axis=-1)
            np.testing.assert_allclose(result.weights, weights, rtol=2e-5, atol=2e-6)
        result, exact = result.output, exact.output
    np.testing.assert_allclose(result, exact, rtol=2e-5, atol=2e-6)


def test_options_that_a_cache_knows_itself(rng):
    cache, _, v = filled(rng)
    q = queries(rng, 1)
    for name in ("is_causal", "q_offset", "kv_lengths", "dropout", "block_table"):
        with pytest.raises(TypeError, match=f"^{name} is not an argument of KVCache.attend"):
            cache.attend(q, **{name: 1})
    with pytest.raises(TypeError, match="takes 2 arguments by position"):
        cache.attend(q, None)
    ring = filled(rng, window=9)[0]
    with pytest.raises(ValueError, match=r"window_size must be left out.*window of 9.*got 5"):
        ring.attend(q, window_size=5)
    with pytest.raises(ValueError, match=r"mask has a column for each slot.*append the tokens"):
        ring.extend(*(queries(rng, 30, heads=h) for h in (4, 2)), v[:, :, :1].repeat(30, 2), mask=1)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.int8)])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("where", ["options", "out of memory", "interrupt"])
def test_a_failed_extend_leaves_the_cache_as_it_was(where, window, dtype, rng, monkeypatch):
    sinks = 2 if window else 0
    cache, k, v = filled(rng, window=window, capacity=21, sinks=sinks, dtype=dtype)
    cache.append(k, v, lengths=[1, 0])
    if window:
        cache.append(k, v)
    before = pickle.dumps(cache)
    kinds = {"options": ValueError, "out of memory": MemoryError, "interrupt": KeyboardInterrupt}
    error = kinds[where]
    if error is not ValueError:

        def fails(*arguments):
            raise error

        monkeypatch.setattr(attnfast.cache._core, "attention", fails)
        monkeypatch.setattr(attnfast.cache._core, "local_attention", fails)
    for n in (1, 3, 16) if window else (0, 0):
        options = {"scale": np.nan} if error is ValueError else {}
        arrays = queries(rng, n), k[:, :, :n], v[:, :, :n]
        with pytest.raises(error):
            cache.extend(*arrays, **options)
        assert pickle.dumps(cache) == before


def test_a_full_cache_refuses_and_one_that_grows_does_not(rng):
    cache, k, v = filled(rng, capacity=25)
    before = pickle.dumps(cache)
    for call in (cache.append, lambda *a: cache.extend(queries(rng, 6), *a)):
        with pytest.raises(ValueError, match=r"would have 26, the capacity is 25.*grow=True"):
            call(k[:, :, :6], v[:, :, :6])
        assert pickle.dumps(cache) == before
    cache.append(k, v, lengths=[5, 2])
    with pytest.raises(ValueError, match="would have 26"):
        cache.append(k[:, :, :1], v[:, :, :1])
    assert cache.lengths.tolist() == [25, 22]
    growing, _, _ = filled(rng, capacity=0, grow=True)
    assert growing.capacity == 20
    growing.append(k[:, :, :1], v[:, :, :1])
    assert growing.capacity == 40 and growing.lengths.tolist() == [21, 21]
    assert same_bits(growing.key[:, :, 20:], k[:, :, :1])


def test_memory_does_not_grow_with_the_text(rng):
    cache, k, v = filled(rng, window=9, sinks=2, capacity=11)
    size = cache.nbytes
    assert size == 2 * 2 * 11 * (16 + 12) * 4
    for _ in range(10):
        cache.append(k, v)
    assert cache.nbytes == size and cache.key.shape[-2] == 11
    assert (cache.lengths == 220).all()
    assert sorted(cache.positions[0]) == [0, 1, *range(211, 220)]


def test_own_keys_may_be_appended_again(rng):
    cache, k, v = filled(rng, window=12, capacity=20)
    cache.append(cache.key[:, :, 3:9], cache.value[:, :, 3:9])
    expected, _, _ = filled(rng, window=12, capacity=20)
    expected.clear()
    expected.append(k, v)
    expected.append(k[:, :, 3:9], v[:, :, 3:9])
    assert same_bits(cache.key, expected.key) and same_bits(cache.value, expected.value)


def test_beams(rng):
    cache, k, _ = filled(rng, batch=(2,))
    cache.repeat(3)
    assert cache.batch_shape == (6,) and same_bits(cache.key, np.repeat(k, 3, axis=0))
    new = randn(rng, (6, 2, 1, 16)), randn(rng, (6, 2, 1, 12))
    cache.append(*new)
    rows = [4, 0, 0, 5, 2, 5]
    whole = np.concatenate([np.repeat(k, 3, axis=0), new[0]], axis=2)
    cache.reorder(rows)
    assert same_bits(cache.key, whole[rows])
    cache.reorder([1, 3])
    assert cache.batch_shape == (2,) and same_bits(cache.key, whole[[0, 5]])
    assert cache.capacity == 32
    two = KVCache((2, 3), 2, 16, capacity=4)
    two.repeat(2)
    assert two.batch_shape == (4, 3)
    one = KVCache((), 2, 16, capacity=4)
    for call in (lambda: one.repeat(2), lambda: one.reorder([0]), lambda: one.clear([0])):
        with pytest.raises(ValueError, match="no batch axes: make it with batch_shape=1"):
            call()
    one.clear()


@STORED
@pytest.mark.parametrize("window", [None, 9])
def test_copies_and_files(window, dtype, rng, tmp_path):
    cache, k, v = filled(rng, window=window, dtype=dtype, capacity=24, sinks=1 if window else 0)
    cache.append(k, v, lengths=[3, 1])
    q = queries(rng, 1, dtype=k.dtype)
    cache.save(tmp_path / "cache.npz")
    memory = io.BytesIO()
    cache.save(memory)
    memory.seek(0)
    others = [
        KVCache.load(tmp_path / "cache.npz"),
        KVCache.load(memory),
        copy.copy(cache),
        copy.deepcopy(cache),
        pickle.loads(pickle.dumps(cache)),
    ]
    expected = cache.attend(q)
    for other in others:
        assert repr(other) == repr(cache) and other.dtype == dtype
        assert other.lengths.tolist() == cache.lengths.tolist()
        assert same_bits(other.positions, cache.positions)
        assert same_bits(other.attend(q), expected)
        other.append(k[:, :, :1], v[:, :, :1])
    assert same_bits(cache.attend(q), expected)
    used = cache.key[..., 0].size * (28 * cache.dtype.itemsize + (8 if dtype in BYTES else 0))
    assert len(pickle.dumps(cache)) < used + 2000


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BYTES[1]])
def test_files_that_are_none(dtype, rng, tmp_path):
    cache, _, _ = filled(rng, dtype=dtype)
    path = tmp_path / "cache.npz"
    for text in (b"", b"text", b"PK\x03\x04 no archive"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"file must be written by KVCache\.save"):
            KVCache.load(path)
    with pytest.raises(OSError, match="no such"):
        KVCache.load(tmp_path / "no such file")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match="file must be written"):
        KVCache.load(tmp_path / "a.npy")
    cache.save(path)
    with np.load(path) as arrays:
        right = dict(arrays)
    broken = {
        "format": 2,
        "dtype": "int16",
        "lengths": np.array([20, 33]),
        "key": right["key"][:, :, :5],
        "capacity": 3,
        "batch_shape": np.array([4]),
        "value": right["value"].astype(np.int64),
    }
    if dtype in BYTES:
        broken["key_scale"] = right["key_scale"][..., :5, :]
    scalars = ("format", "num_kv_heads", "capacity", "window", "sinks", "grow")
    several = {name: np.array([right[name]] * 2) for name in scalars}
    broken_too = [*several.items(), ("window", 1.5), ("batch_shape", 2), ("dims", 8)]
    for name, x in [*broken.items(), *broken_too]:
        np.savez(path, **{**right, name: x})
        with pytest.raises(ValueError, match="file must"):
            KVCache.load(path)
        np.savez(path, **{n: x for n, x in right.items() if n != name})
        with pytest.raises(ValueError, match="file must"):
            KVCache.load(path)


def test_what_it_says_of_itself(rng):
    cache, _, _ = filled(rng)
    assert repr(cache) == (
        "KVCache((2,), 2, 16, 12, capacity=32, dtype='float32'): up to 20 tokens"
    )
    ring = KVCache(1, 1, 8, capacity=5, window=4, sinks=1, dtype=BFLOAT16)
    assert repr(ring) == (
        "KVCache((1,), 1, 8, 8, capacity=5, dtype='bfloat16', window=4, sinks=1): up to 0 tokens"
    )
    assert (ring.batch_shape, ring.num_kv_heads, ring.head_dim, ring.value_head_dim) == (
        ((1,), 1, 8, 8)
    )
    assert (ring.capacity, ring.window, ring.sinks, ring.dtype) == (5, 4, 1, BFLOAT16)
    assert KVCache(1, 1, 8, capacity=5, dtype="bfloat16").dtype == BFLOAT16
    with pytest.raises(ValueError, match="read-only"):
        cache.lengths[0] = 3


def test_empty_caches_and_batches(rng):
    cache = KVCache(2, 2, 16, capacity=0)
    assert (cache.attend(queries(rng, 3)) == 0).all()
    cache.append(np.zeros((2, 2, 0, 16), np.float32), np.zeros((2, 2, 0, 16), np.float32))
    none = KVCache(0, 2, 16, capacity=4)
    none.append(*(np.zeros((0, 2, 3, 16), np.float32),) * 2)
    assert none.attend(np.zeros((0, 4, 1, 16), np.float32)).shape == (0, 4, 1, 16)
    none.reorder([])
    ring = KVCache(2, 2, 16, capacity=5, window=4)
    assert (ring.attend(queries(rng, 1)) == 0).all()
    assert (ring.attend(queries(rng, 3)) == 0).all()


@pytest.mark.parametrize("window", [None, 4])
def test_one_text_with_lengths(window, rng):
    """Without batch axes a length is a number."""
    cache = KVCache((), 2, 16, capacity=9, window=window)
    k = randn(rng, (2, 3, 16))
    for n, lengths in [(1, 1), (1, np.array(0)), (3, 2), (1, None), (1, np.int8(1))]:
        cache.append(k[:, :n], k[:, :n], lengths)
    assert cache.lengths == 5 and same_bits(cache.key, k[:, [0, 0, 1, 0, 0]])
    cache.truncate(4)
    assert cache.extend(queries(rng, 1, ()), k[:, :1], k[:, :1], 0).shape == (4, 1, 16)
    assert cache.lengths == 4


def test_truncating_a_ring(rng):
    cache, k, v = filled(rng, n=0, window=4, sinks=2, capacity=9)
    k, v = randn(rng, (2, 2, 20, 16)), randn(rng, (2, 2, 20, 12))
    cache.append(k, v)
    with pytest.raises(ValueError, match=r"lengths must leave a window of 4.*17 or more, got 16"):
        cache.truncate([18, 16])
    cache.truncate(17)
    assert sorted(cache.positions[0]) == [-1, -1, -1, 0, 1, 13, 14, 15, 16]
    cache.truncate([17, 2])
    cache.append(k[:, :, :1], v[:, :, :1])
    assert cache.positions[1].tolist() == [0, 1, 2, -1, -1, -1, -1, -1, -1]
    assert cache.lengths.tolist() == [18, 3]


def test_queries_before_the_first_token_see_nothing(rng):
    cache = KVCache(1, 2, 8, capacity=9)
    cache.append(*(randn(rng, (1, 2, 2, 8)) for _ in range(2)))
    query = randn(rng, (1, 2, 5, 8))
    output = cache.attend(query)
    assert not output[:, :, :3].any() and output[:, :, 3:].any(axis=-1).all()
    assert_same(output[:, :, 3:], cache.attend(query[:, :, 3:]))

"""KVCache and memory: arguments that share it with the cache, and none left."""

import pickle

import numpy as np
import pytest

from attnfast import KVCache
from support.arrays import randn, same_bits

pytestmark = pytest.mark.quick


def filled(rng, n=6, **options):
    cache = KVCache(2, 2, 8, **{"capacity": 6, **options})
    cache.append(randn(rng, (2, 2, n, 8)), randn(rng, (2, 2, n, 8)))
    return cache


def test_lengths_stay_what_they_were(rng):
    cache, new = filled(rng, n=3), randn(rng, (2, 2, 1, 8))
    before = cache.lengths
    cache.append(new, new, [1, 0])
    assert cache.lengths.tolist() == [4, 3] and before.tolist() == [3, 3]
    other = pickle.loads(pickle.dumps(cache))
    expected = other.extend(new, new, new, kv_starts=[4, 3])
    assert same_bits(cache.extend(new, new, new, kv_starts=cache.lengths), expected)


@pytest.mark.parametrize("n", [1, 3])
def test_a_query_in_the_memory_of_the_cache(n, rng):
    """New tokens replace slots of a ring, of which one may be the query."""
    cache = filled(rng, window=5)
    other = pickle.loads(pickle.dumps(cache))
    new = randn(rng, (2, 2, n, 8))
    expected = other.extend(cache.key[:, :, :n].copy(), new, new)
    assert same_bits(cache.extend(cache.key[:, :, :n], new, new), expected)


def test_own_keys_by_way_of_another_array(rng):
    """A view that does not say whose it is."""
    cache = filled(rng, n=9, window=6)
    other = pickle.loads(pickle.dumps(cache))
    own = np.lib.stride_tricks.as_strided(cache.key)
    copied = own.copy()
    cache.append(own, own)
    other.append(copied, copied)
    assert same_bits(cache.key, other.key) and same_bits(cache.value, other.value)


@pytest.mark.parametrize("options", [{}, {"window": 5}], ids=str)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_out_may_be_what_is_appended(which, options, rng):
    cache = filled(rng, n=0, capacity=20, **options)
    for n in (4, 19 if options else 7):
        arrays = [randn(rng, (2, 2, n, 8)) for _ in range(3)]
        other = pickle.loads(pickle.dumps(cache))
        expected = other.extend(*(a.copy() for a in arrays))
        assert cache.extend(*arrays, out=arrays[which]) is arrays[which]
        assert same_bits(arrays[which], expected)
        assert pickle.dumps(cache) == pickle.dumps(other)


def test_no_memory_to_grow(rng):
    cache = filled(rng, grow=True)
    before, new = pickle.dumps(cache), randn(rng, (2, 2, 1, 8))
    many = np.broadcast_to(np.float32(0), (2, 2, 2**48, 8))
    for call in (lambda: cache.append(many, many), lambda: cache.extend(many, many, many)):
        with pytest.raises(MemoryError):
            call()
        assert pickle.dumps(cache) == before
    with pytest.raises(ValueError, match=r"^scale must be finite"):
        cache.extend(new, new, new, scale=np.nan)
    assert pickle.dumps(cache) == before
    cache.append(new, new)
    assert cache.lengths.tolist() == [7, 7] and same_bits(cache.key[:, :, 6:], new)


def test_no_memory_for_more_rows(rng):
    cache = filled(rng)
    before = pickle.dumps(cache)
    for n in (2**44, 2**62, 2**80):
        with pytest.raises(MemoryError):
            cache.repeat(n)
        assert pickle.dumps(cache) == before
    cache.repeat(2)
    assert cache.batch_shape == (4,)


def test_no_memory_for_the_capacity():
    for capacity in (2**48, 2**62, 2**80):
        with pytest.raises(MemoryError):
            KVCache(1, 1, 8, capacity=capacity)

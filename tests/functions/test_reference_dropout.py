"""Which weights the reference drops: how many, independently of each other, and by place alone."""

import math

import numpy as np
import pytest

from attnfast import reference
from attnfast.reference.dropout import dropout_factor, dropout_words
from support.arrays import qkv

pytestmark = pytest.mark.quick

ROWS = np.arange(256)[:, None]
KEYS = np.arange(2048)
WORDS = ["0x1fee6ff6", "0x768592e7", "0xa4ead47c"]
FIRST_WORDS = ["0x21abdbb6", "0x5a0533bb", "0x3d0b3d3d"]


def chi_square(words, bits):
    """Of the upper bits of words, as a number of standard deviations from what chance gives."""
    counts = np.bincount((words.ravel() >> np.uint32(32 - bits)).astype(int), minlength=2**bits)
    mean, freedom = words.size / 2**bits, 2**bits - 1
    return (((counts - mean) ** 2 / mean).sum() - freedom) / math.sqrt(2 * freedom)


def pairs(a, b):
    """Words whose upper byte holds the upper halves of bytes of two others."""
    high = np.uint32(0xF0000000)
    return (a & high) | ((b & high) >> np.uint32(4))


@pytest.mark.parametrize("bits", [1, 4, 8, 12])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_words_are_uniform(bits, seed):
    assert abs(chi_square(dropout_words(seed, 0, 0, ROWS, KEYS), bits)) < 4
    assert abs(chi_square(dropout_words(seed, ROWS, 3, 0, KEYS), bits)) < 4
    assert abs(chi_square(dropout_words(seed, 3, ROWS, 5, KEYS + 2**20), bits)) < 4


@pytest.mark.parametrize("seed", [0, 12345])
def test_each_row_is_uniform(seed):
    """Over many keys of one query, for the worst of 64 queries."""
    keys = np.arange(2**15)
    assert max(abs(chi_square(dropout_words(seed, 0, 0, i, keys), 6)) for i in range(64)) < 4.5


def test_neighbours_are_independent():
    words = dropout_words(7, 0, 0, ROWS, KEYS)
    for distance in (1, 2, 3, 7, 64, 144, 987, 1024):
        joined = pairs(words[:, :-distance], words[:, distance:])
        assert abs(chi_square(joined, 8)) < 4, ("keys", distance)
    for distance in (1, 2, 3, 64):
        joined = pairs(words[:-distance], words[distance:])
        assert abs(chi_square(joined, 8)) < 4, ("queries", distance)
        shifted = pairs(words[:-distance, :-distance], words[distance:, distance:])
        assert abs(chi_square(shifted, 8)) < 4, ("diagonals", distance)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((0, 0, 0), (1, 0, 0)),
        ((0, 1, 0), (0, 0, 1)),
        ((0, 0, 0), (0, 1, 0)),
        ((0, 0, 0), (0, 0, 1)),
        ((5, 0, 1), (6, 0, 0)),
        ((5, 1, 0), (4, 2, 0)),
        ((2**63, 0, 0), (0, 0, 0)),
    ],
    ids=str,
)
def test_seeds_rows_and_heads_are_independent(a, b):
    """Also where their sums are equal."""
    words = [dropout_words(seed, row, head, ROWS, KEYS) for seed, row, head in (a, b)]
    assert abs(chi_square(pairs(*words), 8)) < 4


def walsh(x):
    """The Walsh-Hadamard transform of 4,096 numbers along the last axis."""
    matrix = np.ones((1, 1), x.dtype)
    for _ in range(6):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix @ x.reshape(*x.shape[:-1], 64, 64) @ matrix).reshape(x.shape)


def test_keys_at_every_distance_are_independent():
    """The upper bits of keys j and j ^ d, for every d, agree as often as they differ."""
    keys, queries = 4096, 4096
    power = np.zeros(keys)
    for i in range(0, queries, 256):
        words = dropout_words(1, 0, 0, i + ROWS, np.arange(keys))
        power += (walsh(np.where(words >> np.uint32(31), np.float32(1), np.float32(-1))) ** 2).sum(
            axis=0
        )
    surplus = walsh(power)[1:] / keys / 2  # of agreements, over all pairs
    assert np.abs(surplus).max() / math.sqrt(queries * keys / 2) < 5.5


def test_queries_do_not_share_words():
    """No two queries have the same words in another order: as many are equal as chance has it."""
    rows = np.arange(8192)[:, None]
    words = dropout_words(0, 0, 0, rows, np.arange(512)).ravel()
    words = np.sort(words)
    equal = (words[1:] == words[:-1]).sum()
    expected = words.size - 2**32 * -math.expm1(-words.size / 2**32)
    assert abs(equal - expected) < 5 * math.sqrt(expected)


def test_words_do_not_change():
    """They are part of what a seed means."""
    assert [hex(w) for w in dropout_words(1, 2, 3, 4, np.arange(5, 8))] == WORDS
    assert [hex(w) for w in dropout_words(0, 0, 0, 0, np.arange(3))] == FIRST_WORDS


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.999])
def test_as_many_are_dropped_as_were_asked_for(dropout):
    factor = np.broadcast_to(dropout_factor((2, 3, 64, 512), dropout, 3, 0), (2, 3, 64, 512))
    assert set(np.unique(factor)) <= {0, 1 / (1 - dropout)}
    deviation = math.sqrt(dropout * (1 - dropout) * factor.size)
    assert abs((factor == 0).sum() - dropout * factor.size) <= 4 * deviation


def test_a_weight_is_dropped_by_its_place_alone():
    whole = dropout_factor((2, 2, 4, 6, 9), 0.4, 3, 0)
    np.testing.assert_array_equal(
        whole[:, :, :3, :5, :7], dropout_factor((2, 2, 3, 5, 7), 0.4, 3, 0)
    )
    np.testing.assert_array_equal(whole[1], dropout_factor((2, 4, 6, 9), 0.4, 3, 2))
    assert (whole != dropout_factor((2, 2, 4, 6, 9), 0.4, 4, 0)).any()


def test_lse_and_weights_are_those_before(rng):
    q, k, v = qkv(rng, 6, 9, dtype=np.float64)
    flags = {"return_lse": True, "return_weights": True}
    dropped = reference.attention(q, k, v, dropout=0.5, dropout_seed=1, **flags)
    plain = reference.attention(q, k, v, **flags)
    np.testing.assert_array_equal(dropped.lse, plain.lse)
    np.testing.assert_array_equal(dropped.weights, plain.weights)
    factor = dropout_factor((2, 2, 6, 9), 0.5, 1, 0)
    np.testing.assert_allclose(dropped.output, (plain.weights * factor) @ v, rtol=1e-14)


def test_a_packed_sequence_is_a_batch_row(rng):
    q, k, v = qkv(rng, 4, 4, batch=(3,), dtype=np.float64)
    packed = (np.concatenate(a.swapaxes(1, 2)) for a in (q, k, v))
    options = {"dropout": 0.5, "dropout_seed": 9}
    output = reference.attention_varlen(*packed, [0, 4, 8, 12], [0, 4, 8, 12], **options)
    rows = reference.attention(q, k, v, **options)
    np.testing.assert_array_equal(output, np.concatenate(rows.swapaxes(1, 2)))

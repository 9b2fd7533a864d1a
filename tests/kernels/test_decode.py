"""Decoding: few queries over many keys, keys split over tasks, grouped heads read once."""

import itertools
from typing import Any

import numpy as np
import pytest

import attnfast
from attnfast import AttentionResult
from support.arrays import DTYPE_IDS, DTYPES, assert_same, qkv, randn, same_bits
from support.criterion import Criterion, check

EVERYTHING = {"return_lse": True, "return_weights": True}
# (query heads, key heads): one head, plain, grouped, multi-query.
HEADS = pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (8, 2), (6, 1), (32, 1)])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


@EACH_DTYPE
@HEADS
@pytest.mark.parametrize("lq", [1, 2, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True, "q_offset": "end", "kv_lengths": [300, 141]},
        {"is_causal": True, "q_offset": "end", "kv_starts": [290, 7]},
    ],
    ids=str,
)
def test_against_the_reference(options, lq, heads, kv_heads, dtype, rng, each_isa):
    q, k, v = qkv(rng, lq, 300, 64, 48, heads=heads, kv_heads=kv_heads, dtype=dtype)
    criterion = Criterion(q, k, v, **options)
    each_isa(lambda: criterion.check(attnfast.attention(q, k, v, **EVERYTHING, **options)))


@pytest.mark.quick
@EACH_DTYPE
@pytest.mark.parametrize("d", [1, 31, 32, 64, 80, 128, 256])
def test_any_number_of_rows_and_any_layout(d, dtype, rng, each_isa):
    """Up to 9 query rows share a key; rows of keys lie one after the other, or apart."""
    for rows in range(1, 10):
        q, k, v = qkv(rng, 1, 70, d, d + rows % 3, heads=rows, kv_heads=1, batch=(1,), dtype=dtype)
        criterion = Criterion(q, k, v)
        apart = [np.repeat(a, 3, axis=-2)[..., ::3, :] for a in (k, v)]

        def decode(q=q, k=k, v=v, apart=apart, criterion=criterion) -> None:
            result = attnfast.attention(q, k, v)
            criterion.check(result)
            assert same_bits(result, attnfast.attention(q, *apart))

        each_isa(decode)


@pytest.mark.usefixtures("isa")
def test_one_query_over_many_keys_is_shared_by_all_threads():
    q, k = np.zeros((1, 1, 1, 128), np.float32), np.zeros((1, 1, 16384, 128), np.float32)
    plan = attnfast.plan(q, k, k, num_threads=2)
    assert plan.kernel == "decode" and plan.threads == 2 and plan.tasks >= 4


@pytest.mark.parametrize("d", [37, 128])  # no multiple of any vector, and of all
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": np.arange(16384) % 7 > 0},
        {"bias": np.sin(np.arange(16384, dtype=np.float32))},
        {"window_size": (9000, -1), "q_offset": 16383},
        {"is_causal": True, "q_offset": 12345},
        {"alibi_slopes": [0.001, 0.0], "q_offset": "end"},
        {"softcap": 3.0, "sink_logits": [2.0, -1.0]},
        {"kv_lengths": 5},
        {"mask": np.arange(16384) > 16000},
        {"mask": np.arange(16384) < 3},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_split_keys(options, d, rng, each_isa):
    """Some splits hold nothing visible, some a part, some all."""
    q, k, v = qkv(rng, 1, 16384, d, batch=(1,))
    assert attnfast.plan(q, k, v).tasks > 2
    criterion = Criterion(q, k, v, **options)

    def decode() -> None:
        first = attnfast.attention(q, k, v, return_lse=True, num_threads=1, **options)
        criterion.check(first)
        for n in (2, 3, 8):
            again = attnfast.attention(q, k, v, return_lse=True, num_threads=n, **options)
            assert same_bits(first.output, again.output) and same_bits(first.lse, again.lse)

    each_isa(decode)


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lk", [1023, 1024, 1025, 2047, 2048, 2049, 4097])
def test_lengths_around_the_splits(lk, rng):
    for d in (64, 256):
        q, k, v = qkv(rng, 1, lk, d, heads=1, batch=())
        check(attnfast.attention(q, k, v, return_lse=True), q, k, v)


@EACH_DTYPE
@HEADS
def test_row_by_row_equals_prefill(heads, kv_heads, dtype, rng, each_isa):
    """Each token decoded in turn, over the keys so far, gives its row of the causal result."""
    length = 40
    q, k, v = qkv(rng, length, length, 32, heads=heads, kv_heads=kv_heads, batch=(1,), dtype=dtype)
    criterion = Criterion(q, k, v, is_causal=True)

    def row_by_row() -> None:
        criterion.check(attnfast.attention(q, k, v, is_causal=True, return_lse=True))
        options = {"is_causal": True, "q_offset": "end", "return_lse": True}
        rows = [
            attnfast.attention(q[:, :, i : i + 1], k, v, kv_lengths=i + 1, **options)
            for i in range(length)
        ]
        output = np.concatenate([row.output for row in rows], axis=2)
        lse = np.concatenate([row.lse for row in rows], axis=2)
        criterion.check(AttentionResult(output, lse, None))

    each_isa(row_by_row)


@HEADS
def test_chunks_of_a_prompt_equal_prefill(heads, kv_heads, rng, each_isa):
    q, k, v = qkv(rng, 150, 150, 16, heads=heads, kv_heads=kv_heads, batch=(1,))
    criterion = Criterion(q, k, v, is_causal=True)

    def in_chunks() -> None:
        for size in (1, 4, 37, 128):
            chunks = [
                attnfast.attention(q[:, :, i : i + size], k, v, is_causal=True, q_offset=i)
                for i in range(0, 150, size)
            ]
            criterion.check(np.concatenate(chunks, axis=2))

    each_isa(in_chunks)


@pytest.mark.usefixtures("isa")
def test_a_cache_longer_than_its_contents(rng):
    """The usual cache: one allocation, filled up to a length per row, garbage behind it."""
    q, k, v = qkv(rng, 1, 5000, 64, heads=8, kv_heads=2, batch=(3,))
    lengths = np.array([1, 2000, 4999])
    behind = np.arange(5000) >= lengths[:, None]
    expected = attnfast.attention(q, k, v, kv_lengths=lengths, **EVERYTHING)
    check(expected, q, k, v, kv_lengths=lengths)
    for a in (k, v):
        np.copyto(a, np.nan, where=behind[:, None, :, None])
    result = attnfast.attention(q, k, v, kv_lengths=lengths, **EVERYTHING)
    for a, b in zip(expected, result, strict=True):
        assert same_bits(a, b)


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("position", [0, 100, 5000, 9999])
def test_one_key_that_outweighs_all(position, rng):
    """Its place in the splits must not matter."""
    q, k, v = qkv(rng, 1, 10000, 64, heads=1, batch=(1,))
    k[..., position, :] = 30 * q[..., 0, :]
    output, lse, weights = attnfast.attention(q, k, v, **EVERYTHING)
    np.testing.assert_allclose(output[..., 0, :], v[..., position, :], rtol=1e-6)
    assert weights[0, 0, 0].argmax() == position
    assert lse[0, 0, 0] > 100


@pytest.fixture
def requests():
    """Chooses whether decoding requests lines ahead; as the CPU wants it, after the test."""
    yield attnfast._core.request_lines
    attnfast._core.request_lines(None)


@pytest.mark.usefixtures("isa")
@EACH_DTYPE
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8])
def test_requests_for_lines_change_no_bit(dtype, group, requests, rng):
    """Nor do heads that take turns: where their rows are mixed and lines are requested."""
    for d, dv in [(64, 64), (128, 128), (80, 40), (17, 300)]:
        q = randn(rng, (9, 4 * group, 1, d), dtype)
        k, v = (randn(rng, (9, 301, 4, n), dtype).swapaxes(1, 2) for n in (d, dv))
        options = {"kv_lengths": rng.integers(200, 302, 9), "window_size": (250, 0)}
        options |= {"q_offset": "end", "return_lse": True}
        requests(False)
        expected = attnfast.attention(q, k.copy(), v.copy(), **options)
        alone = attnfast.plan(attnfast.attention, q, k, v, **options)
        for choice, key, value in itertools.product((False, True), (k, k.copy()), (v, v.copy())):
            requests(choice)
            assert_same(attnfast.attention(q, key, value, **options), expected)
        requests(True)
        in_turn = attnfast.plan(attnfast.attention, q, k, v, **options)
        assert in_turn.tasks < alone.tasks or alone.kernel != "decode", "no heads took turns"


# What batch rows share; and what differs between them, or stands for each of them or their heads.
ALIKE: list[dict[str, Any]] = [
    {},
    {"mask": np.arange(301) % 7 > 0},
    {"bias": np.sin(np.arange(301, dtype=np.float32)), "softcap": 2.0},
    {
        "window_size": (250, 0),
        "q_offset": "end",
        "kv_lengths": np.full(18, 299),
        "kv_starts": np.full(18, 3),
    },
]
APART: list[dict[str, Any]] = [
    {"kv_lengths": np.arange(150, 168)},
    {"kv_starts": np.arange(0, 180, 10)},
    {"q_offset": np.arange(280, 298), "window_size": (250, 0)},
    {"mask": np.arange(18 * 301).reshape(18, 1, 1, 301) % 13 > 0},
    {"mask": np.arange(4 * 301).reshape(1, 4, 1, 301) % 13 > 0},
    {"bias": np.sin(np.arange(4 * 301, dtype=np.float32)).reshape(1, 4, 1, 301)},
    {"alibi_slopes": [0.5, 0.25, 0.125, 0.0], "q_offset": "end"},
    {"sink_logits": [1.0, 2.0, -1.0, 0.0]},
    {"dropout": 0.5, "dropout_seed": 3},
    {"return_weights": True},
]


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("options", ALIKE + APART, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_batch_rows_side_by_side_take_turns(kv_heads, options, requests, rng):
    """(L, B, H, D): heads of several batch rows take turns if nothing else differs; no bit does."""
    requests(True)
    alike = any(options is one for one in ALIKE)
    for d, dv, lq in [(64, 64, 1), (40, 24, 1), (17, 130, 2)]:
        q = randn(rng, (lq, 18, 4, d)).transpose(1, 2, 0, 3)
        k, v = (randn(rng, (301, 18, kv_heads, n)).transpose(1, 2, 0, 3) for n in (d, dv))
        expected = attnfast.attention(q.copy(), k.copy(), v.copy(), return_lse=True, **options)
        assert_same(attnfast.attention(q, k, v, return_lse=True, **options), expected)
        plan = attnfast.plan(q, k, v, return_lse=True, num_threads=1, **options)
        assert (plan.tasks < 18) == (alike and plan.kernel == "decode")


@pytest.mark.usefixtures("isa")
@EACH_DTYPE
@pytest.mark.parametrize("group", [1, 2, 5])
def test_rows_without_elements_have_no_lines_to_request(dtype, group, requests, rng):
    """Rows that lie apart, of keys or of values."""
    requests(True)
    for d, dv in [(0, 24), (24, 0)]:
        q = randn(rng, (1, group, 1, d), dtype)
        k, v = (randn(rng, (1, 1, 300, 32), dtype)[..., :n] for n in (d, dv))
        expected = attnfast.attention(q, k.copy(), v.copy(), return_lse=True)
        assert_same(attnfast.attention(q, k, v, return_lse=True), expected)

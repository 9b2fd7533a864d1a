"""block_table: keys and values in pages give what they give side by side."""

import mmap

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
    reference,
)
from support.arrays import DTYPE_IDS, DTYPES, assert_same, qkv, randn
from support.criterion import Criterion, check
from support.fences import PAGE, fence, fenced, libc
from support.key_criteria import Importance, check_topk
from support.layouts import paired
from support.paged_call import NOWHERE, in_pages

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]

FLAGS = {"return_lse": True, "return_weights": True}


@pytest.mark.parametrize("size", [1, 3, 16, 400])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_as_side_by_side(dtype, size, rng):
    """Few queries have the very bits; the rows of more meet keys in blocks of another size."""
    length = size * (400 // size)
    for lq, d in paired([1, 2, 7, 40], [8, 33, 64, 128, 130], times=1):
        q, k, v = qkv(rng, lq, length, d, 48, heads=2, kv_heads=1, dtype=dtype)
        options = {"kv_lengths": [length, length // 3], "is_causal": True, "q_offset": "end"}
        (keys, values), table = in_pages(rng, (k, v), size, options)
        result = attention(q, keys, values, block_table=table, **options, **FLAGS)
        if lq <= 2:
            assert_same(result, attention(q, k, v, **options, **FLAGS))
        check(result, q, k, v, **options)


OF_KEYS = {
    "scores": lambda *a, **o: attention_weights(*a, stage="scores", **o),
    "capped": lambda *a, **o: attention_weights(*a, stage="capped", **o),
    "biased": lambda *a, **o: attention_weights(*a, stage="biased", **o),
    "weights": attention_weights,
    "top": lambda *a, **o: attention_topk(*a, 9, **o),
    "top of rows": lambda q, k, **o: attention_topk(q, k, min(80, 4 * k.shape[2]), **o),
    "importance": key_importance,
}


@pytest.mark.parametrize("size", [1, 3, 16, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_functions_of_keys(dtype, size, rng):
    for lq, d in paired([1, 2, 7, 40], [8, 33, 64, 130], times=1):
        q, k, _ = qkv(rng, lq, size * (300 // size), d, 1, heads=4, kv_heads=2, dtype=dtype)
        options = {"kv_lengths": [k.shape[2], 120], "kv_starts": [0, 20], "sink_logits": [1.0] * 4}
        options |= {"is_causal": True, "q_offset": "end"}
        (pool,), table = in_pages(rng, (k,), size, options)
        criterion = Criterion(q, k, k[..., :1], **options)
        named = {"block_table": table, **options}
        criterion.check_weights(attention_weights(q, pool, **named))
        criterion.check_biased(attention_weights(q, pool, stage="biased", **named))
        for n in (9, 80):
            check_topk(attention_topk(q, pool, n, **named), criterion, n)
        importance = Importance(q, k, **options)
        for per_kv_head in (False, True):
            result = key_importance(q, pool, per_kv_head=per_kv_head, **named)
            importance.check(result, per_kv_head)


@pytest.mark.parametrize("lq", [1, 2, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_scores_of_keys_that_exist(dtype, lq, rng):
    """Of every pair, but for keys that no length reaches."""
    q, k, _ = qkv(rng, lq, 240, 32, heads=4, kv_heads=2, dtype=dtype)
    lengths, starts = np.array([240, 75]), np.array([9, 50])
    options = {"kv_lengths": lengths, "kv_starts": starts, "softcap": 2.0}
    (pool,), table = in_pages(rng, (k,), 16, options)
    j = np.arange(240)
    exists = ((starts[:, None] <= j) & (j < lengths[:, None]))[:, None, None]
    for stage in ("scores", "capped"):
        found = attention_weights(q, pool, block_table=table, stage=stage, **options)
        plain = attention_weights(q, k, stage=stage, **options)
        tolerance = 1e-5 if np.dtype(dtype).itemsize > 2 else 2e-2
        expected = np.where(exists, plain.astype(float), -np.inf)
        np.testing.assert_allclose(found.astype(float), expected, rtol=tolerance, atol=tolerance)
        exact = reference.attention_weights(q, pool, block_table=table, stage=stage, **options)
        np.testing.assert_array_equal(exact == -np.inf, expected == -np.inf)


@pytest.mark.parametrize("counts", [[1, 1, 1], [5, 0, 40]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_packed_sequences(dtype, counts, rng):
    """They have the bits of batch rows of the same lengths."""
    lengths, table = np.array([33, 0, 48]), np.array([[4, 0, 3], [-1, 2**40, -5], [3, 2, 4]])
    q, pool, values = (
        randn(rng, s, dtype) for s in [(3, 4, 40, 32), (5, 2, 16, 32), (5, 2, 16, 7)]
    )
    cu_q, cu_k = (np.cumsum([0, *n]) for n in (counts, lengths))
    rows = np.concatenate([row[:, :n].swapaxes(0, 1) for row, n in zip(q, counts, strict=True)])
    for options in (
        {},
        {"is_causal": True, "q_offset": "end"},
        {"window_size": 9, "q_offset": 12, "softcap": 3.0, "sink_logits": [1.0, 0.0, 2.0, 1.0]},
    ):
        named = {"return_lse": True, **options}
        packed = attention_varlen(rows, pool, values, cu_q, cu_k, block_table=table, **named)
        for s, n in enumerate(counts):
            own = {"block_table": table[s], "kv_lengths": lengths[s], **named}
            alone = attention(q[s, :, :n], pool, values, **own)
            part = packed.output[cu_q[s] : cu_q[s + 1]], packed.lse[cu_q[s] : cu_q[s + 1]]
            assert_same(part, (alone.output.swapaxes(0, 1), alone.lse.T))
        exact = reference.attention_varlen(
            rows, pool, values, cu_q, cu_k, block_table=table, **options
        )
        tolerance = 1e-5 if np.dtype(dtype).itemsize > 2 else 2e-2
        np.testing.assert_allclose(packed.output.astype(float), exact, rtol=1, atol=tolerance)


def test_packed_sequences_without_keys(rng):
    q, pool = randn(rng, (4, 2, 8)), np.zeros((0, 2, 4, 8), np.float32)
    for table in (np.zeros((2, 0), int), [[-1, 7], [3, 3]]):
        options = {"block_table": table, "return_lse": True}
        output, lse, _ = attention_varlen(q, pool, pool, [0, 1, 4], [0, 0, 0], **options)
        assert not output.any() and np.isneginf(lse).all()
    none = attention_varlen(q[:0], pool, pool, [0], [0], block_table=np.zeros((0, 3), int))
    assert none.shape == (0, 2, 8)


@pytest.mark.parametrize("lq", [1, 30])
def test_neither_the_order_of_pages_nor_their_size_changes_a_bit(lq, rng):
    q, k, v = qkv(rng, lq, 960, 64, heads=4, kv_heads=2)
    results = []
    for size in (1, 16, 48, 960):
        (keys, values), table = in_pages(rng, (k, v), size)
        results.append(attention(q, keys, values, block_table=table, **FLAGS))
    for result in results:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for result in results[:3]:
        assert_same(result, results[0])


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_heads_that_take_turns(dtype, group, rng):
    """With so many batch rows a unit has several heads; they have the bits of side by side."""
    q, k, v = qkv(rng, 1, 300, 64, 40, heads=4 * group, kv_heads=4, batch=(9,), dtype=dtype)
    mask = rng.random((9, 1, 1, 300)) < 0.8
    each = rng.random((9, 4 * group, 1, 300)) < 0.8
    sinks = randn(rng, 4 * group)
    v[:, 1, 7] = np.nan  # hidden by the masks, in one head
    mask[..., 7] = each[..., 7] = False
    lengths, starts = rng.integers(200, 301, 9), rng.integers(0, 100, 9)
    for options in (
        {"mask": mask, "kv_lengths": lengths, "kv_starts": starts},
        {"mask": each, "kv_lengths": lengths},
        {"mask": mask, "sink_logits": sinks, "softcap": 5.0},
    ):
        expected = attention(q, k, v, **options, **FLAGS)
        assert np.isfinite(expected.output.astype(np.float32)).all()
        for size in (1, 12, 20, 300):
            (keys, values), table = in_pages(rng, (k, v), size, options)
            assert_same(attention(q, keys, values, block_table=table, **options, **FLAGS), expected)
            pools = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (keys, values)]
            assert_same(attention(q, *pools, block_table=table, **options, **FLAGS), expected)


def test_the_reference_reads_pages_in_the_order_of_the_table():
    pool = np.arange(24.0).reshape(3, 2, 2, 2)  # page, head, row, element
    rows = reference.stored.rows_of_pages(pool, [[2, 0], [1, 7]])
    assert rows.shape == (2, 2, 4, 2)
    np.testing.assert_array_equal(rows[0, 1], [*pool[2, 1], *pool[0, 1]])
    np.testing.assert_array_equal(rows[1, 0, :2], pool[1, 0])
    assert np.isnan(rows[1, :, 2:]).all()


def test_shared_pages_and_a_shared_table(rng):
    """Two texts with one beginning; and one text that all batch rows read."""
    q = randn(rng, (2, 4, 3, 32))
    pool = randn(rng, (5, 2, 16, 32))
    table = np.array([[4, 0, 1], [4, 0, 3]])
    k = pool[table].swapaxes(1, 2).reshape(2, 2, 48, 32)
    assert_same(attention(q, pool, pool, block_table=table, **FLAGS), attention(q, k, k, **FLAGS))
    for shared in (table[0], table[:1]):
        result = attention(q, pool, pool, block_table=shared, **FLAGS)
        assert_same(result, attention(q, k[:1], k[:1], **FLAGS))


def test_shapes_of_one_batch_row_and_of_several_batch_axes(rng):
    pool = randn(rng, (9, 1, 4, 16))
    query = randn(rng, (3, 2, 5, 6, 16))
    table = rng.integers(0, 9, (3, 2, 2))
    result = attention(query, pool, pool, block_table=table, kv_lengths=np.full((3, 2), 7))
    assert result.shape == query.shape
    for row in np.ndindex(3, 2):
        alone = attention(query[row], pool, pool, block_table=table[row], kv_lengths=7)
        assert alone.shape == (5, 6, 16)
        assert_same(alone, result[row])


@pytest.mark.parametrize("layout", ["(pages, page_size, Hk, D)", "every second page", "reversed"])
def test_layouts(layout, rng):
    q, k, v = qkv(rng, 3, 64, 24, heads=2, dtype=np.float32)
    pools, table = in_pages(rng, (k, v), 8)
    expected = attention(q, *pools, block_table=table)
    if layout == "every second page":
        pools = [np.repeat(pool, 2, axis=0)[::2] for pool in pools]
    elif layout == "reversed":
        pools = [np.ascontiguousarray(pool[::-1, :, ::-1])[::-1, :, ::-1] for pool in pools]
    else:
        pools = [np.ascontiguousarray(pool.swapaxes(1, 2)).swapaxes(1, 2) for pool in pools]
    for dtype in ("i4", "u2", ">i8"):
        assert_same(attention(q, *pools, block_table=table.astype(dtype)), expected)


@pytest.mark.parametrize("shape", [(0, 0), (2, 0), (0, 3)])
def test_nothing_to_see(shape, rng):
    pages, blocks = shape
    q, pool = randn(rng, (1, 2, 3, 8)), np.full((pages, 2, 4, 8), np.nan, np.float32)
    table = np.full((1, blocks), -1)
    result = attention(q, pool, pool, block_table=table, kv_lengths=[0], **FLAGS)
    assert not result.output.any() and np.isneginf(result.lse).all()
    assert result.weights.shape == (1, 2, 3, 4 * blocks)
    if not blocks:  # as a list, whose dtype is float64
        assert_same(attention(q, pool, pool, block_table=[[]], kv_lengths=[0], **FLAGS), result)


@pytest.mark.parametrize("page", [2**62, -(2**63)])
def test_a_page_that_is_not_there_is_named(page, rng):
    q, pool = randn(rng, (1, 2, 3, 8)), randn(rng, (2, 2, 4, 8))
    with pytest.raises(
        ValueError, match=rf"name pages 0 \.\. 1 of key .*got {page} for keys 4 \.\. 7"
    ):
        attention(q, pool, pool, block_table=[[1, page]])
    with pytest.raises(ValueError, match=r"name pages of key, which has none, .*got 0 for keys"):
        attention(q, pool[:0], pool[:0], block_table=[[0, page]])


@pytest.mark.parametrize("lq", [1, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_a_page_that_no_length_reaches_is_never_read(dtype, lq, rng):
    """The process may not even read it: pools are as long as forbidden memory needs."""
    size, d = PAGE // np.dtype(dtype).itemsize // 64, 64
    q, k, v = qkv(rng, lq, 4 * size, d, heads=1, batch=(1,), dtype=dtype)
    pools = []
    for a in (k, v):
        memory = mmap.mmap(-1, 6 * PAGE)
        pool = np.frombuffer(memory, np.uint8, 6 * PAGE).view(dtype).reshape(6, 1, size, d)
        pool[[1, 3, 4, 2]] = a.reshape(4, 1, size, d)
        for page in (0, 2, 5):
            fence(pool.ctypes.data + page * PAGE)
        pools.append(pool)
    for nowhere in (2, *NOWHERE):
        table = fenced(np.array([1, 3, 4, nowhere]), at_end=True)
        options = {"kv_lengths": 3 * size, "is_causal": True, "q_offset": "end"}
        check(attention(q, *pools, block_table=table[None], **options), q, k, v, **options)
        table = fenced(np.array([nowhere, 3, 4, 1]), at_end=False)
        options = {"kv_starts": [size], "kv_lengths": [2 * size + 1], "q_offset": 2 * size}
        expected = attention(q, k, v, **options, is_causal=True)
        actual = attention(q, *pools, block_table=table[None], **options, is_causal=True)
        np.testing.assert_allclose(actual.astype(float), expected.astype(float), rtol=2e-2)
        for function in OF_KEYS.values():  # a list of 80 keys is made otherwise: in 16 bits here
            function(q, pools[0], block_table=table[None], **options)
        packed = q[0].swapaxes(0, 1)
        table = fenced(np.array([[3, nowhere]]), at_end=True)
        attention_varlen(packed, *pools, [0, lq], [0, size], block_table=table)
    for pool in pools:  # before the memory is given back
        for page in (0, 2, 5):
            libc().mprotect(pool.ctypes.data + page * PAGE, PAGE, 3)


def test_a_plan(rng):
    q, k, v = qkv(rng, 40, 96, 16)
    pools, table = in_pages(rng, (k, v), 8)
    options = {"kv_lengths": [96, 40], "is_causal": True, "q_offset": "end", "return_blocks": True}
    paged, plain = plan(q, *pools, block_table=table, **options), plan(q, k, v, **options)
    assert paged.visible_pairs == plain.visible_pairs
    assert paged.bytes == plain.bytes and paged.flops == plain.flops
    for function in (attention_weights, key_importance):
        paged = plan(function, q, pools[0], block_table=table, **options)
        plain = plan(function, q, k, **options)
        assert paged.visible_pairs == plain.visible_pairs
        assert paged.bytes == plain.bytes and paged.flops == plain.flops


def test_there_are_no_gradients_of_pages(rng):
    q, pool = randn(rng, (1, 2, 3, 8)), randn(rng, (2, 2, 4, 8))
    with pytest.raises(ValueError, match=r"^block_table must be left out.*no gradients"):
        attnfast.vjp(attention, q, pool, pool, block_table=[[1, 0]])
    with pytest.raises(TypeError, match="block_table"):
        attnfast.attention_backward(q, q, pool, pool, q, q[..., 0], block_table=[[1, 0]])

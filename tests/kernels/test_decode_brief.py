"""Many heads and batch rows with next to nothing to do for each: a unit has many of them."""

from typing import Any

import numpy as np
import pytest

import attnfast
from support.arrays import DTYPE_IDS, DTYPES, assert_same, qkv, randn, same_bits
from support.criterion import check

pytestmark = pytest.mark.usefixtures("isa")
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


def options_of(rng, batch, heads, lq, lk) -> list[dict[str, Any]]:
    """What all heads of all batch rows share, and what each has of its own."""
    return [
        {},
        {"mask": rng.random((1, 1, lq, lk)) < 0.6},
        {"is_causal": True, "q_offset": 0, "softcap": 4.0},
        {"bias": randn(rng, (batch, heads, lq, lk))},
        {"bias": randn(rng, (heads, 1, lk)), "sink_logits": randn(rng, heads)},
        {"mask": rng.random((batch, heads, lq, lk)) < 0.6},
        {"kv_lengths": rng.integers(0, lk + 1, batch)},
        {"kv_starts": rng.integers(0, lk + 1, batch), "q_lengths": rng.integers(0, lq + 1, batch)},
        {"q_offset": rng.integers(-2, lk, batch), "window_size": (3, 1)},
        {"alibi_slopes": rng.random((batch, heads)), "q_offset": "end"},
        {"dropout": 0.4, "dropout_seed": 5},
    ]


def row(options, b):
    """The options of one batch row."""
    per_row = "kv_lengths", "kv_starts", "q_lengths", "q_offset", "alibi_slopes"
    cut = {
        name: x[b : b + 1] if name in per_row and np.ndim(x) else x for name, x in options.items()
    }
    for name in ("mask", "bias"):
        if name in cut and cut[name].ndim == 4 and len(cut[name]) > 1:
            cut[name] = cut[name][b : b + 1]
    return cut


@pytest.mark.quick
@EACH_DTYPE
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads"), [(3, 1, 1), (23, 3, 3), (70, 2, 1), (2, 68, 34)]
)
def test_a_batch_row_has_the_bits_that_it_has_alone(batch, heads, kv_heads, dtype, rng):
    """Units end in the middle of batch rows, and the last unit is not full."""
    for lq, lk, d in ((1, 1, 16), (2, 7, 9), (1, 20, 24)):
        q, k, v = qkv(
            rng, lq, lk, d, d, heads=heads, kv_heads=kv_heads, batch=(batch,), dtype=dtype
        )
        for options in options_of(rng, batch, heads, lq, lk):
            whole = attnfast.attention(q, k, v, return_lse=True, **options)
            if "dropout" not in options:
                check(whole, q, k, v, return_lse=True, **options)
            else:  # what is dropped depends on the number of the row
                assert_same(whole, attnfast.attention(q, k, v, return_lse=True, **options))
                continue
            for b in {0, batch // 2, batch - 1}:
                part = slice(b, b + 1)
                alone = attnfast.attention(
                    q[part], k[part], v[part], return_lse=True, **row(options, b)
                )
                assert same_bits(alone.output, whole.output[part])
                assert same_bits(alone.lse, whole.lse[part])
            for threads in (2, 3):
                again = attnfast.attention(q, k, v, return_lse=True, num_threads=threads, **options)
                assert_same(again, whole)


@EACH_DTYPE
def test_what_is_hidden_may_be_anything(dtype, rng):
    """In some batch rows something hidden is NaN or infinite, and in some a value that is seen."""
    q, k, v = qkv(rng, 1, 12, 16, 16, heads=2, batch=(70,), dtype=dtype)
    lengths = rng.integers(1, 10, 70)
    expected = attnfast.attention(q, k, v, kv_lengths=lengths)
    k[::3, :, 10:], v[::3, :, 10:] = np.nan, np.inf
    assert same_bits(attnfast.attention(q, k, v, kv_lengths=lengths), expected)
    v[5, 1, 0, 3] = np.inf
    seen = attnfast.attention(q, k, v, kv_lengths=lengths)
    different = seen != expected
    assert np.argwhere(different).tolist() == [[5, 1, 0, 3]]


def test_layouts_and_queries_without_keys(rng):
    """Keys of every layout; a batch row that sees nothing among others."""
    q, k, v = qkv(rng, 1, 5, 16, 16, heads=4, batch=(40,))
    lengths = np.arange(40) % 6
    expected = attnfast.attention(q, k, v, return_lse=True, kv_lengths=lengths)
    assert not expected.output[lengths == 0].any()
    for order in ((2, 0, 1, 3), (0, 2, 1, 3), (1, 0, 2, 3), (0, 1, 3, 2)):
        a, b = (
            np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order)) for x in (k, v)
        )
        assert_same(attnfast.attention(q, a, b, return_lse=True, kv_lengths=lengths), expected)
        assert_same(attnfast.attention(q, a, b), attnfast.attention(q, k, v))
    shared = np.broadcast_to(k[:1], k.shape), np.broadcast_to(v[:1, :1], v.shape)
    copies = [x.copy() for x in shared]
    assert_same(attnfast.attention(q, *shared), attnfast.attention(q, *copies))


@pytest.mark.parametrize(("dtype", "lk", "d"), [(np.float16, 1, 8000), (np.float32, 0, 20000)])
def test_a_unit_of_wide_heads_has_few(dtype, lk, d):
    """Queries and outputs of eight head groups at a time would take 4 and 10 MB."""
    q, k = np.zeros((64, 1, 8, d), dtype), np.zeros((64, 1, lk, d), dtype)
    assert attnfast.plan(q, k, k, num_threads=1).memory < 1.5e6

"""Few queries over keys and values stored (B, H, D, L): read in place, bits as of rows."""

import itertools

import numpy as np
import pytest

import attnfast
from support.arrays import DTYPE_IDS, DTYPES, assert_same, qkv, randn
from support.criterion import check
from support.fences import fenced
from support.layouts import paired

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


def in_columns(a):
    """The same numbers, those of a column side by side."""
    return np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)


def assert_columns_are_like_rows(q, k, v, **options):
    """Keys, values and both in columns."""
    expected = attnfast.attention(q, k, v, return_lse=True, **options)
    for keys, values in ((in_columns(k), v), (k, in_columns(v)), (in_columns(k), in_columns(v))):
        assert_same(attnfast.attention(q, keys, values, return_lse=True, **options), expected)
    return expected


@pytest.mark.quick
@EACH_DTYPE
def test_any_number_of_rows_and_any_width(dtype, rng, each_isa):
    shapes = list(paired(range(1, 10), (2, 7, 15, 16, 17, 20, 33, 64, 128, 200), times=2))
    for rows, d in shapes:
        q, k, v = qkv(rng, 1, 70, d, d + rows % 3, heads=2 * rows, kv_heads=2, dtype=dtype)

        def decode(q=q, k=k, v=v):
            check(assert_columns_are_like_rows(q, k, v), q, k, v, return_lse=True)

        each_isa(decode)


@EACH_DTYPE
@pytest.mark.parametrize("lk", [2, 3, 15, 16, 17, 63, 64, 65, 255, 257, 511, 513, 1025, 2049, 9001])
def test_any_number_of_keys(lk, dtype, rng, each_isa):
    """On both sides of what is read of a column at a time, of a block of keys, and of a split."""
    for rows, d in ((1, 24), (2, 40), (3, 9), (8, 24)):
        q, k, v = qkv(rng, rows, lk, d, d, heads=2, batch=(2,), dtype=dtype)
        each_isa(lambda q=q, k=k, v=v: assert_columns_are_like_rows(q, k, v))


@EACH_DTYPE
def test_options(dtype, rng, each_isa):
    q, k, v = qkv(rng, 3, 1100, 20, 36, heads=4, kv_heads=2, dtype=dtype)
    for options in (
        {"is_causal": True, "q_offset": "end", "kv_lengths": [1100, 700]},
        {"window_size": (300, 0), "q_offset": "end", "sink_logits": [0.5, 1.0, 2.0, -1.0]},
        {"bias": randn(rng, (4, 3, 1100)), "softcap": 5.0},
        {"alibi_slopes": [0.1, 0.2, 0.0, 0.3], "q_offset": 500},
        {"mask": rng.random((2, 1, 3, 1100)) < 0.3},
        {"mask": attnfast.BlockMask(rng.random((3, 18)) < 0.6, (1, 64))},
        {"dropout": 0.3, "dropout_seed": 4},
    ):
        each_isa(lambda options=options: assert_columns_are_like_rows(q, k, v, **options))


@EACH_DTYPE
def test_scores_of_several_splits(dtype, rng, each_isa):
    """One query: splits of one unit have their scores made together, of each head anew."""
    for lk, d in ((5000, 200), (9001, 64), (20_000, 9)):
        q, k, v = qkv(rng, 1, lk, d, d, heads=3, batch=(2,), dtype=dtype)
        hidden = k.copy(), v.copy()
        for a in hidden:
            a[1, :, lk // 3 :] = np.nan

        def decode(q=q, k=k, v=v, lk=lk, hidden=hidden):
            for options in (
                {},
                {"kv_lengths": [lk, lk // 3]},
                {"window_size": (lk // 2, 0), "q_offset": "end"},
                {"bias": randn(rng, (3, 1, lk))},
                {"mask": rng.random((2, 1, 1, lk)) < 0.5},
            ):
                for threads in (1, 2, 3):
                    assert_columns_are_like_rows(q, k, v, num_threads=threads, **options)
            seen = attnfast.attention(q, k, v, kv_lengths=[lk, lk // 3])
            padded = [in_columns(a) for a in hidden]
            assert_same(attnfast.attention(q, *padded, kv_lengths=[lk, lk // 3]), seen)

        each_isa(decode)


@pytest.mark.quick
@EACH_DTYPE
def test_what_is_hidden_may_be_anything(dtype, rng, each_isa):
    """Each row sees other keys, and some are seen by none: those are NaN and infinite."""
    for lk, rows in ((70, 1), (1100, 3), (300, 8)):
        q, k, v = qkv(rng, rows, lk, 20, 36, heads=1, batch=(1,), dtype=dtype)
        mask = rng.random((1, 1, rows, lk)) < 0.4
        mask[..., lk // 2 :: 7] = False
        k[..., lk // 2 :: 7, :], v[..., lk // 2 :: 7, :] = np.inf, np.nan
        v[0, 0, 5, 3] = np.inf  # those who see key 5, and no others, feel it

        def decode(q=q, k=k, v=v, mask=mask):
            output, lse = assert_columns_are_like_rows(q, k, v, mask=mask)[:2]
            assert np.isfinite(lse).all()
            assert (np.isfinite(output.astype(float)).all(-1) == ~mask[..., 5]).all()

        each_isa(decode)


@EACH_DTYPE
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
def test_nothing_is_read_out_of_bounds(at_end, dtype, rng):
    for rows, d, lk in itertools.product((1, 2, 5), (2, 9, 16, 37), (2, 15, 16, 33, 600)):
        q, k, v = qkv(rng, rows, lk, d, d, heads=1, dtype=dtype)
        keys, values = (fenced(np.ascontiguousarray(a.swapaxes(-1, -2)), at_end) for a in (k, v))
        result = attnfast.attention(
            fenced(q, at_end), keys.swapaxes(-1, -2), values.swapaxes(-1, -2)
        )
        assert_same(result, attnfast.attention(q, k, v))


@EACH_DTYPE
@pytest.mark.usefixtures("isa")
def test_columns_in_any_order(dtype, rng):
    """One that repeats itself, and columns that lie backwards or far apart."""
    q, k, v = qkv(rng, 2, 300, 20, 20, dtype=dtype)
    for a, b in (
        (np.broadcast_to(k[..., :1].copy(), k.shape), np.broadcast_to(v[..., :1].copy(), v.shape)),
        (in_columns(k[..., ::-1])[..., ::-1], in_columns(v[..., ::-1])[..., ::-1]),
        (in_columns(np.repeat(k, 3, -1))[..., ::3], in_columns(np.repeat(v, 2, -1))[..., ::2]),
        (
            np.broadcast_to(in_columns(k[:1]), k.shape),
            np.broadcast_to(in_columns(v[:, :1]), v.shape),
        ),
    ):
        assert_same(attnfast.attention(q, a, b), attnfast.attention(q, a.copy("C"), b.copy("C")))

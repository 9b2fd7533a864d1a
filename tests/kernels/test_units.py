"""csrc/kernel/forward.h and rows.h: several blocks of rows that go through the keys together."""

import numpy as np
import pytest

import attnfast
from attnfast import _core
from support.arrays import DTYPE_IDS, DTYPES, assert_same, compute_dtype, randn
from support.criterion import Criterion

# Lq, Lk, D, Dv by the size of an element. 16-bit keys are widened for several blocks as soon as
# there are 16 blocks, at most 768 rows; others are shared once keys and values take more than half
# of the second-level cache, 512 KiB at most.
SHAPES = {2: (800, 300, 20, 24), 4: (800, 700, 80, 120), 8: (800, 700, 40, 60)}

OPTIONS = {
    "all": lambda rng, lq, lk: {},
    "causal": lambda rng, lq, lk: {"is_causal": True, "q_offset": lk - lq},
    "window": lambda rng, lq, lk: {"window_size": (90, 40), "q_offset": -lq // 4},
    "lengths": lambda rng, lq, lk: {"q_lengths": lq - 333, "kv_lengths": lk - 77},
    "mask": lambda rng, lq, lk: {"mask": rng.random((lq, lk)) < 0.3},
    "keys that come late": lambda rng, lq, lk: {"mask": np.tri(lq, lk, -200, dtype=bool)},
    "bias": lambda rng, lq, lk: {"bias": randn(rng, (lq, lk))},
    "softcap": lambda rng, lq, lk: {"softcap": 2.0},
}


def arrays(rng, dtype):
    lq, lk, d, dv = SHAPES[dtype.itemsize]
    return randn(rng, (lq, d), dtype), randn(rng, (lk, d), dtype), randn(rng, (lk, dv), dtype)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_these_shapes_have_units_of_several_blocks(dtype, rng, each_isa):
    q, k, v = arrays(rng, dtype)

    def count() -> None:
        blocks = -(-len(q) // _core.query_lanes(compute_dtype(dtype).name))
        assert attnfast.plan(q, k, v).tasks < blocks

    each_isa(count)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_blocks_that_see_different_keys(options, dtype, rng, each_isa):
    q, k, v = arrays(rng, dtype)
    given = {"return_lse": True, **OPTIONS[options](rng, len(q), len(k))}
    criterion = Criterion(q, k, v, **given)
    each_isa(lambda: criterion.check(attnfast.attention(q, k, v, **given)))


@pytest.mark.quick
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_a_block_does_not_feel_the_others(dtype, rng, each_isa):
    """Not their queries, nor that one of them sees a NaN and is computed again."""
    q, k, v = arrays(rng, dtype)
    v[7] = np.nan
    mask = rng.random((len(q), len(k))) < 0.7
    mask[:, 7] = False
    other, seen = q.copy(), mask.copy()
    rows = np.arange(len(q)) % 48 < 24  # whole blocks of 8 and 24 rows, halves of those of 48
    other[rows] = randn(rng, (rows.sum(), q.shape[1]), dtype)
    other[3] = np.nan
    seen[rows, 7] = True

    def compare() -> None:
        alone = attnfast.attention(q, k, v, mask=mask)
        beside = attnfast.attention(other, k, v, mask=seen)
        assert np.isfinite(alone.astype(np.float64)).all()
        assert np.isnan(beside[rows].astype(np.float64)).all()
        assert_same(alone[~rows], beside[~rows])

    each_isa(compare)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_splits_of_several_blocks(dtype, rng, each_isa):
    """So many keys that the rows of a unit are split over them."""
    lq, lk, d = 800, 11_000, 200
    q, k, v = (randn(rng, (n, d), dtype) for n in (lq, lk, lk))
    mask = rng.random(lk) < 0.9
    some = [0, 23, 24, 47, 48, 399, 752, 799]
    criterion = Criterion(q[some], k, v, mask=mask, return_lse=True)

    def compare() -> None:
        results = [
            attnfast.attention(q, k, v, mask=mask, return_lse=True, num_threads=n) for n in (1, 2)
        ]
        assert_same(*results)
        output, lse, _ = results[0]
        criterion.check(attnfast.AttentionResult(output[some], lse[some], None))

    each_isa(compare)

"""csrc/kernel/fused_softmax.h: maxima that grow anywhere in a block, and earlier weights then."""

import numpy as np
import pytest

import attnfast
from support.arrays import DTYPE_IDS, DTYPES, randn
from support.criterion import Criterion, check

FLAGS = {"return_lse": True, "return_weights": True}

ORDERS = {
    "rising": lambda n, step: step * np.arange(n),
    "falling": lambda n, step: -step * np.arange(n),
    "zigzag": lambda n, step: step * np.arange(n) * (-1.0) ** np.arange(n),
    "one-late": lambda n, step: step * n * (np.arange(n) == n - 1),
    "one-in-a-tile": lambda n, step: step * np.arange(n) * (np.arange(n) % 8 == 5),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("step", [0.25, 6.0, 100.0])
@pytest.mark.parametrize("order", ORDERS)
def test_scores_that_rise(order, step, dtype, rng, each_isa):
    """By less and by more than what a maximum waits for, in whole tiles and rests of them."""
    for lq, lk in [(9, 1), (9, 7), (17, 8), (48, 9), (40, 130), (60, 300)]:
        heights = ORDERS[order](lk, step)
        k = heights[:, None].astype(dtype)
        q = rng.uniform(-1, 1, (lq, 1)).astype(dtype)
        v = randn(rng, (lk, 5), dtype)
        mask = rng.random((lq, lk)) < 0.8
        for options in [{}, {"mask": mask}, {"window_size": (40, 3), "q_offset": "end"}]:
            options = {"scale": 1.0, **FLAGS, **options}
            criterion = Criterion(q, k, v, **options)

            def weigh(arrays=(q, k, v), options=options, criterion=criterion) -> None:
                criterion.check(attnfast.attention(*arrays, **options))

            each_isa(weigh)


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_lowest_number_is_a_score(dtype):
    """A maximum before any key looks the same: what came with the score is behind it."""
    q, k = np.ones((20, 1), dtype), np.zeros((32, 1), dtype)
    k[:8] = np.finfo(dtype).min
    v = np.arange(32, dtype=dtype)[:, None]
    scale = float(np.log(2))  # scores in units of log 2 are the keys
    result = attnfast.attention(q, k, v, scale=scale, return_lse=True)
    assert (result.output == np.mean(np.arange(8, 32))).all()
    assert np.allclose(result.lse, np.log(24), rtol=1e-6)


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
def test_a_growing_maximum_of_one_row_leaves_the_others_alone(rng):
    """Row 20 meets ever larger scores, the others small ones: their bits are those of a call in
    which row 20 is quiet."""
    q, k, v = randn(rng, (40, 8)), randn(rng, (500, 8)), randn(rng, (500, 16))
    k[:, 0] = np.arange(500)
    q[:, 0] = 0
    quiet = attnfast.attention(q, k, v, return_lse=True)
    q[20, 0] = 50
    loud = attnfast.attention(q, k, v, return_lse=True)
    others = np.arange(40) != 20
    assert (loud.output[others] == quiet.output[others]).all()
    assert (loud.lse[others] == quiet.lse[others]).all()
    assert loud.lse[20] > 1000 * abs(quiet.lse[20])


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 16, 60])
@pytest.mark.parametrize("order", ORDERS)
def test_large_values_whatever_the_order(order, lq, rng):
    """Weights are up to 2^8 while a maximum waits, over as many keys as there are: what the sums of
    values that large have room for."""
    lk = 130
    for step in [0.02, 0.6, 5.5]:
        k = ORDERS[order](lk, step)[:, None].astype(np.float32)
        q, v = np.ones((lq, 1), np.float32), np.full((lk, 4), 1e36 / lk, np.float32)
        check(attnfast.attention(q, k, v, scale=1.0), q, k, v, scale=1.0)

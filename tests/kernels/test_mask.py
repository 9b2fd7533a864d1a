"""kernel/mask.h and plan/intervals.h: who sees which key, read off the weights of equal scores.

With all scores equal a query's weights are 1 / n on the n keys it sees and 0 elsewhere, so one call
shows the whole visibility of a block, tile boundaries, word boundaries and all.
"""

import numpy as np
import pytest

import attnfast

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]


def seen(lq, lk, heads=2, **options):
    q = np.zeros((heads, lq, 1), np.float32)
    k = np.zeros((heads, lk, 1), np.float32)
    return attnfast.attention_weights(q, k, **options) > 0


def expected(lq, lk, left=None, right=None, offset=0):
    p, j = np.arange(lq)[:, None] + offset, np.arange(lk)
    low = True if left is None else j >= p - left
    high = True if right is None else j <= p + right
    return np.broadcast_to(low & high, (2, lq, lk))


@pytest.mark.parametrize("lk", [1, 63, 64, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("lq", [1, 3, 47, 48, 49, 100])
def test_dense_masks(lq, lk):
    rng = np.random.default_rng(lq * lk)
    mask = rng.random((2, lq, lk)) < 0.4
    assert (seen(lq, lk, mask=mask) == mask).all()


@pytest.mark.parametrize("density", [0.001, 0.02, 0.999])
def test_masks_that_hide_or_show_whole_blocks(density):
    rng = np.random.default_rng(0)
    mask = rng.random((2, 150, 700)) < density
    mask[:, :, 130:400] = False
    assert (seen(150, 700, mask=mask) == mask).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 90), (70, 1), (2, 1, 90), (2, 70, 1)])
def test_broadcast_masks(shape):
    mask = np.random.default_rng(1).random(shape) < 0.5
    assert (seen(70, 90, mask=mask) == np.broadcast_to(mask, (2, 70, 90))).all()


def runs(rng, n, longest):
    """Visible and hidden runs of random lengths in turn."""
    lengths = rng.integers(1, longest + 1, n)
    return np.repeat(np.arange(n) % 2 == rng.integers(2), lengths)[:n]


@pytest.mark.parametrize("longest", [3, 20, 90])
@pytest.mark.parametrize("lq", [1, 3, 50])
def test_masks_over_keys(lq, longest):
    """Runs of hidden keys are left out, short ones are hidden within a block."""
    rng = np.random.default_rng(longest)
    for lk in (7, 16, 127, 129, 300):
        for _ in range(10):
            mask = runs(rng, lk, longest)
            assert (seen(lq, lk, mask=mask) == mask).all()
            for left in (0, 40):
                visible = expected(lq, lk, left, 20, 30) & mask
                options = {"window_size": (left, 20), "q_offset": 30}
                assert (seen(lq, lk, mask=mask, **options) == visible).all()


@pytest.mark.parametrize("lq", [2, 60])
def test_masks_over_keys_that_differ_by_head_and_batch(lq):
    rng = np.random.default_rng(4)
    mask = np.array([[runs(rng, 200, 40) for _ in range(4)] for _ in range(3)])[:, :, None]
    mask[1, 2] = False
    q, k = np.zeros((3, 4, lq, 1), np.float32), np.zeros((3, 2, 200, 1), np.float32)
    for shown in (mask, mask[:, :1], mask[:1], mask[..., ::-1]):
        assert ((attnfast.attention_weights(q, k, mask=shown) > 0) == shown).all()


def test_any_byte_but_zero_is_true():
    mask = np.random.default_rng(2).choice([0, 1, 2, 128, 255], (70, 90)).astype(np.uint8)
    assert (seen(70, 90, mask=mask.view(bool)) == (mask != 0)).all()


@pytest.mark.parametrize("offset", [-500, -70, -1, 0, 1, 63, 64, 200, 10**30])
@pytest.mark.parametrize("lq", [1, 5, 48, 130])
def test_causal_at_any_offset(lq, offset):
    visible = expected(lq, 260, right=0, offset=min(offset, 10**6))
    assert (seen(lq, 260, is_causal=True, q_offset=offset) == visible).all()


@pytest.mark.parametrize("right", [None, 0, 1, 64, 10**30])
@pytest.mark.parametrize("left", [None, 0, 1, 63, 200, 10**30])
@pytest.mark.parametrize("lq", [4, 140])
def test_windows(lq, left, right):
    def far(x):
        return None if x is None or x > 10**6 else x

    for offset in (-30, 0, 77):
        visible = expected(lq, 300, far(left), far(right), offset)
        assert (seen(lq, 300, window_size=(left, right), q_offset=offset) == visible).all()


def test_everything_at_once():
    rng = np.random.default_rng(3)
    mask = rng.random((2, 2, 60, 200)) < 0.7
    q, k = np.zeros((2, 2, 60, 1)), np.zeros((2, 2, 200, 1))
    weights = attnfast.attention_weights(
        q,
        k,
        mask=mask,
        is_causal=True,
        window_size=(90, 5),
        q_offset=[40, 130],
        q_lengths=[60, 41],
        kv_lengths=[77, 200],
    )
    i, j = np.arange(60)[:, None], np.arange(200)
    for b, (offset, queries, keys) in enumerate([(40, 60, 77), (130, 41, 200)]):
        p = i + offset
        visible = (j <= p) & (j >= p - 90) & (j < keys) & (i < queries) & mask[b]
        assert ((weights[b] > 0) == visible).all()

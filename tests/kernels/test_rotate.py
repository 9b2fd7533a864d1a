"""csrc/kernel/rotate.h: tails of vectors, both conventions, every dtype, bit for bit."""

import numpy as np
import pytest

import attnfast
from attnfast import reference
from support.arrays import DTYPE_IDS, DTYPES, compute_dtype, randn, same_bits

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]


def tables(rng, pairs, dtype, rows=40):
    angles = 10 * rng.standard_normal((rows, pairs))
    return tuple(f(angles).astype(compute_dtype(dtype)) for f in (np.cos, np.sin))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_every_head_size_is_the_formula_in_plain_numpy(dtype, interleaved, rng):
    """Products are rounded before they are added, in NumPy and here: the same bits."""
    for pairs in (*range(40), 63, 64, 65, 100):
        x = randn(rng, (2, 5, 2 * pairs + pairs % 3), dtype)
        options = {"interleaved": interleaved, "cos_sin": tables(rng, pairs, dtype)}
        positions = rng.integers(0, 40, 5)
        real = compute_dtype(dtype)
        expected = reference.rotate(x, positions, compute_dtype=real, **options).astype(dtype)
        assert same_bits(attnfast.rotate(x, positions, **options), expected), pairs
        assert same_bits(attnfast.rotate(x, positions, **options, out=x), expected), pairs
        assert same_bits(x, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_both_conventions_have_the_same_bits(dtype, rng):
    for pairs in (1, 3, 16, 33):
        x = randn(rng, (3, 20, 2 * pairs), dtype)
        halves = attnfast.rotate(x, np.arange(20))
        order = np.arange(2 * pairs).reshape(2, pairs).T.ravel()  # 0, pairs, 1, pairs + 1 ...
        neighbours = attnfast.rotate(x[..., order], np.arange(20), interleaved=True)
        assert same_bits(halves[..., order], neighbours)


@pytest.mark.parametrize("interleaved", [False, True])
def test_nan_stays_in_its_pair(interleaved, rng):
    x = randn(rng, (2, 9, 34))
    x[1, 4, 33] = np.nan
    y = attnfast.rotate(x, np.arange(9), interleaved=interleaved)
    where = np.argwhere(np.isnan(y)).tolist()
    assert where == [[1, 4, 32 if interleaved else 16], [1, 4, 33]]

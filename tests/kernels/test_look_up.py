"""float8_e4m3fn by look-up: few queries get the same bits as without it."""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import attnfast

KIND = np.dtype(ml_dtypes.float8_e4m3fn)
NAN = 0x7F


@pytest.fixture(autouse=True)
def _as_the_processor_wants() -> Iterator[None]:
    yield
    attnfast._core.look_up_bytes(True)


def both_ways(*operands: Any, **options: Any) -> NDArray[Any]:
    """Return the output, which must be the same with and without look-up."""
    attnfast._core.look_up_bytes(False)
    plain = attnfast.attention(*operands, **options)
    attnfast._core.look_up_bytes(True)
    found = attnfast.attention(*operands, **options)
    np.testing.assert_array_equal(found, plain)
    return found


def finite_bytes(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Any bytes but NaN: numbers of all sizes and both signs."""
    drawn = rng.integers(0, 256, shape, np.uint8)
    return np.where(drawn & NAN == NAN, 1, drawn).astype(np.uint8)


@pytest.mark.parametrize("width", [63, 64, 80, 128, 200, 256, 320])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 6])
def test_same_bits(rng: np.random.Generator, width: int, group: int) -> None:
    q = rng.standard_normal((2, 2 * group, 1, width), np.float32)
    k, v = (finite_bytes(rng, (2, 2, 133, width)).view(KIND) for _ in range(2))
    found = both_ways(q, k, v, scale=1e-3)
    np.testing.assert_allclose(
        found,
        attnfast.attention(q, k.astype(np.float32), v.astype(np.float32), scale=1e-3),
        rtol=1e-4,
        atol=1e-3,
    )


def test_every_byte() -> None:
    """A single key: the output is its value, whatever byte it is, wherever it stands."""
    for shift in (0, 17, 64):
        stored = np.roll(np.arange(256, dtype=np.uint8), shift)
        value = stored.reshape(1, 256).view(KIND)
        q = np.ones((1, 256), np.float32)
        found = both_ways(q, np.zeros_like(value), value)
        np.testing.assert_array_equal(found, value.astype(np.float32))


@pytest.mark.parametrize("column", [0, 70, 127, 140])
@pytest.mark.parametrize("hidden", [False, True])
def test_nan(rng: np.random.Generator, column: int, hidden: bool) -> None:
    """NaN in a key is NaN in every output of those who see it; in a value in one column."""
    q = rng.standard_normal((1, 2, 1, 144), np.float32)
    k, v = (finite_bytes(rng, (1, 1, 100, 144)) for _ in range(2))
    v[..., 41, column] = 0x80 | NAN
    mask = np.ones((1, 100), bool)
    mask[:, 41] = not hidden
    found = both_ways(q, k.view(KIND), v.view(KIND), scale=1e-3, mask=mask)
    assert (np.isnan(found) == ((np.arange(144) == column) & (not hidden))).all()
    k[..., 41, column] = NAN
    found = both_ways(q, k.view(KIND), v.view(KIND), scale=1e-3, mask=mask)
    assert np.isnan(found).all() if not hidden else np.isfinite(found).all()

"""csrc/kernel/tile.h: both products, every number of rows and steps around the tile's edges."""

import numpy as np
import pytest

from attnfast import _core

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("rows", [*range(1, 19), 33, 64])
def test_scores(dtype, k, rows):
    rng = np.random.default_rng(rows)
    a = rng.standard_normal((rows, k)).astype(dtype)
    b = rng.standard_normal((k, _core.query_lanes(dtype))).astype(dtype)
    exact = a.astype(float) @ b.astype(float)
    assert np.allclose(_core.probe_tile(a, b), exact, rtol=0, atol=TOLERANCE[dtype] * (k + 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("rows", [*range(1, 19), 33, 64])
def test_values_add_to_what_is_there(dtype, k, rows):
    rng = np.random.default_rng(rows)
    a = rng.standard_normal((k, rows)).astype(dtype)
    b = rng.standard_normal((k, _core.query_lanes(dtype))).astype(dtype)
    c = rng.standard_normal((rows, _core.query_lanes(dtype))).astype(dtype)
    exact = a.T.astype(float) @ b.astype(float) + c
    assert np.allclose(_core.probe_tile(a, b, c), exact, rtol=0, atol=TOLERANCE[dtype] * (k + 1))


def test_a_row_does_not_depend_on_its_place():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((37, 64), dtype=np.float32)
    b = rng.standard_normal((64, _core.query_lanes("float32")), dtype=np.float32)
    whole = _core.probe_tile(a, b)
    for first in (0, 1, 5, 31):
        assert (_core.probe_tile(a[first:], b) == whole[first:]).all()

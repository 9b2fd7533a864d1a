"""csrc/simd/math.h: exp2, tanh, log2 against the next wider type, in ulp."""

import numpy as np
import pytest

from attnfast import _core

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]
WIDE = {"float32": np.float64, "float64": np.longdouble}


def ulps(actual, exact):
    exact_here = exact.astype(actual.dtype)
    return np.abs(actual.astype(exact.dtype) - exact) / np.spacing(np.abs(exact_here)).astype(
        exact.dtype
    )


def spread(dtype, low, high, n=40001):
    x = np.linspace(low, high, n).astype(dtype)
    return np.concatenate([x, np.nextafter(x, dtype(np.inf))])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_is_right_to_three_ulp(dtype):
    low = -125 if dtype == np.float32 else -1021
    x = np.concatenate([spread(dtype, low, 16), spread(dtype, -2, 2)])
    assert ulps(_core.probe("exp2", x), np.exp2(x.astype(WIDE[x.dtype.name]))).max() < 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_of_whole_numbers_is_exact(dtype):
    x = np.arange(-120, 17).astype(dtype)
    assert (_core.probe("exp2", x) == np.exp2(x)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_at_the_edges(dtype):
    x = np.array([-np.inf, -1e30, -3000, 0, np.nan], dtype)
    y = _core.probe("exp2", x)
    assert (y[:4] == [0, 0, 0, 1]).all()
    assert np.isnan(y[4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_is_right_to_four_ulp(dtype):
    x = np.concatenate([spread(dtype, -50, 50), spread(dtype, -1, 1), spread(dtype, -1e-4, 1e-4)])
    x = x[x != 0]
    assert ulps(_core.probe("tanh", x), np.tanh(x.astype(WIDE[x.dtype.name]))).max() < 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_at_the_edges(dtype):
    y = _core.probe("tanh", np.array([-np.inf, -1e30, 0, 1e30, np.inf, np.nan], dtype))
    assert (y[:5] == [-1, -1, 0, 1, 1]).all()
    assert np.isnan(y[5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log2_is_right_to_an_ulp_of_its_size_or_of_one(dtype):
    rng = np.random.default_rng(0)
    top = 120 if dtype == np.float32 else 1000
    x = np.concatenate([np.exp2(rng.uniform(-top, top, 40000)), rng.uniform(0.5, 2, 40000)]).astype(
        dtype
    )
    exact = np.log2(x.astype(WIDE[x.dtype.name]))
    error = np.abs(_core.probe("log2", x).astype(exact.dtype) - exact)
    assert (error <= 1.5 * np.finfo(dtype).eps * np.maximum(1, np.abs(exact))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log2_at_the_edges(dtype):
    y = _core.probe("log2", np.array([1, 2, 0.25, np.inf, np.nan], dtype))
    assert (y[:4] == [0, 1, -2, np.inf]).all()
    assert np.isnan(y[4])


@pytest.mark.parametrize("n", range(1, 40))
def test_every_length_of_the_rest(n):
    x = np.linspace(-3, 0, n, dtype=np.float32)
    assert np.allclose(_core.probe("exp2", x), np.exp2(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_twice_is_right_to_two_ulp(dtype):
    reach = 10 if dtype == np.float32 else 85
    x = np.concatenate([spread(dtype, -reach, reach), spread(dtype, -1, 1)])
    exact = np.exp(2 * x.astype(WIDE[x.dtype.name]))
    assert ulps(_core.probe("exp_twice", x), exact).max() < 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_fast_exp_twice_gives_tanh_to_an_eps(dtype):
    reach = 10 if dtype == np.float32 else 85
    x = np.concatenate([spread(dtype, -reach, reach), spread(dtype, -1, 1)])
    e = _core.probe("exp_twice_fast", x).astype(WIDE[x.dtype.name])
    error = np.abs((e - 1) / (e + 1) - np.tanh(x.astype(e.dtype))).max()
    assert error < np.finfo(dtype).eps

"""The pieces of the kernels alone, one thread, in percent of the measured FMA peak.

Work is counted in the slots of the FMA units: a product of the tile is one FMA (2 flops); `exp2` is
a polynomial of degree 5 and a scaling by a power of two, 6 slots; a pass of the online softmax adds
the maximum, the subtraction and the sum, 9 slots.
"""

import pytest

import attnfast
from attnfast import _core

EXP_FLOPS = 2 * 6
SOFTMAX_FLOPS = 2 * 9
SECONDS = 0.3
DTYPES = ("float32", "float64")


@pytest.fixture(params=attnfast.available_isas(), autouse=True)
def isa(request):
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(None)


@pytest.fixture
def limit(isa, dtype):
    """GFLOP/s of one thread's FMA loop with this instruction set."""
    return max(_core.measure_fma_peak(1, SECONDS, dtype) for _ in range(3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [40, 64, 128, 384])
def test_tile(k, dtype, limit, record):
    record(_core.time_tile(k, SECONDS, dtype), "GFLOP/s", limit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2(dtype, limit, record):
    record(_core.time_exp2(SECONDS, dtype), "Gexp/s", limit / EXP_FLOPS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype, limit, record):
    record(_core.time_softmax(SECONDS, dtype), "Gscore/s", limit / SOFTMAX_FLOPS)

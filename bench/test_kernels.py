"""The pieces of the kernels alone, one thread, in percent of the measured FMA peak.

Work is counted in the slots of the FMA units: a product of the tile is one FMA (2 flops); `exp2` is
at least a polynomial (degree 5, in float64 degree 11) and a scaling by a power of two; a pass of
the online softmax over modified scores adds the maximum, the subtraction, the change of base and
the sum, 4 slots. (Plain scores go through the softmax in the tile, which no loop alone shows.)
"""

import pytest

import attnfast
from attnfast import config
from attnfast.bench import limits

EXP_SLOTS = {"float32": 5 + 1, "float64": 11 + 1}
SECONDS = 0.3
DTYPES = tuple(EXP_SLOTS)


@pytest.fixture(params=attnfast.available_isas(), autouse=True)
def isa(request):
    config.use_isa(request.param)
    yield request.param
    config.use_isa(None)


@pytest.fixture
def limit(isa, dtype):
    """GFLOP/s of one thread's FMA loop with this instruction set."""
    return max(limits.fma_peak(1, SECONDS, dtype) for _ in range(3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [40, 64, 128, 384])
def test_tile(k, dtype, limit, record):
    record(limits.tile(k, SECONDS, dtype), "GFLOP/s", limit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2(dtype, limit, record):
    record(limits.exp2(SECONDS, dtype), "Gexp/s", limit / (2 * EXP_SLOTS[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype, limit, record):
    record(limits.softmax(SECONDS, dtype), "Gscore/s", limit / (2 * (EXP_SLOTS[dtype] + 4)))

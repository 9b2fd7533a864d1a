"""attnfast over the cases of `attnfast bench`, for pytest-benchmark's own comparisons.

`pytest bench/test_cases.py --benchmark-autosave` stores a run, `--benchmark-compare` compares with
the last one stored; `--grid` runs all cases.
"""

from itertools import cycle

import attnfast
from attnfast.bench.cases import select
from attnfast.bench.functions.attention import call_options
from attnfast.bench.inputs import make_inputs, visible_pairs


def pytest_generate_tests(metafunc):
    cases = select(None, quick=not metafunc.config.getoption("grid"))
    metafunc.parametrize("case", cases, ids=lambda case: case.name)


def test_case(case, benchmark, threads, peak, bandwidth, record):
    inputs = make_inputs(case, seed=1)
    options = call_options(case, inputs)
    sets = cycle(zip(inputs.keys, inputs.values, strict=True))

    def call():
        key, value = next(sets)
        return attnfast.attention(inputs.query, key, value, **options)

    output = benchmark(call)
    assert output.shape == (case.batch, case.heads, case.q_len, case.value_dim)
    if benchmark.disabled:
        return
    seconds = benchmark.stats.stats.median
    if case.cold:
        record(case.kv_bytes / seconds / 1e9, "GB/s", bandwidth)
    else:
        flops = case.flops(visible_pairs(case, inputs))
        record(flops / seconds / 1e9, "GFLOP/s", peak(threads, case.dtype))

"""The family and training over the cases of `attnfast bench`, for pytest-benchmark.

`pytest bench/test_family.py` runs the shorter cases, `--grid` all of them; options as for
`test_cases.py`.
"""

import numpy as np

from attnfast.bench.cases import GROUPS
from attnfast.bench.functions import function_of

SHORT = 4096  # queries


def pytest_generate_tests(metafunc):
    grid = metafunc.config.getoption("grid")
    known = *GROUPS["family"], *GROUPS["train"]
    cases = [case for case in known if grid or case.q_len <= SHORT]
    metafunc.parametrize("case", cases, ids=lambda case: case.name)


def test_case(case, benchmark, threads, peak, record):
    function = function_of(case)
    inputs = function.draw(case, seed=1)
    (call,) = function.calls(case, inputs)
    output = benchmark(call)
    sample = function.sample(case, inputs)
    assert np.isfinite(function.take_rows(case, inputs, sample, output)).all()
    if benchmark.disabled:
        return
    work = function.work(case, function.visible_pairs(case, inputs))
    limit = peak(threads, case.dtype) if function.limited else None
    record(work / benchmark.stats.stats.median / 1e9, function.unit, limit)

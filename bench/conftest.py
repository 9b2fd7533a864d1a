"""Limits measured once, an option for the whole grid, and a table of shares at the end."""

import pytest

import attnfast
from attnfast.bench import limits

ROWS: list[tuple[str, float, str, float | None]] = []
SECONDS = 0.3


def pytest_addoption(parser):
    parser.addoption("--grid", action="store_true", help="all cases, not only the quick ones")


@pytest.fixture(scope="session")
def threads():
    return attnfast.get_num_threads()


@pytest.fixture(scope="session")
def peak():
    """GFLOP/s of the FMA loop by (threads, dtype) of the best instruction set."""
    found: dict[tuple[int, str], float] = {}

    def measure(threads: int, dtype: str = "float32") -> float:
        key = threads, dtype
        if key not in found:
            found[key] = max(limits.fma_peak(threads, SECONDS, dtype) for _ in range(3))
        return found[key]

    return measure


@pytest.fixture(scope="session")
def bandwidth(threads):
    """GB/s of reading memory, all threads."""
    return max(limits.read_bandwidth(threads, 256 * 2**20, SECONDS) for _ in range(3))


@pytest.fixture
def record(request):
    """Note a rate and what it is a share of, if anything, for the table at the end."""

    def note(rate: float, unit: str, limit: float | None) -> None:
        assert rate > 0 and (limit is None or limit > 0)
        ROWS.append((request.node.name, rate, unit, rate / limit if limit else None))

    return note


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    terminalreporter.section("share of the measured limits")
    width = max(len(name) for name, *_ in ROWS)
    for name, rate, unit, share in ROWS:
        percent = "-" if share is None else f"{100 * share:5.1f} %"
        terminalreporter.write_line(f"{name:<{width}}  {rate:8.2f} {unit:<8}  {percent}")

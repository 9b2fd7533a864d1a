"""csrc/runtime/team.c: fewer threads while the machine has no time for them."""

import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

import attnfast
from support.paths import ROOT


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_size_follows_the_load(tmp_path):
    """On a clock of the test's own: quiet, one loss, always busy, quiet again."""
    program = tmp_path / "team"
    sources = (ROOT / "tools/drivers/team.c", ROOT / "csrc/runtime/team.c")
    command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "csrc", *sources]
    subprocess.run([*command, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def busy():
    """Keep every processor busy by another process."""
    count = attnfast.get_num_threads()
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


@pytest.mark.skipif(attnfast.get_num_threads() == 1, reason="needs two processors")
def test_calls_beside_busy_processes(rng, busy):
    """The bits of one thread, and not many times its time."""
    operands = rng.standard_normal((3, 1, 12, 128, 64)).astype(np.float32)
    expected = attnfast.attention(*operands, num_threads=1)
    taken = {1: [], None: []}
    for _ in range(5):
        for threads, times in taken.items():
            for _ in range(100):
                start = time.perf_counter()
                found = attnfast.attention(*operands, num_threads=threads)
                times.append(time.perf_counter() - start)
                np.testing.assert_array_equal(found, expected)
    assert statistics.median(taken[None]) < 3 * statistics.median(taken[1])

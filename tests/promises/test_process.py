"""Life in a process: fork, Ctrl-C, the GIL, the host's settings.

Every script runs in an interpreter of its own, so that nothing here disturbs pytest or is hidden by
it.
"""

import os
import sys

import pytest

import attnfast
from support.paths import TESTS
from support.scripts import START, run_python

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")
EACH_ISA = pytest.mark.parametrize("isa", attnfast.available_isas())


@POSIX
class TestFork:
    """A child of a process whose threads have already worked must not wait for them."""

    SCRIPT = (
        START
        + """
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads
cases = [qkv(2, 4, 300, 64), decode_case()]

def results(n):
    return [attnfast.attention(*case, num_threads=n).tobytes() for case in cases]

def child(depth):
    pid = os.fork()
    if pid == 0:
        ok = all(results(n) == expected for n in (2, 1, 4))
        if depth > 1:
            ok = child(depth - 1) == 0 and ok
        ok = results(2) == expected and ok
        os._exit(0 if ok else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

"""
    )

    @pytest.mark.quick
    def test_after_a_call(self, tmp_path):
        run = "expected = results(2)\nassert child(1) == 0\nassert results(2) == expected"
        run_python(self.SCRIPT + run, tmp_path)

    @pytest.mark.quick
    def test_every_function_after_a_call(self, tmp_path):
        run = f"""
sys.path.insert(0, {str(TESTS)!r})
from support.calls import CALLS
q, k, v = qkv(2, 300, 32)

def results(n):
    found = [CALLS[name](q, k, v, np.array, num_threads=n) for name in CALLS]
    return [[np.asarray(a).tobytes() for a in x] for x in found]

expected = results(2)
assert child(1) == 0
assert results(2) == expected
"""
        run_python(self.SCRIPT + run, tmp_path)

    def test_nested(self, tmp_path):
        run = "expected = results(2)\nassert child(3) == 0\nassert results(2) == expected"
        run_python(self.SCRIPT + run, tmp_path)

    def test_before_the_first_call(self, tmp_path):
        run = "expected = None\nif os.fork() == 0:\n    os._exit(0 if results(2) else 1)\n"
        run_python(self.SCRIPT + run + "assert os.wait()[1] == 0\nresults(2)", tmp_path)

    def test_many_times(self, tmp_path):
        run = "expected = results(2)\nassert [child(1) for _ in range(10)] == [0] * 10"
        run_python(self.SCRIPT + run, tmp_path)

    def test_from_another_thread_while_calls_run(self, tmp_path):
        run = """
expected = results(2)
stop = threading.Event()
def work():
    while not stop.is_set():
        assert results(2) == expected
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads:
    t.start()
codes = [child(1) for _ in range(5)]
stop.set()
for t in threads:
    t.join()
assert codes == [0] * 5
"""
        run_python(self.SCRIPT + run, tmp_path)

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_multiprocessing(self, method, tmp_path):
        (tmp_path / "work.py").write_text(
            START + "def work(seed):\n    return attnfast.attention(*qkv(4, 100, 16, seed=seed))\n"
        )
        run = f"""
sys.path.insert(0, {str(tmp_path)!r})
import multiprocessing
from work import work
expected = [work(seed) for seed in range(6)]
with multiprocessing.get_context({method!r}).Pool(2) as pool:
    results = pool.map(work, range(6))
for a, b in zip(results, expected):
    assert a.tobytes() == b.tobytes()
"""
        run_python(self.SCRIPT + run, tmp_path)


# Calls that take seconds on any machine, of arrays of which most lie at the same place.
LONG_CALLS = """
def heads(n, *shape, dtype=np.float32):
    return [np.broadcast_to(a, (n, *shape)) for a in qkv(1, *shape, dtype=dtype)]

x, doubles, halves = (heads(16, 16384, 64, dtype=dtype) for dtype in (np.float32, float, "e"))
few, (key, _, _) = qkv(64, 40, 64)[0], qkv(1, 1, 64)
many, one = np.broadcast_to(key, (64, 2**20, 64)), qkv(4096, 1, 64)[0]
most = np.broadcast_to(key, (4096, 2**17, 64))
wide = heads(16, 8192, 512)[:2]
bias = np.zeros((1, 16384), np.float32)
calls = {
    "prefill": lambda: attnfast.attention(*x),
    "one thread": lambda: attnfast.attention(*x, num_threads=1),
    "float64": lambda: attnfast.attention(*doubles),
    "float16": lambda: attnfast.attention(*halves),
    "modifiers": lambda: attnfast.attention(*x, bias=bias, mask=bias == 0, softcap=5.0),
    "few queries": lambda: attnfast.attention(few, many, many),
    "decode": lambda: attnfast.attention(one, most, most),
    "weights": lambda: attnfast.attention_weights(*wide),
}
"""


@POSIX
class TestSignals:
    @pytest.mark.quick
    @EACH_ISA
    def test_ctrl_c(self, isa, tmp_path):
        """Two of three times within 0.3 s: a busy machine may be late once."""
        script = """
small = qkv(2, 100, 32)
expected = attnfast.attention(*small).tobytes()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start us with it ignored
sent = []

def press():
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

def latency(name):
    threading.Timer(0.06, press).start()
    try:
        calls[name]()
    except KeyboardInterrupt:
        return time.perf_counter() - sent[-1]
    raise SystemExit(f"{name} was not interrupted")

for name in calls:
    latencies = []
    while sum(x < 0.3 for x in latencies) < 2:
        latencies.append(latency(name))
        assert sum(x >= 0.3 for x in latencies) < 2, (name, latencies)
    assert attnfast.attention(*small).tobytes() == expected
"""
        run_python(START + LONG_CALLS + script, tmp_path, timeout=120, ATTNFAST_ISA=isa)

    def test_handlers_run_while_a_call_lasts(self, tmp_path):
        script = """
x = [np.broadcast_to(a, (8, 6144, 64)) for a in qkv(1, 6144, 64)]
expected = attnfast.attention(*x).tobytes()
times = []
signal.signal(signal.SIGALRM, lambda *_: times.append(time.perf_counter()))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
start = time.perf_counter()
result = attnfast.attention(*x, num_threads=1)
end = time.perf_counter()
signal.setitimer(signal.ITIMER_REAL, 0)
assert result.tobytes() == expected
assert end - start > 0.2, "too short a call to show anything"
during = [t for t in times if t < end]
assert len(during) > (end - start) / 0.05 / 3, (len(during), end - start)
"""
        run_python(START + script, tmp_path)

    @pytest.mark.quick
    def test_an_exception_of_a_handler_comes_through(self, tmp_path):
        script = """
class Stop(Exception): pass
def handler(*_): raise Stop
x = [np.broadcast_to(a, (16, 16384, 64)) for a in qkv(1, 16384, 64)]
out = np.empty((16, 16384, 64), np.float32)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.06)
try:
    attnfast.attention(*x, out=out)
except Stop:
    print("stopped")
"""
        assert run_python(START + script, tmp_path) == "stopped\n"


@pytest.mark.quick
def test_other_python_threads_run_while_a_call_lasts(tmp_path):
    script = """
x = [np.broadcast_to(a, (8, 8192, 64)) for a in qkv(1, 8192, 64)]
thread = threading.Thread(target=lambda: attnfast.attention(*x, num_threads=1))
ticks = [time.perf_counter()]
thread.start()
while thread.is_alive():
    time.sleep(0.001)
    ticks.append(time.perf_counter())
gaps = np.diff(ticks)
assert gaps.sum() > 0.3, "too short a call to show anything"
assert gaps[gaps < 0.03].sum() > gaps.sum() / 2  # on a busy machine not all of them are short
"""
    run_python(START + script, tmp_path)


@pytest.mark.quick
@LINUX
def test_affinity_counts_when_it_changes(tmp_path):
    """OpenMP looks at it once, when it is loaded."""
    script = """
cpus, default = os.sched_getaffinity(0), attnfast.get_num_threads()
os.sched_setaffinity(0, [min(cpus)])
assert attnfast.get_num_threads() == 1
os.sched_setaffinity(0, cpus)
assert attnfast.get_num_threads() == default
"""
    run_python(START + script, tmp_path, ATTNFAST_NUM_THREADS="")


@pytest.mark.quick
@LINUX
def test_the_host_process_is_left_as_it_was(tmp_path):
    script = """
import os, signal, subprocess, sys, threading, warnings
import numpy as np
import importlib.metadata, platform, contextlib

def denormals():
    seen = []
    def look():
        tiny = np.float32(1e-40)
        seen.append(bool(tiny * np.float32(1) != 0 and np.full(9, tiny).sum() != 0))
        seen.append(bool(np.float64(1e-310) * np.float64(1) != 0))
    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return seen

def state():
    with open("/proc/self/status") as file:
        status = file.read().splitlines()
    return {
        "denormals": denormals(),
        "handlers": [signal.getsignal(s) for s in signal.valid_signals()],
        "signals": [line for line in status if line.startswith(("SigCgt", "SigIgn", "SigBlk"))],
        "environment": subprocess.run(["env"], capture_output=True, text=True).stdout,
        "os.environ": dict(os.environ),
        "affinity": os.sched_getaffinity(0),
        "path": list(sys.path),
        "filters": list(warnings.filters),
        "numpy": np.geterr(),
    }

def tasks():
    return len(os.listdir("/proc/self/task"))

state()  # with its first thread glibc begins to catch a signal of its own
before, threads = state(), tasks()
import attnfast
assert tasks() == threads, "importing starts no threads"
assert state() == before
assert all(before["denormals"])
x = np.ones((2, 8, 300, 64), np.float32)
attnfast.attention(x, x, x, is_causal=True, num_threads=2)
attnfast.attention(x, x, x, num_threads=1)
assert state() == before
# A result that is a denormal number stays one, in every thread of the library.
x = np.full((2, 8, 300, 64), 1e-40, np.float32)
for isa in attnfast.available_isas():
    attnfast.config.use_isa(isa)
    assert (attnfast.attention(x, x, x, num_threads=2) != 0).all(), isa
    assert (attnfast.attention(x[:, :, :1], x, x, num_threads=2) != 0).all(), isa
"""
    run_python(script, tmp_path)

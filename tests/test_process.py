"""Life in a process: fork, Ctrl-C, the GIL, the host's settings, stacks, memory and sizes.

Every script runs in an interpreter of its own, so that nothing here disturbs pytest or is hidden by
it.
"""

import os
import sys

import pytest

import attnfast
from support import run_python

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")
EACH_ISA = pytest.mark.parametrize("isa", attnfast.available_isas())

START = """
import os, signal, sys, threading, time, warnings
import numpy as np
import attnfast

def qkv(*shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(3)]

def decode_case():
    q, k, v = qkv(2, 4, 3000, 64)
    return q[:, :, :1], k, v

"""


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

    def test_after_a_call(self, tmp_path):
        run = "expected = results(2)\nassert child(1) == 0\nassert results(2) == expected"
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


# Seconds of work on any machine. Where keys are many, all of them lie at the same place.
LONG_CALLS = {
    "prefill": """
x = qkv(16, 16384, 64)
call = lambda: attnfast.attention(*x)
""",
    "one thread": """
x = qkv(16, 16384, 64)
call = lambda: attnfast.attention(*x, num_threads=1)
""",
    "float64": """
x = qkv(8, 16384, 64, dtype=float)
call = lambda: attnfast.attention(*x)
""",
    "float16": """
x = qkv(16, 16384, 64, dtype="e")
call = lambda: attnfast.attention(*x)
""",
    "modifiers": """
x = qkv(8, 16384, 64)
bias = np.zeros((1, 16384), np.float32)
call = lambda: attnfast.attention(*x, bias=bias, mask=bias == 0, softcap=5.0)
""",
    "few queries": """
q, k, v = qkv(64, 40, 64)
k = np.broadcast_to(k[:, :1], (64, 2**20, 64))
call = lambda: attnfast.attention(q, k, k)
""",
    "decode": """
q, k, v = qkv(4096, 1, 64)
k = np.broadcast_to(k, (4096, 2**17, 64))
call = lambda: attnfast.attention(q, k, k)
""",
    "weights": """
q, k, v = qkv(1, 8192, 512)
q, k = np.broadcast_to(q, (16, 8192, 512)), np.broadcast_to(k, (16, 8192, 512))
call = lambda: attnfast.attention_weights(q, k)
""",
}


@POSIX
class TestSignals:
    @EACH_ISA
    @pytest.mark.parametrize("kind", LONG_CALLS)
    def test_ctrl_c(self, kind, isa, tmp_path):
        script = """
small = qkv(2, 100, 32)
expected = attnfast.attention(*small).tobytes()
sent, latencies = [], []

def press():
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

for attempt in range(3):
    threading.Timer(0.15, press).start()
    start = time.perf_counter()
    try:
        call()
        raise SystemExit(f"not interrupted in {time.perf_counter() - start:.2f} s")
    except KeyboardInterrupt:
        latencies.append(time.perf_counter() - sent[-1])
    assert attnfast.attention(*small).tobytes() == expected
print(sorted(latencies)[1])
"""
        printed = run_python(START + LONG_CALLS[kind] + script, tmp_path, ATTNFAST_ISA=isa)
        assert float(printed) < 0.3

    def test_handlers_run_while_a_call_lasts(self, tmp_path):
        script = """
x = qkv(8, 8192, 64)
expected = attnfast.attention(*x).tobytes()
times = []
signal.signal(signal.SIGALRM, lambda *_: times.append(time.perf_counter()))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.1)
start = time.perf_counter()
result = attnfast.attention(*x, num_threads=1)
end = time.perf_counter()
signal.setitimer(signal.ITIMER_REAL, 0)
assert result.tobytes() == expected
assert end - start > 0.5, "too short a call to show anything"
gaps = np.diff([start, *(t for t in times if t < end), end])
assert gaps.max() < 0.4, gaps
"""
        run_python(START + script, tmp_path)

    def test_an_exception_of_a_handler_comes_through(self, tmp_path):
        script = """
class Stop(Exception): pass
def handler(*_): raise Stop
x = qkv(16, 16384, 64)
out = np.empty_like(x[0])
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    attnfast.attention(*x, out=out)
except Stop:
    print("stopped")
"""
        assert run_python(START + script, tmp_path) == "stopped\n"


def test_other_python_threads_run_while_a_call_lasts(tmp_path):
    script = """
x = qkv(16, 8192, 64)
thread = threading.Thread(target=lambda: attnfast.attention(*x, num_threads=1))
ticks = [time.perf_counter()]
thread.start()
while thread.is_alive():
    time.sleep(0.001)
    ticks.append(time.perf_counter())
assert ticks[-1] - ticks[0] > 0.3, "too short a call to show anything"
assert np.diff(ticks).max() < 0.2
"""
    run_python(START + script, tmp_path)


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
    status = open("/proc/self/status").read().splitlines()
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
    attnfast._core.use_isa(isa)
    assert (attnfast.attention(x, x, x, num_threads=2) != 0).all(), isa
    assert (attnfast.attention(x[:, :, :1], x, x, num_threads=2) != 0).all(), isa
"""
    run_python(script, tmp_path)


@EACH_ISA
def test_small_stacks(isa, tmp_path):
    """Of OpenMP's threads and of Python's own."""
    script = """
cases = [
    (qkv(2, 4, 300, 64), {}),
    (qkv(2, 4, 300, 64), {"is_causal": True, "softcap": 3.0, "mask": np.ones((300, 300), bool)}),
    (qkv(2, 4, 300, 64), {"bias": np.ones((300, 300), np.float32), "return_weights": True}),
    (qkv(2, 4, 200, 256), {}),
    (qkv(2, 4, 300, 64, dtype=float), {"window_size": 50}),
    (qkv(2, 4, 300, 64, dtype="e"), {"return_lse": True}),
    (decode_case(), {}),
    (decode_case(), {"return_weights": True}),
]
def results(n):
    return [np.asarray(attnfast.attention(*a, num_threads=n, **o)[0]).tobytes() for a, o in cases]
expected = results(1)
assert results(2) == expected and results(4) == expected
threading.stack_size(256 * 1024)
got = []
thread = threading.Thread(target=lambda: got.append((results(1), results(3))))
thread.start()
thread.join()
assert got == [(expected, expected)]
"""
    run_python(START + script, tmp_path, OMP_STACKSIZE="128k", ATTNFAST_ISA=isa)


MEMORY = """
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Vm")}

def growth(call):
    for n in (1, 2):
        call(slice(0, 200), n)  # threads, stacks, code pages
    worst = 0
    for n in (1, 2):
        open("/proc/self/clear_refs", "w").write("5")
        before = peak()["VmRSS"]
        call(slice(None), n)
        worst = max(worst, (peak()["VmHWM"] - before) / n)
    return worst  # kB a thread

"""


@LINUX
@EACH_ISA
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ("(2, 65536, 64)", "window_size=256"),
        ("(1, 8192, 64)", "is_causal=True"),
        ("(1, 6000, 256)", "softcap=3.0"),
        ("(200, 64, 64)", "window_size=5"),
        ("(1, 6000, 64)", "window_size=(300, 0), return_lse=False"),
    ],
)
def test_memory_beyond_the_arrays(shape, options, isa, tmp_path):
    script = f"""
x = np.ones({shape}, np.float32)
out = np.ones_like(x)
def call(rows, n):
    y = x[:, rows]
    attnfast.attention(y, y, y, out=out[:, rows], num_threads=n, {options})
print(growth(call))
"""
    grown = float(run_python(START + MEMORY + script, tmp_path, ATTNFAST_ISA=isa))
    assert grown < 2000


@LINUX
@EACH_ISA
def test_memory_of_decoding(isa, tmp_path):
    script = """
x = np.ones((8, 100000, 64), np.float32)
q = np.ones((32, 1, 64), np.float32)
def call(rows, n):
    attnfast.attention(q, x[:, rows], x[:, rows], num_threads=n)
print(growth(call))
"""
    assert float(run_python(START + MEMORY + script, tmp_path, ATTNFAST_ISA=isa)) < 2000


@LINUX
def test_memory_is_given_back(tmp_path):
    script = """
cases = [(qkv(2, 4, 500, 64), {"return_weights": True}), (decode_case(), {})]
def call(rows, n):
    for arrays, options in cases:
        for _ in range(100 if rows == slice(None) else 3):
            attnfast.attention(*arrays, num_threads=n, **options)
print(growth(call))
"""
    assert float(run_python(START + MEMORY + script, tmp_path)) < 20_000  # one result is 8 MB


@LINUX
def test_out_of_memory_is_an_error(tmp_path):
    script = """
import resource
q, k, v = qkv(8, 3000, 64)
out = np.empty_like(q)
expected = attnfast.attention(q, k, v).tobytes()
lines = open("/proc/self/status").read().splitlines()
size = next(int(line.split()[1]) for line in lines if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, -1))
try:
    attnfast.attention(q, k, v, num_threads=2, return_weights=True)
except MemoryError:
    print("MemoryError")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert attnfast.attention(q, k, v).tobytes() == expected
"""
    assert run_python(START + script, tmp_path) == "MemoryError\n"


SIZES = """
import mmap
from numpy.lib.stride_tricks import as_strided

def zeros(shape, dtype=np.float32):
    # Costs no memory until it is written, and only what is written.
    n = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, n, flags=flags), dtype).reshape(shape)

def same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

"""

HUGE = {
    "keys": """
lk = 2**25 + 77
for lq in (1, 60):
    q, k, v = zeros((lq, 16)), zeros((lk, 72)), zeros((lk, 65))
    q = np.random.default_rng(0).standard_normal((lq, 72), np.float32)
    rng = np.random.default_rng(1)
    k[-500:], v[-500:] = rng.standard_normal((500, 72)), rng.standard_normal((500, 65))
    assert k.size > 2**31 and v.size > 2**31
    output = attnfast.attention(q, k, v, window_size=(400, 0), q_offset="end")
    same(output, attnfast.attention(q, k[-500:], v[-500:], window_size=(400, 0), q_offset="end"))
    lengths = [lk - 30]
    output = attnfast.attention(q, k, v, window_size=(400, 0), q_offset="end", kv_lengths=lengths)
    short = k[-500:-30], v[-500:-30]
    same(output, attnfast.attention(q, *short, window_size=(400, 0), q_offset="end"))
""",
    "batch strides": """
step, lq, lk = 2**31 + 64, 50, 70
memory = zeros(step + 40000)
rows = [as_strided(memory[i * 10000 :], (2, 1, n, 32), (4 * step, 4, 128, 4))
        for i, n in enumerate((lq, lk, lk, lq))]
q, k, v, out = rows
for a in (q, k, v):
    a[...] = np.random.default_rng(a.shape[2]).standard_normal(a.shape)
bias = as_strided(zeros(step + 4000), (2, 1, 1, lk), (4 * step, 4, 4, 4))
mask = as_strided(zeros(step + 4000, bool), (2, 1, 1, lk), (step, 1, 1, 1))
bias[...], mask[...] = np.arange(lk) / 9, np.arange(lk) % 3 > 0
attnfast.attention(q, k, v, out=out, bias=bias, mask=mask)
copies = [a.copy() for a in (q, k, v)]
same(out, attnfast.attention(*copies, bias=bias.copy(), mask=mask.copy()))
same(attnfast.attention(q[:, :, :1], k, v), attnfast.attention(copies[0][:, :, :1], *copies[1:]))
""",
    "row strides": """
step = 2**30 + 16
memory = zeros(4 * step)
q = as_strided(memory, (4, 16), (4 * step, 4))
k = as_strided(memory[100:], (4, 16), (4 * step, 4))
rng = np.random.default_rng(0)
q[...], k[...] = rng.standard_normal((4, 16)), rng.standard_normal((4, 16))
same(attnfast.attention(q, k, k), attnfast.attention(q.copy(), k.copy(), k.copy()))
""",
    "mask": """
lk = 2**31 + 100
mask = zeros((1, lk), bool)
mask[0, -40:] = True
k = as_strided(np.ones((1, 8), np.float32), (lk, 8), (0, 4))
for lq in (1, 60):
    q = np.ones((lq, 8), np.float32)
    options = {"window_size": (1000, 1000), "q_offset": lk - lq}
    result = attnfast.attention(q, k, k, mask=mask, return_lse=True, **options)
    same(result.output, 1)
    same(result.lse, np.sqrt(8) + np.log(40))
""",
    "positions": """
lk = 2**33 + 5
k = as_strided(np.ones((1, 8), np.float32), (lk, 8), (0, 4))
for lq in (1, 60):
    q = np.ones((lq, 8), np.float32)
    first = attnfast.attention(
        q, k, k, return_lse=True, window_size=(9, -1), is_causal=True, q_offset=2**32 + 1
    )
    same(first.lse, np.sqrt(8) + np.log(10))
    last = attnfast.attention(q, k, k, return_lse=True, window_size=(9, -1), q_offset="end")
    same(last.lse, np.sqrt(8) + np.log(10 + np.arange(lq)[::-1]))
    far = attnfast.attention(q, k, k, return_lse=True, window_size=3, q_offset=2**62)
    assert not far.output.any() and np.isneginf(far.lse).all()
""",
    "queries": """
lq = 2**24 + 3
q = zeros((1, lq, 129))
q[:, -70:] = np.random.default_rng(0).standard_normal((70, 129))
k, v = np.ones((1, 3, 129), np.float32), np.arange(3, dtype=np.float32).reshape(1, 3, 1)
k[0, 1] *= 0.1
assert q.size > 2**31
output = attnfast.attention(q, k, v)
assert output.shape == (1, lq, 1)
same(output[:, -70:], attnfast.attention(q[:, -70:], k, v))
same(output[:, :-70], 1)
""",
    "distances": """
k = np.ones((9, 8), np.float32)
for lq in (1, 60):
    q = np.ones((lq, 8), np.float32)
    result = attnfast.attention(q, k, k, q_offset=-(2**32), alibi_slopes=[1e-9], return_lse=True)
    same(result.lse, np.sqrt(8) + np.log(9) - 2**32 * 1e-9)
    biased = attnfast.attention_weights(q, k, q_offset=2**40, alibi_slopes=[1e-12], stage="biased")
    same(biased, np.sqrt(8) - 2**40 * 1e-12)
""",
}


@LINUX
@pytest.mark.skipif(sys.maxsize < 2**32, reason="needs a 64-bit process")
@pytest.mark.parametrize("what", HUGE)
def test_more_than_two_to_the_31(what, tmp_path):
    isas = attnfast.available_isas()[: 1 if what == "queries" else None]  # it takes 5 s
    loop = f"for isa in {isas}:\n    attnfast._core.use_isa(isa)\n"
    body = "\n".join("    " + line for line in HUGE[what].splitlines())
    run_python(START + SIZES + loop + body, tmp_path, timeout=120)

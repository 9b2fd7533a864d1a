"""Life beside other libraries with threads of their own, in one process.

threadpoolctl, PyTorch, scikit-learn, SciPy, Numba and NumPy's OpenBLAS. Whoever comes first, our
results keep their bits, calls use as many threads as they were asked to, and forks work. Every
script runs in an interpreter of its own.
"""

import importlib.util
import itertools

import pytest

from support.scripts import run_python
from support.workers import COUNT_WORKERS, DEFAULTS, LINUX, TWO_CPUS

pytestmark = LINUX


LIMITS = (
    COUNT_WORKERS
    + """
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

x = qkv(8, 1500, 64)
default = attnfast.get_num_threads()
assert default > 1

def used(**options):
    return workers(lambda: attnfast.attention(*x, **options), options.get("num_threads"))

def seen():
    # The number of threads that a call uses, which both say who could know it.
    count = used()
    assert count == attnfast.get_num_threads() == attnfast.plan(*x).threads
    return count

def elsewhere(call):
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]
"""
)


@TWO_CPUS
class TestThreadpoolctl:
    def run(self, script, tmp_path, **environment):
        run_python(LIMITS + script, tmp_path, **{**DEFAULTS, **environment})

    def test_info_lists_our_runtime(self, tmp_path):
        script = """
(ours,) = [info for info in threadpool_info() if info["user_api"] == "openmp"]
assert ours["num_threads"] == default
with open("/proc/self/maps") as file:
    assert any(line.rstrip().endswith(ours["filepath"]) for line in file)
with threadpool_limits(1):
    assert [i["num_threads"] for i in threadpool_info() if i["user_api"] == "openmp"] == [1]
"""
        self.run(script, tmp_path)

    def test_limits(self, tmp_path):
        script = """
for n in (1, 2):
    with threadpool_limits(n):
        assert seen() == n
    assert seen() == default
with threadpool_limits(2), threadpool_limits(1):
    assert seen() == 1
with threadpool_limits(100):
    assert seen() == default, "more than there are CPUs"
"""
        self.run(script, tmp_path)

    def test_decorator_and_explicit_restoring(self, tmp_path):
        script = """
@threadpool_limits.wrap(limits=1)
def alone():
    return seen()

assert alone() == 1 and seen() == default
limits = threadpool_limits(1)
assert seen() == 1
limits.restore_original_limits()
assert seen() == default
"""
        self.run(script, tmp_path)

    def test_kinds_of_libraries(self, tmp_path):
        script = """
with threadpool_limits(1, user_api="openmp"):
    assert seen() == 1
with threadpool_limits(1, user_api="blas"):
    assert seen() == default
with threadpool_limits({"openmp": 1, "openblas": 2}):
    assert seen() == 1
with ThreadpoolController().select(user_api="openmp").limit(limits=1):
    assert seen() == 1
assert seen() == default
"""
        self.run(script, tmp_path)

    def test_an_exception_restores(self, tmp_path):
        script = """
try:
    with threadpool_limits(1):
        attnfast.attention(*x, scale="none")
except TypeError:
    pass
assert seen() == default
"""
        self.run(script, tmp_path)

    def test_limits_are_of_their_thread(self, tmp_path):
        """OpenMP keeps the number of threads for each calling thread."""
        script = """
def limited():
    with threadpool_limits(1):
        inside = seen()
    return inside, seen()

assert elsewhere(limited) == (1, default)
with threadpool_limits(1):
    assert elsewhere(seen) == default
    assert seen() == 1
inside, done, counts = threading.Event(), threading.Event(), []
def hold():
    with threadpool_limits(1):
        inside.set()
        done.wait(30)
        counts.append(seen())
thread = threading.Thread(target=hold)
thread.start()
inside.wait(30)
assert seen() == default
done.set()
thread.join()
assert counts == [1]
"""
        self.run(script, tmp_path)

    def test_our_own_settings_win(self, tmp_path):
        """In this order: the call's, the thread's, the process's, then OpenMP's."""
        script = """
with threadpool_limits(1):
    assert used(num_threads=2) == attnfast.plan(*x, num_threads=2).threads == 2
    with attnfast.num_threads(2):
        assert seen() == 2
    attnfast.set_num_threads(2)
    assert seen() == elsewhere(seen) == 2
    with attnfast.num_threads(1):
        assert seen() == 1 and elsewhere(seen) == 2
    attnfast.set_num_threads(None)
    assert seen() == 1
attnfast.set_num_threads(1)
with threadpool_limits(2):
    assert seen() == 1
attnfast.set_num_threads(None)
assert seen() == default
"""
        self.run(script, tmp_path)

    def test_so_does_our_environment_variable(self, tmp_path):
        script = """
with threadpool_limits(1):
    assert seen() == 2
    attnfast.set_num_threads(None)
    assert seen() == 1
"""
        self.run(script, tmp_path, ATTNFAST_NUM_THREADS="2")


# What each neighbour needs, how it comes in, and `NAME()`: work for its own threads, whose result
# it gives back as bytes.
NEIGHBOURS = {
    "numpy": """
import numpy as np
rng = np.random.default_rng(1)
A = rng.standard_normal((500, 500))
def numpy():
    return (A @ A).tobytes()
""",
    "torch": """
import torch
def torch_():
    t = torch.linspace(0, 1, 200_000).reshape(400, 500)
    return (t @ t.T).exp().numpy().tobytes()
""",
    "sklearn": """
from sklearn.metrics import pairwise_distances_argmin
def sklearn():
    rows = np.random.default_rng(2).standard_normal((3000, 8))
    return pairwise_distances_argmin(rows, rows[::7]).tobytes()
""",
    "scipy": """
import scipy.linalg
def scipy_():
    return scipy.linalg.lu(np.random.default_rng(3).standard_normal((300, 300)))[2].tobytes()
""",
    "numba": """
import numba
@numba.njit(parallel=True)
def squares(x):
    for i in numba.prange(x.size):
        x[i] *= x[i]
def numba_():
    x = np.arange(100_000.0)
    squares(x)
    return x.tobytes()
""",
    "attnfast": "import attnfast\n",
}
CALLS = {name: f"{name}_" for name in ("torch", "scipy", "numba")}
CHECK = """
import hashlib

x = qkv(8, 1500, 64)
few = decode_case()

def ours(n):
    arrays = [attnfast.attention(*x, is_causal=True, num_threads=n)]
    arrays += [attnfast.attention(*few, num_threads=n)]
    arrays += [attnfast.local_attention(*x, 20, global_tokens=[3], num_threads=n)]
    arrays += [attnfast.additive_attention(*(a[:, :200] for a in x), num_threads=n)]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()

def ours_is(expected):
    for n in (2, 1, 4):
        assert ours(n) == expected, n
"""
BESIDE = """
first = [call() for call in others]
ours_is(expected)
assert [call() for call in others] == first
for n in (2, 1, 3):
    most = workers(lambda: attnfast.attention(*x, num_threads=n), min(n, 2))
    assert min(n, 2) <= most <= n, (n, most)
    assert [call() for call in others] == first
# Theirs and ours at once.
stop, wrong = threading.Event(), []
def work(call, before):
    while not stop.is_set():
        if call() != before:
            wrong.append(call)
threads = [threading.Thread(target=work, args=a) for a in zip(others, first)]
for thread in threads:
    thread.start()
ours_is(expected)
stop.set()
for thread in threads:
    thread.join()
assert not wrong
assert [call() for call in others] == first
# Of a child only what is ours: other libraries may not outlive a fork.
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads
child = os.fork()
if child == 0:
    signal.alarm(40)  # ends it if it hangs
    try:
        ours_is(expected)
    except BaseException:
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
ours_is(expected)
assert [call() for call in others] == first
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The digest of our results in a process where nobody else is."""
    script = COUNT_WORKERS + CHECK + "print(ours(2))"
    return run_python(script, tmp_path_factory.mktemp("alone")).strip()


OPTIONAL = {"torch", "numba"}  # the others come with the extra `test`: without them is red


def beside(order, expected, tmp_path):
    """Import libraries in this order, run them and us in turn and at once, then fork."""
    for name in OPTIONAL & set(order):
        if not importlib.util.find_spec(name):  # which does not import it here
            pytest.skip(f"{name} is not in the extra test")
    others = [CALLS.get(name, name) for name in order if name != "attnfast"]
    script = [NEIGHBOURS["numpy"], *(NEIGHBOURS[name] for name in order), COUNT_WORKERS, CHECK]
    script += [f"expected = {expected!r}\nothers = [{', '.join(others)}]\n", BESIDE]
    run_python("".join(script), tmp_path)


@pytest.mark.quick
@pytest.mark.parametrize(
    "order", list(itertools.permutations(["torch", "sklearn", "attnfast"])), ids="-".join
)
def test_import_orders(order, expected, tmp_path):
    """Each brings an OpenMP runtime; which one a library uses depends on who came first."""
    beside(order, expected, tmp_path)


@pytest.mark.parametrize("name", ["numpy", "sklearn", "torch", "scipy", "numba"])
def test_one_neighbour(name, expected, tmp_path):
    beside([name, "attnfast"], expected, tmp_path)

"""Work in other processes: multiprocessing, concurrent.futures, forks from threads."""

import os

import pytest

from support.scripts import START, run_python
from support.workers import LINUX

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs fork")
METHODS = ["fork", "spawn", "forkserver"] if os.name == "posix" else ["spawn"]
EACH_METHOD = pytest.mark.parametrize("method", METHODS)

# A module that children import, and what the scripts share that have such children.
WORK = (
    START
    + """
def work(seed):
    return attnfast.attention(*qkv(4, 300, 32, seed=seed), num_threads=2)

def settings(_=None):
    return attnfast.get_num_threads()

def half(name, part):
    from multiprocessing import shared_memory
    memory = shared_memory.SharedMemory(name)
    shared = np.ndarray((4, 300, 32), np.float32, memory.buf)
    rows = slice(2 * part, 2 * part + 2)
    attnfast.attention(*(a[rows] for a in qkv(4, 300, 32)), out=shared[rows], num_threads=2)
    del shared
    memory.close()

def family(seed):
    q, k, v = qkv(2, 60, 16, seed=seed)
    top = attnfast.attention_topk(q, k, 3)
    both = attnfast.attention(q, k, v, return_weights=True, return_lse=True)
    return top, both, attnfast.plan(q, k, v, return_blocks=True)._replace(threads=1)
"""
)
CHILDREN = """
import multiprocessing, pickle
from concurrent.futures import ProcessPoolExecutor
from work import *

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads
expected = [work(seed).tobytes() for seed in range(6)]  # threads of the parent have worked

def from_a_thread(call):
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]

def check():
    assert [work(seed).tobytes() for seed in range(6)] == expected

def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def fork(call):
    child = os.fork()
    if child == 0:
        signal.alarm(50)  # ends it if it hangs
        try:
            call()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return exit_code(child)
"""


@pytest.fixture
def run(tmp_path):
    """Run a script that has children."""
    (tmp_path / "work.py").write_text(WORK)

    def run(script, **environment):
        path = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        main = "\nif __name__ == '__main__':\n"
        body = "".join(f"    {line}\n" for line in script.splitlines())
        run_python(path + CHILDREN + main + body, tmp_path, **environment)

    return run


class TestProcesses:
    @EACH_METHOD
    def test_executor(self, method, run):
        run(f"""
context = multiprocessing.get_context({method!r})
for submit in (lambda call: call(), from_a_thread):
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert [a.tobytes() for a in submit(lambda: list(pool.map(work, range(6))))] == expected
        check()
        for seed, results in enumerate(pool.map(family, range(4))):
            assert pickle.dumps(results) == pickle.dumps(family(seed))
        try:
            pool.submit(attnfast.attention, 1, 2, 3).result()
            raise SystemExit("an error got lost")
        except (TypeError, ValueError) as error:
            assert "query" in str(error)
""")

    @EACH_METHOD
    def test_process_writes_to_shared_memory(self, method, run):
        run(f"""
from multiprocessing import shared_memory
context = multiprocessing.get_context({method!r})
memory = shared_memory.SharedMemory(create=True, size=4 * 300 * 32 * 4)
try:
    workers = [context.Process(target=half, args=(memory.name, part)) for part in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert bytes(memory.buf[: 4 * 300 * 32 * 4]) == expected[0]
finally:
    memory.close()
    memory.unlink()
""")

    @EACH_METHOD
    def test_settings_of_children(self, method, run):
        """A fork keeps what was set; a fresh interpreter has what the environment says."""
        kept = method == "fork"
        run(
            f"""
context = multiprocessing.get_context({method!r})
def in_pool():
    with context.Pool(1) as pool:
        return pool.map(settings, [0])
assert in_pool() == [3]
attnfast.set_num_threads(5)
assert in_pool() == [{5 if kept else 3}]
with attnfast.num_threads(4):
    assert in_pool() == [{4 if kept else 3}]
assert in_pool() == [{5 if kept else 3}]
""",
            ATTNFAST_NUM_THREADS="3",
        )

    @POSIX
    def test_process_in_process(self, run):
        run("""
context = multiprocessing.get_context("fork")
def nested(depth):
    signal.alarm(50)  # ends a child that hangs
    check()
    if depth:
        child = context.Process(target=nested, args=(depth - 1,))
        child.start()
        child.join()
        assert child.exitcode == 0
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(work, 3).result().tobytes() == expected[3]
    check()
nested(2)
""")


@POSIX
class TestForksFromThreads:
    def test_a_thread_that_has_a_team_forks(self, run):
        run("""
def forks():
    check()
    codes = [fork(check), fork(lambda: from_a_thread(check)), fork(lambda: fork(check) and 1 / 0)]
    check()
    return codes
assert from_a_thread(forks) == [0, 0, 0]
check()
""")

    def test_threads_of_a_child_call_at_once(self, run):
        run("""
def many():
    errors = []
    def calls():
        try:
            check()
        except AssertionError as error:
            errors.append(error)
    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    check()
    for thread in threads:
        thread.join()
    assert not errors
assert [fork(many), from_a_thread(lambda: fork(many))] == [0, 0]
""")

    def test_while_the_main_thread_is_inside_a_call(self, run):
        run("""
x = qkv(8, 8192, 64)
codes, inside = [], threading.Event()
def forks():
    inside.wait()
    time.sleep(0.05)
    while not finished:
        codes.append(fork(check))
finished = []
thread = threading.Thread(target=forks)
thread.start()
inside.set()
attnfast.attention(*x, num_threads=2)
during = len(codes)
finished.append(True)
thread.join()
assert during, "too short a call to show anything"
assert not any(codes)
""")

    @LINUX
    def test_threads_of_a_call_in_a_child(self, run):
        """As many as it was asked for, and none is left behind."""
        run("""
import statistics
x = qkv(8, 4096, 64)
def tasks():
    return len(os.listdir("/proc/self/task"))
def count():
    alone = tasks()
    for n in (1, 2, 3):
        counts, done = [], threading.Event()
        def sample():
            while not done.wait(0.002):
                counts.append(tasks())
        thread = threading.Thread(target=sample)
        thread.start()
        attnfast.attention(*x, num_threads=n)
        done.set()
        thread.join()
        # The calling thread waits for a team that is all new; some of the last may be on their way.
        usual = statistics.mode(counts)
        assert usual == alone + 1 + (n if n > 1 else 0), (n, alone, counts)
    for _ in range(100):  # the last to go may still be on its way out
        if tasks() == alone:
            return
        time.sleep(0.05)
    raise AssertionError(f"{tasks()} threads are left of {alone}")
assert fork(count) == 0
""")

    def test_an_alarm_in_a_child(self, run):
        run("""
class Rang(Exception): pass
def ring(*_): raise Rang
x = qkv(16, 16384, 64)
def child():
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    start = time.perf_counter()
    try:
        attnfast.attention(*x, num_threads=2)
    except Rang:
        assert time.perf_counter() - start < 1.1
        check()
        return
    raise AssertionError("not interrupted")
assert fork(child) == 0
""")

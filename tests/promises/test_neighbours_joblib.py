"""Work that joblib hands out, to processes and to threads."""

import pytest

from support.scripts import run_python
from support.workers import COUNT_WORKERS, DEFAULTS, LINUX, TWO_CPUS

JOBLIB = (
    COUNT_WORKERS
    + """
import hashlib
from joblib import Parallel, cpu_count, delayed, parallel_config

os.environ.pop("OMP_NUM_THREADS", None)  # joblib would pass it on

def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()

def work(seed):
    arrays = qkv(4, 1000, 64, seed=seed)
    count = workers(lambda: attnfast.attention(*arrays))
    return digest(attnfast.attention(*arrays)), count, attnfast.get_num_threads()

def check(results, threads):
    assert [r[0] for r in results] == expected
    assert [r[1:] for r in results] == [(threads, threads)] * len(expected), results

expected = [digest(attnfast.attention(*qkv(4, 1000, 64, seed=seed))) for seed in range(6)]
default = attnfast.get_num_threads()
"""
)


@LINUX
class TestJoblib:
    @pytest.mark.parametrize("n_jobs", [2, 4])
    def test_loky_shares_out_the_cpus(self, n_jobs, tmp_path):
        """By OMP_NUM_THREADS, which it sets for its workers."""
        script = f"""
results = Parallel(n_jobs={n_jobs}, backend="loky")(delayed(work)(seed) for seed in range(6))
check(results, max(1, cpu_count() // {n_jobs}))
"""
        run_python(JOBLIB + script, tmp_path, **DEFAULTS)

    @TWO_CPUS
    def test_loky_with_more_threads(self, tmp_path):
        script = """
with parallel_config(backend="loky", inner_max_num_threads=2):
    check(Parallel(n_jobs=2)(delayed(work)(seed) for seed in range(6)), 2)
"""
        run_python(JOBLIB + script, tmp_path, **DEFAULTS)

    def test_loky_hands_over_files_and_objects(self, tmp_path):
        """Arrays above 1 MB reach the workers as read-only memory maps."""
        script = """
from attnfast.layers import MultiHeadAttention

def attend(q, k, v, **options):
    assert isinstance(q, np.memmap) and not q.flags.writeable
    return attnfast.attention(q, k, v, return_lse=True, **options)

x = qkv(8, 1024, 64)
mask = attnfast.BlockMask(np.eye(8, dtype=bool), 128)
layer, tokens = MultiHeadAttention(64, num_heads=4, seed=0), qkv(2, 50, 64)[0]
jobs = [delayed(attend)(*x, mask=mask), delayed(attend)(*x, window_size=9)]
jobs += [delayed(layer)(tokens), delayed(attnfast.plan)(*x, mask=mask, num_threads=1)]
blocks, window, output, plan = Parallel(n_jobs=2, backend="loky")(jobs)
for result, options in [(blocks, {"mask": mask}), (window, {"window_size": 9})]:
    expected = attnfast.attention(*x, return_lse=True, **options)
    assert type(result) is attnfast.AttentionResult and type(result.output) is np.ndarray
    assert result.output.tobytes() == expected.output.tobytes()
    assert result.lse.tobytes() == expected.lse.tobytes()
assert output.tobytes() == layer(tokens).tobytes()
assert plan == attnfast.plan(*x, mask=mask, num_threads=1)
"""
        run_python(JOBLIB + script, tmp_path, **DEFAULTS)

    @pytest.mark.parametrize("n_jobs", [2, 4])
    def test_threads(self, n_jobs, tmp_path):
        """They share out nothing: each has a team of its own, unless the work says otherwise."""
        script = f"""
def foreign():
    # Threads that are not Python's.
    return len(os.listdir("/proc/self/task")) - threading.active_count()

def work(seed, threads):
    arrays = qkv(4, 1000, 64, seed=seed)
    with attnfast.num_threads(threads):
        result = attnfast.attention(*arrays)
    return digest(result), foreign()

before = foreign()
for threads in (1, 2, 3):
    jobs = (delayed(work)(seed, threads) for seed in range(6))
    results = Parallel(n_jobs={n_jobs}, backend="threading")(jobs)
    assert [r[0] for r in results] == expected
    assert max(r[1] for r in results) <= before + {n_jobs} * (threads - 1), (threads, results)
"""
        # Without a call of more threads before, so that nobody has a team yet.
        run_python(JOBLIB + script, tmp_path, **{**DEFAULTS, "ATTNFAST_NUM_THREADS": "1"})

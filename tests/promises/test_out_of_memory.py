"""Running out of memory: an error says so, nothing leaks or is written, the next call is right.

In C every allocation of every kind of call is made to fail in turn. In Python the address space is
limited so that the results still fit, but the working memory of the C library does not.
"""

import shutil
import subprocess
import sys

import pytest

from support.paths import ROOT
from support.scripts import START, run_python

TOOLS = ROOT / "tools" / "prove"
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs ld --wrap and /proc")
ALLOCATIONS = {
    "attention": 1,  # the scratch memory of all threads
    "splits": 3,  # and partial results, and how many of a block are still to come
    "importance": 3,  # scratch memory, the maximum and the sum of each row
    "attention and weights": 3,  # the same
    # Scores, lse and lists; for each of 2 heads, scratch memory of lse and of scores.
    "long top": 7,
    "long top of bytes": 7,
    "long top of pages": 7,
    "centers": 3,  # the order of queries, memory to sort them, scratch memory
    # A queued call, the lse, scratch memory; for the residue classes of 3: numbers of their first
    # queries and keys, offsets, 2 lengths, and batch rows of query, key, value, output and lse.
    "dilation": 13,
    # A queued call, the lse, dilations of 1, scratch memory of windows and of tokens; their keys,
    # the order of queries, bounds, a length, gathered keys and values.
    "global tokens": 11,
    # A queued call, the lse, dilations of 1, the mask, scratch memory.
    "global tokens of short rows": 5,
    # Queued calls, twice as many each time, up to 256; their scratch memory, and that of the rest.
    "packed": 9,
    "rotate": 2,  # frequencies, and the tables of a few rows for each thread
}
WRAPPED = ("malloc", "calloc", "realloc", "aligned_alloc", "posix_memalign", "free")


@pytest.mark.quick
@LINUX
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_every_allocation_of_the_c_library(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from c_library import CALLS, Library

    # -fno-builtin: else a compiler that knows malloc may leave out what is only freed again.
    library = Library(tmp_path / "work", "cc", ["-fno-builtin"], only=[("generic", "f32")])
    wrap = [f"-Wl,--wrap={name}" for name in WRAPPED]
    program = library.link("memory", ["memory.c", *CALLS], wrap)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    counts = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert len(counts) == 33
    assert {name: int(counts[name].split()[0]) for name in ALLOCATIONS} == ALLOCATIONS


# Calls whose arguments and results fit, but not the tile of queries or values: 8 to 48 lanes of D.
CASES = {
    "head size of keys": "attnfast.attention(q, k, k[:, :5], out=out, num_threads=1)",
    "head size of values": "attnfast.attention(q[:, :5], k[:, :5], k, out=wide, num_threads=1)",
    "weights": "attnfast.attention_weights(q, k, num_threads=1)",
    "additive": "attnfast.additive_attention(q, k, k[:, :5], out=out, num_threads=1)",
    "top": "attnfast.attention_topk(q, k, 2, num_threads=1)",
    "importance": "attnfast.key_importance(many, many[:3], num_threads=1)",
    "local": "attnfast.local_attention(q, k, k[:, :5], 1, q_offset=0, out=out, num_threads=1)",
    "global tokens": "attnfast.local_attention(q, k, k[:, :5], 1, q_offset=0, global_tokens=[7], "
    "num_threads=1)",
    "gradients": "attnfast.attention_backward(k[:, :5], k, k, k[:, :5], k[:, :5], k[:, 0], "
    "num_threads=1, wanted=('value',))",
    "gradients of additive": "attnfast.additive_attention_backward(k[:, :5], k, k, k[:, :5], "
    "k[:, :5], k[:, 0], num_threads=1, wanted=('value',))",
    "gradients by weights": "attnfast.attention_backward(k[:, :5], k, k, k[:, :5], k[:, :5], "
    "k[:, 0], grad_weights=k[:, :10], num_threads=1, wanted=('value',))",
    "gradients of dilation": "attnfast.local_attention_backward(k[:, :5], k, k, k[:, :5], "
    "k[:, :5], k[:, 0], window_size=1, dilation=2, num_threads=1, wanted=('value',))",
    "gradients of global tokens": "attnfast.local_attention_backward(k[:, :5], k, k, k[:, :5], "
    "k[:, :5], k[:, 0], window_size=1, global_tokens=[7], num_threads=1, wanted=('value',))",
    "gradients of centers": "attnfast.local_attention_backward(k[:, :5], k, k, k[:, :5], "
    "k[:, :5], k[:, 0], window_size=1, centers=np.arange(10), num_threads=1, wanted=('value',))",
    "gradients of packed": "attnfast.attention_varlen_backward(k[:, None, :5], k[:, None], "
    "k[:, None], k[:, None, :5], k[:, None, :5], k[:, :1], [0, 2, 10], [0, 5, 10], num_threads=1, "
    "wanted=('value',))",
    "vjp": "attnfast.vjp(attnfast.attention, q, k, k[:, :5], num_threads=1)",
    "rotate": "attnfast.rotate(q.reshape(1, -1), 0, interleaved=True, out=q.reshape(1, -1))",
    "packed": "attnfast.attention_varlen(q[:, None], k[:, None], k[:, None, :5], [0, 2, 9], "
    "[0, 5, 10], out=out[:, None], num_threads=1)",
}


@LINUX
def test_memory_error_reaches_the_caller(tmp_path):
    script = f"""
import resource
D = 2**20
q, k = (np.ones((n, D), np.float32) for n in (9, 10))
many = np.ones((2**24, 1), np.float32)
out, wide = np.full((9, 5), 7, np.float32), np.full((9, D), 7, np.float32)

def limit(more):
    lines = open("/proc/self/status").read().splitlines()
    size = next(int(line.split()[1]) for line in lines if line.startswith("VmSize")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + more if more else -1, -1))

for name, call in {CASES}.items():
    call = compile(call, name, "eval")
    out[:], wide[:] = 7, 7
    limit(24 * 2**20)
    try:
        eval(call)
        print(name, "fits")
    except MemoryError as error:
        if str(error) != "attnfast could not allocate its working memory":
            print(name, repr(error))
    limit(0)
    if not ((out == 7).all() and (wide == 7).all()):
        print(name, "was written")
    eval(call)
    if "out" in call.co_names and abs(out - 1).max() > 1e-6:
        print(name, "is wrong afterwards")
print("done")
"""
    # With a fixed threshold, malloc gives large pieces back, and none fits into one that was freed.
    given_back = {"MALLOC_MMAP_THRESHOLD_": "131072"}
    assert run_python(START + script, tmp_path, **given_back) == "done\n"

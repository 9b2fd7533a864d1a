"""Memory beyond the arrays, running out of it, and arrays of more than 2**31 elements."""

import sys

import pytest

import attnfast
from support.scripts import START, run_python

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
EACH_ISA = pytest.mark.parametrize("isa", attnfast.available_isas())

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


# By name: the most kB a thread, and what makes the call. None may allocate scores or masks of all
# pairs, copies of keys, or partial results of all heads at once.
CASES = """
def in_rows(function, *shape, **options):
    x = np.ones(shape, np.float32)
    out = np.ones_like(x)

    def call(rows, n):
        y = x[:, rows]
        function(y, y, y, out=out[:, rows], num_threads=n, **options)

    return call

def decoding():
    x, q = np.ones((8, 50_000, 64), np.float32), np.ones((32, 1, 64), np.float32)
    return lambda rows, n: attention(q, x[:, rows], x[:, rows], num_threads=n)

def paged():  # the rows of the pages, side by side, would be 130 MB
    x, q = np.ones((2000, 4, 64, 64), np.float32), np.ones((8, 1, 64), np.float32)
    table = np.random.default_rng(1).permutation(2000)
    return lambda rows, n: attention(q, x, x, block_table=table[rows], num_threads=n)

def in_bytes():  # real numbers would be 200 MB
    x, q = np.ones((8, 50_000, 64), np.int8), np.ones((32, 1, 64), np.float32)
    scales = {"key_scale": 0.1, "value_scale": np.ones((8, 50_000, 1), np.float32)}

    def call(rows, n):
        own = {name: a if name == "key_scale" else a[:, rows] for name, a in scales.items()}
        attention(q, x[:, rows], x[:, rows], num_threads=n, **own)

    return call

def keys_in_bytes(function, *more):  # real numbers would be 100 MB
    x, q = np.ones((8, 50_000, 64), np.int8), np.ones((32, 1, 64), np.float16)
    scale = np.ones((8, 50_000, 1), np.float32)
    return lambda rows, n: function(q, x[:, rows], *more, key_scale=scale[:, rows], num_threads=n)

def packed_pages():  # the rows of the pages, side by side, would be 130 MB
    x, q = np.ones((2000, 4, 64, 64), np.float32), np.ones((2000, 8, 64), np.float32)
    table = np.arange(2000)[:, None]

    def call(rows, n):
        some, cu = table[rows], np.arange(len(table[rows]) + 1)
        attnfast.attention_varlen(q[rows], x, x, cu, 64 * cu, block_table=some, num_threads=n)

    return call

def rotated():  # tables of all positions would be 26 MB
    x, places = np.ones((2, 100_000, 64), np.float32), np.arange(100_000)
    out = np.ones_like(x)
    return lambda rows, n: attnfast.rotate(
        x[:, rows], places[rows], out=out[:, rows], num_threads=n)

def waves():  # 8 MB of partial results, whatever the width of a vector
    k, v = (np.broadcast_to(np.ones(n, np.float32), (64, 16384, n)) for n in (8, 512))
    q = np.ones((256, 1, 8), np.float32)
    return lambda rows, n: attention(q, k[:, rows], v[:, rows], num_threads=n)

def local():  # the scores would be 20 GB, an array is 6 MB
    x = np.ones((2, 50_000, 16), np.float32)
    out = np.ones_like(x)
    c = np.random.default_rng(1).uniform(0, 50_000, (2, 50_000))

    def call(rows, n):
        y = x[:, rows]
        for options in (
            {"dilation": [1, 3], "global_tokens": [0, y.shape[1] // 2]},
            {"global_tokens": np.arange(y.shape[1]) % 25_000 == 7},
            {"centers": c[:, rows].astype(np.int64)},
            {"centers": c[:, rows], "sigma": 16.0},
        ):
            attnfast.local_attention(y, y, y, 32, out=out[:, rows], num_threads=n, **options)

    return call

def half():  # float32 copies of all arrays would be 120 MB
    x = np.ones((60, 2000, 64), np.float16)
    out = np.ones_like(x)

    def call(rows, n):
        y = x[:, rows]
        attnfast.local_attention(y, y, y, 16, global_tokens=[0], out=out[:, rows], num_threads=n)

    return call

def offsets():  # a copy of the mask for each batch row would be 37 MB
    x = np.ones((150, 1, 500, 4), np.float32)
    out, mask = np.ones_like(x), np.ones((500, 500), bool)

    def call(rows, n):
        y = x[..., rows, :]
        attnfast.local_attention(y, y, y, 9, dilation=2, mask=mask[rows, rows],
                                 q_offset=np.arange(150), out=out[..., rows, :], num_threads=n)

    return call

def blocks():  # an elementwise mask would be 10 GB
    x = np.ones((1, 100_000, 16), np.float32)
    out = np.ones_like(x)
    mask = attnfast.BlockMask.bigbird(100_000, 100_000, 64, random_blocks=2, global_blocks=0)

    def call(rows, n):
        y = x[:, rows]
        count = -(-y.shape[1] // 64)
        own = attnfast.BlockMask(mask.blocks[:count, :count], 64)
        attnfast.attention(y, y, y, mask=own, out=out[:, rows], num_threads=n)

    return call

def of_keys(function, *more):  # the weights would be 100 MB
    x = np.ones((1, 5000, 16), np.float32)
    return lambda rows, n: function(x[:, rows], x[:, rows], *more, num_threads=n)

def backward(function, *shape, **options):  # three gradients, and no scores
    x = np.ones(shape, np.float32)

    def call(rows, n):
        y = x[:, rows]
        function(y, y, y, y, y, y[..., 0], num_threads=n, **options)

    return call

def local_backward():  # scores would be 5 GB, and so would their gradients
    x = np.ones((2, 25_000, 16), np.float32)
    c = np.random.default_rng(1).uniform(0, 25_000, (2, 25_000))

    def call(rows, n):
        y = x[:, rows]
        for options in (
            {"dilation": [1, 3], "global_tokens": [0, y.shape[1] // 2]},
            {"centers": c[:, rows].astype(np.int64)},
            {"centers": c[:, rows], "sigma": 16.0, "wanted": ("query", "key", "value", "centers")},
        ):
            attnfast.local_attention_backward(
                y, y, y, y, y, y[..., 0], window_size=32, num_threads=n, **options)

    return call

def packed(count, length, **options):
    x = np.ones((count * length, 2, 16), np.float32)

    def call(rows, n):
        y = x[rows]
        bounds = np.minimum(np.arange(0, len(y) + length, length), len(y))
        attnfast.attention_varlen(y, y, y, bounds, bounds, num_threads=n, **options)

    return call

def packed_backward(count, length, **options):
    x = np.ones((count * length, 2, 16), np.float32)

    def call(rows, n):
        y = x[rows]
        bounds = np.minimum(np.arange(0, len(y) + length, length), len(y))
        loss = y, y, y, y, y, y[..., 0]
        attnfast.attention_varlen_backward(*loss, bounds, bounds, num_threads=n, **options)

    return call

def merge():  # results are 46 MB, float32 copies of all parts would be 92
    x = np.ones((6, 60_000, 64), np.float16)

    def call(rows, n):
        y = x[:, rows]
        lses = y[..., 0].astype(np.float32)
        attnfast.merge_attention(y, lses)
        attnfast.merge_attention_backward(y[0], y, lses)

    return call

def pulled_back():
    x = np.ones((1, 5000, 64), np.float32)

    def call(rows, n):
        result, pullback = attnfast.vjp(attention, *(x[:, rows],) * 3, num_threads=n)
        pullback(result)

    return call

attention = attnfast.attention
CASES = {
    "long": (2000, lambda: in_rows(attention, 1, 65536, 64, window_size=256)),
    "causal": (2000, lambda: in_rows(attention, 1, 4096, 64, is_causal=True)),
    "wide": (2000, lambda: in_rows(attention, 1, 2000, 256, softcap=3.0)),
    "many heads": (2000, lambda: in_rows(attention, 200, 64, 64, window_size=5)),
    "window": (2000, lambda: in_rows(attention, 1, 6000, 64, window_size=(300, 0))),
    "decoding": (2000, decoding),
    "pages": (2000, paged),
    "bytes": (2000, in_bytes),
    "top of bytes": (3000, lambda: keys_in_bytes(attnfast.attention_topk, 10)),
    "top of rows of bytes": (13000, lambda: keys_in_bytes(attnfast.attention_topk, 100)),
    "importance of bytes": (9000, lambda: keys_in_bytes(attnfast.key_importance)),
    "packed pages": (6000, packed_pages),
    "rotated": (2000, rotated),
    "waves": (2000, waves),
    "local": (7500, local),
    "half": (5000, half),
    "offsets": (5000, offsets),
    "additive": (4000, lambda: in_rows(attnfast.additive_attention, 1, 5000, 64, window_size=500)),
    "blocks": (4000, blocks),
    "top": (3000, lambda: of_keys(attnfast.attention_topk, 10)),
    "importance": (5000, lambda: of_keys(attnfast.key_importance)),
    "gradients": (9000, lambda: backward(attnfast.attention_backward, 1, 5000, 64)),
    "gradients with dropout": (
        9000, lambda: backward(attnfast.attention_backward, 1, 5000, 64, dropout=0.5)),
    "gradients of additive": (
        9000, lambda: backward(attnfast.additive_attention_backward, 1, 3000, 16)),
    "gradients of local": (20000, local_backward),
    "packed": (4000, lambda: packed(250, 100)),
    "gradients of packed": (12000, lambda: packed_backward(250, 100)),
    "gradients of long packed": (9000, lambda: packed_backward(2, 2000, is_causal=True)),
    "vjp": (12000, pulled_back),
    "merge": (150_000, merge),
}
"""


@LINUX
@EACH_ISA
def test_memory_beyond_the_arrays(isa, tmp_path):
    """Each in a process of its own, forked before any call, so that what it takes is new."""
    script = """
for name, (most, make) in CASES.items():
    pid = os.fork()
    if pid == 0:
        grown = growth(make())
        if grown >= most:
            print(f"{name}: {grown:.0f} kB a thread, allowed {most}", flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, name
"""
    printed = run_python(START + MEMORY + CASES + script, tmp_path, timeout=120, ATTNFAST_ISA=isa)
    assert not printed, printed


@pytest.mark.quick
@LINUX
def test_memory_is_given_back(tmp_path):
    script = """
q, k, v = qkv(2, 4, 5000, 8)
cases = [
    (qkv(2, 4, 500, 64), {"return_weights": True}),
    (decode_case(), {}),
    ((q, k[:, :, :1], v[:, :, :1]), {"return_weights": True}),  # what is kept for each row
]
def call(rows, n):
    for arrays, options in cases:
        for _ in range(200 if rows == slice(None) else 3):
            attnfast.attention(*arrays, num_threads=n, **options)
print(growth(call))
"""
    assert float(run_python(START + MEMORY + script, tmp_path)) < 20_000  # one result is 8 MB


@pytest.mark.quick
@LINUX
def test_no_working_memory_is_an_error(tmp_path):
    """What the kernels need beyond the results grows with the head size: some 100 MB here."""
    script = """
import resource
q = k = v = np.ones((16, 2**18), np.float32)
out = np.empty_like(q)
with open("/proc/self/status") as file:
    size = next(int(line.split()[1]) for line in file if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 2**25, -1))
try:
    attnfast.attention(q, k, v, out=out, num_threads=1)
except MemoryError as error:
    print(error)
"""
    assert run_python(START + script, tmp_path).startswith("attnfast could not allocate")


@pytest.mark.quick
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
same(attnfast.rotate(q, np.arange(4)), attnfast.rotate(q.copy(), np.arange(4)))
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
    loop = f"for isa in {isas}:\n    attnfast.config.use_isa(isa)\n"
    body = "\n".join("    " + line for line in HUGE[what].splitlines())
    run_python(START + SIZES + loop + body, tmp_path, timeout=120)

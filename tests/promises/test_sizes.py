"""Arrays and positions beyond 2**31 in every function, and shapes that no memory could hold.

`test_memory.py` has the first for `attention`; this is the rest. Memory that nobody writes costs
nothing, so what is large here are strides, positions and claims.
"""

import mmap
import sys

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import attnfast
from attnfast import BlockMask
from support.arrays import assert_same, randn
from support.calls import CALLS, PACKED
from support.paths import TESTS
from support.scripts import START, run_python

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory without reserve"),
    pytest.mark.skipif(sys.maxsize < 2**32, reason="needs a 64-bit process"),
]

FLAGS = {"return_lse": True, "return_weights": True}


def zeros(shape, dtype):
    """Memory that is not there until it is written."""
    n = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, n, flags=flags), dtype).reshape(shape)


def far(a, axis):
    """A copy whose last element along an axis is more than 2**31 elements after the first."""
    n = a.shape[axis]
    if n == 1 or a.dtype.kind == "i":
        return a.copy()
    step = 2**31 // (n - 1) + 64
    near = np.empty(a.shape[:axis] + a.shape[axis + 1 :], a.dtype)
    strides = (*near.strides[:axis], step * a.itemsize, *near.strides[axis:])
    view = as_strided(zeros((n - 1) * step + near.size, a.dtype), a.shape, strides)
    view[...] = a
    return view


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("axis", [0, 1], ids=["heads", "rows"])
@pytest.mark.parametrize("lq", [2, 60])
@pytest.mark.parametrize("name", CALLS)
def test_strides(name, lq, axis, rng):
    """Every array that the caller passes reaches beyond 2**31 elements; no bit changes."""
    arrays = [randn(rng, (2, n, 8)) for n in (lq, 70, 70)]
    expected = CALLS[name](*arrays, np.array)
    out = far(np.zeros((2, lq, 8), np.float32), axis)
    place = lambda a: far(np.asarray(a), axis) if np.ndim(a) == 2 else np.asarray(a)  # noqa: E731
    result = CALLS[name](*(far(a, axis) for a in arrays), place, out=out)
    assert_same(expected, result)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [3, 60])
@pytest.mark.parametrize("name", [name for name in CALLS if name not in PACKED])
def test_batch_strides(name, lq, rng):
    arrays = [randn(rng, (2, 2, n, 8)) for n in (lq, 70, 70)]
    expected = CALLS[name](*arrays, np.array)
    assert_same(expected, CALLS[name](*(far(a, 0) for a in arrays), np.array))


def repeated(n):
    """Keys or values (n, 8), all ones and all at the same place."""
    return as_strided(np.ones((1, 8), np.float32), (n, 8), (0, 4))


PLACE = 2**32 + 7
LONG = 2**33 + 5
# What the calls see of so many keys, all with the same score.
SEEN = {
    "dilation": (9, lambda q, k: attnfast.local_attention(q, k, k, 4, dilation=3, **AT)),
    "integer centers": (
        9,
        lambda q, k: attnfast.local_attention(
            q, k, k, 4, centers=np.full(len(q), PLACE), return_lse=True
        ),
    ),
    "real centers": (
        8,
        lambda q, k: attnfast.local_attention(
            q, k, k, 4, centers=np.full(len(q), PLACE + 0.5), sigma=1e9, return_lse=True
        ),
    ),
    "blocks": (
        2**16,
        lambda q, k: attnfast.attention(
            q, k, k, mask=BlockMask(np.arange(-(-LONG // 2**16))[None] == 2**16 + 1, (60, 2**16)),
            return_lse=True,
        ),
    ),
    "packed": (
        9,
        lambda q, k: attnfast.attention_varlen(
            q[:, None], k[:, None], k[:, None], [0, 0, len(q)], [0, 5, LONG], window_size=4,
            q_offset=PLACE, return_lse=True,
        ),
    ),
}  # fmt: skip
AT = {"q_offset": PLACE, "return_lse": True}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 60])
@pytest.mark.parametrize("name", SEEN)
def test_places_of_keys(name, lq):
    seen, call = SEEN[name]
    result = call(np.ones((lq, 8), np.float32), repeated(LONG))
    np.testing.assert_allclose(result.output, 1, rtol=1e-5)
    np.testing.assert_allclose(result.lse, np.sqrt(8) + np.log(seen), rtol=1e-6)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 60])
def test_places_of_additive_keys(lq):
    q, k = np.ones((lq, 8), np.float32), repeated(LONG)
    result = attnfast.additive_attention(q, k, k, window_size=4, **AT)
    np.testing.assert_allclose(result.lse, 8 * np.tanh(2) + np.log(9), rtol=1e-6)


@pytest.mark.parametrize("lq", [1, 60])
def test_places_of_global_tokens(lq):
    """One token far beyond all windows. Looking for it takes seconds: one instruction set only."""
    lk = 2**31 + 100
    q, k = np.ones((lq, 8), np.float32), repeated(lk)
    options = {"global_tokens": [lk - 3], "q_offset": 1000, "return_lse": True}
    result = attnfast.local_attention(q, k, k, 3, **options)
    np.testing.assert_allclose(result.lse, np.sqrt(8) + np.log(8), rtol=1e-6)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 60])
def test_the_heaviest_of_many_keys(lq):
    lk = 2**31 + 100
    k = zeros((lk, 1), np.float32)
    k[-40:, 0] = np.arange(40)[::-1]
    window = {"window_size": (100, 100), "q_offset": lk - 1 - lq}
    indices, weights = attnfast.attention_topk(np.ones((lq, 1), np.float32), k, 3, **window)
    np.testing.assert_array_equal(indices, np.tile(lk - 40 + np.arange(3), (lq, 1)))
    np.testing.assert_allclose(weights[:, 1] / weights[:, 0], np.exp(-1), rtol=1e-5)


def test_more_keys_than_a_list_can_name():
    q = np.ones((1, 8), np.float32)
    with pytest.raises(ValueError, match=r"^key must have fewer than 2\*\*32 keys"):
        attnfast.attention_topk(q, repeated(2**32), 3)


CLAIMS = """
import resource
sys.path.insert(0, {tests!r})
from numpy.lib.stride_tricks import as_strided
from support.legal import FUNCTIONS, call
with open("/proc/self/status") as file:
    lines = file.read().splitlines()
size = next(int(line.split()[1]) for line in lines if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, -1))

def claim(shape, dtype=np.float32):
    return as_strided(np.ones(1, dtype), shape, (0,) * len(shape))

def refused(what, function):
    print(what, flush=True)
    try:
        function()
    except (ValueError, MemoryError):
        return
    raise SystemExit(f"{{what}} is no error")
"""
ONE_BY_ONE = """
shapes = [(2**59,), (2**30, 2**29), (2**40, 1, 2**19, 1), (2**20, 2**20, 2**19), (1, 1, 2**59)]
for function, arguments in FUNCTIONS.items():
    for name, x in arguments.items():
        a = x[0] if name in ("outputs", "lses") else x
        if not isinstance(a, np.ndarray):
            continue
        for shape in shapes:
            bad = claim(shape, a.dtype)
            bad = [bad, bad] if isinstance(x, list) else bad
            refused(f"{function} {name} {shape}", lambda: call(function, {**arguments, name: bad}))
for name, x in {"global_tokens": np.int64, "centers": np.float64, "dilation": np.int64}.items():
    good = {n: x for n, x in FUNCTIONS["attention"].items() if n not in ("window_size", name)}
    for shape in [(2**30, 2**29), (2**20, 2**20, 2**19), (1, 1, 2**59)]:
        bad = {name: claim(shape, x)}
        refused(
            f"{name} {shape}", lambda: attnfast.local_attention(**good, **bad, window_size=2)
        )
"""
TOGETHER = """
three, half = np.ones((3, 1), np.float32), np.float16
many = [(2**60, 1), (1, 2**60, 1), (2**20, 2**20, 2**20, 1), (2**59, 1, 1, 1), (1, 2**30, 2**30, 1)]
for shape in many:
    x, key = claim(shape), claim((*shape[:-2], 3, 1))
    refused(f"attention {shape}", lambda: attnfast.attention(x, key, key))
    refused(f"attention of itself {shape}", lambda: attnfast.attention(x, x, x))
    refused(f"attention_weights {shape}", lambda: attnfast.attention_weights(x, key))
    refused(f"local_attention {shape}", lambda: attnfast.local_attention(x, x, x, 3))
    refused(f"additive_attention {shape}", lambda: attnfast.additive_attention(x, key, key))
    refused(f"attention_topk {shape}", lambda: attnfast.attention_topk(x, key, 2))
    pairs = shape[-2] * int(np.prod(shape, dtype=object))
    if pairs > 2**62:
        refused(f"plan {shape}", lambda: attnfast.plan(x, x, x))
    else:
        assert attnfast.plan(x, x, x).visible_pairs == pairs
    small = claim(shape, half), claim((*shape[:-2], 3, 1), half)
    refused(f"key_importance {shape}", lambda: attnfast.key_importance(*small))
# Results that are small although the numbers of rows cannot even be multiplied.
for n in (2**58, 2**60, 2**61, 2**62 - 2**20):
    x = claim((n, 1), half)
    refused(f"key_importance {n}", lambda: attnfast.key_importance(x, three.astype(half)))
    keys = claim((2**20, 1, 3, 1), half)
    refused(f"key_importance {n} by 2**20", lambda: attnfast.key_importance(x, keys))
x, keys = claim((2**30, 2**10, 2**12, 1)), claim((2**30, 2**10, 2**12, 1))
refused("plan of 2**64 pairs", lambda: attnfast.plan(x, keys, keys))
x, keys = claim((2**40, 1, 1, 1, 1)), claim((2**40, 1, 1, 1))
refused("plan of 2**80 batch rows", lambda: attnfast.plan(x, keys, keys))
x = claim((2**40, 1, 1))
bounds = claim((2**40,), np.int64)
refused("attention_varlen", lambda: attnfast.attention_varlen(x, x, x, bounds, bounds))
blocks = claim((2**20, 2**20, 2**19), bool)
refused("BlockMask", lambda: attnfast.BlockMask(blocks, 2))
mask = attnfast.BlockMask(np.ones((1, 1), bool), 2**62)
refused("BlockMask.dense", lambda: mask.dense(2**31, 2**31))
refused("BlockMask.bigbird", lambda: attnfast.BlockMask.bigbird(2**40, 2**40, 1))
parts = [claim((2**50, 1, 1))] * 2, [claim((2**50, 1))] * 2
refused("merge_attention", lambda: attnfast.merge_attention(*parts))
refused("rotate", lambda: attnfast.rotate(claim((2**40, 2**20, 2)), np.arange(2**20)))
"""


@pytest.mark.quick
@pytest.mark.parametrize("script", [ONE_BY_ONE, TOGETHER], ids=["one by one", "together"])
def test_absurd_shapes(script, tmp_path):
    """Views of one number may claim any shape: an error each, no overflow and no crash."""
    run_python(START + CLAIMS.format(tests=str(TESTS)) + script, tmp_path)

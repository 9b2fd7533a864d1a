"""No access out of bounds: arrays that end, or begin, where the process may not read or write.

Each array lies in its own mapping between two pages without any permission, flush with the one or
the other. One byte too far kills the process, so that these tests cannot pass by luck.
"""

import functools
import itertools
import mmap

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import attnfast
from support.arrays import BFLOAT16, DTYPE_IDS, DTYPES, assert_same, randn
from support.calls import CALLS
from support.criterion import check
from support.fences import fenced
from support.layouts import AROUND, paired
from support.paths import TESTS
from support.scripts import run_python_raw

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs mmap and mprotect"),
]


def attend(at_end, dtype, lq, lk, d, dv, rng, heads=2, kv_heads=1, **options):
    """One call with every array fenced, checked against plain float64."""
    q, k, v = (
        randn(rng, (heads, lq, d), dtype),
        randn(rng, (kv_heads, lk, d), dtype),
        randn(rng, (kv_heads, lk, dv), dtype),
    )
    options = {n: fenced(x, at_end) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    q, k, v, out = (fenced(a, at_end) for a in (q, k, v, np.zeros((heads, lq, dv), dtype)))
    attnfast.attention(q, k, v, out=out, num_threads=1, **options)
    # Coarse: this file is about where is read and written; test_accuracy.py is about what.
    k, v = (np.repeat(a.astype(float), heads // kv_heads, axis=0) for a in (k, v))
    s = (q.astype(float) @ k.swapaxes(-1, -2)) / np.sqrt(d)
    if "bias" in options:
        s = s + options["bias"].astype(float)
    if "mask" in options:
        s = np.where(options["mask"], s, -np.inf)
    top = s.max(axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(s - np.where(np.isinf(top), 0, top))
    total = e.sum(axis=-1, keepdims=True)
    expected = (e / np.where(total == 0, 1, total)) @ v
    rtol = {"float16": 2e-2, "bfloat16": 1e-1}.get(np.dtype(dtype).name, 2e-4)
    np.testing.assert_allclose(out.astype(float), expected, rtol=rtol, atol=rtol)


EDGES = pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])


@pytest.mark.quick
def test_a_fence_kills(tmp_path):
    """The method itself: reading one byte too far does not go unnoticed."""
    code = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import numpy as np
from numpy.lib.stride_tricks import as_strided
from support.fences import fenced
a = fenced(np.ones(5, np.float32), {{at_end}})
assert a.sum() == 5
print("alive", flush=True)
as_strided(a if {{at_end}} else a[::-1], (6,)).sum()
"""
    for at_end in (True, False):
        done = run_python_raw(code.format(at_end=at_end), tmp_path)
        assert done.stdout == "alive\n" and done.returncode < 0, done.stderr


@EDGES
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_tails_of_queries_and_keys(dtype, at_end, rng):
    for lq, lk in paired(AROUND, AROUND, times=4):
        attend(at_end, dtype, lq, lk, 16, 16, rng)


@EDGES
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_tails_of_head_sizes(dtype, at_end, rng):
    for lq in (5, 50):
        for d, dv in paired(range(1, 70), range(1, 70), times=1):
            attend(at_end, dtype, lq, 19, d, dv, rng)
    for d in (63, 64, 65, 127, 128, 129, 255, 257):
        attend(at_end, dtype, 3, 9, d, d, rng)
        attend(at_end, dtype, 49, 9, d, d, rng)


@EDGES
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_decoding(dtype, at_end, rng):
    for lq, group, lk in itertools.product((1, 2, 3, 5), (1, 4, 8), (1, 15, 63, 64, 65, 1025)):
        attend(at_end, dtype, lq, lk, 20, 12, rng, heads=2 * group, kv_heads=2)
    attend(at_end, dtype, 1, 9001, 33, 31, rng)


@EDGES
@pytest.mark.parametrize("bias_dtype", [np.float32, np.float64, np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("lq", [1, 7, 48, 50])
def test_masks_and_biases(lq, bias_dtype, at_end, rng):
    forms = list(itertools.product([False, True], repeat=3))
    for lk, *thin in paired(AROUND, forms, forms, times=2):
        of_mask, of_bias = (np.where(t, 1, (2, lq, lk)) for t in thin)
        mask, bias = rng.random(of_mask) < 0.7, randn(rng, of_bias, bias_dtype)
        attend(at_end, np.float32, lq, lk, 8, 8, rng, mask=mask, bias=bias)


@EDGES
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_strided_arrays(dtype, at_end, rng):
    """The last row of a view ends where its array does, not a whole stride later."""
    for lq, lk, d in paired((1, 9, 13, 25, 49), (1, 17, 65), (1, 7, 16, 19), times=3):
        whole = [randn(rng, (n, 3, d), dtype) for n in (lq, lk, lk)]
        q, k, v = (fenced(a, at_end).swapaxes(0, 1) for a in whole)
        out = fenced(np.zeros((lq, 3, d), dtype), at_end).swapaxes(0, 1)
        attnfast.attention(q, k, v, out=out)
        check(out, q, k, v)
        q, k, v, out = (a[::-1, ::-1] for a in (q, k, v, out))
        attnfast.attention(q, k, v, out=out)
        check(out, q, k, v)


@EDGES
def test_per_head_and_per_row_options(at_end, rng):
    for heads, batch in itertools.product((1, 2, 3), (1, 2, 5)):
        q = fenced(randn(rng, (batch, heads, 9, 8)), at_end)
        options = {
            "kv_lengths": fenced(rng.integers(0, 10, batch), at_end),
            "q_lengths": fenced(rng.integers(0, 10, batch), at_end),
            "q_offset": fenced(rng.integers(-3, 4, batch), at_end),
            "alibi_slopes": fenced(rng.random((batch, heads)), at_end),
            "sink_logits": fenced(rng.random(heads), at_end),
            "is_causal": True,
        }
        check(attnfast.attention(q, q, q, **options), q, q, q, **options)


@pytest.mark.parametrize("lq", [1, 100])
@pytest.mark.parametrize("hidden", ["causal", "window", "length"])
def test_keys_that_nobody_sees_are_not_read(hidden, lq, rng):
    """They may even lie in a forbidden page."""
    q, k, v = (fenced(randn(rng, (1, n, 16)), True) for n in (lq, 100, 100))
    beyond = [as_strided(a, (1, 140, 16), a.strides) for a in (k, v)]
    options = {
        "causal": {"is_causal": True, "q_offset": 0},
        "window": {"window_size": (10, 0), "q_offset": 0},
        "length": {"kv_lengths": 100},
    }[hidden]
    expected = attnfast.attention(q, k, v, **options)
    np.testing.assert_allclose(attnfast.attention(q, *beyond, **options), expected, rtol=1e-5)


@EDGES
def test_reading_for_weights_and_lse_stays_within_the_arrays(at_end, rng):
    for lq, lk in paired((1, 7, 13, 17, 25, 49), AROUND, times=2):
        q, k, v = (fenced(randn(rng, (2, n, 12)), at_end) for n in (lq, lk, lk))
        result = attnfast.attention(q, k, v, return_lse=True, return_weights=True)
        check(result, q, k, v)
        for stage in ("scores", "capped", "biased"):
            attnfast.attention_weights(q, k, stage=stage, softcap=3.0)


class Fences:
    """NumPy for the binding, where whatever it makes for the kernels lies next to a fence."""

    MAKERS = ("array", "ascontiguousarray", "clip", "cumsum", "empty", "full", "where", "zeros")

    def __init__(self, at_end):
        self.at_end = at_end

    def __getattr__(self, name):
        function = getattr(np, name)
        if name not in self.MAKERS:
            return function

        def made(*args, **more):
            result = function(*args, **more)
            apart = isinstance(result, np.ndarray) and "out" not in more
            return fenced(result, self.at_end) if apart else result

        return made


@pytest.mark.quick
@EDGES
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", CALLS)
def test_every_function(name, dtype, at_end, rng, monkeypatch):
    """Inputs, options, out, and what the library allocates: results (lse, indices, sums; output
    and weights where NumPy makes them) and what becomes of options."""
    monkeypatch.setattr(attnfast._core, "np", Fences(at_end))
    place = functools.partial(fenced, at_end=at_end)
    sizes = (1, 3, 17, 33, 49, 65), (1, 15, 17, 33, 49, 64, 97, 130)
    dims = (1, 7, 8, 9, 16, 31, 33, 65), (1, 3, 9, 16, 47)
    for n, (lq, lk, d, dv) in enumerate(paired(*sizes, *dims, times=1)):
        arrays = [randn(rng, s, dtype) for s in [(2, lq, d), (1, lk, d), (1, lk, dv)]]
        expected = CALLS[name](*arrays, np.array, num_threads=1)
        out = {"out": fenced(np.zeros((2, lq, dv), dtype), at_end)} if n % 2 else {}
        near = [fenced(a, at_end) for a in arrays]
        assert_same(expected, CALLS[name](*near, place, num_threads=1, **out))

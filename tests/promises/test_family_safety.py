"""The rest of the family: no access out of bounds, many callers at once, alarms, forks."""

import mmap
import os
import signal
import threading
import time

import numpy as np
import pytest

import attnfast
from support.arrays import DTYPE_IDS, DTYPES, assert_same, qkv, randn
from support.calls import CALLS, blocks
from support.fences import fenced
from support.scripts import START, run_python

EACH_CALL = pytest.mark.parametrize("name", CALLS)


@pytest.mark.usefixtures("isa")
@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs mmap and mprotect")
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@EACH_CALL
def test_no_access_out_of_bounds(name, dtype, at_end, rng):
    """One byte too far kills the process."""
    for lq, lk, d, dv in [
        (1, 1, 1, 1),
        (1, 33, 7, 3),
        (3, 17, 8, 9),
        (17, 15, 16, 16),
        (33, 49, 31, 5),
        (49, 97, 33, 47),
        (65, 64, 65, 33),
    ]:
        arrays = (
            randn(rng, (2, lq, d), dtype),
            randn(rng, (1, lk, d), dtype),
            randn(rng, (1, lk, dv), dtype),
        )
        expected = CALLS[name](*arrays, np.array, num_threads=1)
        out = fenced(np.zeros((2, lq, dv), dtype), at_end)
        near = [fenced(a, at_end) for a in arrays]
        result = CALLS[name](*near, lambda a: fenced(np.asarray(a), at_end), out=out, num_threads=1)
        assert_same(expected, result)


@EACH_CALL
def test_many_python_threads_at_once(name, rng):
    arrays = [qkv(rng, n, n + 40, 24, kv_heads=1, batch=()) for n in (1, 30, 100)]
    expected = [CALLS[name](*a, np.array) for a in arrays]
    wrong, start = [], threading.Barrier(6)

    def work(i):
        start.wait()
        for n in range(8):
            result = CALLS[name](*arrays[i % 3], np.array, num_threads=1 + (n + i) % 3)
            try:
                assert_same(expected[i % 3], result)
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


class Rang(Exception):
    pass


def ring(number, frame):
    raise Rang


X = np.broadcast_to(np.zeros(64, np.float32), (1000, 1, 8192, 64))
LONG = {
    "dilation": lambda: attnfast.local_attention(X, X, X, 1000, dilation=3),
    "global tokens": lambda: attnfast.local_attention(X, X, X, 1000, global_tokens=np.arange(999)),
    "local-m": lambda: attnfast.local_attention(X, X, X, 1000, centers=np.arange(8192)[::-1]),
    "local-p": lambda: attnfast.local_attention(
        X, X, X, 1000, centers=np.arange(8192.0)[::-1], sigma=500.0
    ),
    "blocks": lambda: attnfast.attention(
        X, X, X, mask=attnfast.BlockMask(blocks(8192, 8192, 64), 64)
    ),
    "additive": lambda: attnfast.additive_attention(X, X, X),
    "top": lambda: attnfast.attention_topk(X, X, 20),
    "importance": lambda: attnfast.key_importance(X, X),
    "varlen": lambda: attnfast.attention_varlen(
        *(np.broadcast_to(X[0, :, :1], (8192 * 500, 1, 64)),) * 3,
        *(np.arange(501) * 8192,) * 2,
    ),
}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("name", LONG)
def test_an_alarm_in_a_long_call(name):
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        start = time.perf_counter()
        with pytest.raises(Rang):
            LONG[name]()
        assert time.perf_counter() - start < 1.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork(tmp_path):
    """In a fresh process, since a fork of this one would copy all of it."""
    script = """
warnings.simplefilter("ignore", DeprecationWarning)
q, k, v = qkv(2, 300, 32)
def calls():
    yield attnfast.local_attention(q, k, v, 9, dilation=2, global_tokens=[3], num_threads=2)
    yield attnfast.local_attention(
        q, k, v, 9, centers=np.arange(300.0)[::-1], sigma=4.5, num_threads=2
    )
    yield attnfast.additive_attention(q, k, v, num_threads=2)
    yield attnfast.attention_topk(q, k, 5, num_threads=2).indices
    yield attnfast.key_importance(q, k, num_threads=2)
    yield attnfast.attention_varlen(q, k, v, [0, 2], [0, 2], num_threads=2)
expected = [a.tobytes() for a in calls()]
child = os.fork()
if child == 0:
    os._exit([a.tobytes() for a in calls()] != expected)
assert os.waitpid(child, 0)[1] == 0
print("same")
"""
    assert run_python(START + script, tmp_path) == "same\n"

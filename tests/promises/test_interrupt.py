"""Exceptions of signal handlers end a call, however its work is cut."""

import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest

import attnfast
from support.calls import blocks

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer"),
]


class Rang(Exception):
    pass


def ring(number, frame):
    raise Rang


@contextmanager
def ended_by_an_alarm():
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.06)
        start = time.perf_counter()
        with pytest.raises(Rang):
            yield
        assert time.perf_counter() - start < 1.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "lq", [1, 300], ids=["waves of splits", "blocks"]
)  # many batch rows of one query each; one head of many queries
def test_an_alarm_in_a_long_call(lq):
    rows = 40000 if lq == 1 else 400
    q = np.zeros((rows, 1, lq, 64), np.float32)
    k = np.broadcast_to(np.zeros((1, 1, 16384, 64), np.float32), (rows, 1, 16384, 64))
    with ended_by_an_alarm():
        attnfast.attention(q, k, k)


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


@pytest.mark.parametrize("name", LONG)
def test_an_alarm_in_every_function(name):
    with ended_by_an_alarm():
        LONG[name]()


@pytest.mark.parametrize(
    "lk, options", [(2**20, {"is_causal": True}), (4, {"kv_lengths": 0})], ids=["keys", "no keys"]
)
def test_an_alarm_in_a_plan(lk, options):
    q, k = (np.broadcast_to(np.float32(1), (n, 1)) for n in (2**40, lk))
    with ended_by_an_alarm():
        attnfast.plan(q, k, k, q_offset=0, **options)

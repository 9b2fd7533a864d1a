"""Exceptions of signal handlers end a call, however its work is cut."""

import signal
import time

import numpy as np
import pytest

import attnfast
from support.calls import blocks

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer"),
]


ALARM, PROMISE = 0.06, 0.3  # seconds
ATTEMPTS = 4  # as a busy machine is late now and then


class Rang(Exception):
    pass


def ring(number, frame):
    raise Rang


def seconds_late(call, alarm):
    """How long after an alarm its exception arrives."""
    signal.setitimer(signal.ITIMER_REAL, alarm)
    start = time.perf_counter()
    with pytest.raises(Rang):
        call()
    return time.perf_counter() - start - alarm


def check_alarm(call, alarm=ALARM, may_end=False):
    """With `may_end`, a call that ends before the alarm is right too."""
    before = signal.signal(signal.SIGALRM, ring)
    late = []
    try:
        while len(late) < ATTEMPTS and not any(seconds < PROMISE for seconds in late):
            start = time.perf_counter()
            try:
                late.append(seconds_late(call, alarm))
            except pytest.fail.Exception:
                if not may_end or time.perf_counter() - start > alarm:
                    raise
                return
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert min(late) < PROMISE


@pytest.mark.parametrize(
    "lq", [1, 300], ids=["waves of splits", "blocks"]
)  # many batch rows of one query each; one head of many queries
def test_an_alarm_in_a_long_call(lq):
    rows = 40000 if lq == 1 else 400
    q = np.zeros((rows, 1, lq, 64), np.float32)
    k = np.broadcast_to(np.zeros((1, 1, 16384, 64), np.float32), (rows, 1, 16384, 64))
    check_alarm(lambda: attnfast.attention(q, k, k))


X = np.broadcast_to(np.zeros(64, np.float32), (1000, 1, 8192, 64))
G = X[:40]
PACKED = (np.broadcast_to(X[0, :, :1], (8192 * 500, 1, 64)),) * 3
BOUNDS = (np.arange(501) * 8192,) * 2
PAIRS, NUMBERS = np.zeros((2**25, 2), np.float16), np.zeros(2**25, np.int64)


def local_gradients(**options):
    x = G
    attnfast.local_attention_backward(x, x, x, x, x, x[..., 0], window_size=1000, **options)


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
    "varlen": lambda: attnfast.attention_varlen(*PACKED, *BOUNDS),
    "rotated": lambda: attnfast.rotate(PAIRS, NUMBERS, out=PAIRS),
    "gradients": lambda: attnfast.attention_backward(G, G, G, G, G, G[..., 0]),
    "weights": lambda: attnfast.attention_weights(X[:200, :, :4096], X[:200, :, :4096]),
    "gradients by weights": lambda: attnfast.attention_backward(
        *(G, G, G, G, G, G[..., 0]), grad_weights=np.broadcast_to(G[..., :1], (*G.shape[:3], 8192))
    ),
    "gradients of blocks": lambda: attnfast.attention_backward(
        *(G, G, G, G, G, G[..., 0]), mask=attnfast.BlockMask(blocks(8192, 8192, 64), 64)
    ),
    "gradients of dilation": lambda: local_gradients(dilation=3),
    "gradients of global tokens": lambda: local_gradients(global_tokens=np.arange(999)),
    "gradients of local-m": lambda: local_gradients(centers=np.arange(8192)[::-1]),
    "gradients of local-p": lambda: local_gradients(
        centers=np.arange(8192.0)[::-1], sigma=500.0, wanted=("query", "centers")
    ),
    "vjp": lambda: attnfast.vjp(attnfast.attention, X, X, X),
    "gradients of additive": lambda: attnfast.additive_attention_backward(G, G, G, G, G, G[..., 0]),
    "gradients of varlen": lambda: attnfast.attention_varlen_backward(
        *(PACKED[0], *PACKED, PACKED[0], PACKED[0][..., 0], *BOUNDS), wanted=("query",)
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_an_alarm_in_every_function(name):
    check_alarm(LONG[name])


def rows(n, width=1):
    """One row, n times."""
    return np.broadcast_to(np.zeros(width, np.float32), (n, width))


def sort_centers():
    centers = np.random.default_rng(0).permutation(4_000_000)
    return lambda: attnfast.local_attention(*(rows(4_000_000),) * 3, 1, centers=centers)


def choose_many_keys():
    key = np.broadcast_to(np.float32(0), (12_000_000, 1))
    return lambda: attnfast.attention_topk(rows(64), key, 6_000_000)


def split_a_mask():  # whose memory is not there until it is written
    mask, x = np.zeros((4, 20_000, 20_000), bool), np.zeros((4, 20_000, 1), np.float32)
    return lambda: attnfast.local_attention(x, x, x, 1, dilation=2, mask=mask)


def widen():
    x = np.zeros((1_000_000, 128), np.float16)
    return lambda: attnfast.local_attention(x, x, x, 1, global_tokens=[0])


# What comes before, between and after the units of the kernels.
STEPS = {
    "centers": sort_centers,
    "long lists of many keys": choose_many_keys,
    "mask and dilation": split_a_mask,
    "global tokens of float16": widen,
}


@pytest.mark.parametrize("name", STEPS)
def test_an_alarm_in_a_long_step(name):
    call = STEPS[name]()
    for alarm in (0.06, 0.3, 0.6):
        check_alarm(call, alarm, may_end=alarm > ALARM)


@pytest.mark.parametrize(
    "lk, options", [(2**20, {"is_causal": True}), (4, {"kv_lengths": 0})], ids=["keys", "no keys"]
)
def test_an_alarm_in_a_plan(lk, options):
    q, k = (np.broadcast_to(np.float32(1), (n, 1)) for n in (2**40, lk))
    check_alarm(lambda: attnfast.plan(q, k, k, q_offset=0, **options))

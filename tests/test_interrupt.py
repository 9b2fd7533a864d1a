"""Exceptions of signal handlers end a call, however its work is cut."""

import signal
import time

import numpy as np
import pytest

import attnfast


class Rang(Exception):
    pass


def ring(number, frame):
    raise Rang


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize(
    "lq", [1, 300], ids=["waves of splits", "blocks"]
)  # many batch rows of one query each; one head of many queries
def test_an_alarm_in_a_long_call(lq):
    rows = 40000 if lq == 1 else 400
    q = np.zeros((rows, 1, lq, 64), np.float32)
    k = np.broadcast_to(np.zeros((1, 1, 16384, 64), np.float32), (rows, 1, 16384, 64))
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        start = time.perf_counter()
        with pytest.raises(Rang):
            attnfast.attention(q, k, k)
        assert time.perf_counter() - start < 1.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

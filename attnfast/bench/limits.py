"""What this machine can do at most, and how near the pieces of the kernels come to it."""

import threading
import time
from collections.abc import Callable

import numpy as np

from .. import _core


def fma_peak(num_threads: int, seconds: float, dtype: str = "float32") -> float:
    """GFLOP/s of independent fused multiply-adds in registers."""
    return _rate(lambda which: _core.run_fma(20_000, dtype), seconds, num_threads) * 1e-9


def read_bandwidth(num_threads: int, nbytes: int, seconds: float) -> float:
    """GB/s of reading `nbytes` in order, each thread its own share."""
    share = max(4096, nbytes // max(1, num_threads))
    arrays = [np.ones(share // 4, np.float32) for _ in range(num_threads)]

    def step(which: int) -> float:
        _core.run_read(arrays[which])
        return arrays[which].nbytes

    return _rate(step, seconds, num_threads) * 1e-9


def tile(k: int, seconds: float, dtype: str = "float32") -> float:
    """GFLOP/s of the register tile: 64 rows, k steps, data in cache, one thread."""
    lanes = _core.query_lanes(dtype)
    a, b, c = (np.ones(shape, dtype) for shape in [(64, k), (k, lanes), (64, lanes)])

    def step(which: int) -> float:
        _core.run_tile(a, b, c, 200)
        return 200 * 2.0 * 64 * k * lanes

    return _rate(step, seconds) * 1e-9


def exp2(seconds: float, dtype: str = "float32") -> float:
    """Billions of exp2 a second: 4096 values in cache, one thread."""
    a = np.linspace(-20, 0, 4096).astype(dtype)
    result = np.empty_like(a)

    def step(which: int) -> float:
        _core.run_exp2(a, result, 100)
        return 100 * 4096.0

    return _rate(step, seconds) * 1e-9


def softmax(seconds: float, dtype: str = "float32") -> float:
    """Billions of modified scores a second through the online softmax of 128 keys, one thread."""
    lanes = _core.query_lanes(dtype)
    scores, most, total = (np.zeros(shape, dtype) for shape in [(128, lanes), lanes, lanes])

    def step(which: int) -> float:
        _core.run_softmax(scores, most, total, 100)
        return 100 * 128.0 * lanes

    return _rate(step, seconds) * 1e-9


def _rate(step: Callable[[int], float], seconds: float, num_threads: int = 1) -> float:
    """Sum over threads of what step(which thread) does a second, all of them at the same time."""
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    rates = [0.0] * num_threads
    barrier = threading.Barrier(num_threads)

    def worker(which: int) -> None:
        step(which)
        barrier.wait()
        done, elapsed, start = 0.0, 0.0, time.perf_counter()
        while elapsed < seconds:
            done += step(which)
            elapsed = time.perf_counter() - start
        rates[which] = done / elapsed

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)

"""Threads of calls: scripts that count them, and calls that have as many as they ask for."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.scripts import START

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
TWO_CPUS = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two CPUs",
)


def with_every_thread(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result of a call that has all threads it asks for, however busy the machine is.

    It is the first call of a Python thread. Later ones may have fewer.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *args, **options).result()


# How scripts begin that ask how many threads of their process a call uses.
COUNT_WORKERS = (
    START
    + """
def run_times():
    # Of the other threads, once all of them sleep: of one that runs the kernel is behind.
    while True:
        times = {}
        for task in set(os.listdir("/proc/self/task")) - {str(threading.get_native_id())}:
            try:
                with open(f"/proc/self/task/{task}/stat") as stat:
                    state = stat.read().rpartition(")")[2].split()[0]
                with open(f"/proc/self/task/{task}/schedstat") as file:
                    times[task] = int(file.read().split()[0])
            except OSError:  # it has ended
                continue
            if state == "R":
                break
        else:
            return times
        time.sleep(0.01)

def workers(call, wanted=None):
    # How many threads run during a call: the most of several calls, as on a busy machine some
    # have fewer than wanted. Ends once a call has as many.
    wanted = attnfast.get_num_threads() if wanted is None else wanted
    most, end = 0, time.monotonic() + 15
    while most < wanted and time.monotonic() < end:
        before = run_times()
        call()
        most = max(most, 1 + sum(t > before.get(task, 0) for task, t in run_times().items()))
    return most
"""
)
DEFAULTS = {"ATTNFAST_NUM_THREADS": "", "OMP_NUM_THREADS": str(os.cpu_count())}

"""The parent's end of a worker process."""

from __future__ import annotations

import json
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# The child gets this process's own path, so that it imports the same attnfast wherever it starts.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from attnfast.bench.worker import main; main(sys.argv[2], int(sys.argv[3]))"
)
TICK_SECONDS = 0.5


class WorkerFailed(Exception):
    """The contestant could not do what was asked; the message says why."""


class WorkerProcess:
    """One contestant in a process of its own, with its thread pools sized by the environment."""

    def __init__(self, name: str, threads: int, isa: str | None = None) -> None:
        self.name = name
        self.version = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(threads, isa),
        )
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                self._answers.put(pickle.load(self._process.stdout))
            except (EOFError, OSError, ValueError, pickle.UnpicklingError):
                self._answers.put(("ended", None))
                return

    def wait_ready(self, timeout: float) -> None:
        """Wait until the library is imported, and note its version."""
        self.version = self.receive(timeout)

    def send(self, operation: str, *arguments: object) -> None:
        """Ask for an operation of `worker.Worker`; `receive` brings its result."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # the process has ended, which `receive` reports
            pickle.dump((operation, *arguments), self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()

    def receive(self, timeout: float, tick: Callable[[], None] | None = None) -> Any:
        """The result of what was asked; `tick` is called now and then while waiting.

        Raises
        ------
        WorkerFailed
            When the operation raised, the process ended, or `timeout` seconds passed.
        """
        waited = 0.0
        while True:
            try:
                kind, value = self._answers.get(timeout=TICK_SECONDS)
                break
            except queue.Empty:
                waited += TICK_SECONDS
                if tick is not None:
                    tick()
                if waited >= timeout:
                    self.close()
                    raise WorkerFailed(f"no answer within {timeout:.0f} s") from None
        if kind == "ok":
            return value
        if kind == "error":
            raise WorkerFailed(str(value))
        raise WorkerFailed(self._epitaph())

    def call(self, operation: str, *arguments: object, timeout: float = 300.0) -> Any:
        """Send and receive."""
        self.send(operation, *arguments)
        return self.receive(timeout)

    @property
    def alive(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def _epitaph(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1][:160]}" if lines else ""
        return f"its process ended with code {code}{last}"

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


def _environment(threads: int, isa: str | None) -> dict[str, str]:
    """Thread counts for every library's pool, set before the process starts."""
    count = str(threads)
    environment = dict(os.environ)
    for name in (
        "ATTNFAST_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NPROC",  # JAX
    ):
        environment[name] = count
    environment.setdefault("JAX_PLATFORMS", "cpu")
    environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else a pool of processes
    if isa is not None:
        environment["ATTNFAST_ISA"] = isa
    return environment

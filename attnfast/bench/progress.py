"""Progress on standard error: a bar where there is a terminal and rich, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Protocol

LINE_SECONDS = 10.0


class Progress(Protocol):
    """What the runner reports to."""

    def step(self, done: float, text: str) -> None:
        """`done` of the total number of cases are over, and now comes `text`."""
        ...


class Lines(AbstractContextManager["Lines"]):
    """One line every ten seconds, or one rewritten line on a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._start = self._last = time.monotonic()

    def step(self, done: float, text: str) -> None:
        """Print when it is time to."""
        now = time.monotonic()
        line = f"[{int(done) + 1}/{self._total}] {now - self._start:4.0f} s  {text}"
        if self._terminal:
            print(f"\r\x1b[K{line[:78]}", end="", file=sys.stderr, flush=True)
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, *details: object) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Bar(AbstractContextManager["Bar"]):
    """A rich progress bar."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total)

    def step(self, done: float, text: str) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, description=text)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.stop()


def make_progress(total: int) -> Bar | Lines:
    """The best display for where standard error goes."""
    if sys.stderr.isatty() and find_spec("rich") is not None:
        return Bar(total)
    return Lines(total)

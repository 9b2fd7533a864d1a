"""`attnfast doctor`: what decides speed in this process, and what to change.

`gather` reads the facts, `diagnose` judges them.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .bench import machine
from .bench.quota import cpu_quota, cut_short
from .config import get_num_threads

THREAD_VARIABLES = ("ATTNFAST_NUM_THREADS", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT")
BLAS_VARIABLES = {
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
}
WIDTH = 100
OFTEN = 0.05  # of all periods: a quota that stops the process more often than that is felt


@dataclass(frozen=True)
class Facts:
    """What `diagnose` judges; the defaults are those of an idle machine without limits."""

    version: str
    python: str
    numpy: str
    blas: str
    system: str
    architecture: str
    cpu: str
    cores: int
    affinity: int
    isa: str
    isas: tuple[str, ...]
    threads: int
    environment: dict[str, str]
    pools: list[dict[str, Any]] | None = None
    quota: float | None = None
    stopped: tuple[int, int] | None = None
    busy: str | None = None
    flushes: bool = False
    huge_pages: str | None = "madvise"

    @property
    def usable(self) -> int:
        """Processors that this process may use."""
        return min(self.affinity, math.ceil(self.quota)) if self.quota else self.affinity


class Finding(NamedTuple):
    """A fact in words; what to do about it, if anything."""

    topic: str
    found: str
    advice: str = ""


def gather() -> Facts:
    """The facts of this process, thread and machine."""
    facts, installed = machine.machine_facts(), machine.installation_facts()
    return Facts(
        version=installed["version"],
        python=facts["python"],
        numpy=facts["numpy"],
        blas=facts["blas"],
        system=facts["system"],
        architecture=platform.machine(),
        cpu=facts["cpu"],
        cores=facts["cores"],
        affinity=facts["affinity"],
        isa=installed["isa"],
        isas=tuple(installed["isas"]),
        threads=get_num_threads(),
        environment=dict(os.environ),
        pools=machine.thread_pools(),
        quota=cpu_quota(),
        stopped=cut_short(),
        busy=machine.busy_warning(),
        flushes=flushes_denormals(),
        huge_pages=machine.huge_pages(),
    )


def flushes_denormals() -> bool:
    """Whether the calling thread takes numbers below the smallest normal one for zero."""
    smallest = np.array([np.finfo(np.float32).tiny])
    below = np.array([1], np.uint32).view(np.float32)
    results = smallest / 2, below * 1  # may be flushed where it is a result, or as an operand
    return not all(a.view(np.uint32).any() for a in results)


def diagnose(facts: Facts) -> list[Finding]:
    """What decides speed, in the order in which it weighs."""
    judges: tuple[Callable[[Facts], Finding | None], ...] = (
        _versions,
        _instruction_set,
        _threads,
        _processors,
        _quota,
        _load,
        _openmp,
        _blas,
        _denormals,
        _huge_pages,
    )
    return [finding for judge in judges if (finding := judge(facts)) is not None]


def report(findings: list[Finding]) -> str:
    """The findings as lines, what to do below what was found."""
    margin = max(len(finding.topic) for finding in findings) + 2
    lines = []
    for topic, found, advice in findings:
        for start, words in ((f"{topic:<{margin}}", found), (" " * margin + "-> ", advice)):
            after = " " * len(start)
            lines += textwrap.wrap(words, WIDTH, initial_indent=start, subsequent_indent=after)
    count = sum(bool(finding.advice) for finding in findings)
    points = "1 point" if count == 1 else f"{count} points"
    total = f"{points} to look at, marked ->" if count else "nothing to change"
    return "\n".join([*lines, "", total])


def _versions(facts: Facts) -> Finding:
    python = f"NumPy {facts.numpy}, Python {facts.python}"
    return Finding("versions", f"attnfast {facts.version}, {python}, {facts.system}")


def _instruction_set(facts: Facts) -> Finding:
    topic, best = "instruction set", facts.isas[0]
    others = ", ".join(facts.isas[1:])
    if facts.isa != best:
        setting = facts.environment.get("ATTNFAST_ISA", "")
        reason = f", because ATTNFAST_ISA={setting}" if setting else ""
        advice = f"unset ATTNFAST_ISA to use {best}" if setting else ""
        return Finding(topic, f"{facts.isa}{reason}; this machine has {best}, {others}", advice)
    if facts.architecture.lower() in ("x86_64", "amd64") and best == "generic":
        return Finding(
            topic,
            f"generic, on {facts.cpu}: no AVX2 or AVX-512, which are several times faster",
            "in a virtual machine, give it the processor model of the host (QEMU: -cpu host); "
            "processors since 2013 have AVX2",
        )
    words = f", the best of {best}, {others}" if others else ", the only one here"
    return Finding(topic, f"{best} on {facts.cpu}{words}")


def _threads(facts: Facts) -> Finding:
    setting = _deciding_variable(facts)
    count = f"{facts.threads} thread{'s' if facts.threads > 1 else ''} a call"
    reason = f", set by {setting}={facts.environment[setting]}" if setting else ""
    may = f"this process may use {_processors_in_words(facts.usable)}"
    if facts.threads > facts.usable:
        most = f"{facts.usable} or less" if facts.usable > 1 else "1"
        return Finding(
            "threads",
            f"{count}{reason}; {may}, and more threads than processors wait for each other",
            f"unset {setting}, or set it to {most}"
            if setting
            else f"call attnfast.set_num_threads({facts.usable})",
        )
    if facts.threads == facts.usable:
        return Finding("threads", f"{count}{reason}, one for each processor it may use")
    advice = (
        f"to use all, unset {setting}, or set it to {facts.usable}"
        if setting
        else "OpenMP allows no more; if this build has no OpenMP, build attnfast with "
        "-Ccmake.define.ATTNFAST_OPENMP=ON, which says what is missing"
    )
    return Finding("threads", f"{count}{reason}; {may}", advice)


def _deciding_variable(facts: Facts) -> str | None:
    """The variable that asks for as many threads as there are: others ask for more."""
    for name in THREAD_VARIABLES:
        first = facts.environment.get(name, "").partition(",")[0].strip()
        if first.isdigit() and int(first) == facts.threads:
            return name
    return None


def _processors_in_words(count: int) -> str:
    return f"{count} processor{'s' if count > 1 else ''}"


def _processors(facts: Facts) -> Finding:
    if facts.affinity >= facts.cores:
        return Finding("processors", f"{facts.cores}, all of which this process may run on")
    return Finding(
        "processors",
        f"{facts.cores}, of which this process may run on {facts.affinity} (affinity)",
        "if it should have more: taskset, docker run --cpuset-cpus, and --cpus-per-task of Slurm "
        "decide that",
    )


def _quota(facts: Facts) -> Finding:
    if facts.quota is None:
        return Finding("quota", "none: no control group limits processor time")
    found = f"processor time of {facts.quota:g} cores, by the control group"
    advice = []
    stopped, periods = facts.stopped or (0, 0)
    if periods:
        found += f"; it has stopped this group in {stopped} of {periods} periods"
    if periods and stopped > OFTEN * periods:
        advice.append("raise the quota, or run fewer threads and processes in the group")
    if facts.quota % 1 and facts.quota < facts.affinity:
        whole = math.ceil(facts.quota)
        advice.append(
            f"make it a whole number: {whole} threads use up {facts.quota:g} before a period ends, "
            "and then wait"
        )
    if advice:
        advice.append("docker run --cpus and limits.cpu of Kubernetes set it")
    return Finding("quota", found, "; ".join(advice))


def _load(facts: Facts) -> Finding:
    if facts.busy is None:
        return Finding("load", "little: other processes leave processors free")
    return Finding(
        "load",
        f"{facts.busy}, and calls on fewer threads",
        "end other work, or measure when it has ended",
    )


def _openmp(facts: Facts) -> Finding:
    if facts.pools is None:
        return Finding(
            "OpenMP",
            "not known, nor which other pools of threads there are",
            "pip install threadpoolctl, which finds them",
        )
    pools = [pool for pool in facts.pools if pool["user_api"] == "openmp"]
    names = ", ".join(Path(pool["filepath"]).name for pool in pools)
    waits = facts.environment.get("OMP_WAIT_POLICY", "").lower() == "passive"
    if len(pools) > 1 and not waits:
        return Finding(
            "OpenMP",
            f"{len(pools)} runtimes: {names}; after its work each keeps its threads awake for a "
            "while, on processors that the others want",
            "if your program alternates between them, try OMP_WAIT_POLICY=passive, set before "
            "Python starts",
        )
    if pools and facts.busy and not waits:
        return Finding(
            "OpenMP",
            f"{names}; on a busy machine its threads spin while they wait",
            "set OMP_WAIT_POLICY=passive before Python starts, if other work cannot end",
        )
    return Finding("OpenMP", names or "no runtime loaded")


def _blas(facts: Facts) -> Finding:
    pools = [pool for pool in facts.pools or () if pool["user_api"] == "blas"]
    if not pools:
        return Finding("BLAS", f"{facts.blas} in NumPy; how many threads it has is not known")
    most = max(pools, key=lambda pool: pool["num_threads"])
    count, name = most["num_threads"], most["internal_api"]
    shown = f"{facts.blas} in NumPy"
    if len(pools) > 1:
        shown += f"; {len(pools)} libraries are loaded"
    threads = f"{count} thread{'s' if count > 1 else ''}"
    variable = BLAS_VARIABLES.get(name, "OMP_NUM_THREADS")
    if count > facts.usable:
        return Finding(
            "BLAS",
            f"{shown}; {name} has {threads} for {_processors_in_words(facts.usable)}",
            f"set {variable}={facts.usable} before Python starts: matrix products wait for threads "
            "that have no processor",
        )
    if count > 1 and facts.busy:
        return Finding(
            "BLAS",
            f"{shown}; {name} has {threads}, which on a busy machine wait for each other",
            f"set {variable}=1 before Python starts, if other work cannot end",
        )
    return Finding("BLAS", f"{shown}, {threads}")


def _denormals(facts: Facts) -> Finding:
    if not facts.flushes:
        return Finding("denormals", "computed, as IEEE 754 says")
    return Finding(
        "denormals",
        "flushed to zero in this thread: results below 1e-38 in float32 are 0",
        "if they matter: a library built with -ffast-math does that when it is loaded, and "
        "torch.set_flush_denormal(True) when it is called",
    )


def _huge_pages(facts: Facts) -> Finding | None:
    if facts.huge_pages is None:
        if not facts.system.startswith("Linux"):
            return None
        return Finding("huge pages", "the kernel has none: memory comes in pages of 4 KiB")
    if facts.huge_pages != "never":
        return Finding(
            "huge pages", f"{facts.huge_pages}: large arrays and working memory get them"
        )
    return Finding(
        "huge pages",
        "never: large arrays come in pages of 4 KiB, which are slower to get and to find",
        "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def main(modules: list[str]) -> int:
    """Print the findings, after importing `modules` as the caller's program does."""
    for name in modules:
        try:
            __import__(name)
        except ImportError as error:
            print(f"attnfast doctor: --import {name}: {error}", file=sys.stderr)
            return 2
    print(report(diagnose(gather())))
    return 0

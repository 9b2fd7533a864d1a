"""Facts of the machine and the installation, for the header of a report."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .quota import cpu_quota


def cpu_name() -> str:
    """The processor's name as the system gives it, with the generation of an AMD EPYC."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    lines: list[tuple[str, str]] = re.findall(
        r"^(cpu family|model name|model)\s*: (.+)", text, re.M
    )
    facts = dict(reversed(lines))  # of the first processor
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    name = facts["model name"].strip()
    numbers = [facts.get(key, "").strip() for key in ("cpu family", "model")]
    if name != "AMD EPYC" or not all(number.isdigit() for number in numbers):
        return name
    generation = amd_generation(*map(int, numbers))
    return f"{name} ({generation})" if generation else name


def amd_generation(family: int, model: int) -> str:
    """Zen 3, 4 or 5 by the numbers of an AMD processor, of which virtual machines hide the name."""
    known: dict[int, dict[str, tuple[int, ...]]] = {  # of each, 16 models
        25: {"Zen 3": (0x00, 0x20, 0x30, 0x40, 0x50), "Zen 4": (0x10, 0x60, 0x70, 0xA0)},
        26: {"Zen 5": (0x00, 0x10, 0x20, 0x40)},
    }
    generations = known.get(family, {}).items()
    return next((name for name, models in generations if model & 0xF0 in models), "")


def affinity() -> int:
    """Number of cores this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> float:
    """Bytes that can be allocated without swapping; infinite where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024.0
    except OSError:
        pass
    return float("inf")


def require_memory(needed: float, what: str, most: float = 8e9) -> None:
    """Refuse a case that needs more than `most` bytes or 60 % of what is available now.

    Raises
    ------
    MemoryError
        With the reason as it is shown in the report.
    """
    if needed > min(most, 0.6 * available_memory()):
        raise MemoryError(f"{what} would take {needed / 1e9:.1f} GB")


def busy_warning() -> str | None:
    """A sentence when other work is likely to disturb the measurement."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
    cores = os.cpu_count() or 1
    if load <= 0.5 * cores:
        return None
    return f"the machine is busy (load average {load:.1f} on {cores} cores); expect noisy figures"


def blas_name() -> str:
    """The BLAS that NumPy was built with."""
    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown BLAS')} {blas.get('version', '')}".strip()


def thread_pools() -> list[dict[str, Any]] | None:
    """The pools of threads in this process; None without threadpoolctl, which finds them."""
    if find_spec("threadpoolctl") is None:
        return None
    from threadpoolctl import threadpool_info

    return list(threadpool_info())


def openmp_name() -> str:
    """The OpenMP libraries loaded in this process, where threadpoolctl is there to tell."""
    pools = thread_pools()
    if pools is None:
        return "not known (needs threadpoolctl)"
    files = [Path(pool["filepath"]).name for pool in pools if pool["user_api"] == "openmp"]
    return ", ".join(files) or "none loaded"


def huge_pages(root: Path = Path("/")) -> str | None:
    """The mode of transparent huge pages, such as ``"madvise"``; None where there are none."""
    try:
        text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return next((word[1:-1] for word in text.split() if word.startswith("[")), None)


def machine_facts() -> dict[str, Any]:
    """Facts that do not depend on attnfast."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "affinity": affinity(),
        "quota": cpu_quota(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas_name(),
    }


def installation_facts() -> dict[str, Any]:
    """Facts about attnfast in this process: version, instruction sets, OpenMP library."""
    import attnfast

    row = np.ones((1, 64), np.float32)
    return {
        "version": attnfast.__version__,
        "isas": list(attnfast.available_isas()),
        "isa": str(attnfast.plan(row, row, row).isa),
        "openmp": openmp_name(),
    }

"""Threads, instruction sets, and the configuration of this build and machine."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from . import _core


def available_isas() -> tuple[str, ...]:
    """Instruction sets that this build and this CPU have, best first.

    The first is used, unless the environment variable ``ATTNFAST_ISA`` names another when attnfast
    is imported.

    Returns
    -------
    tuple of str
        Names such as ``"avx512"``, ``"avx2"``, ``"generic"``.

    Examples
    --------
    >>> import attnfast
    >>> attnfast.available_isas()[-1]
    'generic'
    """
    return _core.available_isas()


def set_num_threads(num_threads: int | None) -> None:
    """Set how many threads calls from any thread of this process use.

    Parameters
    ----------
    num_threads : int or None
        At least 1; None restores the default, see :func:`get_num_threads`.

    Examples
    --------
    >>> import attnfast
    >>> attnfast.set_num_threads(1)
    >>> attnfast.get_num_threads()
    1
    >>> attnfast.set_num_threads(None)
    """
    _core.set_threads(num_threads)


def get_num_threads() -> int:
    """Number of threads used when a call does not set `num_threads`.

    What :func:`num_threads` set in the calling thread; else what :func:`set_num_threads` or the
    environment variable ``ATTNFAST_NUM_THREADS`` set; else the least of what OpenMP allows the
    calling thread (``OMP_NUM_THREADS``, threadpoolctl), the CPUs the process may run on, and the
    CPU quota of its control group.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> import attnfast
    >>> attnfast.get_num_threads() >= 1
    True
    """
    return _core.get_threads()


@contextmanager
def num_threads(n: int | None) -> Iterator[None]:
    """Use `n` threads for calls from this thread inside a ``with`` block.

    Parameters
    ----------
    n : int or None
        At least 1. None: the number that calls from other threads use.

    Yields
    ------
    None
        On leaving the block, the earlier number is restored.

    Examples
    --------
    >>> import attnfast
    >>> with attnfast.num_threads(1):
    ...     attnfast.get_num_threads()
    1
    """
    before = _core.set_own_threads(_core.check_threads(n))
    try:
        yield
    finally:
        _core.set_own_threads(before)


def get_include() -> str:
    """Return the folder of the headers of the C API.

    For compilers of C and Cython modules that call attnfast: ``docs/guide/c-api.md``.

    Returns
    -------
    str
        It holds ``attnfast.h`` and ``attnfast_python.h``.

    Examples
    --------
    >>> import attnfast, os
    >>> sorted(os.listdir(attnfast.get_include()))
    ['attnfast.h', 'attnfast_python.h']
    """
    return str(Path(_core.__file__).with_name("include"))


def use_isa(name: str | None) -> None:
    """Cap the instruction set of this process; None: what ATTNFAST_ISA says, else the best."""
    origin = "isa"
    if name is None:
        name, origin = os.environ.get("ATTNFAST_ISA") or None, "ATTNFAST_ISA"
    if name is not None and not isinstance(name, str):
        raise TypeError(f"{origin} must be a str, got {type(name).__name__}")
    if not _core.cap_isa(name):
        isas = ", ".join(available_isas())
        raise ValueError(f"{origin} is {name!r}; this CPU and build have {isas}")


def _threads_from_environment() -> None:
    text = os.environ.get("ATTNFAST_NUM_THREADS")
    if not text:
        return
    try:
        set_num_threads(int(text))
    except ValueError:
        raise ValueError(
            f"ATTNFAST_NUM_THREADS is {text!r}; it must be a whole number, at least 1"
        ) from None


use_isa(None)
_threads_from_environment()


@overload
def show_config(mode: Literal["stdout"] = ...) -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Show versions, instruction sets and threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print, or return a dict.

    Returns
    -------
    dict or None
        With ``"dicts"``, what would be printed, by name.

    Examples
    --------
    >>> import attnfast
    >>> sorted(attnfast.show_config("dicts"))
    ['attnfast', 'environment', 'isa', 'isas', 'machine', 'numpy', 'python', 'threads']
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f'mode must be "stdout" or "dicts", got {mode!r}')
    names = ("ATTNFAST_ISA", "ATTNFAST_NUM_THREADS", "OMP_NUM_THREADS")
    config = {
        "attnfast": version("attnfast"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "isa": _core.isa_in_use("float32"),
        "isas": list(available_isas()),
        "threads": get_num_threads(),
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        if isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, dict):
            value = " ".join(f"{k}={v}" for k, v in value.items()) or "-"
        print(f"{name:<12} {value}")
    return None

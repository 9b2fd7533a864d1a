"""Scripts: run in a fresh interpreter against the installed package, or imported by path."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# How scripts for `run_python` may begin.
START = """
import os, signal, sys, threading, time, warnings
import numpy as np
import attnfast

def qkv(*shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(3)]

def decode_case():
    q, k, v = qkv(2, 4, 3000, 64)
    return q[:, :, :1], k, v

"""


def run_python(code: str, cwd: Any, timeout: float = 60, **environment: str) -> str:
    """Run a script in a fresh interpreter against the installed package; return what it prints."""
    done = run_python_raw(code, cwd, timeout, **environment)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python_raw(
    code: str, cwd: Any, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Like `run_python`, for scripts that are meant to fail."""
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def import_script(path: Path) -> ModuleType:
    """Import a script that is in no package; it finds the modules beside it, as when it is run."""
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(path.stem)
    finally:
        sys.path.remove(str(path.parent))

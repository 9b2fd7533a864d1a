"""Copies of the installed package, for scripts that compare two builds."""

import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import attnfast
from attnfast import _core
from support.paths import ROOT


def copy_build(folder: Path, more: str = "") -> Path:
    """A folder as `pip install --target` makes it; `more` is code at the end of its `__init__`."""
    source = Path(attnfast.__file__).parent
    shutil.copytree(source, folder / "attnfast", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_core.__file__, folder / "attnfast")
    for libraries in Path(_core.__file__).parent.parent.glob("attnfast.libs"):  # of a wheel
        shutil.copytree(libraries, folder / libraries.name)
    about = folder / f"attnfast-{attnfast.__version__}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(distribution("attnfast").read_text("METADATA") or "")
    with (folder / "attnfast" / "__init__.py").open("a") as file:
        file.write(more)
    return folder


def run_script(script: str, *arguments: Any, timeout: float = 300) -> tuple[int, str]:
    """Exit code and output of a script of the repository."""
    command = [sys.executable, ROOT / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stdout + done.stderr

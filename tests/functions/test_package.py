"""The package as one first meets it: import, names, modules, the command."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import attnfast
from support.paths import ROOT
from support.scripts import run_python, run_python_raw

pytestmark = pytest.mark.quick


def run_interpreter(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments],
        **{"cwd": cwd, "capture_output": True, "text": True, "timeout": 60, "check": False},
    )


def run_command(*arguments, cwd):
    return run_interpreter("-P", "-m", "attnfast", *arguments, cwd=cwd)


def test_the_source_folder_says_what_to_do(tmp_path):
    """Python in a clone finds the folder attnfast, which has no compiled part, first."""
    unbuilt = shutil.ignore_patterns("_core*.so", "_core*.pyd", "__pycache__")
    shutil.copytree(Path(attnfast.__file__).parent, tmp_path / "attnfast", ignore=unbuilt)
    # -S: without what an installation in place hooks into imports.
    done = run_interpreter("-S", "-c", "import attnfast", cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: attnfast was imported from its source folder")
    assert "run Python in another folder" in last and "CONTRIBUTING.md" in last
    if (ROOT / "CONTRIBUTING.md").exists():
        assert "\n## Build\n" in (ROOT / "CONTRIBUTING.md").read_text()


def test_modules_are_loaded_when_they_are_first_used(tmp_path):
    script = """
import sys
import attnfast
modules = ["layers", "plot", "reference"]
assert not any(f"attnfast.{name}" in sys.modules for name in modules)
assert attnfast.layers.MultiHeadAttention and attnfast.plot.weights and attnfast.reference.attention
assert all(f"attnfast.{name}" in sys.modules for name in modules)
assert "matplotlib" not in sys.modules
"""
    run_python(script, tmp_path)


def test_dir_shows_what_is_public():
    assert dir(attnfast) == sorted([*attnfast.__all__, "layers", "plot", "reference"])
    assert dir(attnfast.layers) == sorted(attnfast.layers.__all__)
    pytest.importorskip("matplotlib")
    assert dir(attnfast.plot) == sorted(attnfast.plot.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    assert not hasattr(attnfast, "nonsense")
    assert not hasattr(attnfast, "__wrapped__")


def test_the_command_alone_prints_help(tmp_path):
    alone, helped = (run_command(*more, cwd=tmp_path) for more in ((), ("--help",)))
    assert alone.returncode == helped.returncode == 0
    assert alone.stdout == helped.stdout and "usage: attnfast" in alone.stdout
    assert alone.stderr == ""


def test_a_reader_may_close_the_pipe(tmp_path):
    script = "import attnfast.cli, os, sys; os.close(r); sys.exit(attnfast.cli.main(['info']))"
    script = f"import os; r, w = os.pipe(); os.dup2(w, 1)\n{script}"
    done = run_python_raw(script, tmp_path)
    assert done.stderr == "" and done.returncode == 1


def test_the_command_says_what_it_does_not_know(tmp_path):
    done = run_command("nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stderr and "Traceback" not in done.stderr

"""The C library does what csrc/attnfast.h says of parts, results, gradients and legal calls."""

import shutil
import subprocess
import sys

import pytest

from support.paths import ROOT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the script is for Linux")
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_edges_of_the_contract(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "prove"))
    from c_library import Library

    library = Library(tmp_path / "work", "cc", [], only=[("generic", "f32")])
    program = library.link("contract", ["contract.c"])
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")

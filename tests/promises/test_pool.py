"""csrc/runtime/pool.c: calls on the threads of another library."""

import shutil
import subprocess
import sys

import pytest

from support.paths import ROOT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the script is for Linux")
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_calls_on_the_threads_of_a_pool(tmp_path, monkeypatch):
    """Prompt, late and unwilling ones, with several callers, under the thread sanitizer."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "prove"))
    from c_library import Library

    library = Library(tmp_path / "work", "cc", ["-fsanitize=thread"], only=[("generic", "f32")])
    program = library.link("pool", ["pool.c"])
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")

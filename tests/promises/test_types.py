"""What type checkers are told: a user's code, the stub of the compiled module, the overloads."""

import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import attnfast
from attnfast.layers import MultiHeadAttention
from support.paths import ROOT

HERE = Path(__file__).parent
OVERLOADED = [
    attnfast.attention,
    attnfast.local_attention,
    attnfast.additive_attention,
    attnfast.attention_varlen,
    attnfast.KVCache.attend,
    attnfast.KVCache.extend,
    attnfast.PagedKVCache.attend,
    MultiHeadAttention.__call__,
]


@pytest.fixture
def cache(pytestconfig, tmp_path):
    """What mypy knows of NumPy and others, kept for the next run where pytest keeps anything."""
    kept = getattr(pytestconfig, "cache", None)
    return kept.mkdir("mypy") if kept else tmp_path / "cache"


def run_mypy(folder, cache, module, *arguments):
    """Run mypy, or a tool of it, against the installed package."""
    pytest.importorskip("mypy", reason='needs ".[lint]"')
    pytest.importorskip("matplotlib")
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "MYPY_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.quick
def test_code_of_a_user(tmp_path, cache):
    user = "--strict", "--config-file", "", HERE / "typing/sample.py"
    done = run_mypy(tmp_path, cache, "mypy", *user)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr


def test_stub_of_the_compiled_module(tmp_path, cache):
    """And that the sources say what they are at run time."""
    known = "--allowlist", HERE / "typing/stubtest.txt", "--ignore-unused-allowlist"
    config = "--mypy-config-file", ROOT / "pyproject.toml"
    done = run_mypy(tmp_path, cache, "mypy.stubtest", "attnfast", "--concise", *config, *known)
    assert done.returncode == 0, done.stdout + done.stderr


def keywords(function):
    """The arguments of a function and their types, those in Unpack[...] too."""
    types = dict(function.__annotations__)
    for name in ("return", "extra", "unknown"):
        types.pop(name, None)
    packed = types.pop("options", None)
    return types if packed is None else types | typing.get_type_hints(*typing.get_args(packed))


@pytest.mark.quick
@pytest.mark.parametrize("function", OVERLOADED, ids=lambda f: f.__qualname__)
def test_overloads_have_the_keywords_of_the_function(function):
    own = keywords(function)
    flags = {name for name in own if name.startswith("return_")}
    overloads = typing.get_overloads(function)
    assert len(overloads) >= 3
    for overload in overloads:
        told = keywords(overload)
        assert told.keys() == own.keys()
        assert {n: x for n, x in told.items() if n not in flags} == {
            n: x for n, x in own.items() if n not in flags
        }

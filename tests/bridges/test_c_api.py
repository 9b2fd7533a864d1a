"""The C API by its capsule: the modules that docs/guide/c-api.md shows, built and run."""

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import attnfast
from attnfast import _core
from support.paths import ROOT

HEADER = Path(attnfast.get_include()) / "attnfast.h"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
PYTHON_HEADER = Path(sysconfig.get_path("include")) / "Python.h"

needs_compiler = pytest.mark.skipif(
    not COMPILER or sys.platform == "win32" or not PYTHON_HEADER.exists(),
    reason="needs a C compiler and Python.h",
)


def shown(language):
    """The code of one language on the page."""
    page = (ROOT / "docs" / "guide" / "c-api.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"```{language}\n(?!>>>)(.*?)```", page, re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def compile_and_import(folder, name, source, *flags):
    """Build one C file into an extension module, warnings being errors unless it is generated."""
    module = folder / f"{name}.so"
    path = folder / f"{name}.c"
    path.write_text(source, encoding="utf-8")
    includes = [sysconfig.get_path("include"), attnfast.get_include()]
    command = [COMPILER, "-shared", "-fPIC", *flags, *(f"-I{i}" for i in includes), path]
    if sys.platform == "darwin":
        command += ["-undefined", "dynamic_lookup"]
    done = subprocess.run([*command, "-o", module], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location(name, module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def draw():
    rng = np.random.default_rng(0)
    shapes = [(4, 33, 64), (2, 33, 64), (2, 33, 24)]
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]


@needs_compiler
@pytest.mark.parametrize("limited", [True, False], ids=["limited", "full"])
def test_c(tmp_path, limited):
    source = shown("c")
    if not limited or sysconfig.get_config_var("Py_GIL_DISABLED"):
        source = source.replace("#define Py_LIMITED_API 0x030b0000\n", "")
    module = compile_and_import(tmp_path, "in_c", source, *STRICT)
    q, k, v = draw()
    out = np.empty((4, 33, 24), np.float32)
    module.causal(q, k, v, out)
    expected = attnfast.attention(q, k, v, is_causal=True, scale=0.125)
    assert out.tobytes() == expected.tobytes()
    with pytest.raises(TypeError, match="float32 arrays"):
        module.causal(q, k[0], v, out)


@needs_compiler
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("AF_API_VERSION 1", "AF_API_VERSION 2"), "version 2 .* got version 1 .*upgrade attnfast"),
        (("AF_API_VERSION 1", "AF_API_VERSION 0"), "version 0 .* got version 1 .*compile it again"),
        (("} af_api;", "int (*later)(void);} af_api;"), "a table of .*upgrade attnfast"),
    ],
    ids=["newer", "older", "longer"],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, change, message):
    headers = tmp_path / "include"
    shutil.copytree(attnfast.get_include(), headers)
    text = HEADER.read_text(encoding="utf-8")
    assert text.count(change[0]) == 1
    (headers / "attnfast.h").write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(ImportError, match=message):
        compile_and_import(tmp_path, "in_c", shown("c"), *STRICT, f"-I{headers}")


@needs_compiler
def test_a_header_in_cpp(tmp_path):
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("needs a C++ compiler")
    (tmp_path / "a.cpp").write_text(
        "#include <attnfast_python.h>\nint f() { return af_import()->threads(); }\n"
    )
    includes = [sysconfig.get_path("include"), attnfast.get_include()]
    command = [compiler, "-c", "a.cpp", "-Wall", "-Werror", *(f"-I{i}" for i in includes)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_cython(tmp_path):
    pytest.importorskip("Cython", reason="needs Cython")
    source = tmp_path / "in_cython.pyx"
    source.write_text(shown("cython"), encoding="utf-8")
    # From an empty folder, where the installed attnfast is found and not the source tree.
    command = [sys.executable, "-P", "-m", "cython", "-Werror", source]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    c = source.with_suffix(".c").read_text(encoding="utf-8")
    module = compile_and_import(tmp_path, "in_cython", c)
    q, k, v = draw()
    out = np.empty((4, 33, 24), np.float32)
    module.attend(q, k, v, out)
    assert out.tobytes() == attnfast.attention(q, k, v, scale=1.0).tobytes()


def test_numba():
    pytest.importorskip("numba", reason="needs Numba")
    names = {}
    exec(shown("python"), names)  # ends with an assertion
    q, k, v = draw()
    output = names["attention"](q, k, v, *names["structs"])
    assert output.tobytes() == attnfast.attention(q, k, v, scale=1.0).tobytes()


def test_the_table_holds_every_function_of_the_header():
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    functions, table = text.split("typedef struct af_api {")
    declared = re.findall(r"^[\w ]+[ *]af_(\w+)\([^()]*\);", functions, re.MULTILINE)
    assert {"attention", "attention_packed_backward", "isa_in_use"} <= set(declared)
    assert re.findall(r"\(\*(\w+)\)\(", table) == declared
    pxd = (Path(_core.__file__).parent / "c_api.pxd").read_text(encoding="utf-8")
    assert re.findall(r"\(\*(\w+)\)\(", pxd.split("struct af_api:")[1]) == declared


def test_the_table_begins_with_its_size_and_version():
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = get(_core._C_API, b"attnfast._core._C_API")
    word = ctypes.sizeof(ctypes.c_void_p)
    declared = HEADER.read_text(encoding="utf-8").split("typedef struct af_api {")[1]
    functions = len(re.findall(r"\(\*\w+\)\(", declared))
    assert ctypes.c_size_t.from_address(table).value == word * (2 + functions)
    assert ctypes.c_int.from_address(table + word).value == 1
    addresses = (ctypes.c_void_p * functions).from_address(table + word * 2)
    assert None not in list(addresses) and len(set(addresses)) == functions
    assert ctypes.CFUNCTYPE(ctypes.c_int)(addresses[8])() == attnfast.get_num_threads()

"""attnfast.jax in processes of its own: devices, missing or foreign JAX; and XLA's header."""

import re
import shutil
import subprocess

import pytest

from support.paths import ROOT
from support.scripts import run_python, run_python_raw

jax = pytest.importorskip("jax", reason="needs JAX")

DEVICES = "--xla_force_host_platform_device_count=4"
MESH = """
import functools
import jax
import numpy as np
import attnfast
from attnfast.jax import attention
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:
    from jax.experimental.shard_map import shard_map
    shard_map = functools.partial(shard_map, check_rep=False)
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("rows", "heads"))
whole = NamedSharding(mesh, P("rows", "heads"))
rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 4, 8, 50, 16), dtype=np.float32)
bias = rng.standard_normal((50, 50), dtype=np.float32)
arrays = [jax.device_put(x, whole) for x in (q, k, v)]
"""


def test_shards_on_several_devices(tmp_path):
    """shard_map: each device computes its part, and what is shared gets the sum of gradients."""
    code = """
specs = (P("rows", "heads"),) * 3 + (P(),)
call = lambda q, k, v, b: attention(q, k, v, bias=b, is_causal=True)
split = shard_map(call, mesh=mesh, in_specs=specs, out_specs=P("rows", "heads"))
result = jax.jit(split)(*arrays, bias)
assert result.sharding.spec == P("rows", "heads"), result.sharding
expected = attnfast.attention(q, k, v, bias=bias, is_causal=True)
assert np.array_equal(result, expected)
compiled = jax.jit(split).lower(*arrays, bias).compile().as_text()
assert "all-gather" not in compiled and "[2,4,50,16]" in compiled
grads = [
    jax.jit(jax.grad(lambda *x: (f(*x) ** 2).sum(), (0, 1, 2, 3)))(*x, bias)
    for f, x in ((split, arrays), (call, (q, k, v)))
]
for a, b in zip(*grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
"""
    run_python(MESH + code, tmp_path, XLA_FLAGS=DEVICES)


def test_additive_scores_on_several_devices(tmp_path):
    """The gradient of weights that all devices have is the sum of what each of them adds."""
    code = """
from attnfast.jax import additive_attention

w = rng.standard_normal(16, dtype=np.float32)
specs = (P("rows", "heads"),) * 3 + (P(),)
split = shard_map(additive_attention, mesh=mesh, in_specs=specs, out_specs=P("rows", "heads"))
assert np.array_equal(jax.jit(split)(*arrays, w), attnfast.additive_attention(q, k, v, w))
grads = [
    jax.jit(jax.grad(lambda *x: (f(*x) ** 2).sum(), (0, 1, 2, 3)))(*x, w)
    for f, x in ((split, arrays), (additive_attention, (q, k, v)))
]
for a, b in zip(*grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
"""
    run_python(MESH + code, tmp_path, XLA_FLAGS=DEVICES)


def test_sharded_arrays_under_jit(tmp_path):
    """XLA brings the arrays together first: right, though not faster."""
    code = """
result = jax.jit(functools.partial(attention, is_causal=True))(*arrays)
assert np.array_equal(result, attnfast.attention(q, k, v, is_causal=True))
"""
    run_python(MESH + code, tmp_path, XLA_FLAGS=DEVICES)


def test_devices_at_the_same_time(tmp_path):
    """Their calls share XLA's threads: no more threads than XLA has itself, and the same bits."""
    code = """
import os

def threads():
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0

q, k, v = rng.standard_normal((3, 4, 8, 400, 64), dtype=np.float32)
expected = attnfast.attention(q, k, v, num_threads=1)
each = [[jax.device_put(x[n], d) for x in (q, k, v)] for n, d in enumerate(jax.devices())]
plain = jax.jit(lambda q, k, v: q @ k.swapaxes(1, 2) @ v)
jax.block_until_ready([plain(*x) for x in each for _ in range(5)])
before = threads()
for _ in range(5):
    results = [attention(*x) for x in each]
    for n, x in enumerate(results):
        assert np.array_equal(x, expected[n])
assert threads() <= before, (before, threads())
"""
    run_python(MESH + code, tmp_path, XLA_FLAGS=DEVICES)


def test_import_attnfast_does_not_import_jax(tmp_path):
    run_python("import sys, attnfast\nassert 'jax' not in sys.modules", tmp_path)


FOREIGN = """
import sys, types
jax = types.ModuleType("jax")
jax.__version__, jax.__version_info__ = "{version}", {info}
{more}
sys.modules["jax"] = jax
import attnfast.jax
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys\nsys.modules['jax'] = None\nimport attnfast.jax",
            "attnfast.jax needs JAX 0.5.0 or newer, which cannot be imported: "
            "pip install 'attnfast[jax]'",
        ),
        (
            FOREIGN.format(version="0.4.30", info=(0, 4, 30), more=""),
            "attnfast.jax needs JAX 0.5.0 or newer, got 0.4.30: "
            "pip install --upgrade 'attnfast[jax]'",
        ),
        (
            FOREIGN.format(
                version="9.9.9",
                info=(9, 9, 9),
                more="jax.ffi = types.SimpleNamespace(include_dir=lambda: '.')",
            ),
            "attnfast.jax knows versions 0.1, 0.2, 0.3 of XLA's foreign-function interface, JAX "
            "9.9.9 has 0.9: upgrade attnfast, or install an older JAX",
        ),
    ],
    ids=["missing", "old", "new"],
)
def test_a_jax_that_does_not_fit(tmp_path, code, message):
    header = tmp_path / "xla/ffi/api/c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 0\n\n#define XLA_FFI_API_MINOR 9\n")
    done = run_python_raw(code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {message}"


# ours: theirs, and the fields of each, in csrc/xla/ffi.h and XLA's header.
LAYOUT = {
    "xla_extension XLA_FFI_Extension_Base": "size struct_size, kind type, next next",
    "xla_version XLA_FFI_Api_Version": "major major_version, minor minor_version",
    "xla_metadata XLA_FFI_Metadata": "size struct_size, version api_version",
    "xla_metadata_extension XLA_FFI_Metadata_Extension": "metadata metadata",
    "xla_error_args XLA_FFI_Error_Create_Args": "message message, code errc",
    "xla_destroy_args XLA_FFI_Error_Destroy_Args": "error error",
    "xla_schedule_args XLA_FFI_ThreadPool_Schedule_Args": "context ctx, task task, argument data",
    "xla_threads_args XLA_FFI_ThreadPool_NumThreads_Args": "context ctx, threads num_threads",
    "xla_api XLA_FFI_Api": "version api_version, create_error XLA_FFI_Error_Create, "
    "destroy_error XLA_FFI_Error_Destroy, schedule XLA_FFI_ThreadPool_Schedule, "
    "count_threads XLA_FFI_ThreadPool_NumThreads",
    "xla_buffer XLA_FFI_Buffer": "dtype dtype, data data, rank rank, dims dims",
    "xla_buffers XLA_FFI_Args": "count size, kinds types, buffers args",
    "xla_buffers XLA_FFI_Rets": "count size, kinds types, buffers rets",
    "xla_name XLA_FFI_ByteSpan": "text ptr, length len",
    "xla_scalar XLA_FFI_Scalar": "dtype dtype, value value",
    "xla_attributes XLA_FFI_Attrs": "count size, kinds types, names names, values attrs",
    "xla_frame XLA_FFI_CallFrame": "extensions extension_start, api api, context ctx, stage stage, "
    "arguments args, results rets, attributes attrs",
}
NUMBERS = (
    "XLA_INVALID_ARGUMENT XLA_FFI_Error_Code_INVALID_ARGUMENT, "
    "XLA_RESOURCE_EXHAUSTED XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "
    "XLA_UNIMPLEMENTED XLA_FFI_Error_Code_UNIMPLEMENTED, "
    "XLA_METADATA XLA_FFI_Extension_Metadata, XLA_SCALAR XLA_FFI_AttrType_SCALAR, "
    "XLA_S32 XLA_FFI_DataType_S32, XLA_S64 XLA_FFI_DataType_S64, XLA_F16 XLA_FFI_DataType_F16, "
    "XLA_F32 XLA_FFI_DataType_F32, XLA_F64 XLA_FFI_DataType_F64, XLA_BF16 XLA_FFI_DataType_BF16"
)


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the tests are away from the sources")
def test_structs_have_the_layout_of_the_header_of_xla(tmp_path):
    code = ["#include <xla/ffi/api/c_api.h>", '#include "xla/ffi.h"']
    for names, fields in LAYOUT.items():
        ours, theirs = names.split()
        for pair in fields.split(", "):
            a, b = pair.split()
            same = f"offsetof({ours}, {a}) == offsetof({theirs}, {b})"
            same += f" && sizeof((({ours} *)0)->{a}) == sizeof((({theirs} *)0)->{b})"
            if (ours, a) == ("xla_metadata", "version"):
                same = same.partition(" && ")[0]
            code.append(f'_Static_assert({same}, "{ours}.{a}");')
    for pair in NUMBERS.split(", "):
        a, b = pair.split()
        code.append(f'_Static_assert((int){a} == (int){b}, "{a}");')
    (tmp_path / "layout.c").write_text("\n".join(code) + "\n")
    include = ["-I", ROOT / "csrc", "-I", jax.ffi.include_dir()]
    command = ["cc", "-std=c11", "-fsyntax-only", *include, "layout.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_field_that_is_read_is_compared():
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc/xla/ffi.h").read_text(), flags=re.DOTALL)
    structs = re.findall(r"typedef struct (\w+) \{(.*?)\} \w+;", text, re.DOTALL)
    assert {name for name, _ in structs} == {names.split()[0] for names in LAYOUT}


def test_the_code_of_the_page_runs(tmp_path):
    page = (ROOT / "docs" / "guide" / "jax.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    run_python("\n".join(blocks), tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=2")

"""Runs the built package on processors that this machine is not, under qemu. For x86-64 hosts.

    python tools/prove/old_cpus.py [--wheel FILE] [--work DIR] [--cpu NAME] [--quick]

On each processor: the instruction sets that are chosen, every public function in every dtype
against `attnfast.reference`; and on one processor for each instruction set, tests of the kernels.
An instruction that the processor does not have ends Python with SIGILL, which is a finding like any
other. Ends non-zero if there is one. Without `--wheel` one is built from the tree; `--quick` leaves
out the tests. Needs qemu-user-static, and the network for NumPy and the test tools.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TREE = Path(__file__).resolve().parents[2]
QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64") or "qemu-x86_64-static"


class Processor(NamedTuple):
    qemu: str
    isas: list[str]  # what must be available
    why: str
    numpy: str = "new"


# Each of the lower ones lacks one of the things that cpu.c asks for. qemu has no AVX-512.
PROCESSORS = [
    Processor("core2duo", ["generic"], "x86-64 of 2006: SSE3", numpy="old"),
    Processor("Nehalem", ["generic"], "SSE4.2"),
    Processor("SandyBridge", ["generic"], "AVX without AVX2, FMA, F16C"),
    Processor("IvyBridge", ["generic"], "AVX and F16C without AVX2, FMA"),
    Processor("Opteron_G5", ["generic"], "AVX, FMA, F16C without AVX2"),
    Processor("Haswell,-fma", ["generic"], "AVX2 without FMA"),
    Processor("Haswell,-f16c", ["generic"], "AVX2 without F16C"),
    Processor("Haswell,-xsave", ["generic"], "AVX2 under a system without XSAVE"),
    Processor("Haswell,-avx", ["generic"], "AVX2 under a system that does not save its registers"),
    Processor("Haswell", ["avx2", "generic"], "AVX2, FMA, F16C"),
    Processor("max", ["avx2", "generic"], "all that qemu knows"),
]
NUMPY = {
    "new": ["numpy", "ml_dtypes", "pytest", "hypothesis"],  # NumPy 2.4 and later: x86-64-v2
    "old": ["numpy==1.26.4", "ml_dtypes<0.6"],  # of the oldest that the package takes: SSE3
}

# Where the tests run: the processor, and which of those that run once for each instruction set.
TESTED = [("Nehalem", "generic"), ("Haswell", "avx2")]
TESTS = [f"tests/kernels/test_{name}.py" for name in ("tile", "math", "mask", "score", "decode")]


def run(*command: str | Path, **options: Any) -> None:
    subprocess.run([str(x) for x in command], check=True, **options)


def build_wheel(work: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work / "wheel", TREE)
    (wheel,) = (work / "wheel").glob("attnfast-*.whl")
    return wheel


def make_sites(work: Path, wheel: Path) -> dict[str, Path]:
    """For each NumPy a folder that has it, and the package."""
    sites = {name: work / f"site-{name}" for name in NUMPY}
    for name, site in sites.items():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", site]
        if not (site / "numpy").exists():
            run(*pip, "--only-binary=:all:", *NUMPY[name])
        shutil.rmtree(site / "attnfast", ignore_errors=True)
        shutil.unpack_archive(wheel, site, "zip")
    return sites


def emulate(cpu: str, site: Path, *arguments: str | Path, **options: Any) -> Any:
    """Runs Python on a processor, with what is in `site` and nothing that is installed here."""
    command = [QEMU, "-cpu", cpu, sys.executable, "-S", "-P", *(str(x) for x in arguments)]
    environment = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    # By itself OpenBLAS takes it that a processor with AVX2 has FMA (NumPy 2.4.6).
    environment |= {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "1"}
    kept = {n: x for n, x in os.environ.items() if not n.startswith(("ATTNFAST_", "PYTHON"))}
    return subprocess.run(command, env=kept | environment, text=True, **options)


def ended(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


def report(stderr: str) -> str:
    """The end of what was printed, without qemu's list of what it does not emulate."""
    lines = [x for x in stderr.splitlines() if "TCG doesn't support" not in x]
    return "\n".join(lines[-8:])


def calls(dtype: Any, np: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """One call, or a few, of each function: of the library or of its reference."""
    import attnfast

    rng = np.random.default_rng(7)
    real = np.float64 if dtype == np.float64 else np.float32

    def randn(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    q, k, v = randn(2, 4, 37, 24), randn(2, 2, 53, 24), randn(2, 2, 53, 19)
    same = randn(2, 2, 53, 24)
    mask, w = rng.random((37, 53)) < 0.7, rng.standard_normal(24).astype(real)
    bias = rng.standard_normal((4, 37, 53)).astype(real)
    full = {"return_lse": True, "return_weights": True}
    yield "plain", lambda m: m.attention(q, k, v, **full)
    yield "causal", lambda m: m.attention(q, k, v, is_causal=True, q_offset="end", **full)
    yield "window", lambda m: m.attention(q, k, v, window_size=(9, 4), q_offset=3, **full)
    yield "mask", lambda m: m.attention(q, k, v, mask=mask, bias=bias, softcap=5.0, **full)
    yield (
        "lengths",
        lambda m: m.attention(
            q, k, v, q_lengths=[30, 37], kv_lengths=[53, 11], sink_logits=np.ones(4), **full
        ),
    )
    yield (
        "ALiBi",
        lambda m: m.attention(q, k, v, alibi_slopes=[1.0, 0.5, 0.2, 0.1], q_offset=5, **full),
    )
    yield "one query", lambda m: m.attention(q[:, :, :1], k, v, **full)
    yield "five queries", lambda m: m.attention(q[:, :, :5], k, v, mask=mask[:5], **full)
    blocks = attnfast.BlockMask(np.eye(5, 7, dtype=bool) | (np.arange(7) == 2), 8)
    yield "blocks", lambda m: m.attention(q, k, v, mask=blocks, **full)
    for stage in ("scores", "capped", "biased", "weights"):
        yield (
            stage,
            lambda m, s=stage: m.attention_weights(q, k, stage=s, mask=mask, softcap=3.0),
        )
    yield (
        "local",
        lambda m: m.local_attention(same, same, v, 7, dilation=2, global_tokens=[0, 20], **full),
    )
    centers = rng.uniform(0, 52, (2, 4, 37))
    yield "local-p", lambda m: m.local_attention(q, k, v, 8, centers=centers, sigma=4.0, **full)
    yield "additive", lambda m: m.additive_attention(q, k, v, w, is_causal=True, q_offset=9, **full)
    yield "additive one", lambda m: m.additive_attention(q[:, :, :1], k, v, w, mask=mask[:1])
    yield "topk", lambda m: m.attention_topk(q, k, 5, mask=mask)[1]
    yield "importance", lambda m: m.key_importance(q, k, mask=mask)
    packed = randn(90, 4, 24), randn(90, 2, 24), randn(90, 2, 19)
    places = [0, 17, 17, 90]
    yield "varlen", lambda m: m.attention_varlen(*packed, places, places, is_causal=True)
    parts = [randn(2, 4, 37, 19), randn(2, 4, 37, 19)]
    lses = [rng.standard_normal((2, 4, 37)).astype(real) for _ in parts]
    yield "merge", lambda m: m.merge_attention(parts, lses)
    yield "rotate", lambda m: m.rotate(q, np.arange(q.shape[-2]))
    yield "rotate pairs", lambda m: m.rotate(q, np.arange(q.shape[-2]), interleaved=True)


def compare(actual: Any, exact: Any, tolerance: float, np: Any) -> str:
    """What is wrong with a result, or nothing."""
    if not isinstance(actual, tuple):
        actual, exact = (actual,), (exact,)
    for i, (x, y) in enumerate(zip(actual, exact, strict=True)):
        if x is None and y is None:
            continue
        x, y = np.asarray(x).astype(np.float64), np.asarray(y).astype(np.float64)
        if x.shape != y.shape or not (np.isfinite(x) == np.isfinite(y)).all():
            return f"result {i}: shape {x.shape} for {y.shape}, or not finite"
        seen = np.isfinite(y)
        error = np.abs(x[seen] - y[seen]) / np.maximum(1, np.abs(y[seen]))
        if (x[~seen] != y[~seen]).any() or error.max(initial=0) > tolerance:
            return f"result {i}: error {error.max(initial=0):.2g}, allowed {tolerance:.2g}"
    return ""


def check() -> int:
    """On the processor: prints what was chosen and what is wrong, as JSON."""
    import ml_dtypes
    import numpy as np

    import attnfast
    from attnfast import config, reference

    dtypes = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)]
    eps = {x.name: float(np.finfo(x).eps) for x in dtypes}
    dtypes.append(np.dtype(ml_dtypes.bfloat16))
    eps["bfloat16"] = 2.0**-7
    isas = attnfast.available_isas()
    wrong, count = [], 0
    # The reference computes in float64 whatever it is given, so 64 eps is plenty at these sizes.
    for dtype in dtypes:
        for name, call in calls(dtype, np):
            exact = call(reference)
            for isa in isas:
                config.use_isa(isa)
                found = compare(call(attnfast), exact, 64 * eps[dtype.name], np)
                wrong += [f"{isa} {dtype.name} {name}: {found}"] if found else []
                count += 1
            config.use_isa(None)
    x = np.zeros((4, 8), np.float32)
    result = {"isas": isas, "used": attnfast.plan(x, x, x).isa, "calls": count, "wrong": wrong}
    result |= {"shown": attnfast.show_config("dicts")["isa"], "numpy": np.__version__}
    print(json.dumps(result))
    return 0


def check_processor(processor: Processor, site: Path) -> list[str]:
    start = time.perf_counter()
    done = emulate(processor.qemu, site, __file__, "--check", capture_output=True)
    row = f"{processor.qemu:16}{processor.why:54}"
    if done.returncode:
        print(f"{row}{ended(done.returncode)}\n{report(done.stderr)}")
        return [f"{processor.qemu}: {ended(done.returncode)}"]
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = time.perf_counter() - start
    print(f"{row}{' '.join(found['isas']):14}", end="")
    print(f"{found['calls']:4} calls  NumPy {found['numpy']:8}{seconds:5.0f} s", flush=True)
    problems = [f"{processor.qemu}: {x}" for x in found["wrong"]]
    if found["isas"] != processor.isas:
        problems.append(f"{processor.qemu}: has {found['isas']}, not {processor.isas}")
    for name in ("used", "shown"):
        if found[name] != processor.isas[0]:
            problems.append(f"{processor.qemu}: {found[name]} is {name}, not {processor.isas[0]}")
    return problems


def run_tests(cpu: str, isa: str, site: Path, work: Path) -> list[str]:
    """Runs tests where no source of the package is in the way of the one in `site`."""
    place = work / "tests"
    if not place.exists():
        shutil.copytree(TREE / "tests", place / "tests")
        shutil.copy(TREE / "pyproject.toml", place)
    start = time.perf_counter()
    others = [x for x in ("avx2", "generic") if x != isa]
    select = ["-p", "no:cacheprovider", "-q", "-k", " and ".join(f"not {x}" for x in others)]
    done = emulate(cpu, site, "-m", "pytest", *select, *TESTS, cwd=place, capture_output=True)
    lines = done.stdout.splitlines() or [""]
    print(f"{cpu}: tests with {isa}: {lines[-1]} ({time.perf_counter() - start:.0f} s)", flush=True)
    if not done.returncode:
        return []
    print("\n".join(lines[-30:]), report(done.stderr), sep="\n")
    return [f"{cpu}: tests: {ended(done.returncode)}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--wheel", type=Path, help="test this one")
    parser.add_argument("--work", type=Path, help="folder to keep and use again")
    parser.add_argument("--cpu", action="append", help="only this one of the list (repeatable)")
    parser.add_argument("--quick", action="store_true", help="no tests")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        return check()
    known = [x.qemu for x in PROCESSORS]
    if unknown := set(options.cpu or known) - set(known):
        parser.error(f"not in the list: {', '.join(unknown)}")
    processors = [x for x in PROCESSORS if x.qemu in (options.cpu or known)]
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        sites = make_sites(work, options.wheel or build_wheel(work))
        for processor in processors:
            problems += check_processor(processor, sites[processor.numpy])
        for cpu, isa in TESTED:
            if not options.quick and any(x.qemu == cpu for x in processors):
                problems += run_tests(cpu, isa, sites["new"], work)
    for problem in problems:
        print(problem)
    print(f"{len(processors)} processors: {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

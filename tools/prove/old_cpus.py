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
TESTS = [
    f"tests/kernels/test_{name}.py"
    for name in ("tile", "math", "mask", "score", "decode", "rotate")
]


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


def check() -> int:
    """On the processor: prints what was chosen and what is wrong, as JSON."""
    import ml_dtypes
    import numpy as np

    sys.path.append(str(Path(__file__).parent))  # Python was told not to look there by itself
    from every_call import BOUNDS, calls, difference

    import attnfast
    from attnfast import config, reference

    dtypes = [np.dtype(x) for x in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
    isas = attnfast.available_isas()
    wrong, count = [], 0
    for dtype in dtypes:
        for name, call in calls(dtype):
            exact = call(reference)
            for isa in isas:
                config.use_isa(isa)
                error = difference(call(attnfast), exact)
                if not error <= BOUNDS[dtype.name]:
                    wrong.append(f"{isa} {dtype.name} {name}: off by {error:.2g}")
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

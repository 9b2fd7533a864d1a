"""Runs the tests on a build with gcc's address and undefined behaviour sanitizers.

    python tools/prove/sanitize.py [--work DIR] [--isas avx2,generic] [pytest arguments]

Builds the wheel from a copy of the checkout with -fsanitize=address,undefined, assertions on and
everything at -O1, installs it in a temporary place and runs pytest there with the sanitizers
preloaded: those that the arguments name (paths as in the checkout) or all, but for those listed
below, with few examples each (--hypothesis-profile=default: as many as else). Of a test with many
cases, each case runs with one instruction set of this CPU, which of them changes from case to case
(--every: with all); other tests run with all. A finding ends the process it is in, fails the run
and is printed at the end. Needs gcc and, in this Python, the extra `test`.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from c_library import at_o1, find, variants

ROOT = Path(__file__).resolve().parents[2]
ISAS = list(dict.fromkeys(variant.isa for variant in variants()[0]))
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"

# What cannot work or shows nothing here, and why.
LEFT_OUT = {
    "bench": "measures time",
    "tools": "reads files; no C runs",
    "docs": "trains models for minutes, reads pages; its calls have tests elsewhere",
    "plot": "draws; its calls have tests elsewhere",
    "promises/test_guard_pages.py::test_a_fence_kills": "dies on purpose, by a caught signal",
    "promises/test_interrupt.py::test_an_alarm_in_a_long_step": "latency of slow kernels",
    "promises/test_interrupt.py::test_an_alarm_in_every_function": "the same",
    "promises/test_memory.py": "resident memory: shadow memory and quarantine have their own",
    "promises/test_neighbours.py": "other processes lack the preloaded runtimes",
    "promises/test_neighbours_joblib.py": "other processes lack the preloaded runtimes",
    "promises/test_neighbours_workers.py::TestForksFromThreads": "a call that takes a minute",
    "promises/test_out_of_memory.py": "limits the address space; the rest is a program of its own",
    "promises/test_pool.py": "a program with a sanitizer of its own",
    "promises/test_process.py::TestFork::test_nested": "a child may get libasan's lock from "
    "a thread that ended meanwhile; glibc frees its own",
    "promises/test_process.py::TestSignals": "latency of kernels that are many times slower",
    "promises/test_process.py::test_other_python_threads_run_while_a_call_lasts": "the same",
    "promises/test_quota.py": "other processes, in mount namespaces",
    "promises/test_thread_stacks.py": "redzones make every frame larger",
    "promises/test_types.py": "type checkers; no C runs",
}

# Which instruction set a case has depends on nothing but its name and parameters.
IN_TURN = """
from collections import Counter
from zlib import crc32

import attnfast

ISAS = attnfast.available_isas()


def pytest_collection_modifyitems(config, items):
    cases = Counter(item.nodeid.partition("[")[0] for item in items)
    kept, left_out = [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        call = getattr(item, "callspec", None)
        isa = call and call.params.get("isa")
        of_turn = isa
        if isa in ISAS and cases[test] >= 4 * len(ISAS):
            rest = sorted((name, i) for name, i in call.indices.items() if name != "isa")
            of_turn = ISAS[crc32(repr((test, rest)).encode()) % len(ISAS)]
        (kept if isa == of_turn else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
"""


def copied(work: Path) -> Path:
    """A copy of the checkout that is compiled at -O1: more takes minutes."""
    source = work / "source"
    shutil.rmtree(source, ignore_errors=True)
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "__pycache__")
    shutil.copytree(ROOT, source, ignore=unwanted)
    for path in (source / "CMakeLists.txt", source / "cmake" / "isa.cmake"):
        path.write_text(at_o1(path.read_text()))
    return source


def install(work: Path, source: Path, isas: list[str]) -> Path:
    site = work / "site"
    command: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--upgrade", "--target", site]
    needed = ("scikit_build_core", "Cython", "cython_cmake", "hatch_fancy_pypi_readme")
    if all(importlib.util.find_spec(name) for name in needed):
        command.append("--no-build-isolation")
    # Not Debug's own -g: variables of kernels cost more time than all else.
    command += ["-Ccmake.build-type=Debug", "-Ccmake.define.CMAKE_C_FLAGS_DEBUG=-g1"]
    command.append("-Cinstall.strip=false")
    left_out = [isa for isa in ISAS if isa not in isas]
    command += [f"-Ccmake.define.ATTNFAST_COMPILER_HAS_{isa}=OFF" for isa in left_out]
    command += [f"-Cbuild-dir={work / 'build'}", source]
    environment = {
        "CC": find("gcc"),
        "CFLAGS": FLAGS,
        "LDFLAGS": FLAGS,
        "CMAKE_BUILD_PARALLEL_LEVEL": "2",
    }
    subprocess.run(command, check=True, env={**os.environ, **environment})
    return site


def runtime(name: str) -> str:
    said = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return os.path.realpath(said.stdout.strip())


def sanitized(work: Path, site: Path) -> dict[str, str]:
    """The environment of the tests, and of the processes that they start."""
    log = work / "log"
    shutil.rmtree(log, ignore_errors=True)
    log.mkdir()
    common = f"log_path={log}/report:exitcode=99"
    return {
        **os.environ,
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "PYTHONPATH": str(site),
        "PYTHONMALLOC": "malloc",  # else objects of Python's lie unseen in larger blocks
        "ASAN_OPTIONS": f"{common}:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keep the build here, and bring one up to date")
    parser.add_argument("--every", action="store_true", help="each case with every instruction set")
    parser.add_argument("--isas", default=",".join(ISAS), help="fewer build sooner; with generic")
    arguments, tests = parser.parse_known_args()
    isas = arguments.isas.split(",")
    if unknown := [isa for isa in isas if isa not in ISAS]:
        parser.error(f"--isas is {unknown[0]}, must be of {', '.join(ISAS)}")
    left_out = {f"tests/{name}": why for name, why in LEFT_OUT.items()}
    left_out = {name: why for name, why in left_out.items() if name not in tests}
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attnfast-sanitize-") as name:
        work = (arguments.work or Path(name)).resolve()
        source = copied(work)
        site = install(work, source, isas)
        shutil.rmtree(source / "attnfast")  # the tests are to import what was installed
        print(f"built in {time.monotonic() - start:.0f} s", flush=True)
        start = time.monotonic()
        without = [f"{'--deselect' if '::' in name else '--ignore'}={name}" for name in left_out]
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
        pytest.append("--capture=sys")  # what C says before it aborts is to be seen
        if not arguments.every:
            (site / "isas_in_turn.py").write_text(IN_TURN)
            pytest += ["-p", "isas_in_turn"]
        command = [*pytest, "--hypothesis-profile=few", *tests, *without]
        done = subprocess.run(command, cwd=source, env=sanitized(work, site), check=False)
        reports = [path.read_text(errors="replace") for path in sorted((work / "log").iterdir())]
        # Beside errors there are warnings, of allocations that tests want to fail.
        reports = [text for text in reports if "ERROR: " in text or "runtime error: " in text]
        for report in reports:
            print(report[:6000])
    minutes = (time.monotonic() - start) / 60
    print(f"{len(reports)} findings, pytest ended with {done.returncode}, {minutes:.1f} min")
    return int(bool(reports) or done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())

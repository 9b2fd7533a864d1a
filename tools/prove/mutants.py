"""Break attnfast on purpose, one promise at a time, and see that its tests turn red.

    python tools/prove/mutants.py [name ...] [--isa ISA] [--work DIR] [--list]

Every entry of `mutants.toml` says what to break in which file and which tests must notice. They
first run on the unbroken package, where they must pass. Then, for each entry, in a copy of the
tree: the change is made, what depends on it is built again and linked with all else as it was, the
tests run until the first fails, and everything is put back. A mutant is caught by a test that
fails, or by the death of the process where the entry says `crash`; a build that fails or tests that
cannot be collected catch nothing. Ends non-zero if a mutant survives.

Needs what the build needs (scikit-build-core, cython, cython-cmake, hatch-fancy-pypi-readme, ninja,
a C compiler) and the extra `test`. With `--work DIR` the first build and the names of the tests
that have passed are kept there, and used again while the tree stays as it is. With `--isa avx2` the
library is built without the instruction sets that are better than AVX2, as for a processor that
lacks them: tests must notice whatever the width of a vector. All of them take half an hour or so on
2 cores.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from c_library import at_o1

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("LICENSES", "attnfast", "cmake", "csrc")
SUFFIXES = {".c", ".cmake", ".h", ".in", ".pxd", ".pxi", ".py", ".pyi", ".pyx", ".txt", ".typed"}
FILES = ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")
LONGEST = 1800  # seconds that tests may take
LIBRARY = "libattnfast_c.a"
# Of a broken package the first failing example will do: to make it small would take minutes.
PROFILE = """
from hypothesis import HealthCheck, Phase, settings
settings.register_profile(
    "unshrunk", derandomize=True, database=None, deadline=None, report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
)
"""
KERNEL = re.compile(r"kernels_(\w+)\.dir/")


@dataclass
class Mutant:
    """One breakage: `old` stands once in `file` and becomes `new`; `tests` must turn red."""

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: list[str]
    why: str
    kernels: str = "f32_best"  # which are built again: those whose dtype_isa begins like this
    crash: bool | str = False  # the process of the tests dies; "or wrong": or a test fails


@dataclass
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    caught_by: str  # a test; empty if none
    remark: str
    seconds: float


def load(names: list[str]) -> list[Mutant]:
    """The mutants of the list, or those named."""
    entries = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["mutant"]
    mutants = {entry["name"]: Mutant(**entry) for entry in entries}
    unknown = [name for name in names if name not in mutants]
    if unknown or len(mutants) < len(entries):
        sys.exit(f"unknown mutants: {', '.join(unknown)}" if unknown else "a name comes twice")
    return [mutants[name] for name in names or mutants]


def better_than(isa: str) -> list[str]:
    """The instruction sets that the build lists before this one."""
    text = (ROOT / "cmake" / "isa.cmake").read_text()
    listed = re.findall(r"^attnfast_isa\((\w+)", text, re.MULTILINE)
    if isa not in listed:
        sys.exit(f"--isa is {isa}, must be one of {', '.join(listed)}")
    return listed[: listed.index(isa)]


class Tree:
    """A copy of the tree, its build and its installation; `kept` is the build as it was first."""

    def __init__(self, work: Path, isa: str | None) -> None:
        self.source, self.build = work / "source", work / "build"
        self.site, self.kept = work / "site", work / "kept"
        self.run = work / "run"  # the tests, away from the sources of the package
        path = {"PYTHONPATH": str(self.site), "CMAKE_INSTALL_ALWAYS": "1"}
        self.environment = {**os.environ, **path, "OPENBLAS_NUM_THREADS": "1"}
        for name in ("ATTNFAST_ISA", "ATTNFAST_NUM_THREADS"):
            self.environment.pop(name, None)
        self.left_out = better_than(isa) if isa else []

    def prepare(self) -> None:
        """Copy, build and install, unless that was done for the same sources."""
        if not self.kept.exists() or self.sources(ROOT) != self.sources(self.source):
            for folder in (self.source, self.build, self.site, self.kept):
                shutil.rmtree(folder, ignore_errors=True)
            for name, content in self.sources(ROOT).items():
                (self.source / name).parent.mkdir(parents=True, exist_ok=True)
                (self.source / name).write_bytes(content)
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
            install += ["--no-deps", "--target", str(self.site), f"-Cbuild-dir={self.build}"]
            without = (f"ATTNFAST_COMPILER_HAS_{name}=OFF" for name in self.left_out)
            install += [f"-Ccmake.define.{setting}" for setting in without]
            check([*install, str(self.source)], self.environment)
            shutil.copytree(self.build, self.kept)
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(ROOT / "tests", self.run / "tests")
        # Some tests compile the C library by itself: with the mutant in it.
        for name in ("csrc", "cmake", "CMakeLists.txt"):
            (self.run / name).symlink_to(self.source / name)
        shutil.copytree(ROOT / "tools" / "drivers", self.run / "tools" / "drivers")
        (self.run / "tools" / "prove").mkdir()
        shutil.copy2(ROOT / "tools" / "prove" / "c_library.py", self.run / "tools" / "prove")
        shutil.copy2(ROOT / "pyproject.toml", self.run)
        (self.run / "unshrunk.py").write_text(PROFILE)

    def pass_unbroken(self, tests: list[str]) -> int:
        """Run those tests that have not passed in this state of things; how many were run.

        File by file, each noted when it has passed: what is interrupted goes on where it was. Ends
        the script if a test fails.
        """
        kept = self.kept.with_name("passed.json")
        passed: dict[str, list[str]] = json.loads(kept.read_text()) if kept.exists() else {}
        count = 0
        for file, selections in groupby(sorted({*tests}), key=lambda test: test.partition("::")[0]):
            state = self.state(file)
            missing = [test for test in selections if test not in passed.get(state, ())]
            if not missing:
                continue
            done = self.pytest(missing, "-x", "-q")
            if done.returncode:
                print(done.stdout[-4000:])
                sys.exit("the unbroken package fails these tests")
            passed[state] = [*passed.get(state, ()), *missing]
            kept.write_text(json.dumps(passed))
            count += len(missing)
        return count

    def state(self, file: str) -> str:
        """A digest of the package, of a file of tests and of what it may import."""
        content = (self.run / file).read_bytes()
        digest = hashlib.sha256(file.encode() + content)
        for name, source in sorted(self.sources(ROOT).items()):
            digest.update(str(name).encode() + source)
        folders = ["tests", "tools"] if b"c_library" in content else ["tests"]
        for path in sorted(p for folder in folders for p in (self.run / folder).rglob("*.*")):
            if path.is_file() and path.suffix in SUFFIXES and not path.name.startswith("test_"):
                digest.update(path.read_bytes())
        return digest.hexdigest()

    @staticmethod
    def sources(root: Path) -> dict[Path, bytes]:
        """What the package is built from, at -O1: to compile is most of what a mutant costs."""
        paths = [root / name for name in FILES]
        for folder in FOLDERS:
            paths += [p for p in (root / folder).rglob("*") if p.suffix in SUFFIXES]
        found = {path.relative_to(root): path.read_bytes() for path in paths}
        for name in (Path("CMakeLists.txt"), Path("cmake", "isa.cmake")):
            found[name] = at_o1(found[name].decode()).encode()
        return found

    def ninja(self, *arguments: str) -> str:
        cache = (self.build / "CMakeCache.txt").read_text()
        found = re.search(r"^CMAKE_MAKE_PROGRAM:\w+=(.+)$", cache, re.MULTILINE)
        program = found.group(1) if found else "ninja"
        return check([program, "-C", str(self.build), *arguments], self.environment)

    def objects(self, mutant: Mutant) -> list[str]:
        """The objects that depend on the mutant's file, of the kernels only those it names."""
        kernels = mutant.kernels.replace("best", self.isas()[0])
        found, now = [], ""
        for line in self.ninja("-t", "deps").splitlines():
            if "#deps" in line:
                now = line.partition(":")[0]
            elif line.strip().endswith(f"/{mutant.file}") and now.endswith(".o"):
                kernel = KERNEL.search(now)
                if not kernel or kernel.group(1).startswith(kernels):
                    found.append(now)
        return found

    def isas(self) -> list[str]:
        """The instruction sets of this machine; tests run with the first of them first."""
        code = "import attnfast; print(*attnfast.available_isas())"
        return check([sys.executable, "-P", "-c", code], self.environment).split()

    def rebuild(self, mutant: Mutant) -> None:
        """Bring the installation up to the source, as far as the mutant reaches."""
        if mutant.file.endswith(".py"):
            shutil.copy2(self.source / mutant.file, self.site / mutant.file)
            return
        if mutant.file.startswith("csrc/"):
            objects = self.objects(mutant)
            if not objects:
                sys.exit(f"{mutant.name}: nothing is built from {mutant.file}")
            self.ninja("-j2", *objects)
            for command in self.ninja("-t", "commands", "_core.abi3.so").splitlines():
                if LIBRARY in command:  # the two that link: everything else stays as it was
                    check(["sh", "-c", command], self.environment, self.build)
        else:
            self.ninja("-j2")
        shutil.copy2(self.build / "_core.abi3.so", self.site / "attnfast" / "_core.abi3.so")

    def pytest(self, tests: list[str], *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--tb=short"]
        command += ["-p", "unshrunk", "--hypothesis-profile=unshrunk"]
        return subprocess.run(
            [*command, *more, *tests],
            cwd=self.run,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )

    def put_back(self, mutant: Mutant) -> None:
        """The build as it was, times of files included: nothing is built again."""
        if mutant.file.endswith(".py"):
            shutil.copy2(self.source / mutant.file, self.site / mutant.file)
            return
        shutil.rmtree(self.build)
        shutil.copytree(self.kept, self.build)
        shutil.copy2(self.build / "_core.abi3.so", self.site / "attnfast" / "_core.abi3.so")


def check(command: list[str], environment: dict[str, str], cwd: Path | None = None) -> str:
    """What a command prints."""
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)[:300]}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


@contextmanager
def broken(mutant: Mutant, tree: Tree) -> Iterator[None]:
    """The tree's copy with the mutant in it."""
    path = tree.source / mutant.file
    text, times = path.read_text(), path.stat()
    if text.count(mutant.old) != 1:
        raise RuntimeError(f"the old text is {text.count(mutant.old)} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        tree.put_back(mutant)


def judge(mutant: Mutant, done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The test that caught the mutant, if any, and what is to be said about it."""
    started = [line for line in done.stdout.splitlines() if line.startswith("tests/")]
    if done.returncode < 0:
        last = started[-1].rstrip() if started else ""
        remark = f"died of signal {-done.returncode}"
        return (last, remark) if mutant.crash else ("", f"{remark}, which is not expected")
    failed = [line.split(" FAILED")[0] for line in started if " FAILED" in line]
    if done.returncode == 1 and failed and mutant.crash is not True:
        return failed[0], ""
    if done.returncode == 0:
        return "", "SURVIVED"
    return "", f"pytest ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"


def try_mutant(mutant: Mutant, tree: Tree) -> Verdict:
    start = time.perf_counter()
    try:
        with broken(mutant, tree):
            tree.rebuild(mutant)
            caught_by, remark = judge(mutant, tree.pytest(mutant.tests, "-x"))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        caught_by, remark = "", str(error)
    return Verdict(mutant, caught_by, remark, time.perf_counter() - start)


def show(verdict: Verdict) -> None:
    found = verdict.caught_by.removeprefix("tests/") or "-- nobody --"
    name, promise = f"{verdict.mutant.name:<20}", f"{verdict.mutant.promise:<16}"
    print(f"{name} {promise} {verdict.seconds:5.0f} s  {found} {verdict.remark}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help="of mutants; default: all")
    parser.add_argument("--isa", help="the best instruction set to build for")
    parser.add_argument("--work", type=Path, help="folder to keep the build in")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    mutants = load(options.names)
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name:<20} {mutant.promise:<16} {mutant.file}: {mutant.why}")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch) / "work"
        tree = Tree((work / (options.isa or "best")).resolve(), options.isa)
        tree.prepare()
        here = ["", "best", *tree.isas()]
        for mutant in mutants:
            if mutant.kernels.split("_")[-1] not in here:
                print(f"{mutant.name:<20} left out: this machine cannot run {mutant.kernels}")
        mutants = [mutant for mutant in mutants if mutant.kernels.split("_")[-1] in here]
        start = time.perf_counter()
        tests = [test for mutant in mutants for test in mutant.tests]
        count = tree.pass_unbroken(tests)
        print(f"unbroken: {count} selections pass, {time.perf_counter() - start:.0f} s", flush=True)
        verdicts = []
        for mutant in mutants:
            verdicts.append(try_mutant(mutant, tree))
            show(verdicts[-1])
    survived = [v.mutant.name for v in verdicts if not v.caught_by]
    print(f"{len(verdicts) - len(survived)} of {len(verdicts)} caught", *survived)
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())

"""Installs one wheel under every Python and NumPy that it promises to run with, and tries it there.

    python tools/prove/pythons.py                  builds the wheel first (needs the group `wheel`)
    python tools/prove/pythons.py --wheel WHEEL    that one; of several, the one that fits
    python tools/prove/pythons.py --here           only tries the attnfast of this interpreter

Pythons are looked for on the path, in pyenv and in uv, one of each version; --python adds one. Each
gets the oldest and the newest NumPy that has a wheel for it, in a fresh virtual environment outside
the checkout. There: `attnfast info`; every function in every dtype and instruction set against
`attnfast.reference`; many threads at once; a quick part of tests/; and once `attnfast bench`. A
free-threaded Python gets a wheel of its own, built here if none is given, and must stay so.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUMPYS = ("1.26", "2.0", "2.1", "2.2", "2.3", "2.4", "2.5")  # oldest first
TESTS = (  # quick; the last calls from many threads
    *(f"kernels/test_{name}.py" for name in ("tile", "math", "mask")),
    *("functions/test_config.py", "promises/test_layout.py", "promises/test_interrupt.py"),
    "promises/test_process.py::TestFork::test_every_function_after_a_call",
    "promises/test_invariance.py::test_many_python_threads_at_once",
)
BINARY = ("install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
ABOUT = """
import ensurepip, json, sys, sysconfig, venv
print(json.dumps([sys.version_info[:2], bool(sysconfig.get_config_var("Py_GIL_DISABLED"))]))
"""


@dataclass
class Interpreter:
    path: str
    version: tuple[int, int]
    free_threaded: bool

    @property
    def name(self) -> str:
        return f"{self.version[0]}.{self.version[1]}{'t' if self.free_threaded else ''}"


@dataclass
class Trial:
    interpreter: Interpreter
    numpy: str
    seconds: dict[str, float] = field(default_factory=dict)
    calls: str = ""
    tests: str = ""
    failed: str = ""

    def line(self) -> str:
        result = f"FAILED: {self.failed}" if self.failed else "ok"
        times = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in self.seconds.items())
        said = "; ".join(filter(None, (result, self.calls, self.tests, times)))
        return f"Python {self.interpreter.name:<5} NumPy {self.numpy:<6} {said}"


# ---- one interpreter ----


def try_here() -> str:
    """Every function in every dtype and instruction set; then all at once from many threads."""
    import numpy as np
    from every_call import BOUNDS, calls, difference

    import attnfast
    from attnfast import config, reference

    if ROOT in Path(attnfast.__file__).resolve().parents:
        raise SystemExit("attnfast is the checkout, not an installed wheel")
    dtypes = [np.dtype(name) for name in ("float32", "float64", "float16")]
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    if free_threaded and sys._is_gil_enabled():  # type: ignore[attr-defined,unused-ignore]
        raise SystemExit("importing attnfast switched the GIL on")
    if importlib.util.find_spec("ml_dtypes"):
        import ml_dtypes

        dtypes.append(np.dtype(ml_dtypes.bfloat16))
    work, made = [], 0
    for dtype in dtypes:
        for name, call in calls(dtype):
            expected = call(reference)
            for isa in attnfast.available_isas():
                config.use_isa(isa)
                result = call(attnfast)
                made += 1
                error = difference(result, expected)
                if not error <= BOUNDS[dtype.name]:
                    raise SystemExit(f"{name}, {dtype}, {isa}: off by {error:.2g}")
            config.use_isa(None)
            work.append((call, call(attnfast)))
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda item: difference(item[0](attnfast), item[1]), work * 8))
    if any(again):
        raise SystemExit(f"{np.count_nonzero(again)} of {len(again)} calls from threads differ")
    return f"{made} calls as the reference says, {len(again)} the same from 8 threads"


# ---- all of them ----


def about(path: str) -> Interpreter | None:
    done = subprocess.run([path, "-c", ABOUT], capture_output=True, text=True)
    if done.returncode:  # a shim of pyenv for a version that is not switched on; no module venv
        return None
    version, free_threaded = json.loads(done.stdout)
    return Interpreter(path, tuple(version), free_threaded)


def interpreters(given: list[str]) -> list[Interpreter]:
    folders = [Path(p) for p in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders += (pyenv / "versions").glob("*/bin")
    folders += (Path.home() / ".local/share/uv/python").glob("*/bin")
    paths = [*given, sys.executable]
    for folder in folders:
        if folder.is_dir():
            names = (p for p in folder.iterdir() if re.fullmatch(r"python3\.\d+t?", p.name))
            paths += [str(p) for p in sorted(names)]
    unique: dict[str, Interpreter] = {}
    for path in paths:
        if (found := about(path)) and found.version >= (3, 11):
            unique.setdefault(found.name, found)
    return sorted(unique.values(), key=lambda i: (i.version, i.free_threaded))


def fits(wheel: Path, interpreter: Interpreter) -> bool:
    """By the tags: abi3 for all, cp313t and the like for one."""
    abi = wheel.name.removesuffix(".whl").split("-")[-2]
    number = f"{interpreter.version[0]}{interpreter.version[1]}"
    return abi == (f"cp{number}t" if interpreter.free_threaded else "abi3")


def build(interpreter: Interpreter, out: Path) -> Path:
    if not interpreter.free_threaded:
        script = ROOT / "tools" / "check" / "wheel.py"
        subprocess.run([sys.executable, str(script), "--out", str(out)], check=True)
        return next(out.glob("*.whl"))
    # From a copy: nothing is written to the checkout.
    ignore = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.so")
    shutil.copytree(ROOT, out / "source", ignore=ignore)
    python = environment(interpreter, out)
    pip = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(out)]
    subprocess.run([*pip, str(out / "source")], check=True)
    return next(out.glob("*.whl"))


def environment(interpreter: Interpreter, folder: Path) -> str:
    subprocess.run([interpreter.path, "-m", "venv", str(folder / "venv")], check=True)
    return str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")


def run(work: Path, *command: str) -> str:
    """Away from the checkout; raises with the last lines of what was said."""
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode:
        tail = (done.stdout + done.stderr).strip().splitlines()[-4:]
        raise RuntimeError(f"{' '.join(command[1:4])} gave {done.returncode}: {' | '.join(tail)}")
    return done.stdout.strip()


def install_oldest(work: Path, python: str) -> None:
    """The oldest NumPy that has a wheel."""
    for release in NUMPYS[:-1]:
        try:
            run(work, python, "-m", "pip", *BINARY, f"numpy=={release}.*")
        except RuntimeError:
            continue
        return
    run(work, python, "-m", "pip", *BINARY, f"numpy=={NUMPYS[-1]}.*")


def attempt(trial: Trial, wheel: Path, work: Path, with_tests: bool, with_bench: bool) -> None:
    started = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal started
        now = time.perf_counter()
        trial.seconds[step] = now - started
        started = now

    python = environment(trial.interpreter, work)
    command = str(Path(python).with_name("attnfast"))
    here = (python, str(Path(__file__).resolve()), "--here")
    if trial.numpy == "oldest":
        install_oldest(work, python)
    run(work, python, "-m", "pip", *BINARY, str(wheel))
    trial.numpy = run(work, python, "-c", "import numpy; print(numpy.__version__)")
    pinned = f"numpy=={trial.numpy}"
    lap("install")
    run(work, command, "info")
    trial.calls = run(work, *here)
    lap("calls")
    if with_tests:
        try:
            run(work, python, "-m", "pip", *BINARY, pinned, f"attnfast[test] @ {wheel.as_uri()}")
        except RuntimeError as error:
            trial.tests = f"no tests: the extra cannot be had ({str(error)[-150:]})"
        else:
            shutil.copytree(ROOT / "tests", work / "tests")
            shutil.copy(ROOT / "pyproject.toml", work)
            files = [f"tests/{name}" for name in TESTS]
            said = run(work, python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
            trial.tests = said.splitlines()[-1].strip("= ")
            trial.calls = run(work, *here)  # again with bfloat16, which the extra brings
        lap("tests")
    if with_bench:
        run(work, python, "-m", "pip", *BINARY, pinned, f"attnfast[bench] @ {wheel.as_uri()}")
        run(work, command, "bench", "--quick")
        lap("bench")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--here", action="store_true", help="only try this interpreter's attnfast")
    parser.add_argument("--wheel", type=Path, action="append", default=[])
    parser.add_argument("--python", action="append", default=[], help="one more interpreter")
    parser.add_argument("--only", action="store_true", help="no interpreters but those of --python")
    parser.add_argument("--no-tests", action="store_true", help="leave out the part of tests/")
    options = parser.parse_args()
    if options.here:
        print(try_here())
        return 0
    if options.only:
        found = [seen for path in options.python if (seen := about(path))]
    else:
        found = interpreters(options.python)
    done: list[Trial] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for interpreter in found:
            wheels = [w.resolve() for w in options.wheel if fits(w, interpreter)]
            if not wheels:
                wheels = [build(interpreter, Path(temporary) / f"wheel-{interpreter.name}")]
                options.wheel += wheels
            for numpy in ("oldest", "newest"):
                trial = Trial(interpreter, numpy)
                work = Path(temporary) / f"{interpreter.name}-{numpy}"
                work.mkdir()
                try:
                    attempt(trial, wheels[0], work, not options.no_tests, not done)
                except RuntimeError as error:
                    trial.failed = str(error)
                shutil.rmtree(work, ignore_errors=True)
                done.append(trial)
                print(trial.line(), flush=True)
    failures = sum(bool(trial.failed) for trial in done)
    names = ", ".join(sorted({wheel.name for wheel in options.wheel}))
    print(f"{len(done)} installations of {names}: {failures} failed")
    return bool(failures or not done)


if __name__ == "__main__":
    sys.exit(main())

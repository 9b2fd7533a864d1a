"""Builds attnfast for 64-bit Arm and runs its tests under qemu, on an x86-64 Debian or Ubuntu.

    python tools/prove/arm64.py [options] [pytest arguments]

Makes, in a folder of its own, what an arm64 machine would have: Debian 12's Python and C library,
unpacked and not installed, and wheels of NumPy and of the test tools from PyPI. Cross-compiles the
working tree against it and runs pytest under qemu. Without pytest arguments: the tests of the
kernels. Needs gcc-aarch64-linux-gnu (clang takes its linker), qemu-user-static, the keys of
debian-archive-keyring, and the network.

With `--work DIR` the folder stays and the next run builds what has changed and starts in seconds.
"""

import argparse
import filecmp
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[2]
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64") or "qemu-aarch64-static"

SOURCES = "deb [signed-by={key}] http://deb.debian.org/debian bookworm main\n"
KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ["python3.11", "libpython3.11-dev", "libgomp1", "libstdc++6"]
CLANG_PACKAGES = ["libgcc-12-dev", "libomp-16-dev"]
WHEELS = ["numpy", "pytest>=8", "hypothesis>=6.100", "ml_dtypes>=0.4", "onnx==1.23.2"]
PLATFORMS = [f"manylinux_2_{glibc}_aarch64" for glibc in (17, 24, 26, 27, 28, 31, 34)]

# All that depends on the instruction set or on the compiler. Of the kernels without vector
# instructions, which no arm64 machine chooses by itself, the tests of tests/kernels are enough.
SELECTION = [
    "tests/kernels",
    *(
        f"tests/functions/test_{name}.py"
        for name in ("local", "additive", "topk", "importance", "varlen", "weights", "merge")
    ),
    *(f"tests/functions/test_{name}.py" for name in ("block_mask", "plan", "starts", "rotate")),
    *(f"tests/functions/test_{name}.py" for name in ("pages", "quantised", "cache_model")),
    *(f"tests/functions/test_gradient{name}.py" for name in ("", "_additive", "_local", "_varlen")),
    "tests/functions/test_dropout.py",
    *(
        f"tests/promises/test_{name}.py"
        for name in ("layout", "accuracy", "isolation", "guard_pages", "invariance", "onnx")
    ),
    *("-k", "not generic or kernels"),
]

# Hypothesis as the tests set it up (tests/conftest.py), but for the number of examples.
PROFILE = """\
from hypothesis import HealthCheck, settings

settings.register_profile(
    "qemu",
    deadline=None,
    database=None,
    print_blob=True,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    max_examples={examples},
)
"""


def run(*command: str | Path, **options: Any) -> None:
    subprocess.run([str(x) for x in command], check=True, **options)


def make_root(work: Path, packages: list[str]) -> Path:
    """Unpacks packages and all they depend on, with a package database of its own: the host's has
    no second architecture."""
    root, apt = work / "root", work / "apt"
    done = apt / "done"
    if done.exists() and set(packages) <= set(done.read_text().split()):
        return root
    for folder in ("state/lists/partial", "cache/archives/partial", "debs"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(SOURCES.format(key=KEY))
    (apt / "apt.conf").write_text(
        f'APT::Architecture "arm64"; APT::Architectures {{ "arm64"; }};\n'
        f'Dir::State "{apt}/state"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";\n'
        f'Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
        f'Acquire::Languages "none"; APT::Sandbox::User "root";\n'
    )
    environment = os.environ | {"APT_CONFIG": str(apt / "apt.conf")}
    run("apt-get", "update", "-qq", env=environment)
    plan = subprocess.run(
        ["apt-get", "install", "-s", "--no-install-recommends", *packages],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    run("apt-get", "download", "-qq", *names, env=environment, cwd=apt / "debs")
    for package in sorted((apt / "debs").glob("*.deb")):
        run("dpkg-deb", "-x", package, root)
    done.write_text("\n".join(packages))
    return root


def make_site(work: Path) -> Path:
    """NumPy and the test tools, as wheels for arm64."""
    site = work / "site"
    if not (site / "numpy").exists():
        platforms = [x for name in PLATFORMS for x in ("--platform", name)]
        pip: list[str | Path] = [
            work / "venv/bin/pip",
            "install",
            "-q",
            "--target",
            site,
            "--no-compile",
        ]
        target = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
        run(*pip, *target, *platforms, *WHEELS)
    return site


def make_venv(work: Path) -> Path:
    """What builds the package, for the host. From CMake 4.1 on (policy CMP0190), the Python that a
    cross-build finds must be one for the target; here it is the host's, which runs Cython."""
    venv = work / "venv"
    if not (venv / "bin/ninja").exists():
        system = tomllib.loads((TREE / "pyproject.toml").read_text())["build-system"]
        run(sys.executable, "-m", "venv", venv)
        run(venv / "bin/pip", "install", "-q", *system["requires"], "cmake<4.1", "ninja")
    return venv


def copy_tree(target: Path) -> None:
    """The working tree, changed files only: those that did not change keep their times."""
    command = ["git", "-C", str(TREE), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = {name for name in listed.split("\0") if name and (TREE / name).exists()}
    for name in names:
        old, new = target / name, TREE / name
        if not old.exists() or not filecmp.cmp(old, new):
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(new, old)
    for path in target.rglob("*"):
        if path.is_file() and str(path.relative_to(target)) not in names:
            path.unlink()


def build(work: Path, root: Path, site: Path, compiler: str, jobs: int) -> None:
    """Builds a wheel as for any platform and unpacks it into `site`."""
    venv, wheels = make_venv(work), work / f"wheel-{compiler}"
    toolchain = TREE / "tools" / "prove" / "aarch64.cmake"
    defines = {
        "CMAKE_TOOLCHAIN_FILE": toolchain,
        "AARCH64_ROOT": root,
        "AARCH64_NUMPY": site / "numpy/_core/include",
        "AARCH64_COMPILER": compiler,
        "ATTNFAST_OPENMP": "ON",
    }
    settings = [f"-Ccmake.define.{name}={value}" for name, value in defines.items()]
    settings += [f"-Cbuild-dir={work}/build-{compiler}", "-Cbuild.verbose=false"]
    environment = os.environ | {
        "PATH": f"{venv}/bin:{os.environ['PATH']}",
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "CMAKE_INSTALL_ALWAYS": "1",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
    }
    shutil.rmtree(wheels, ignore_errors=True)
    pip: list[str | Path] = [venv / "bin/pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run(*pip, "-w", wheels, *settings, work / "src", env=environment)
    (wheel,) = wheels.glob("attnfast-*-cp311-abi3-*aarch64.whl")
    shutil.rmtree(site / "attnfast", ignore_errors=True)
    shutil.unpack_archive(wheel, site, "zip")


def make_python(work: Path, root: Path, site: Path, cpu: str) -> Path:
    """A command that is Python on `cpu`. Tests that start `sys.executable` get it too: the kernel
    of the host cannot start what is in the root."""
    python = work / "python"
    command = [QEMU, "-cpu", cpu, "-L", str(root), str(root / "usr/bin/python3.11")]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    python.chmod(0o755)
    (site / "sitecustomize.py").write_text(f"import sys\n\nsys.executable = {str(python)!r}\n")
    return python


def run_tests(work: Path, python: Path, site: Path, examples: int, arguments: list[str]) -> int:
    """Runs pytest where no source of the package is in the way of the one in `site`."""
    place = work / "tests"
    shutil.rmtree(place, ignore_errors=True)
    ignore = shutil.ignore_patterns("attnfast")
    shutil.copytree(work / "src", place, ignore=ignore)
    (site / "qemu_profile.py").write_text(PROFILE.format(examples=examples))
    environment = os.environ | {
        "PYTHONPATH": str(site),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    environment.pop("PYTHONHOME", None)
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider"]
    command += ["-p", "qemu_profile", "--hypothesis-profile=qemu", *arguments]
    return subprocess.run(command, cwd=place, env=environment).returncode


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--work", type=Path, help="folder to keep and use again")
    parser.add_argument("--compiler", choices=("gcc", "clang"), default="gcc")
    parser.add_argument("--cpu", default="cortex-a72", help="what qemu is (cortex-a72: Armv8.0)")
    parser.add_argument("--examples", type=int, default=10, help="of each drawn test (default 10)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--no-build", action="store_true", help="only run: what was built last")
    return parser.parse_known_args()


def main() -> int:
    options, arguments = parse()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        packages = PACKAGES + (CLANG_PACKAGES if options.compiler == "clang" else [])
        root = make_root(work, packages)
        make_venv(work)
        site = make_site(work)
        copy_tree(work / "src")
        if not options.no_build:
            build(work, root, site, options.compiler, options.jobs)
        python = make_python(work, root, site, options.cpu)
        if options.build_only:
            return 0
        return run_tests(work, python, site, options.examples, arguments or SELECTION)


if __name__ == "__main__":
    sys.exit(main())

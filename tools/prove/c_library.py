"""The C library without Python, as the drivers of the slow proofs and one test link it.

CMake makes one extension module with one set of flags. The proofs want other compilers, other flags
(sanitizers, -O1, wrapped functions), a patched copy of a source or only some of the variants, so
this compiles the files itself. Which files and variants there are, and how they are compiled, is
read from CMakeLists.txt and cmake/isa.cmake.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = ROOT / "tools" / "drivers"
CALLS = ("call.c", "run.c", "results.c", "array.c")  # of drivers: legal calls of any kind
DTYPES = ("f32", "f64", "f16", "bf16")  # in the order of af_dtype


class Variant(NamedTuple):
    isa: str
    dtype: str
    flags: tuple[str, ...]


class Patch(NamedTuple):
    """A change of one file of csrc, in a copy: `old` must be there exactly once."""

    path: str
    old: str
    new: str


def variants() -> tuple[list[Variant], list[str]]:
    """What cmake/isa.cmake lists for this processor, best first, and the flags of all of them."""
    text = re.sub(r"#.*", "", (ROOT / "cmake" / "isa.cmake").read_text())
    common = re.findall(r"set\(_common ([^)]*)\)", text)[0].split()
    names = dict(re.findall(r'set\((\w+) "([^"]*)"\)', text))
    found = []
    for call in re.findall(r"^attnfast_isa\(([^)]*)\)", text, re.MULTILINE):
        isa, processors, *rest = call.split()
        wanted = re.sub(r"\$\{(\w+)\}", lambda m: names[m[1]], processors.strip('"'))
        if not re.search(wanted, platform.machine()):
            continue
        at = rest.index("DTYPES")
        # What a variable adds for a compiler (-fno-schedule-insns) makes no other results.
        flags = tuple(word for word in rest[:at] if word != "FLAGS" and not word.startswith("${"))
        found += [Variant(isa, dtype, flags) for dtype in rest[at + 1 :]]
    return found, common


def at_o1(cmake: str) -> str:
    """A file of CMake's in which everything is compiled at -O1: half the time, the same results."""
    return re.sub(r"(?<= )-O[23s](?=[ )])", "-O1", cmake)


def sources() -> list[str]:
    """The files of csrc beside the kernels."""
    text = (ROOT / "CMakeLists.txt").read_text()
    listed = re.findall(r"add_library\(\s*attnfast_c ([^)]*)\)", text)[0]
    return re.findall(r"csrc/([\w/]+\.c)", listed)


def object_name(source: str) -> str:
    """One name for each file, whatever its folder."""
    return source.replace("/", "_")


def find(*names: str) -> str:
    """The first of some programs that there is; the script ends if there is none."""
    for name in names:
        if found := shutil.which(name):
            return found
    sys.exit(f"{' or '.join(names)} is needed and was not found")


def run(command: Sequence[str | Path], cwd: Path) -> None:
    """Run a compiler; the script ends with what it said if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


class Library:
    """Objects of the library and of drivers in a directory of their own."""

    def __init__(
        self,
        work: Path,
        compiler: str,
        flags: Sequence[str],
        *,
        level: str = "-O1",
        only: Iterable[tuple[str, str]] | None = None,
        patches: Sequence[Patch] = (),
        kernels: tuple[str, Sequence[str]] | None = None,
    ) -> None:
        """`only`: pairs (isa, dtype), else every variant. `kernels`: their compiler and flags."""
        self.work, self.compiler = work, compiler
        common = ["-std=c11", level, "-g1", "-D_POSIX_C_SOURCE=200809L"]
        self.flags = [*common, *flags]
        self.kernels = [kernels[0], *common, *kernels[1]] if kernels else [compiler, *self.flags]
        self.csrc = work / "csrc"
        shutil.copytree(ROOT / "csrc", self.csrc)
        for patch in patches:
            path = self.csrc / patch.path
            text = path.read_text()
            if text.count(patch.old) != 1:
                sys.exit(f"csrc/{patch.path} does not have this exactly once: {patch.old}")
            path.write_text(text.replace(patch.old, patch.new))
        listed, always = variants()
        chosen = set(only) if only is not None else {(v.isa, v.dtype) for v in listed}
        self.variants = [v for v in listed if (v.isa, v.dtype) in chosen]
        table = " ".join(f"X({v.dtype}, {v.isa})" for v in self.variants)
        (self.csrc / "af_variants.h").write_text(f"#define AF_VARIANTS(X) {table}\n")
        self.sources = sources()
        commands = [self._object(f"csrc/{name}", object_name(name), []) for name in self.sources]
        commands += [self._variant(v, always) for v in self.variants]
        self._run(commands)

    def _object(self, source: str | Path, name: str, flags: Sequence[str]) -> list[str]:
        return [self.compiler, *self.flags, *flags, "-Icsrc", "-c", str(source), "-o", f"{name}.o"]

    def _variant(self, v: Variant, always: Sequence[str]) -> list[str]:
        # Not the level: the code is the same at any, and more takes a sanitizer minutes a variant.
        flags = [flag for flag in always if not flag.startswith("-O")]
        names = [f"-DAF_ISA={v.isa}", f"-DAF_TYPE={v.dtype}", f"-DAF_DTYPE={DTYPES.index(v.dtype)}"]
        header = f'-DAF_SIMD_HEADER="simd/{v.isa}.h"'
        to = ["-Icsrc", "-c", "csrc/kernels.c", "-o", f"{v.dtype}_{v.isa}.o"]
        return [*self.kernels, *flags, *v.flags, *names, header, *to]

    def _run(self, commands: Sequence[list[str]]) -> None:
        with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda command: run(command, cwd=self.work), commands))

    def link(self, program: str, drivers: Sequence[str], flags: Sequence[str] = ()) -> Path:
        """A program of some files of tools/drivers and the library; `flags` for the link."""
        self._run([self._object(DRIVERS / d, f"tools_{d}", []) for d in drivers])
        objects = [f"tools_{d}.o" for d in drivers] + [f"{object_name(s)}.o" for s in self.sources]
        objects += [f"{v.dtype}_{v.isa}.o" for v in self.variants]
        command = [self.compiler, *self.flags, *objects, "-o", program, *flags, "-lm", "-pthread"]
        run(command, cwd=self.work)
        return self.work / program

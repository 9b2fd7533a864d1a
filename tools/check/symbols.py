"""Checks what the compiled objects hold, so that no instruction set leaks out of its own.

    python tools/check/symbols.py BUILD_DIR

* every kernel object exports exactly one symbol, its table;
* objects on baseline flags (drivers, dispatch, binding, generic kernels) use no ymm or zmm.
"""

import re
import subprocess
import sys
from pathlib import Path


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def exported(path: Path) -> list[str]:
    lines = output("nm", "--defined-only", "--extern-only", str(path)).splitlines()
    return [line.split()[-1] for line in lines if line.strip()]


def wide_registers(path: Path) -> set[str]:
    return set(re.findall(r"%[yz]mm\d+", output("objdump", "-d", str(path))))


def main() -> int:
    build = Path(sys.argv[1])
    problems = []
    kernels = sorted(build.rglob("kernels.c.o"))
    baseline = [path for path in build.rglob("*.c.o") if path.name != "kernels.c.o"]
    baseline += [path for path in kernels if "generic" in str(path)]
    if not kernels or not baseline:
        problems.append(f"no objects below {build}")
    for path in kernels:
        symbols = exported(path)
        if len(symbols) != 1 or not symbols[0].startswith("af_kernels_"):
            problems.append(f"{path}: exports {symbols}")
    for path in baseline:
        wide = wide_registers(path)
        if wide:
            problems.append(f"{path}: baseline object uses {sorted(wide)[:4]}")
    for problem in problems:
        print(problem)
    print(
        f"{len(kernels)} kernel objects, {len(baseline)} baseline objects: {len(problems)} problems"
    )
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

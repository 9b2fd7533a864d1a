"""Looks for data races: many threads call the C library at once under clang's thread sanitizer.

    python tools/prove/races.py [--rounds N] [--isas generic ...] [--plant {driver,library}]

Compiles csrc and tools/drivers/races.c with clang -fsanitize=thread and libomp, whose tool archer
tells the sanitizer what OpenMP synchronises (gcc's libgomp does not, and everything is reported).
Four threads then make every kind of call, each with teams of up to 4, while another changes the
number of threads and the instruction set and calls are interrupted; every result must have the bits
that one thread computed. Ends with 1 on a race or other bits, else with 0.

--plant makes a mistake on purpose, which must be found: in the driver, callers share the memory of
results; in a copy of the library, the threads of a team share their scratch memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from c_library import CALLS, Library, Patch, find, variants

SHARED_SCRATCH = Patch(
    "runtime/parallel.c",
    "w->scratch + (size_t)thread * w->scratch_bytes : NULL;",
    "w->scratch + 0 * (size_t)thread : NULL;",
)


def build(work: Path, isas: list[str], plant: str | None) -> Path:
    flags = ["-fsanitize=thread", "-fopenmp"]
    if plant == "driver":
        flags.append("-DAF_PLANT_RACE")
    patches = [SHARED_SCRATCH] if plant == "library" else []
    only = [(v.isa, v.dtype) for v in variants()[0] if v.isa in isas]
    library = Library(work, find("clang-16", "clang"), flags, only=only, patches=patches)
    return library.link("races", ["races.c", *CALLS])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="calls a thread: 20 each (default 3)")
    parser.add_argument("--seed", type=int, default=1)
    known = list(dict.fromkeys(v.isa for v in variants()[0]))
    parser.add_argument(
        "--isas", nargs="+", choices=known, default=known, help="fewer build sooner; with generic"
    )
    parser.add_argument("--plant", choices=["driver", "library"], help="make a mistake on purpose")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attnfast-races-") as name:
        program = build(Path(name), arguments.isas, arguments.plant)
        print(f"built in {time.monotonic() - start:.0f} s", flush=True)
        start = time.monotonic()
        environment = {
            **os.environ,
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66",
            "ARCHER_OPTIONS": "verbose=1",
            "KMP_BLOCKTIME": "0",  # idle threads of teams leave the CPU to others
        }
        done = subprocess.run(
            [program, str(arguments.rounds), str(arguments.seed)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    print(done.stdout[:8000])
    if "Archer detected OpenMP application" not in done.stdout:
        print("archer is not there: install libomp with its tools")
        return 1
    reports = done.stdout.count("WARNING: ThreadSanitizer: ")
    seconds = time.monotonic() - start
    print(f"{reports} races reported, exit code {done.returncode}, {seconds:.0f} s")
    return int(reports > 0 or done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())

"""Looks for data races: many threads call the C library at once under clang's thread sanitizer.

    python tools/prove/races.py [--rounds N] [--isas generic ...] [--plant NAME]

Compiles csrc and tools/drivers/races.c with clang -fsanitize=thread and libomp, whose tool archer
tells the sanitizer what OpenMP synchronises (gcc's libgomp does not, and everything is reported).
Four threads then make every kind of call, each with teams of up to 4, while another changes the
number of threads and the instruction set and calls are interrupted; every result must have the bits
that one thread computed. Panels of gradients are as small as for fuzz.py, so that many are in
flight. Ends with 1 on a race, other bits or calls that do not end, else with 0.

--plant makes a mistake on purpose, which must be found: `driver`, callers share the memory of
results; in a copy of the library, `library`, the threads of a team share their scratch memory, or a
unit of gradients does not wait for what comes before it: `slot`, `rows`, `range`, `units`, `parts`,
`sums`, `head`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from c_library import CALLS, Library, Patch, find, variants
from fuzz import SMALL

LONGEST = 1800  # seconds that the calls may take

# What --plant takes out of a copy of the library: that threads of a team have scratch memory of
# their own, and each thing that units of gradients wait for.
PLANTS = {
    "library": Patch(
        "runtime/parallel.c",
        "w->scratch + (size_t)thread * w->scratch_bytes : NULL;",
        "w->scratch + 0 * (size_t)thread : NULL;",
    )
}
WAITS = {
    "slot": "af_wait_for(&p->slot->done, p->before);",
    "rows": "af_wait_for(&p->slot->done, p->before + p->listed->schedule.open_units);",
    "range": "af_wait_for(turns + range, p->panel.turn);",
    "units": "af_wait_for(turns, p->panel.turn * w->parts);",
    "parts": "af_wait_for(&p->slot->done, p->before + s->open_units + w->parts);",
    "sums": "if (ordered) af_wait_for(turns_of_stream(p) + w->ranges, "
    "p->panel.turn * s->finish_units);",
    "head": "af_wait_for(turns, panel.turn);",
}
PLANTS |= {name: Patch("driver/backward_list.c", old, "") for name, old in WAITS.items()}


def build(work: Path, isas: list[str], plant: str | None) -> Path:
    flags = ["-fsanitize=thread", "-fopenmp", "-DAF_FIXED_TEAM"]
    if plant == "driver":
        flags.append("-DAF_PLANT_RACE")
    patches = [PLANTS[plant]] if plant in PLANTS else []
    patches += [patch for patch in SMALL if "backward" in patch.path]
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
    parser.add_argument("--plant", choices=["driver", *PLANTS], help="make a mistake on purpose")
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
        command = [program, str(arguments.rounds), str(arguments.seed)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            try:
                said, _ = running.communicate(timeout=LONGEST)
            except subprocess.TimeoutExpired:
                running.kill()
                said, _ = running.communicate()
    print(said[:8000])
    if "Archer detected OpenMP application" not in said:
        print("archer is not there: install libomp with its tools")
        return 1
    reports = said.count("WARNING: ThreadSanitizer: ")
    seconds = time.monotonic() - start
    ended = "did not end" if seconds > LONGEST else f"exit code {running.returncode}"
    print(f"{reports} races reported, {ended}, {seconds:.0f} s")
    return int(reports > 0 or running.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())

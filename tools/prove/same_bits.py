"""Compares every bit of what two installed builds of attnfast return.

    pip install --no-deps --target OLD .     # before the change
    pip install --no-deps --target NEW .     # after it
    python tools/prove/same_bits.py OLD NEW [--calls N] [--isa avx2] [--seed S]

Draws calls of every function (tests/support/family_draws.py): any shape, dtype, memory layout and
option, `out`, keys and values with NaN and infinity, bad arguments; gradients by way of the call
that they are of. Both builds make the same calls on every instruction set. Compared are dtypes,
shapes, order in memory and bytes of all that is returned, the contents of `out`, and the type of an
error or warning, with --messages its text too.
All NaN count as one. Options, functions and fields of results that only one build has are left out
and named; what tests/support imports must be in both.

Ends with 1 if anything differs. Of each function the first differing calls are printed with their
names; the same command with `--call NAME` makes one of them again and shows which elements differ.
--plant flips one bit of a result of NEW, which must be found.
"""

import argparse
import contextlib
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
TESTS = TOOLS.parents[1] / "tests"
SHOWN = 3  # differing calls of each function
# How many of the calls each function gets, in parts.
SHARES = {
    "attention": 5,
    "attention_weights": 2,
    "local_attention": 4,
    "additive_attention": 2,
    "attention_topk": 2,
    "key_importance": 2,
    "attention_varlen": 2,
    "merge_attention": 1,
    "attention_backward": 4,
    "local_attention_backward": 2,
    "additive_attention_backward": 1,
    "attention_varlen_backward": 1,
    "merge_attention_backward": 1,
    "rotate": 1,
    "plan": 1,
}


class Build:
    """An installed build in a process of its own."""

    def __init__(self, name: str, folder: Path, work: Path) -> None:
        if not (folder / "attnfast").is_dir():
            raise SystemExit(f"{folder} holds no attnfast: make it with pip install --target")
        # Hypothesis draws constants that it finds in the source of modules too, but not of those in
        # site-packages: by this name the source of a build has no part in what is drawn.
        self.name = name
        place = work / name / "site-packages"
        place.parent.mkdir()
        place.symlink_to(folder.resolve(), target_is_directory=True)
        paths = [str(place), str(TESTS), *(p for p in sys.path if p and Path(p) != TOOLS)]
        self.process = subprocess.Popen(
            [sys.executable, "-S", TOOLS / "same_bits_worker.py", json.dumps(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )

    def receive(self) -> Any:
        """The next answer; None at the end of a process that ended well."""
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return json.loads(line)
        if code := self.process.wait():
            raise BuildError(f"{self.name} ended with {code}")
        return None

    def send(self, plan: dict[str, Any]) -> None:
        assert self.process.stdin
        print(json.dumps(plan), file=self.process.stdin, flush=True)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class BuildError(Exception):
    """The process of a build ended early."""


@dataclass
class Findings:
    """How many outcomes were compared and differ, by function and instruction set; and the fields
    of results that one build alone has."""

    compared: Counter[tuple[str, str]] = field(default_factory=Counter)
    differ: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    shown: Counter[str] = field(default_factory=Counter)
    alone: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, old: list[Any], new: list[Any], messages: bool) -> Iterator[str]:
        """Count a call; lines that describe it if it differs."""
        name, text, _, before = old
        function = name.partition("/")[0]
        lines = []
        for isa, outcome in before.items():
            pair = [
                {n: x for n, x in fields if messages or n != "message"}
                for fields in (outcome, new[3][isa])
            ]
            self.compared[function, isa] += 1
            if "type" in pair[0] and "type" in pair[1]:  # named results, not errors
                common = pair[0].keys() & pair[1].keys()
                for build, named in zip(("old", "new"), pair, strict=True):
                    self.alone.update((build, function, n) for n in named.keys() - common)
                pair = [{n: x for n, x in named.items() if n in common} for named in pair]
            if pair[0] != pair[1]:
                self.differ[function, isa] += 1
                names = [n for n in {**pair[0], **pair[1]} if pair[0].get(n) != pair[1].get(n)]
                lines += [f"  {isa} {n}: {pair[0].get(n)} / {pair[1].get(n)}" for n in names]
        self.errors[function] += any(n == "error" for n, _ in next(iter(before.values())))
        if lines and self.shown[function] < SHOWN:
            self.shown[function] += 1
            yield from (name, f"  {text}", *lines)


def plan_of(facts: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """What both builds are told to do; says what is left out."""
    old, new = facts["old"]["parameters"], facts["new"]["parameters"]
    for one, other, name in ((old, new, "old"), (new, old, "new")):
        for function in one:
            missing = [p for p in one[function] if p not in other.get(function, ())]
            if missing:
                what = ", ".join(missing) if function in other else "all"
                print(f"only in {name}: {function}: {what}")
    parameters = {f: [p for p in old[f] if p in new[f]] for f in old if f in new}
    functions = [f for f in arguments.functions or parameters if f in parameters]
    isas = [isa for isa in facts["old"]["isas"] if isa in facts["new"]["isas"]]
    if arguments.isa != ["all"]:
        if unknown := [isa for isa in arguments.isa if isa not in isas]:
            raise SystemExit(f"--isa {unknown[0]} is not one of {', '.join(isas)}")
        isas = arguments.isa
    parts = sum(SHARES[f] for f in functions)
    return {
        "parameters": parameters,
        "isas": isas,
        "seed": arguments.seed,
        "calls": {f: -(-arguments.calls * SHARES[f] // parts) for f in functions},
        "only": arguments.call,
        "plant": None,
    }


def compare(builds: dict[str, Build], arguments: argparse.Namespace) -> Findings:
    """Read the outcomes of both builds, call by call."""
    findings, last, start = Findings(), "the first call", time.monotonic()
    done = 0
    while True:
        try:
            old, new = builds["old"].receive(), builds["new"].receive()
        except BuildError as error:
            raise SystemExit(f"{error} in the call after {last}") from None
        if old is None and new is None:
            return findings
        if old is None or new is None or old[:3] != new[:3]:
            pair = f"  {old and old[:3]}\n  {new and new[:3]}"
            raise SystemExit(f"the builds drew different calls after {last}:\n{pair}")
        for line in findings.add(old, new, arguments.messages):
            print(line, flush=True)
        last, done = old[0], done + 1
        if sys.stderr.isatty() and done % 50 == 0:
            line = f"{done} calls, {time.monotonic() - start:.0f} s"
            print(f"\r\x1b[K{line}\r", end="", file=sys.stderr, flush=True)


def show_elements(kept: list[Path]) -> None:
    """Which elements of one call's results differ."""
    import numpy as np

    old, new = (pickle.loads(path.read_bytes()) for path in kept)
    for isa, fields in old.items():
        for (name, a), (_, b) in zip(fields, new[isa], strict=False):
            if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
                continue
            if a.shape != b.shape or a.dtype != b.dtype or not a.size:
                continue
            same = (a == b) & (np.signbit(a) == np.signbit(b)) | ((a != a) & (b != b))
            if not same.all():
                at = tuple(int(i) for i in np.argwhere(~same)[0])
                print(
                    f"  {isa} {name}: {(~same).sum()} of {a.size} elements differ, "
                    f"the first at {at}: {a[at]!r} / {b[at]!r}"
                )


def print_table(findings: Findings) -> None:
    for build, function, name in sorted(findings.alone):
        print(f"only in {build}: {function}: field {name}")
    print(f"{'function':20} {'isa':8} {'calls':>7} {'errors':>7} {'differ':>7}")
    for (function, isa), n in findings.compared.items():
        errors, differ = findings.errors[function], findings.differ[function, isa]
        print(f"{function:20} {isa:8} {n:7} {errors:7} {differ:7}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="folder of the build before")
    parser.add_argument("new", type=Path, metavar="NEW", help="folder of the build after")
    parser.add_argument("--calls", type=int, default=20_000, help="of all functions together")
    parser.add_argument("--isa", nargs="+", default=["all"], help="instruction sets")
    parser.add_argument("--seed", type=int, default=0, help="other seeds draw other calls")
    parser.add_argument("--functions", nargs="+", choices=SHARES)
    parser.add_argument("--messages", action="store_true", help="compare texts of errors")
    parser.add_argument("--call", metavar="NAME", help="make this call only, as attention/12/34")
    parser.add_argument("--plant", action="store_true", help="flip one bit on purpose")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attnfast-bits-")))
        builds = {}
        for name, folder in (("old", arguments.old), ("new", arguments.new)):
            builds[name] = Build(name, folder, work)
            stack.callback(builds[name].close)
        try:
            facts = {name: build.receive() for name, build in builds.items()}
        except BuildError as error:
            raise SystemExit(str(error)) from None
        for name, fact in facts.items():
            print(f"{name}  {fact['version']}  {fact['folder']}")
        plan = plan_of(facts, arguments)
        for name, build in builds.items():
            plant = random.Random(arguments.seed).randrange(10) if arguments.plant else None
            own = {"keep": str(work / f"{name}.pickle"), "plant": plant if name == "new" else None}
            build.send({**plan, **own})
        findings = compare(builds, arguments)
        if arguments.call and findings.compared:
            show_elements([work / f"{name}.pickle" for name in builds])
    print_table(findings)
    calls = sum(findings.compared.values())
    differ = sum(findings.differ.values())
    print(f"{differ} of {calls} outcomes differ; {time.monotonic() - start:.0f} s")
    return int(differ > 0 or not calls)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

"""Measure the figures of the documentation, write them as data, and write pages from the data.

    python bench/figures.py                          # names, durations, dates, commands
    python bench/figures.py shapes half              # measure: docs/figures/*.json, then the pages
    python bench/figures.py grid --time-limit 600    # in ten minutes, as far as that goes
    python bench/figures.py grid --from RUN.json     # a run of its command with --json RUN.json
    python bench/figures.py --pages                  # the pages only, from the data as it is

Install the checkout first (`pip install ".[bench]"`), on a quiet machine. Figures of a wrong
result are not written. `grid` writes `threads` too: a model of more threads, from the same run.
`growth` is a whole run, which draws its picture again with
`attnfast bench --from docs/figures/growth.json --plot FILE`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attnfast
import machines
import naive
import scaling
import tables
from attnfast.bench.machine import busy_warning, machine_facts
from attnfast.bench.peers import OWN
from attnfast.bench.results import CaseResult, Report

PICTURE = "docs/pictures/speed.png"

# Command of each name, and minutes on 2 cores with PyTorch, ONNX Runtime and OpenVINO installed.
COMMANDS: dict[str, tuple[str, float]] = {
    "grid": ("python bench/targets.py --cases grid", 25),
    "avx2": ("python bench/targets.py --cases grid --peers none --isa avx2", 12),
    "half": ("python bench/targets.py --cases half --peers none", 3),
    "shapes": ("python bench/targets.py --cases shape --peers none", 2),
    "family": ("python bench/targets.py --cases family --peers torch", 12),
    "llama_cpp": (
        "python bench/targets.py --all-on-one --peers llama.cpp --cases 'decode_b1_*_4096x128,"
        "half_float16_decode_b1_*,cache_int8*_decode_*'",
        3,
    ),
    "caches": ("attnfast bench --cases 'cache_*_decode_*' --threads 1", 4),
    "training": ("python bench/targets.py --cases train --peers torch,jax", 6),
    "training_avx2": ("python bench/targets.py --cases train --peers none --isa avx2", 2),
    "growth": (f"attnfast bench --rounds 3 --plot {PICTURE}", 10),
    "loops": ("python bench/naive.py", 0.3),
}
MODELLED = (
    "full_1x12x512x64",
    "full_1x16x2048x64",
    "causal_1x16x2048x64",
    "window256_1x8x4096x64",
    "keypad_32x12x128x64",
    "decode_b1_32kv8_1024x128",
    "decode_b1_32kv8_4096x128",
    "decode_b8_32kv32_4096x128",
    "fewq16_b1_32kv8_4096x128",
)
BUSY = "The machine was busy: repeat this on a quiet one."
MANY, MANY_BANDWIDTH = 64, 460.0  # threads; GB/s of 12 channels of DDR5-4800


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(COMMANDS))
    parser.add_argument("--time-limit", type=float, metavar="S", help="seconds of each measurement")
    parser.add_argument("--from", dest="run", type=Path, metavar="RUN", help="use this run")
    parser.add_argument("--pages", action="store_true", help="write the pages from the data only")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in COMMANDS]:
        parser.error(f"{unknown[0]}: must be one of {', '.join(COMMANDS)}")
    if options.run and (len(options.names) != 1 or options.names == ["loops"]):
        parser.error("--from: takes exactly one NAME whose command has --json")
    if not options.names and not options.pages:
        list_figures()
        return 0
    busy = busy_warning()  # once: later the load is that of the measurements before
    for name in options.names:
        if name == "loops":
            tables.save(name, loops(busy))
        elif options.run:
            keep(name, Report.load(options.run))
        else:
            keep(name, run(name, options.time_limit, busy))
    write_pages()
    return 0


def list_figures() -> None:
    """Print each name, how long it takes, from when its figures are, and its command."""
    for name, (command, minutes) in COMMANDS.items():
        path = tables.FOLDER / f"{name}.json"
        date = stored_date(json.loads(path.read_text())) if path.exists() else "not measured"
        print(f"{name:13} {minutes:4g} min  {date:12}  {command}")


def stored_date(data: dict[str, Any]) -> str:
    """When figures were measured."""
    return str(data["date"] if "date" in data else data["machine"]["date"])


def run(name: str, time_limit: float | None, busy: str | None) -> Report:
    """Measure by the command of a name, on a machine of which `busy` says what disturbs.

    Raises
    ------
    subprocess.CalledProcessError
        When it fails, or attnfast gave a wrong result.
    """
    words = shlex.split(COMMANDS[name][0])
    # -P: the folder attnfast of the checkout is not the installed package
    start = [sys.executable] if words[0] == "python" else [sys.executable, "-P", "-m", words[0]]
    limit = ["--time-limit", str(time_limit)] if time_limit else []
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "run.json"
        command = [*start, *words[1:], *limit, "--json", str(saved)]
        subprocess.run(command, cwd=tables.ROOT, check=True)
        report = Report.load(saved)
    report.machine["busy"] = busy
    return report


def keep(name: str, report: Report) -> None:
    """Write the figures of a run.

    Raises
    ------
    ValueError
        When attnfast gave a wrong result.
    """
    if report.wrong:
        raise ValueError(f"{name}: attnfast gave a wrong result; nothing is written")
    if name == "growth":
        keep_whole(name, report)
        return
    head = head_of(COMMANDS[name][0], report)
    rows = [row for side in report.runs for result in side.results for row in rows_of(side, result)]
    tables.save(name, {**head, "rows": rows})
    if name in ("grid", "avx2"):
        tables.remember({**head, "rows": rows})
    if name == "grid":
        command = f"{head['command']} --json RUN.json && python bench/scaling.py RUN.json"
        model = {**head, "command": command, "others": {}, "modelled_threads": MANY}
        tables.save("threads", {**model, "rows": modelled(report)})


def head_of(command: str, report: Report) -> dict[str, Any]:
    """Where figures are from."""
    facts = report.machine
    notes = [BUSY] if facts.get("busy") else []
    if report.not_run:
        notes.append(f"Not measured for want of time: {', '.join(report.not_run)}.")
    return {
        "command": command,
        "date": facts["date"],
        "version": version(),
        "processor": f"{facts['cpu']}, {facts['cores']} cores",
        "isa": facts["isa"],
        "threads": [side.threads for side in report.runs],
        "limits": {
            str(side.threads): {key: rounded(value) for key, value in side.limits.items()}
            for side in report.runs
        },
        "others": {
            k: v for k, v in report.contestants.items() if k not in (OWN, *tables.YARDSTICKS)
        },
        "note": " ".join(notes),
    }


def version() -> str:
    """Of attnfast, with the commit of the checkout and a plus where its sources have changed."""
    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "attnfast", "cmake", "csrc")
    plus = "+" if changed else ""
    return f"{attnfast.__version__} ({commit}{plus})" if commit else attnfast.__version__


def git(*words: str) -> str:
    """What git says of the checkout, nothing where there is none."""
    done = subprocess.run(
        ["git", "-C", str(tables.ROOT), *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def rows_of(side: Report, result: CaseResult) -> list[dict[str, Any]]:
    """A row for each contestant with a time: what a table may want of it."""
    rows = []
    for name, entry in result.entries.items():
        if entry.median is None or entry.wrong:
            continue
        speed, share = result.speed(name), result.share(name)
        row = {
            "case": result.case.name,
            "threads": side.threads,
            "contestant": name,
            "variant": entry.variant if name != OWN else None,
            "seconds": rounded(entry.median),
            "speed": rounded(speed / 1e9) if speed else None,
            "unit": result.unit,
            "percent": round(100 * share, 1) if share is not None else None,
        }
        own, plain = result.entries[OWN], result.plain_error
        row["error"] = rounded(entry.error) if entry.error is not None else None
        if name == OWN:
            row["error_ratio"] = round(entry.error / plain, 1) if entry.error and plain else None
        elif own.median:
            row["times"] = rounded(entry.median / own.median)
            row["times_best"] = rounded(min(entry.samples) / own.median)
        rows.append({key: value for key, value in row.items() if value not in (None, "")})
    return rows


def rounded(value: float) -> float:
    """To four digits, which is more than is repeatable."""
    return float(f"{value:.4g}")


def keep_whole(name: str, report: Report) -> None:
    """Write a run that `--from` can show again, without all of its samples, a case on a line."""
    for side in report.runs:
        side.settings["command"] = COMMANDS[name][0]
        side.machine["version"] = version()
        for result in side.results:
            for entry in result.entries.values():
                entry.rounds = [rounded(seconds) for seconds in entry.rounds]
                entry.samples = entry.rounds
    path = tables.FOLDER / f"{name}.json"
    report.save(path)
    text = json.dumps(json.loads(path.read_text()))
    path.write_text(text.replace('{"case": ', '\n{"case": ') + "\n", encoding="utf-8")


def modelled(report: Report) -> list[dict[str, Any]]:
    """What more threads would bring, as `scaling.py` prints it."""
    rows = scaling.speed_ups(report, MANY, MANY_BANDWIDTH)
    return [row for row in rows if row["case"] in MODELLED]


def loops(busy: str | None) -> dict[str, Any]:
    """Each instruction set beside plain loops in C, as `naive.py` prints it."""
    isas = attnfast.available_isas()
    compiled = naive.load(["cc", "-O3"])
    rows = []
    for cell in naive.CELLS:
        slow, *fast = naive.measure(compiled, cell, isas)
        ratios = {isa: rounded(slow / seconds) for isa, seconds in zip(isas, fast, strict=True)}
        rows.append({"size": " x ".join(map(str, cell)), "seconds": rounded(slow), "times": ratios})
    facts = machine_facts()
    return {
        "command": COMMANDS["loops"][0],
        "date": facts["date"],
        "version": version(),
        "processor": f"{facts['cpu']}, {facts['cores']} cores",
        "isa": isas[0],
        "threads": [1],
        "limits": {},
        "others": {"cc": compiler()},
        "note": BUSY if busy else "",
        "rows": rows,
    }


def compiler() -> str:
    """Which C compiler makes the plain loops."""
    done = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].partition(" ")[2]


def write_pages() -> None:
    """Put the tables of the present figures into the pages, and draw every machine."""
    every = tables.load("machines")
    if machines.drawn(machines.PICTURE) != machines.digest(every):
        machines.draw(every)
        print(f"drawn: {machines.PICTURE.relative_to(tables.ROOT)}")
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        new = tables.filled(text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.relative_to(tables.ROOT)}")


if __name__ == "__main__":
    sys.exit(main())

"""Figures as data, `docs/figures/*.json`, and the tables that pages show of them.

A page marks where a table stands; `python bench/figures.py --pages` writes what is between:

    <!-- figures: grid -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attnfast.bench.peers import FLEX, OWN, PLAIN, YARDSTICKS
from attnfast.bench.plot import NAMES
from labels import CASES, CHOSEN, LABEL, SHOWN, label
from target_values import target_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "figures"
MARKED = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Data = dict[str, Any]
Rows = list[list[str]]

# What is kept of each machine; of the same processor and instruction set, the last run.
MACHINE = "processor", "isa", "date", "version", "threads", "limits", "note"


def load(name: str) -> Data:
    """The figures of a name."""
    data: Data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return data


def save(name: str, data: Data) -> None:
    """Write figures, a row on a line."""
    rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in data["rows"])
    head = {key: value for key, value in data.items() if key != "rows"}
    text = json.dumps(head, indent=1, ensure_ascii=False)
    path = FOLDER / f"{name}.json"
    path.write_text(f'{text[:-2]},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def remember(data: Data) -> None:
    """Keep the figures of this machine and instruction set beside those of others."""
    path = FOLDER / "machines.json"
    kept = load("machines")["rows"] if path.exists() else []
    row: Data = {key: data[key] for key in MACHINE}
    row["percent"] = {
        each.case.name: [each.row(threads).get("percent") for threads in data["threads"]]
        for each in found(data)
        if each.case.name in (*CHOSEN, "float64_1x16x2048x64", "decode_b8_32kv32_4096x128")
        and has_limit(each.row(1))
    }
    others = [each for each in kept if any(each[key] != row[key] for key in MACHINE[:2])]
    rows = sorted([*others, row], key=lambda each: (each["processor"], each["isa"]), reverse=True)
    save("machines", {"command": "python bench/figures.py grid avx2", "rows": rows})


def pages() -> Iterator[Path]:
    """Pages that may show tables."""
    for folder in ("", "bench", "docs", "docs/figures"):
        yield from sorted((ROOT / folder).glob("*.md"))


def filled(page: str) -> str:
    """A page with the tables of the present figures between its marks."""
    return MARKED.sub(lambda found: f"{found[1]}\n{render(found[2])}\n{found[3]}", page)


def render(name: str) -> str:
    """The table of a name, below it where its figures are from.

    Raises
    ------
    ValueError
        When there is no such table.
    """
    if name not in TABLES:
        raise ValueError(f"<!-- figures: {name} -->: must be one of {', '.join(sorted(TABLES))}")
    source, table = TABLES[name]
    if not (FOLDER / f"{source}.json").exists():
        return f"*Not measured yet: `python bench/figures.py {source}`.*\n"
    data = load(source)
    below = provenance(data) if "processor" in data else notes(data)
    columns = [column for column in zip(*table(data), strict=True) if any(column[1:])]
    head, *rows = zip(*columns, strict=True)
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{text}\n\n{below}\n"


def notes(data: Data) -> str:
    """The command of figures of several machines, and what is to be said of each."""
    said = [f"{machine_name(m)}: {m['note']}" for m in data["rows"] if m["note"]]
    command = f"`{data['command']}`."
    return f"*{' '.join([command, *said])}*"


def machine_name(row: Data) -> str:
    """Processor and instruction set."""
    return f"{row['processor'].partition(',')[0]}, {row['isa']}"


def provenance(data: Data) -> str:
    """Machine, date, versions, limits and command, as a sentence below a table."""
    threads = " and ".join(map(str, data["threads"]))
    others = [f"{NAMES.get(name, name)} {version}" for name, version in data["others"].items()]
    parts = [
        f"{data['processor']}, {data['isa']}, {threads} thread{'s' * (threads != '1')}",
        ", ".join([f"attnfast {data['version']}", *others]),
        data["date"],
    ]
    for key, words, unit in (
        ("fma_float32", "FMA peak", "GFLOP/s"),
        ("bandwidth", "memory", "GB/s"),
    ):
        measured = [f"{limits[key]:.0f}" for limits in data["limits"].values() if key in limits]
        if measured:
            parts.append(f"{words} {' and '.join(measured)} {unit}")
    note = f" {data['note']}" if data.get("note") else ""
    return f"*{'; '.join(parts)}; `{data['command']}`.{note}*"


class Found:
    """The rows of a case, by threads and contestant."""

    def __init__(self, data: Data, name: str) -> None:
        self.case = CASES[name]
        self.isa: str = data["isa"]
        rows = [row for row in data["rows"] if row["case"] == name]
        self.most = max(data["threads"])
        self._rows = {(row["threads"], row["contestant"]): row for row in rows}

    def row(self, threads: int, contestant: str = OWN) -> Data:
        """A contestant's row, empty where it has none."""
        return self._rows.get((threads, contestant), {})

    def best(self, threads: int) -> Data:
        """The row of the fastest other library, empty where there is none."""
        others = [
            row
            for (count, name), row in self._rows.items()
            if count == threads and name not in (OWN, *YARDSTICKS) and "times" in row
        ]
        return min(others, key=lambda row: float(row["times"]), default={})

    def target(self) -> str:
        """What attnfast is to reach."""
        target = target_of(self.case.name, self.isa)
        if target is None:
            return ""
        than = NAMES.get(target.than, f"`{target.than}`")
        return f"{target.value:g} {target.unit} {than if target.than else ''}".rstrip()

    def reached(self, threads: int) -> str:
        """What attnfast has reached, in the unit of the target."""
        target = target_of(self.case.name, self.isa)
        if target is not None and target.than:
            return times(self.row(threads, target.than))
        return figure(self.row(threads), 1)


def found(data: Data) -> list[Found]:
    """All cases of some figures, in their order."""
    return [Found(data, name) for name in dict.fromkeys(row["case"] for row in data["rows"])]


def has_limit(row: Data) -> bool:
    """Whether arithmetic or memory limit a call. Of a tiny one it is all that surrounds them."""
    return "percent" in row and not row["case"].startswith("tiny")


def figure(row: Data, digits: int = 0) -> str:
    """Percent of the limit, or the time where there is none."""
    return f"{row['percent']:.{digits}f} %" if has_limit(row) else duration(row)


def duration(row: Data) -> str:
    """A time in a unit that suits it."""
    if "seconds" not in row:
        return ""
    seconds = row["seconds"]
    scale, unit = next(
        (pair for pair in ((1e-6, "us"), (1e-3, "ms")) if seconds < 1000 * pair[0]), (1.0, "s")
    )
    return f"{seconds / scale:.3g} {unit}"


def times(row: Data, key: str = "times") -> str:
    """How many times faster attnfast is: two digits or more."""
    if key not in row:
        return ""
    value = row[key]
    return f"{value:.{2 if value < 1.1 else 1 if value < 9.95 else 0}f} x"


def who(row: Data) -> str:
    """The library of a row."""
    if not row:
        return ""
    name = NAMES.get(row["contestant"], row["contestant"])
    return f"{name} (FlexAttention)" if row.get("variant") == FLEX else name


def threads_heads(data: Data) -> list[str]:
    """Column heads for the numbers of threads."""
    return [f"{count} thread{'s' * (count > 1)}" for count in data["threads"]]


def beside_others(data: Data) -> Rows:
    """Each case on each number of threads, and the fastest other library."""
    most = max(data["threads"])
    rows = [
        [
            *LABEL,
            "target",
            *threads_heads(data),
            f"best other, {most} threads",
            "attnfast is faster",
        ]
    ]
    for case in found(data):
        best = case.best(most)
        shares = [figure(case.row(threads)) for threads in data["threads"]]
        rows.append(
            [
                *label(case.case),
                case.target(),
                *shares,
                f"{who(best)} {figure(best)}".strip(),
                times(best),
            ]
        )
    return rows


def against_targets(data: Data) -> Rows:
    """Each case on each number of threads, and its target."""
    rows = [[*LABEL, "target", *threads_heads(data)]]
    for case in found(data):
        cells = [case.reached(threads) for threads in data["threads"]]
        rows.append([*label(case.case), case.target(), *cells])
    return rows


def every_machine(data: Data) -> Rows:
    """Each machine and instruction set that was met: percent of its limits by number of threads."""
    machines = data["rows"]
    rows = [["", "", *map(machine_name, machines)]]
    rows.append(["date", "", *(m["date"] for m in machines)])
    rows.append(["attnfast", "", *(m["version"] for m in machines)])
    for key, words in (("fma_float32", "FMA peak, GFLOP/s"), ("bandwidth", "memory, GB/s")):
        limits = [[m["limits"].get(str(n), {}).get(key) for n in m["threads"]] for m in machines]
        rows.append([words, "", *(several(found, "") for found in limits)])
    for name in (case for case in CASES if any(case in m["percent"] for m in machines)):
        shares = [several(m["percent"].get(name, []), " %") for m in machines]
        rows.append([*label(CASES[name]), *shares])
    return rows


def several(numbers: list[float | None], unit: str) -> str:
    """Numbers for 1 and more threads; nothing where one is missing."""
    if not numbers or None in numbers:
        return ""
    return " / ".join(f"{number:.0f}" for number in numbers) + unit


def against_float32(data: Data) -> Rows:
    """16-bit cases: how many times faster than the same call in float32."""
    rows = [[*LABEL, "target", *threads_heads(data)]]
    for case in found(data):
        ratios = [times(case.row(threads, "float32")) for threads in data["threads"]]
        rows.append([*label(case.case), case.target(), *ratios])
    return rows


def chosen_costs(data: Data) -> Rows:
    """What docs/performance.md shows of the grid: all threads, three columns of others."""
    most = max(data["threads"])
    rows = [[*LABEL, "attnfast", "of the limit", "NumPy", "PyTorch", "best of all others"]]
    for case in found(data):
        if case.case.name not in CHOSEN:
            continue
        own, best = case.row(most), case.best(most)
        share = figure(own) if has_limit(own) else ""
        peers = [times(case.row(most, name)) for name in ("numpy", "torch")]
        cells = [*label(case.case), duration(own), share, *peers, f"{who(best)} {times(best)}"]
        rows.append([cell.strip() for cell in cells])
    return rows


def family_costs(data: Data) -> Rows:
    """The family: time and speed on each number of threads, and beside three others."""
    most = max(data["threads"])
    rows = [[*LABEL, "target"]]
    for head in threads_heads(data):
        rows[0] += [head, "of the peak"]
    rows[0] += ["NumPy", "NumPy's fastest call", "`attention`", "PyTorch", "error (of NumPy's)"]
    for case in found(data):
        cells = [*label(case.case), case.target()]
        for threads in data["threads"]:
            own = case.row(threads)
            cells += [duration(own), figure(own) if "percent" in own else speed(own)]
        plain = case.row(most, "numpy")
        cells += [times(plain), times(plain, "times_best")]
        cells += [times(case.row(most, name)) for name in ("attention", "torch")]
        rows.append([*cells, error(case.row(most))])
    return rows


def some_training_costs(data: Data) -> Rows:
    """A step of training of each kind."""
    rows = [row for row in data["rows"] if row["case"] in SHOWN]
    return training_costs({**data, "rows": rows})


def training_costs(data: Data) -> Rows:
    """Steps of training: speed on each number of threads, and beside the other libraries."""
    most = max(data["threads"])
    rows = [[*LABEL, "target", *threads_heads(data), "in forward calls"]]
    rows[0] += ["NumPy", "PyTorch", "JAX"]
    for case in found(data):
        cells = [figure(case.row(threads)) for threads in data["threads"]]
        forward = case.row(most, "forward")
        cells.append(f"{1 / forward['times']:.1f}" if forward else "")
        cells += [times(case.row(most, name)) for name in ("numpy", "torch", "jax")]
        rows.append([*label(case.case), case.target(), *cells])
    return rows


def beside_llama_cpp(data: Data) -> Rows:
    """One query: times of attnfast and llama.cpp, and the errors of both."""
    heads, most = threads_heads(data), max(data["threads"])
    rows = [[*LABEL, *heads, "llama.cpp stores", *(f"llama.cpp, {head}" for head in heads)]]
    rows[0] += [f"attnfast is faster, {head}" for head in heads]
    rows[0] += ["error", "llama.cpp's error"]
    for case in found(data):
        both = [[case.row(n, name) for n in data["threads"]] for name in (OWN, "llama.cpp")]
        own, other = ([duration(row) for row in side] for side in both)
        ratios = [times(row) for row in both[1]]
        stored = case.row(most, "llama.cpp")["variant"].split()[1]
        errors = [f"{side[-1]['error']:.1e}" for side in both]
        rows.append([*label(case.case), *own, stored, *other, *ratios, *errors])
    return rows


def cached(data: Data) -> Rows:
    """One query over what caches store: speed in that of float32, and beside other libraries."""
    peers = [name for name in data["others"] if name not in (*YARDSTICKS, "llama.cpp")]
    rows = [[*LABEL, "time", "speed, in that of float32", *(NAMES.get(p, p) for p in peers)]]
    rows[0].append("error (of NumPy's)")
    for case in found(data):
        own = case.row(1)
        cells = [duration(own), times(case.row(1, "attention"))]
        cells += [times(case.row(1, name)) for name in peers]
        rows.append([*label(case.case), *cells, error(own)])
    return rows


def speed(row: Data) -> str:
    """Work a second."""
    return f"{row['speed']:.3g} {row['unit']}" if "speed" in row else ""


def error(row: Data) -> str:
    """The largest error, and its ratio to that of plain NumPy in the same precision."""
    return f"{row['error']:.1e} ({row['error_ratio']:.1f})" if "error" in row else ""


def modelled(data: Data) -> Rows:
    """More threads: what two bring by measurement and model, and what many bring by the model."""
    here, many = data["threads"][-1], data["modelled_threads"]
    rows = [[*LABEL, "units", f"{here} threads", "model", f"{many} threads: model", "bound by"]]
    for row in data["rows"]:
        speed_ups = f"{row['measured']:.2f}", f"{row['model']:.2f}", f"{row['many']:.0f}"
        rows.append([*label(CASES[row["case"]]), str(row["units"]), *speed_ups, row["bound"]])
    return rows


def plain_loops(data: Data) -> Rows:
    """Plain loops in C beside each instruction set, on one thread."""
    isas = list(data["rows"][0]["times"])
    rows = [["heads x length x head size", "plain loops in C", *isas]]
    for row in data["rows"]:
        ratios = [f"{row['times'][isa]:.1f} x" for isa in isas]
        rows.append([row["size"], duration(row), *ratios])
    return rows


def kept_promises(data: Data) -> Rows:
    """What bits of results depend on, for each way of a library: `promises.py` asks."""
    asked = {
        "hidden value": "NaN in a hidden value changes",
        "hidden key": "in a hidden key",
        "no key": "a query that sees no key gives",
        "threads": "bits on 1 and 2 threads",
        "alone": "of a row alone and in a batch",
        "gradients": "of gradients",
    }
    rows = [["", *asked.values()]]
    for row in data["rows"]:
        way = NAMES.get(row["contestant"], row["contestant"])
        way = way if row["contestant"] in (OWN, PLAIN) else f"{way}, `{row['variant']}`"
        rows.append([way, *(row[question] for question in asked)])
    return rows


def beside_every_peer(data: Data) -> Rows:
    """Cases of each kind: how many times longer every other library takes, on all threads."""
    most = max(data["threads"])
    peers = [name for name in data["others"] if name not in YARDSTICKS]
    rows = [[*LABEL, "attnfast", *(NAMES.get(name, name) for name in peers), "fastest of them"]]
    for case in found(data):
        if case.case.name in SHOWN:
            cells = [times(case.row(most, name)) for name in peers]
            best = case.best(most)
            last = f"{who(best)} {times(best)}".strip()
            rows.append([*label(case.case), figure(case.row(most)), *cells, last])
    return rows


def skipped(data: Data) -> Rows:
    """Patterns of the family that skip: share of the peak, how many times longer others take."""
    most = max(data["threads"])
    asked = {"attention": "all pairs, by `attention`", "numpy": "NumPy", "torch": "PyTorch"}
    rows = [[*LABEL, "of the peak", *asked.values()]]
    for case in found(data):
        if case.case.name in SHOWN:
            cells = [times(case.row(most, name)) for name in asked]
            rows.append([*label(case.case), figure(case.row(most)), *cells])
    return rows


# By the name between the marks: the file of the figures, and how they are laid out.
TABLES: dict[str, tuple[str, Callable[[Data], Rows]]] = {
    "avx2": ("avx2", against_targets),
    "caches": ("caches", cached),
    "costs": ("grid", chosen_costs),
    "family": ("family", family_costs),
    "grid": ("grid", beside_others),
    "half": ("half", against_float32),
    "llama_cpp": ("llama_cpp", beside_llama_cpp),
    "loops": ("loops", plain_loops),
    "machines": ("machines", every_machine),
    "peers": ("grid", beside_every_peer),
    "promises": ("promises", kept_promises),
    "shapes": ("shapes", against_targets),
    "skipped": ("family", skipped),
    "steps": ("training", some_training_costs),
    "threads": ("threads", modelled),
    "training": ("training", training_costs),
    "training_avx2": ("training_avx2", against_targets),
}

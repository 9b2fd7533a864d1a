"""Which promises of attnfast do other libraries keep? Bits of results, not their speed.

    python bench/promises.py                             # beside every library that is installed
    python bench/promises.py --peers torch,jax --write   # the data and the pages

A line for each way of a library to compute attention. Each runs in processes of its own, on one
thread and on two. The questions, of random float32 arrays:

hidden value, hidden key    NaN is written where padding or causality hides it from a query: does a
                            bit of that query's result change?
threads                     are the bits those of one thread?
alone                       are the bits of a batch row those that it has alone?
no key                      what does a query return that sees no key?
gradients                   are their bits those of one thread, and of another run?
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import attnfast
import figures
import tables
from attnfast.bench.case import Case, few_case, self_case
from attnfast.bench.functions import function_of
from attnfast.bench.inputs import Inputs
from attnfast.bench.machine import machine_facts
from attnfast.bench.peers import CONTESTANTS, OWN, PLAIN, build, installed_peers
from attnfast.bench.processes import _environment

COMMAND = "python bench/promises.py"
QUESTIONS = ("hidden value", "hidden key", "threads", "alone", "no key", "gradients")
SEED = 7
PADDED = self_case("promises_padded", "4x8x256x64", mask="keypad")
CAUSAL = self_case("promises_causal", "2x8x512x64", causal=True)
DECODE = few_case("promises_decode", 2, "8kv8", 1, 4096)
FIRST_HIDDEN = 219  # of the causal case: within a block of keys that is computed
STEP = self_case("promises_step", "2x8x512x64", causal=True, function="training")

Results = dict[tuple[str, str, str], Any]  # by variant, case and what was changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", help="comma-separated, or none; default: all installed")
    parser.add_argument("--write", action="store_true", help="write the data and the pages")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print_results(options.worker[0], int(options.worker[1]))
        return 0
    names = options.peers.split(",") if options.peers else installed_peers()
    names = [] if names == ["none"] else names
    if unknown := [name for name in names if name not in installed_peers()]:
        parser.error(f"--peers: {unknown[0]} is not installed")
    versions, rows = {}, []
    for name in (OWN, PLAIN, *names):
        one, two, again = (results_of(name, threads) for threads in (1, 2, 2))
        versions[name] = one.pop(("", "version", ""))
        for variant in dict.fromkeys(variant for variant, _, _ in one if variant):
            answers = dict(zip(QUESTIONS, judge(variant, one, two, again), strict=True))
            if name == OWN and rows:  # its step of training is another variant
                rows[-1] |= {question: answer for question, answer in answers.items() if answer}
            else:
                rows.append({"contestant": name, "variant": variant, **answers})
    for row in rows:
        found = "; ".join(f"{question}: {row[question] or '-'}" for question in QUESTIONS)
        print(f"{row['contestant']:12} {row['variant']:22} {found}")
    if options.write:
        write(versions, rows)
    return 0


def results_of(name: str, threads: int) -> Results:
    """The results of a library, in a process of its own."""
    with tempfile.TemporaryFile() as file:
        command = [sys.executable, __file__, "--worker", name, str(threads)]
        subprocess.run(command, stdout=file, env=_environment(threads, None), check=True)
        file.seek(0)
        found: Results = pickle.load(file)
    return found


def print_results(name: str, threads: int) -> None:
    """Compute everything that is compared, and write it to the standard output."""
    contestant = build(name, threads)
    found: Results = {("", "version", ""): contestant.version}
    cases = [PADDED, CAUSAL, DECODE]
    if "training" in CONTESTANTS[name].functions:
        cases.append(STEP)
    for case in cases:
        for change, (changed, inputs) in changes(case).items():
            for variant, make in contestant.variants(changed, inputs).items():
                try:
                    prepared = make()
                    result = prepared.output(prepared.calls[0]())
                except Exception:  # what a library cannot do is no answer
                    continue
                arrays = result if isinstance(result, tuple) else (result,)
                found[variant, case.name, change] = [np.array(array) for array in arrays]
    pickle.dump(found, sys.stdout.buffer)


def changes(case: Case) -> dict[str, tuple[Case, Inputs]]:
    """The inputs of a case, and copies that differ where no result may change."""
    inputs = function_of(case).draw(case, SEED)
    made = {"": (case, inputs)}
    if case is STEP:
        return made
    made["alone"] = replace(case, batch=1), row(inputs, 1)
    if case is not DECODE:
        key, value = inputs.keys[0], inputs.values[0]
        hidden = hidden_keys(case, inputs)
        made["hidden key"] = case, replace(inputs, keys=[np.where(hidden, np.nan, key)])
        made["hidden value"] = case, replace(inputs, values=[np.where(hidden, np.nan, value)])
    if inputs.mask is not None:
        for change, seen in (("no key", False), ("all keys", True)):
            mask = inputs.mask.copy()
            mask[2] = seen
            made[change] = case, replace(inputs, mask=mask)
    return made


def hidden_keys(case: Case, inputs: Inputs) -> NDArray[np.bool_]:
    """Keys that the compared queries do not see, `(B, 1, Lk, 1)`."""
    if inputs.mask is not None:
        return ~inputs.mask.reshape(case.batch, 1, case.k_len, 1)
    return (np.arange(case.k_len) >= FIRST_HIDDEN).reshape(1, 1, case.k_len, 1)


def row(inputs: Inputs, number: int) -> Inputs:
    """One batch row of the inputs."""

    def cut(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(array[number : number + 1])

    mask = None if inputs.mask is None else cut(inputs.mask)
    keys, values = ([cut(array) for array in arrays] for arrays in (inputs.keys, inputs.values))
    return replace(inputs, query=cut(inputs.query), keys=keys, values=values, mask=mask)


def judge(variant: str, one: Results, two: Results, again: Results) -> Iterator[str]:
    """The answers to the questions, empty where a library has none."""
    cases = [name for v, name, change in one if v == variant and not change and name != STEP.name]

    def pairs(change: str, run: Results = one) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for name in cases:
            if (variant, name, change) in run:
                yield run[variant, name, ""][0], run[variant, name, change][0]

    def rows_two(change: str) -> NDArray[Any]:
        return one[variant, PADDED.name, change][0][2]

    for change in ("hidden value", "hidden key"):
        seen = [compare(*(x[:, :, :FIRST_HIDDEN] for x in pair)) for pair in pairs(change)]
        yield max(seen, key=["no bit", "rounding", "NaN"].index, default="")
    other = [same(one[variant, n, ""], two.get((variant, n, ""))) for n in cases]
    yield verdict(other)
    yield verdict([same([a[1:2]], [b]) for run in (one, two) for a, b in pairs("alone", run)])
    masked = (variant, PADDED.name, "no key") in one
    yield said(rows_two("no key"), rows_two("all keys")) if masked else ""
    step = variant, STEP.name, ""
    yield verdict([same(one[step], run.get(step)) for run in (two, again)]) if step in one else ""


def compare(plain: NDArray[Any], changed: NDArray[Any]) -> str:
    """What NaN in hidden places does."""
    if np.array_equal(plain, changed):
        return "no bit"
    return "NaN" if np.isnan(changed).any() else "rounding"


def same(a: list[NDArray[Any]], b: list[NDArray[Any]] | None) -> bool:
    """Whether all arrays have the same bits."""
    return b is not None and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def verdict(found: list[bool]) -> str:
    """One answer of several."""
    return "" if not found else "same" if all(found) else "differ"


def said(nothing: NDArray[Any], everything: NDArray[Any]) -> str:
    """What queries return that see no key, given what they return if they see all."""
    if not nothing.any():
        return "0"
    if np.isnan(nothing).any():
        return "NaN"
    if np.allclose(nothing, everything, atol=1e-5):
        return "as if all were seen"
    alike = np.ptp(nothing, axis=1).max() < 1e-5
    return "mean of hidden values" if alike else "other numbers"


def write(versions: dict[str, str], rows: list[dict[str, str]]) -> None:
    """Write the data and the pages that show it."""
    facts = machine_facts()
    head = {
        "command": COMMAND,
        "date": facts["date"],
        "version": figures.version(),
        "processor": f"{facts['cpu']}, {facts['cores']} cores",
        "isa": attnfast.available_isas()[0],
        "threads": [1, 2],
        "limits": {},
        "others": {name: version for name, version in versions.items() if name != OWN},
        "note": "",
    }
    tables.save("promises", {**head, "rows": rows})
    figures.write_pages()


if __name__ == "__main__":
    sys.exit(main())

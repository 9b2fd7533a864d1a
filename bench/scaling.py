"""Print what more threads would bring, by a model held against a run on one and all threads.

    python bench/targets.py --json RUN.json
    python bench/scaling.py RUN.json --threads 64 --bandwidth 460

A call of T seconds on one thread that is cut into units takes on n threads

    max(T * share of the busiest thread, bytes / bandwidth) + waking the threads

where the busiest thread does ceil(units / n) of the equal units. Under a causal mask units are
unequal and the heaviest come first, so there its share is 1 / n, but no less than that of the
heaviest unit, twice the average one. Bytes are those of the arrays, each read or written once.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

import attnfast
from attnfast.bench.case import Case
from attnfast.bench.functions.attention import call_options
from attnfast.bench.inputs import Inputs
from attnfast.bench.machine import cpu_name
from attnfast.bench.results import CaseResult, Report
from targets import on_one_thread

WAKE_SECONDS = 5e-6  # a parallel region of libgomp, threads awake


def plan_of(case: Case, threads: int) -> attnfast.Plan:
    """The plan of a case as far as shapes decide it; needs no memory."""

    def array(heads: int, length: int, width: int) -> np.ndarray:
        zero = np.zeros((), case.dtype)
        return np.broadcast_to(zero, (case.batch, heads, length, width)).view()

    query = array(case.heads, case.q_len, case.head_dim)
    key = array(case.kv_heads, case.k_len, case.head_dim)
    value = array(case.kv_heads, case.k_len, case.value_dim)
    options = call_options(case, Inputs(query, [key], [value], None, None))
    return attnfast.plan(query, key, value, num_threads=threads, **options)


def busiest_share(case: Case, plan: attnfast.Plan) -> float:
    """The part of the work that the thread with most of it does."""
    if case.causal and case.window is None:
        return max(1 / plan.threads, min(1.0, 2 / plan.tasks))
    return math.ceil(plan.tasks / plan.threads) / plan.tasks


def model(result: CaseResult, alone: float, threads: int, bandwidth: float) -> tuple[float, str]:
    """Seconds on `threads` threads, and what holds them up."""
    plan = plan_of(result.case, threads)
    if plan.threads == 1:
        return alone, "too small"
    share = busiest_share(result.case, plan)
    memory = plan.bytes / (1e9 * bandwidth)
    bound = "memory" if memory > alone * share else "units" if share > 1.1 / threads else "-"
    return max(alone * share, memory) + WAKE_SECONDS, bound


def speed_ups(report: Report, threads: int, bandwidth: float) -> list[dict[str, Any]]:
    """What all threads bring in each case, by measurement and by the model, and what many bring."""
    rows: list[dict[str, Any]] = []
    for result in report.results:
        if result.case.function != "attention":
            continue  # its plan is another
        one = on_one_thread(report, result)
        alone = one.entries["attnfast"].median if one else None
        together = result.entries["attnfast"].median
        if not alone or not together:
            continue
        near, _ = model(result, alone, report.threads, report.limits["bandwidth"])
        far, bound = model(result, alone, threads, bandwidth)
        rows.append(
            {
                "case": result.case.name,
                "units": plan_of(result.case, threads).tasks,
                "measured": round(alone / together, 2),
                "model": round(alone / near, 2),
                "many": round(alone / far, 1),
                "bound": bound,
            }
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What more threads would bring, by a model.")
    parser.add_argument("run", type=Path, help="written by python bench/targets.py --json")
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--bandwidth", type=float, default=460.0, help="of all threads, GB/s")
    options = parser.parse_args()
    report = Report.load(options.run)
    n, here = options.threads, report.threads
    print(f"{cpu_name()}; speed-up over one thread; {options.bandwidth:g} GB/s on {n} threads")
    heads = "units", f"{here}: measured", "model", f"{n}: model", "bound by"
    print(f"{'case':32}" + "".join(f"{head:>13}" for head in heads))
    for row in speed_ups(report, n, options.bandwidth):
        name, *cells = row.values()
        print(f"{name:32}" + "".join(f"{cell:>13}" for cell in cells))


if __name__ == "__main__":
    main()

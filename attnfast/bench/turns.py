"""Runs cases one after the other, on several numbers of threads in turn where that is asked for.

What one thread and all threads reach is compared, so each round of a case is run on the one and
then on the other, seconds apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .case import Case
from .processes import WorkerFailed
from .progress import Progress
from .results import OUT_OF_TIME, CaseResult, Report
from .runner import Runner

Side = tuple[Runner, Report]


def run_cases(
    sides: Sequence[Side],
    cases: Sequence[Case],
    progress: Progress,
    finished: Callable[[CaseResult], None],
) -> None:
    """Run the cases in order, adding each to every side's report as it finishes.

    The time that is left is shared out among the cases that are left. `finished` is told the
    result of the last side, when all sides have theirs.
    """
    for number, case in enumerate(cases):
        left = min(runner.seconds_left for runner, _ in sides)
        end = time.monotonic() + left / (len(cases) - number)

        def tell(share: float, text: str, number: int = number, case: Case = case) -> None:
            progress.step(number + share, f"{case.name}: {text}")

        try:
            if left <= 0:
                raise WorkerFailed(OUT_OF_TIME)
            results = _run_case([runner for runner, _ in sides], case, end, tell)
        except WorkerFailed as error:
            for _, report in sides:
                report.not_run[case.name] = str(error)
            continue
        for (_, report), result in zip(sides, results, strict=True):
            report.results.append(result)
        finished(results[-1])


def _run_case(
    runners: Sequence[Runner], case: Case, end: float, tell: Callable[[float, str], None]
) -> list[CaseResult]:
    """One case: every round on each runner; none is begun after `end` but the first."""
    runs = []
    try:
        for runner in runners:
            runs.append((runner, runner.begin(case, tell)))
        for turn in range(max(runner.rounds for runner in runners)):
            if turn and time.monotonic() > end:
                break
            for runner, run in runs:
                runner.round(run, turn, tell)
    finally:  # memory is given back even if a process has died
        results = [runner.end(run) for runner, run in runs]
    return results

"""What `attnfast bench` makes of a run: targets reached or missed, figures, both from a file."""

import argparse
import subprocess
import sys
from dataclasses import replace

import pytest

from attnfast.bench import command, plot
from attnfast.bench.cases import CASES, select
from attnfast.bench.plot import draw, line_of
from attnfast.bench.processes import WorkerFailed
from attnfast.bench.progress import Lines
from attnfast.bench.report import header_lines
from attnfast.bench.results import CaseResult, Entry, Report
from attnfast.bench.runner import Settings
from attnfast.bench.target_table import cells_of, slowdown, target_row, target_totals
from attnfast.bench.targets import BANDWIDTH, MICROSECONDS, PEAK, target_of
from attnfast.bench.turns import run_cases
from attnfast.cli import main

NAMES = [*PEAK, *BANDWIDTH, *MICROSECONDS]


def result_of(name, peak, **seconds):
    """A case with the times of its contestants, one round each; 100 GB/s of memory."""
    case = select([name])[0]
    entries = {
        contestant: Entry(contestant, "way", [time], [time], error=1e-7)
        for contestant, time in seconds.items()
    }
    for contestant in ("attnfast", "numpy", "torch"):
        entries.setdefault(contestant, Entry(contestant, note="the scores would take 9.9 GB"))
    pairs = case.batch * case.q_len * case.k_len
    return CaseResult(case, pairs, peak, 100.0 if case.cold else None, 1e-7, entries)


def seconds_at(name, share, peak):
    """The time of a call at a share of the limit."""
    result = result_of(name, peak)
    return result.work / (share * result.limit)


def report_of(results, threads, peak, **changes):
    machine = {
        "version": "1.2",
        "cpu": "Some CPU",
        "cores": 4,
        "affinity": 4,
        "quota": None,
        "isa": "avx512",
        "isas": ["avx512", "avx2"],
        "openmp": "none",
        "numpy": "2",
        "blas": "some",
        "python": "3",
        "date": "2030-01-02",
        **changes,
    }
    settings = {"threads": threads, "rounds": 3}
    limits = {"fma_float32": peak, "fma_float64": peak / 2, "bandwidth": 100.0}
    contestants = {"attnfast": "1.2", "numpy": "2", "torch": "3"}
    return Report(machine, settings, limits, contestants, results)


@pytest.fixture
def run():
    """A run on four threads beside one: shares chosen for each case, torch half as fast."""
    chosen = {  # share on one thread, on four
        "full_1x16x2048x64": (0.91, 0.85),
        "decode_b1_32kv8_1024x128": (0.88, 0.95),
        "full_8x12x512x64": (0.5, 0.9),
        "full_1x12x512x64": (0.9, 0.2),
    }
    one, four = [], []
    for name, (alone, together) in chosen.items():
        one.append(result_of(name, 100.0, attnfast=seconds_at(name, alone, 100.0)))
        time = seconds_at(name, together, 400.0)
        four.append(result_of(name, 400.0, attnfast=time, torch=2 * time))
    one.append(result_of("tiny_1x12x16x64", 100.0, attnfast=30e-6))
    four.append(result_of("tiny_1x12x16x64", 400.0, attnfast=11e-6, torch=12e-6))
    report = report_of(four, 4, 400.0)
    report.one_thread = report_of(one, 1, 100.0)
    return report


@pytest.fixture
def swept():
    """A run of every sweep on two threads beside one, a peer left out of the longest."""
    reports = []
    for threads, peak in ((1, 100.0), (2, 200.0)):
        results = []
        for case in select(["sweep_*"]):
            time = seconds_at(case.name, 0.9, peak)
            others = {} if case.q_len > 4096 else {"torch": 2 * time, "numpy": 9 * time}
            results.append(result_of(case.name, peak, attnfast=time, **others))
        reports.append(report_of(results, threads, peak))
    reports[1].one_thread = reports[0]
    return reports[1]


def test_every_target_has_a_case_of_the_grid():
    grid = {case.name: case for case in CASES}
    assert len(set(NAMES)) == len(NAMES) and set(NAMES) <= set(grid)
    assert set(BANDWIDTH) == {case.name for case in CASES if case.cold}
    assert all(0 < value < 100 for value in (*PEAK.values(), *BANDWIDTH.values()))


def test_only_shares_of_the_peak_make_allowance_for_avx2():
    for name in NAMES:
        wide, narrow = target_of(name, "avx512"), target_of(name, "avx2")
        assert wide.value - narrow.value == (5 if name in PEAK else 0)
    assert target_of("full_8x12x512x64", "avx512") is None
    assert str(target_of("tiny_1x1x1x64_k16", "avx2")) == "2.5 us"
    assert str(target_of("decode_b1_32kv8_1024x128", "avx2")) == "90 % memory"


def test_cells_are_reached_or_say_what_is_missing(run):
    cells = {result.case.name: cells_of(run, result) for result in run.results}
    assert [str(cell) for cell in cells["full_1x16x2048x64"]] == ["✓", "-5.0"]
    assert [str(cell) for cell in cells["decode_b1_32kv8_1024x128"]] == ["-2.0", "✓"]
    assert [str(cell) for cell in cells["full_8x12x512x64"]] == ["-", "-"]
    assert [str(cell) for cell in cells["tiny_1x12x16x64"]] == ["-", "+1 us"]
    assert [cell.threads for cell in cells["tiny_1x12x16x64"]] == [1, 4]
    alone = report_of(run.one_thread.results, 1, 100.0)
    assert [str(cell) for cell in cells_of(alone, alone.results[0])] == ["✓"]


def test_more_threads_that_are_slower_than_one_are_flagged(run):
    slow = [result.case.name for result in run.results if slowdown(run, result)]
    assert slow == ["full_1x12x512x64"]
    assert "1.12 x slower than on 1 thread" in target_row(run, run.results[3], True)[-1]


def test_rows_of_targets_name_the_fastest_other(run):
    row = target_row(run, run.results[0], True)
    assert row[:4] == ["full_1x16x2048x64", "90 % peak", "91.0 %", "85.0 %"]
    assert row[4] == "torch/way 42.5 %, x 2.00"
    assert len(target_row(run, run.results[0], False)) == len(row) - 1
    run.results[0].entries["attnfast"] = Entry("attnfast", wrong=True)
    assert target_row(run, run.results[0], True)[3] == "WRONG"


def test_totals_count_the_judged_cells(run):
    reached, slower = target_totals(run)
    assert reached == "reached: 3 of 7 cells; 2 of 3 on 1 thread, 1 of 4 on 4 threads"
    assert slower == "slower on 4 threads than on 1: full_1x12x512x64"
    del run.results[:2], run.results[1:]
    assert target_totals(run) == ["reached: no case has a target"]


def test_a_run_on_two_numbers_of_threads_survives_json(run, tmp_path):
    run.save(tmp_path / "run.json")
    again = Report.load(tmp_path / "run.json")
    assert again == run and again.one_thread.threads == 1
    limits = [line for line in header_lines(again) if line.startswith("limits")]
    assert "100 GFLOP/s" in limits[0] and "400 GFLOP/s" in limits[1]


def test_an_earlier_run_is_shown_again(run, tmp_path, capsys):
    run.save(tmp_path / "run.json")
    assert main(["bench", "--targets", "--from", str(tmp_path / "run.json")]) == 0
    printed = capsys.readouterr().out
    assert "reached: 3 of 7 cells" in printed and "against torch" in printed
    assert printed.count("numpy: the scores would take 9.9 GB (full_1x16x2048x64, decode") == 1
    assert main(["bench", "--from", str(tmp_path / "run.json")]) == 0
    assert "% of limit" in capsys.readouterr().out
    picture = ["--plot", str(tmp_path / "a.png"), "--from", str(tmp_path / "run.json")]
    assert main(["bench", *picture]) == 2
    assert "no sweep_* cases" in capsys.readouterr().err


def test_a_wrong_result_on_one_thread_is_a_failure(run, tmp_path):
    run.one_thread.results[0].entries["attnfast"].wrong = True
    run.save(tmp_path / "run.json")
    assert main(["bench", "--targets", "--from", str(tmp_path / "run.json")]) == 1


def test_a_target_is_reached_to_the_digits_that_are_shown():
    name, target = "full_1x16x2048x64", target_of("full_1x16x2048x64", "avx512")
    for share, missing in ((0.8996, 0.0), (0.8994, 0.1), (0.95, 0.0)):
        result = result_of(name, 100.0, attnfast=seconds_at(name, share, 100.0))
        assert target.missing(result) == missing
    assert target.missing(result_of(name, 100.0)) is None


@pytest.fixture(scope="module")
def targets_run(tmp_path_factory):
    """One short run of the real command on one and two threads."""
    path = tmp_path_factory.mktemp("targets") / "run.json"
    options = ["--targets", "--cases", "tiny_1x12x16x64", "--peers", "none", "--threads", "2"]
    options += ["--rounds", "2", "--burst", "0.01", "--json", str(path)]
    command_line = [sys.executable, "-P", "-m", "attnfast.bench", *options]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, Report.load(path)


def test_targets_are_measured_on_one_thread_and_on_all(targets_run):
    text, report = targets_run
    assert report.threads == 2 and report.one_thread.threads == 1
    for side in report.runs:
        assert list(side.contestants) == ["attnfast"]
        assert len(side.results[0].entries["attnfast"].rounds) == 2
    assert "1 thread" in text and "2 threads" in text and "best other" not in text
    assert "reached:" in text and "of 1 cells" in text


class FakeRunner:
    """Notes what it is asked to do."""

    rounds = 2
    seconds_left = 1e9

    def __init__(self, name, log, fails=()):
        self._name, self._log, self._fails = name, log, fails

    def begin(self, case, tell):
        if case.name in self._fails:
            raise WorkerFailed("no room")
        return case

    def round(self, run, turn, tell):
        self._log.append((self._name, run.name, turn))

    def end(self, run):
        return result_of(run.name, 100.0)


def test_rounds_alternate_and_a_case_that_fails_is_left_out_of_both():
    chosen, log, finished = select(["tiny_1x12x*"]), [], []
    runners = [FakeRunner("one", log), FakeRunner("all", log, fails=[chosen[1].name])]
    sides = [(runner, report_of([], n, 100.0)) for runner, n in zip(runners, (1, 2), strict=True)]
    run_cases(sides, chosen, Lines(2), finished.append)
    first = chosen[0].name
    assert log == [(side, first, turn) for turn in (0, 1) for side in ("one", "all")]
    assert [result.case for result in finished] == [chosen[0]]
    for _, report in sides:
        assert [result.case for result in report.results] == [chosen[0]]
        assert report.not_run == {chosen[1].name: "no room"}


def test_sides_are_two_only_where_both_are_shown():
    def sides(threads, *arguments):
        options = argparse.ArgumentParser()
        command.add_arguments(options)
        settings = Settings(threads=threads, peers=("torch",))
        return command._sides(options.parse_args(arguments), settings)

    assert [side.threads for side in sides(4)] == [4]
    assert [side.threads for side in sides(1, "--targets")] == [1]
    one, four = sides(4, "--targets")
    assert (one.threads, one.peers, one.plain) == (1, (), False)
    assert (four.threads, four.peers, four.plain) == (4, ("torch",), True)
    assert [side.peers for side in sides(4, "--plot", "a.png")] == [("torch",)] * 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--plot", "no_such_folder/a.png"], "no_such_folder"),
        (["--plot", "a.gif"], ".svg"),
        (["--plot", "a.png", "--quick"], "--cases"),
        (["--plot", "a.png", "--cases", "tiny_*"], "tiny_1x1x1x64_k16"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused_at_once(options, named, capsys, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: object())
    assert main(["bench", *options]) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.out == ""


def test_without_matplotlib_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert main(["bench", "--plot", "a.png"]) == 2
    captured = capsys.readouterr()
    assert "pip install" in captured.err and captured.out == ""


def test_lines_have_the_points_that_were_timed(swept):
    own = line_of(swept, "sweep_window256", "attnfast")
    other = line_of(swept, "sweep_window256", "torch")
    assert [result.case.q_len for result in own] == [2**n for n in range(9, 17)]
    assert [result.case.q_len for result in other] == [512, 1024, 2048, 4096]
    assert line_of(swept, "sweep_window256", "jax") == []


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_is_drawn_from_a_stored_run(suffix, swept, tmp_path):
    pytest.importorskip("matplotlib")
    swept.save(tmp_path / "run.json")
    path = tmp_path / f"figure.{suffix}"
    assert main(["bench", "--plot", str(path), "--from", str(tmp_path / "run.json")]) == 0
    assert path.stat().st_size > 5000
    if suffix == "svg":
        text = path.read_text()
        for word in ("attnfast 1.2", "NumPy 2", "PyTorch 3", "Some CPU", "2030-01-02"):
            assert word in text
        for word in ("FMA peak 100 GFLOP/s", "FMA peak 200 GFLOP/s", "causal, 2 threads"):
            assert word in text


def test_a_figure_of_one_number_of_threads_and_one_sweep(swept, tmp_path):
    pytest.importorskip("matplotlib")
    results = [result for result in swept.results if result.case.series == "sweep_causal"]
    draw(replace(swept, results=results, one_thread=None), tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert "causal, 2 threads" in text and "1 thread" not in text and "full" not in text

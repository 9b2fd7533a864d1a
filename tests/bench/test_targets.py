"""`bench/targets.py`: the targets, which of them a run reaches, and a run of the script."""

import argparse
import subprocess
import sys

import pytest

from attnfast.bench.cases import CASES, GROUPS, select
from attnfast.bench.functions import function_of
from attnfast.bench.options import add_run_options
from attnfast.bench.results import Entry, Report
from support.paths import ROOT
from support.runs import report_of, result_of, seconds_at
from support.scripts import import_script

SCRIPT = ROOT / "bench" / "targets.py"
targets = import_script(SCRIPT)
values = import_script(SCRIPT.with_name("target_values.py"))

TOP, ADDITIVE = "family_topk16_1x16x2048x64", "family_additive_8x1x64x256"
HALF = "half_float16_1x16x2048x64"
YARDSTICKED = {"attnfast": "1.2", "numpy": "2", "attention": "1.2"}
NAMES = [*values.PEAK, *values.BANDWIDTH, *values.MICROSECONDS]


@pytest.fixture
def run():
    """A run on four threads beside one: shares chosen for each case, torch half as fast."""
    chosen = {  # share on one thread, on four
        "full_1x16x2048x64": (0.91, 0.85),
        "decode_b1_32kv8_1024x128": (0.88, 0.95),
        "full_32x12x128x64": (0.5, 0.9),
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


def test_every_target_has_a_case_of_the_grid_or_of_training():
    known = {case.name for case in (*CASES, *GROUPS["train"])}
    assert len(set(NAMES)) == len(NAMES) and set(NAMES) <= known
    assert set(values.BANDWIDTH) == {case.name for case in CASES if case.cold}
    shares = [*values.PEAK.values(), *values.BANDWIDTH.values()]
    assert all(0 < value < 100 for both in shares for value in both)


def test_targets_are_set_for_avx512_and_for_all_others():
    for name in NAMES:
        wide, avx2, generic = (values.target_of(name, isa) for isa in ("avx512", "avx2", "generic"))
        assert avx2 == generic
        easier = max if name in values.MICROSECONDS else min
        assert wide != avx2 and easier(wide.value, avx2.value) == avx2.value
    assert str(values.target_of("full_1x32x2048x128", "avx512")) == "92 % peak"
    assert str(values.target_of("full_1x32x2048x128", "avx2")) == "88 % peak"
    assert str(values.target_of("decode_b1_32kv8_1024x128", "avx2")) == "88 % memory"
    assert str(values.target_of("tiny_1x1x1x64_k16", "neon")) == "2.5 us"
    assert str(values.target_of("train_1x8x2048x64", "avx512")) == "84 % peak"
    assert str(values.target_of("train_backward_window256_1x8x4096x64", "avx2")) == "66 % peak"
    assert values.target_of("full_32x12x128x64", "avx512") is None


def test_a_run_is_judged_by_the_instruction_set_that_it_used():
    result = result_of("full_1x16x2048x64", attnfast=seconds_at("full_1x16x2048x64", 0.84, 100.0))
    for isa, cell in (("avx512", "-6.0"), ("avx2", "✓")):
        report = report_of([result], isa=isa)
        assert targets.target_row(report, result, False)[-1].strip() == cell


def test_cells_are_reached_or_say_what_is_missing(run):
    cells = {result.case.name: targets.cells_of(run, result) for result in run.results}
    assert [str(cell) for cell in cells["full_1x16x2048x64"]] == ["✓", "-5.0"]
    assert [str(cell) for cell in cells["decode_b1_32kv8_1024x128"]] == ["-4.0", "✓"]
    assert [str(cell) for cell in cells["full_32x12x128x64"]] == ["-", "-"]
    assert [str(cell) for cell in cells["tiny_1x12x16x64"]] == ["-", "+1 us"]
    assert [cell.threads for cell in cells["tiny_1x12x16x64"]] == [1, 4]
    alone = report_of(run.one_thread.results, 1, 100.0)
    assert [str(cell) for cell in targets.cells_of(alone, alone.results[0])] == ["✓"]


def test_more_threads_that_are_slower_than_one_are_flagged(run):
    slow = [result.case.name for result in run.results if targets.slowdown(run, result)]
    assert slow == ["full_1x12x512x64"]
    assert "1.12 x slower than on 1 thread" in targets.target_row(run, run.results[3], True)[-1]
    both, alone = (r.results[0].entries["attnfast"] for r in (run, run.one_thread))
    for times, beyond_noise in ((1.02, False), (1.04, True)):
        both.rounds = [times * alone.median]
        assert bool(targets.slowdown(run, run.results[0])) == beyond_noise


def test_rows_of_targets_name_the_fastest_other(run):
    row = targets.target_row(run, run.results[0], True)
    assert row[:4] == ["full_1x16x2048x64", "90 % peak", "91.0 %", "85.0 %"]
    assert row[4] == "torch/way 42.5 %, x 2.00"
    assert len(targets.target_row(run, run.results[0], False)) == len(row) - 1
    run.results[0].entries["attnfast"] = Entry("attnfast", wrong=True)
    assert targets.target_row(run, run.results[0], True)[3] == "WRONG"


def test_totals_count_the_judged_cells(run):
    reached, slower = targets.target_totals(run)
    assert reached == "reached: 3 of 7 cells; 2 of 3 on 1 thread, 1 of 4 on 4 threads"
    assert slower == "slower on 4 threads than on 1: full_1x12x512x64"
    del run.results[:2], run.results[1:]
    assert targets.target_totals(run) == ["reached: no case has a target"]


def test_an_earlier_run_is_shown_again(run, tmp_path, capsys):
    run.save(tmp_path / "run.json")
    assert targets.main(["--from", str(tmp_path / "run.json")]) == 0
    printed = capsys.readouterr().out
    assert "reached: 3 of 7 cells" in printed and "against torch" in printed
    assert printed.count("numpy: the scores would take 9.9 GB (full_1x16x2048x64, decode") == 1


def test_a_wrong_result_on_one_thread_is_a_failure(run, tmp_path):
    run.one_thread.results[0].entries["attnfast"].wrong = True
    run.save(tmp_path / "run.json")
    assert targets.main(["--from", str(tmp_path / "run.json")]) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--cases", "no_such_case"], "no_such_case"),
        (["--json", "no_such_folder/run.json"], "no_such_folder"),
        (["--from", "no_such_file.json"], "no_such_file.json"),
    ],
)
def test_bad_values_are_named(options, named, capsys):
    assert targets.main(options) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.out == ""


def test_a_target_is_reached_to_the_digits_that_are_shown():
    name, target = "full_1x16x2048x64", values.target_of("full_1x16x2048x64", "avx512")
    for share, missing in ((0.8996, 0.0), (0.8994, 0.1), (0.95, 0.0)):
        result = result_of(name, 100.0, attnfast=seconds_at(name, share, 100.0))
        assert target.missing(result) == missing
    assert target.missing(result_of(name, 100.0)) is None


@pytest.fixture(scope="module")
def targets_run(tmp_path_factory):
    """One short run of the real command on one and two threads."""
    path = tmp_path_factory.mktemp("targets") / "run.json"
    options = ["--cases", "tiny_1x12x16x64", "--peers", "none", "--threads", "2"]
    options += ["--rounds", "2", "--burst", "0.01", "--json", str(path)]
    command_line = [sys.executable, str(SCRIPT), *options]
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


def test_one_thread_has_only_what_targets_are_relative_to(monkeypatch):
    peers = {"none": (), "auto": ("torch",)}
    monkeypatch.setattr(targets, "chosen_peers", peers.__getitem__)

    def sides(cases, *arguments, **everyone):
        options = argparse.ArgumentParser()
        add_run_options(options, "grid")
        found = targets.sides_of(options.parse_args(arguments), select([cases]), **everyone)
        return [(side.threads, side.others) for side in found]

    assert sides("tiny_1x12x16x64", "--threads", "1") == [(1, ("numpy", "torch"))]
    assert sides("tiny_1x12x16x64", "--threads", "4") == [(1, ()), (4, ("numpy", "torch"))]
    assert sides("tiny_1x12x16x64", "--threads", "4", "--peers", "none") == [(1, ()), (4, ())]
    for name, yardstick in ((TOP, "attention"), (HALF, "float32")):
        one, four = sides(name, "--threads", "4")
        assert one == (1, (yardstick,)) and four == (4, ("numpy", yardstick, "torch"))
        assert sides(name, "--threads", "4", "--peers", "none") == [one, (4, (yardstick,))]
    both = sides("tiny_1x12x16x64", "--threads", "4", all_on_one=True)
    assert both == [(1, ("numpy", "torch")), (4, ("numpy", "torch"))]
    alone = [(threads, ("numpy",)) for threads in (1, 4)]  # the additive target is one to NumPy
    assert sides(ADDITIVE, "--threads", "4", "--peers", "none") == alone


def result_beside(name, **seconds):
    return result_of(name, contestants=YARDSTICKED, **seconds)


def test_targets_are_times_another_contestant_of_the_same_run():
    groups = [GROUPS[name] for name in ("family", "half", "train")]
    known = {case.name: case for group in groups for case in group}
    for name, (_, than) in values.TIMES.items():
        assert than in ("numpy", *function_of(known[name]).yardsticks(known[name]))
    target = values.target_of(TOP, "avx512")
    assert str(target) == "0.6 x attention" == str(values.target_of(TOP, "avx2"))
    assert target.missing(result_beside(TOP, attnfast=2.0, attention=1.0)) == pytest.approx(0.1)
    assert target.missing(result_beside(TOP, attnfast=1.6, attention=1.0)) == 0
    assert target.missing(result_beside(TOP, attnfast=1.6)) is None
    target = values.target_of(ADDITIVE, "avx512")
    assert target.missing(result_beside(ADDITIVE, attnfast=1.0, numpy=15.0)) == 5
    assert target.missing(result_beside(ADDITIVE, attnfast=1.0, numpy=25.0)) == 0
    target = values.target_of("train_backward_additive_16x1x100x128", "avx512")
    assert str(target) == "0.25 x forward"
    assert str(values.target_of(HALF, "avx2")) == "0.97 x float32"
    assert (
        str(values.target_of("half_bfloat16_decode_b1_32kv8_4096x128", "avx512")) == "1.9 x float32"
    )


def test_the_table_takes_the_family():
    results = [
        result_beside(TOP, attnfast=2.0, attention=1.0, numpy=8.0),
        result_beside(ADDITIVE, attnfast=1.0, attention=0.5, numpy=22.0),
        result_beside("family_additive_1x1x512x256", attnfast=1.0, attention=0.5, numpy=7.0),
    ]
    report = report_of(results, contestants=YARDSTICKED)
    rows = [targets.target_row(report, result, True) for result in results]
    assert [cells[1:3] for cells in rows] == [
        ["0.6 x attention", "0.5 x"],
        ["20 x numpy", "22 x"],
        ["-", "7 x"],
    ]
    assert rows[0][3].startswith("numpy/way") and rows[0][4].strip() == "-0.1 x"
    assert targets.target_totals(report) == ["reached: 1 of 2 cells; 1 of 2 on 2 threads"]

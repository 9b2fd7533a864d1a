"""`attnfast bench`: work is counted right, wrong answers get no time, reports survive JSON."""

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import attnfast
from attnfast import reference
from attnfast.bench import case as case_module
from attnfast.bench import command, machine, progress
from attnfast.bench.case import Case
from attnfast.bench.cases import CASES, GROUPS, QUICK, select
from attnfast.bench.compare import Change, comparison_lines
from attnfast.bench.functions import function_of
from attnfast.bench.functions.attention import call_options
from attnfast.bench.inputs import (
    exact_rows,
    make_inputs,
    sample_rows,
    take_rows,
    visible_pairs,
)
from attnfast.bench.peers import Prepared, installed_peers
from attnfast.bench.peers.plain_math import plain_attention, plain_half
from attnfast.bench.processes import WorkerFailed, WorkerProcess
from attnfast.bench.quota import cpu_quota
from attnfast.bench.report import format_entry, row
from attnfast.bench.results import CaseResult, Entry, Report
from attnfast.bench.runner import Runner, Settings
from attnfast.bench.turns import run_cases
from attnfast.bench.worker import Worker
from attnfast.cli import main

SMALL = [
    Case("plain", 2, 3, 3, 5, 5, 8, 8),
    Case("grouped", 2, 6, 2, 4, 4, 8, 6, causal=True),
    Case("longer", 1, 2, 1, 3, 11, 4, 4, causal=True, at_end=True),
    Case("shorter", 1, 2, 2, 9, 4, 4, 4, causal=True, at_end=True),
    Case("window", 1, 2, 2, 9, 9, 4, 4, window=(2, 1)),
    Case("causal window", 2, 2, 2, 9, 9, 4, 4, causal=True, window=(3, 0)),
    Case("padding", 3, 2, 2, 6, 12, 4, 4, mask="keypad"),
    Case("padding and window", 3, 2, 2, 12, 12, 4, 4, mask="keypad", causal=True, window=(3, 0)),
    Case("dense", 2, 2, 2, 40, 40, 4, 4, mask="dense"),
    Case("dense causal", 2, 2, 2, 40, 40, 4, 4, mask="dense", causal=True),
    Case("bias", 2, 2, 2, 5, 7, 4, 4, mask="bias"),
    Case("softcap", 2, 2, 2, 5, 7, 4, 4, softcap=1.5, causal=True, at_end=True),
    Case("float64", 1, 2, 2, 5, 7, 4, 4, dtype="float64"),
    Case("float16", 1, 4, 2, 5, 7, 4, 4, dtype="float16"),
    Case("bfloat16", 1, 2, 2, 5, 7, 4, 4, dtype="bfloat16", mask="bias"),
]
small = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
QUICK_OPTIONS = ["--rounds", "2", "--burst", "0.01", "--peers", "none", "--threads", "1"]


def seen(case, inputs, b, i, j):
    """The rules of a case for one pair, written out."""
    position = i + (case.k_len - case.q_len if case.at_end else 0)
    if case.causal and j > position:
        return False
    if case.window and not position - case.window[0] <= j <= position + case.window[1]:
        return False
    if case.mask == "keypad":
        return bool(inputs.mask[b, 0, 0, j])
    return bool(inputs.mask[i, j]) if case.mask == "dense" else True


@pytest.mark.quick
@small
def test_visible_pairs_and_flops_are_what_brute_force_counts(case):
    inputs = make_inputs(case, seed=3)
    pairs = multiplications = 0
    for b in range(case.batch):
        for i in range(case.q_len):
            for j in range(case.k_len):
                if seen(case, inputs, b, i, j):
                    pairs += 1
                    multiplications += case.heads * (case.head_dim + case.value_dim)
    assert visible_pairs(case, inputs) == pairs
    assert case.flops(pairs) == 2 * multiplications


def test_masks_hide_something_but_not_everything():
    for case in SMALL:
        if case.mask in ("keypad", "dense"):
            mask = make_inputs(case, seed=2).mask
            assert mask.any(axis=-1).all(), case.name
            assert not mask.all(), case.name


@small
def test_checked_rows_are_those_of_the_reference(case):
    inputs = make_inputs(case, seed=4)
    exact = reference.attention(
        inputs.query, inputs.keys[0], inputs.values[0], **call_options(case, inputs)
    )
    sample = sample_rows(case)
    assert sum(len(rows) for *_, rows in sample) == case.batch * case.heads * case.q_len
    np.testing.assert_allclose(
        exact_rows(case, inputs, sample), take_rows(exact, sample), rtol=0, atol=1e-13
    )


def test_large_cases_are_checked_at_both_ends():
    case = select(["full_8x12x512x64"])[0]
    sample = sample_rows(case)
    assert sample[0][:2] == (0, 0) and sample[-1][:2] == (7, 11)
    for *_, rows in sample:
        assert rows[0] == 0 and rows[-1] == 511 and len(set(rows)) == len(rows) > 2


def test_inputs_follow_the_seed():
    case = SMALL[6]
    first, again, other = (make_inputs(case, seed) for seed in (1, 1, 2))
    for name in ("query", "mask"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(first.values[0], again.values[0])
    assert not np.array_equal(first.query, other.query)


def test_cold_cases_rotate_over_more_than_a_cache():
    cold = [case for case in CASES if case.cold]
    assert cold
    for case in cold:
        assert case.kv_sets * case.kv_bytes >= 256 * 2**20
    assert all(case.kv_sets == 1 for case in CASES if not case.cold)


def test_names_are_unique_and_safe_in_file_names():
    names = [case.name for group in GROUPS.values() for case in group]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalnum() and name == name.lower() for name in names)
    assert select(None) == list(CASES) == list(GROUPS["grid"])
    assert [case.name for case in select(None, quick=True)] == list(QUICK)


def test_select_takes_globs_and_lists_and_names_what_is_unknown():
    chosen = [case.name for case in select(["tiny_*, full_1x12x512x64"])]
    assert chosen[0] == "full_1x12x512x64" and len(chosen) == 4
    with pytest.raises(ValueError, match="nothing_like_it"):
        select(["tiny_*,nothing_like_it"])


@pytest.mark.parametrize("group", ["shape", "sweep", "half", "family", "train"])
def test_groups_beyond_the_first_are_chosen_by_their_name(group):
    assert select([f"{group}_*"]) == select([group]) == list(GROUPS[group])
    assert not set(GROUPS[group]) & set(select(None))


def test_shapes_are_awkward_and_neither_tiny_nor_endless():
    shapes = GROUPS["shape"]
    assert {case.head_dim for case in shapes} >= {48, 72, 96, 160, 192, 256}
    assert any(case.value_dim > case.head_dim for case in shapes)
    assert any(case.value_dim < case.head_dim for case in shapes)
    for case in shapes:
        pairs = case.batch * case.q_len * case.k_len // (2 if case.causal else 1)
        assert 1e9 < case.flops(pairs) < 20e9, case.name


def test_sweeps_grow():
    for before, case in pairwise(GROUPS["sweep"]):
        assert before.series != case.series or before.q_len < case.q_len


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Standard output and JSON of one short run of the real command."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    names = "tiny_1x1x1x64_k16,tiny_1x12x16x64"
    process = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "attnfast.bench", "--quick", "--cases", names),
            *(*QUICK_OPTIONS, "--json", str(path)),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return process.stdout, path


def test_a_run_prints_header_rows_and_totals(finished_run):
    text, path = finished_run
    for word in (attnfast.__version__, machine.cpu_name(), np.__version__, "GFLOP/s", "GB/s"):
        assert word in text
    lines = text.splitlines()
    report = Report.load(path)
    heads = next(line for line in lines if line.startswith("case "))
    assert "x numpy" in heads and "median [p10 p90] n" in heads
    for result in report.results:
        line = next(line for line in lines if line.startswith(result.case.name + " "))
        cells = row(report, result)
        assert all(cell in line for cell in cells)
    assert any(line.startswith("against numpy:") for line in lines)


def test_a_run_measures_what_it_says(finished_run):
    report = Report.load(finished_run[1])
    names = [result.case.name for result in report.results]
    assert names == ["tiny_1x1x1x64_k16", "tiny_1x12x16x64"]
    assert report.settings["threads"] == 1 and report.not_run == {}
    for result in report.results:
        own, plain = result.entries["attnfast"], result.entries["numpy"]
        assert len(own.rounds) == len(plain.rounds) == 2
        assert min(own.samples) <= own.median <= max(own.samples)
        assert result.times_faster("numpy") == plain.median / own.median
        assert result.share("attnfast") == result.speed("attnfast") / (1e9 * result.peak)
        assert own.error < 1e-5 and not own.wrong
    tiny = report.results[0]
    assert tiny.pairs == 16 and tiny.work == 4 * 16 * 64


def test_json_goes_round(finished_run, tmp_path):
    report = Report.load(finished_run[1])
    report.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == finished_run[1].read_text()


def test_a_file_that_is_no_report_is_refused(tmp_path, capsys):
    path = tmp_path / "odd.json"
    path.write_text('{"schema": 1, "machine": {}}')
    assert main(["bench", "--compare", str(path), *QUICK_OPTIONS]) == 2
    assert "odd.json" in capsys.readouterr().err
    assert main(["bench", "--compare", str(tmp_path / "missing.json"), *QUICK_OPTIONS]) == 2


def test_comparison_speaks_of_differences_only_beyond_the_noise(finished_run):
    assert Change("a", 1.02, 0.03).verdict.startswith("no difference")
    assert Change("a", 1 / 1.02, 0.03).verdict.startswith("no difference")
    assert Change("a", 1.2, 0.1).verdict == "faster"
    assert Change("a", 0.8, 0.1).verdict == "slower"
    old, new = Report.load(finished_run[1]), Report.load(finished_run[1])
    for result in (*old.results, *new.results):  # as if measured without noise
        result.entries["attnfast"].rounds = result.entries["attnfast"].samples = [1e-5]
    same, slower = new.results
    slower.entries["attnfast"].rounds = [2e-5]
    lines = comparison_lines(old, new, "old.json")
    assert "1.00x" in lines[1] and "no difference" in lines[1] and same.case.name in lines[1]
    assert "0.50x" in lines[2] and "slower" in lines[2] and slower.case.name in lines[2]
    new.machine["cpu"] = "another one"
    assert any("warning: CPU" in line for line in comparison_lines(old, new, "old.json"))


def test_compare_option_prints_the_comparison(finished_run, capsys):
    best, last = attnfast.available_isas()[0], attnfast.available_isas()[-1]
    options = ["--cases", "tiny_1x1x1x64_k16", "--isa", last, "--compare", str(finished_run[1])]
    assert main(["bench", *options, *QUICK_OPTIONS]) == 0
    printed = capsys.readouterr().out
    assert f"instruction set {last} (this machine has {best}" in printed
    assert "compared with run.json" in printed
    assert (f"warning: instruction set was {best}, now {last}" in printed) == (best != last)
    assert any("noise" in line and "tiny_1x1x1x64_k16" in line for line in printed.splitlines())


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--cases", "no_such_case"], "no_such_case"),
        (["--peers", "no_such_peer"], "no_such_peer"),
        (["--isa", "no_such_isa"], "no_such_isa"),
        (["--json", "no_such_folder/run.json"], "no_such_folder"),
        (["--from", "no_such_file.json"], "no_such_file.json"),
        (["--from", "run.json", "--cases", "tiny_*"], "--cases"),
    ],
)
def test_bad_values_are_named(options, named, capsys):
    assert main(["bench", *options]) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.out == ""


@pytest.mark.parametrize("option", ["--threads", "--rounds", "--burst"])
def test_counts_are_positive(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", option, "0"])
    assert stop.value.code == 2
    assert option in capsys.readouterr().err


@pytest.mark.quick
def test_list_names_every_case(capsys):
    assert main(["bench", "--list"]) == 0
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    expected = []
    for group, cases in GROUPS.items():
        expected += [f"{group}:", *(case.name for case in cases)]
    assert printed == expected


def test_info_shows_the_configuration(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert attnfast.__version__ in printed and attnfast.available_isas()[0] in printed


class Pretender:
    """A contestant made of functions, in place of a library."""

    version = "1"

    def __init__(self, **functions):
        self._functions = functions

    def variants(self, case, inputs):
        def prepare(function):
            calls = [
                lambda key=key, value=value: function(inputs.query, key, value)
                for key, value in zip(inputs.keys, inputs.values, strict=True)
            ]
            return Prepared(calls, lambda result: result)

        return {
            name: lambda function=function: prepare(function)
            for name, function in self._functions.items()
        }


def half_precision(query, key, value):
    low = (array.astype(np.float16) for array in (query, key, value))
    return plain_attention(*low).astype(query.dtype)


def half(query, key, value):
    return plain_half(query, key, value, None, None)


def other_order(query, key, value):
    key, value = (np.ascontiguousarray(array[:, :, ::-1]) for array in (key, value))
    return plain_attention(query, key, value)


def no_numbers(query, key, value):
    return np.full_like(query, np.nan)


def refuses(query, key, value):
    raise RuntimeError("not today")


def trials(case, **functions):
    worker = Worker("numpy", 1)
    worker._contestant = Pretender(**functions)
    worker.load(case, 5)
    return worker, worker.prepare(worker.truth())


def test_wrong_answers_get_no_time():
    case = replace(SMALL[0], q_len=64, k_len=64)
    wrong = {"half": half_precision, "no_numbers": no_numbers, "refuses": refuses}
    worker, found = trials(case, **wrong)
    assert [trial.right for trial in found] == [False, False, False]
    assert "more than" in found[0].note and "not today" in found[2].note
    assert worker._prepared is None
    worker, found = trials(case, no_numbers=no_numbers, other_order=other_order)
    assert [(trial.variant, trial.right) for trial in found] == [
        ("other_order", True),
        ("no_numbers", False),
    ]
    assert worker.burst(0.01)
    entry = Entry("attnfast", error=0.1, wrong=True)
    result = CaseResult(case, 1, 100.0, None, 1e-7, {"attnfast": entry, "numpy": Entry("numpy")})
    report = Report({}, {}, {}, {"attnfast": "1", "numpy": "2"}, [result])
    assert "WRONG" in row(report, result)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_arrays_are_held_to_their_own_rounding_and_timed_beside_float32(dtype):
    case = Case("half", 2, 4, 2, 64, 64, 16, 16, dtype=dtype)
    assert case.compute_dtype == "float32" and case.kv_bytes == 2 * (2 * 2 * 64 * (16 + 16))
    for name in ("attnfast", "numpy"):
        worker = Worker(name, 1)
        worker.load(case, 5)
        (trial,) = worker.prepare(worker.truth())
        assert trial.right and worker.burst(1e-3)

    def coarse(query, key, value):  # as if rounded to 4 bits
        mantissa, exponent = np.frexp(half(query, key, value).astype(np.float32))
        return np.ldexp(np.round(mantissa * 16) / 16, exponent).astype(query.dtype)

    _, found = trials(case, coarse=coarse, single=lambda *arrays: half(*arrays).astype(np.float32))
    assert [trial.right for trial in found] == [False, False]
    assert "more than" in found[0].note and "returned float32" in found[1].note
    (yardstick,) = function_of(case).yardsticks(case).items()
    assert yardstick == ("float32", replace(case, dtype="float32"))
    assert function_of(case).yardsticks(replace(case, dtype="float64")) == {}


def test_the_fastest_right_variant_is_timed():
    def slow(query, key, value):
        time.sleep(5e-3)
        return plain_attention(query, key, value)

    for functions in (
        {"slow": slow, "fast": plain_attention},
        {"fast": plain_attention, "slow": slow},
    ):
        worker, found = trials(SMALL[0], **functions)
        assert found[0].variant == "fast"
        assert min(worker.burst(0.01)) < 5e-3


def test_variants_may_be_left_out():
    functions = {"first": plain_attention, "second": other_order}
    worker, found = trials(SMALL[0], **functions)
    assert all(trial.right for trial in found)
    truth = worker.truth()
    found = worker.prepare(truth, leave_out=("first",))
    assert [(t.variant, t.right) for t in found] == [("second", True), ("first", False)]
    assert "left out" in found[1].note
    found = worker.prepare(truth, longest=0.0)  # longer than any call of this series before
    assert not any(t.right for t in found) and all("smaller case" in t.note for t in found)
    worker.load(replace(SMALL[0], name="other_1"), 5)
    assert all(t.right for t in worker.prepare(truth, longest=0.0))


def test_bursts_rotate_over_all_sets(monkeypatch):
    case = replace(SMALL[0], cold=True)
    monkeypatch.setattr(case_module, "COLD_BYTES", 3 * case.kv_bytes)
    used = []

    def remember(query, key, value):
        used.append(key.ctypes.data)
        return plain_attention(query, key, value)

    worker, _ = trials(case, remember=remember)
    used.clear()
    worker.burst(0.02)
    assert len(used) > 3
    assert len(set(used[:3])) == 3 and used[3:6] == used[:3]


def test_a_worker_that_dies_is_reported():
    worker = WorkerProcess("numpy", 1)
    try:
        worker.wait_ready(60)
        assert worker.version == np.__version__
        with pytest.raises(WorkerFailed, match="AttributeError"):
            worker.call("no_such_operation")
        worker._process.kill()
        with pytest.raises(WorkerFailed, match="ended"):
            worker.call("version")
    finally:
        worker.close()


def test_a_worker_that_does_not_answer_is_given_up():
    worker = WorkerProcess("numpy", 1)
    try:
        with pytest.raises(WorkerFailed, match="no answer"):
            worker.wait_ready(60)
            worker.receive(0.5)
    finally:
        worker.close()


def test_a_run_goes_on_after_a_worker_died():
    chosen = select(["tiny_1x1x1x64_k16,tiny_1x12x16x64"])
    results = []
    with Runner(Settings(threads=1, rounds=1, burst=0.01)) as runner:

        def finished(result):
            results.append(result)
            runner._workers["numpy"]._process.kill()
            runner._workers["numpy"]._process.wait()

        run_cases([(runner, runner.new_report())], chosen, progress.Lines(2), finished)
    assert [result.case for result in results] == chosen
    assert all(result.entries["numpy"].rounds for result in results)


def test_time_limit_leaves_the_rest_unrun(monkeypatch, capsys):
    monkeypatch.setattr(command, "QUICK_SECONDS", 1e-9)
    options = ["--quick", "--cases", "tiny_1x12x16x64", *QUICK_OPTIONS]
    assert main(["bench", *options]) == 0
    assert "not run, the time limit was reached (tiny_1x12x16x64)" in capsys.readouterr().out
    assert main(["bench", "--time-limit", "1e-9", *options[1:]]) == 0
    assert "not run, the time limit was reached (tiny_1x12x16x64)" in capsys.readouterr().out


def test_plain_progress_is_one_line_at_a_time(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.Lines(7) as lines:
        lines.step(2.5, "full: numpy")
    assert capsys.readouterr().err.splitlines() == ["[3/7]    0 s  full: numpy"]


def test_a_busy_machine_is_said_to_be_busy(monkeypatch):
    cores = os.cpu_count() or 1
    monkeypatch.setattr(os, "getloadavg", lambda: (0.4 * cores, 0.0, 0.0), raising=False)
    assert machine.busy_warning() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (0.6 * cores, 0.0, 0.0), raising=False)
    assert "busy" in machine.busy_warning()


def test_times_are_printed_in_a_fitting_unit():
    samples = [1.0e-3, 2.0e-3, 3.0e-3, 4.0e-3, 5.0e-3]
    entry = Entry("numpy", rounds=[3e-3], samples=samples)
    assert format_entry(entry) == "3 ms [1.4 4.6] 5"
    assert format_entry(Entry("numpy", rounds=[2.5e-6], samples=[2.5e-6])) == "2.5 us [2.5 2.5] 1"
    assert format_entry(Entry("numpy")) == "-"
    assert math.isclose(entry.noise, 1.6 / 3)


def test_installed_peers_are_found_without_importing_them():
    script = (
        "import sys; from attnfast.bench.peers import installed_peers; installed_peers();"
        "names = 'torch', 'onnxruntime', 'openvino', 'jax', 'llama_cpp';"
        "print([name for name in names if name in sys.modules])"
    )
    command_line = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
    assert set(installed_peers()) <= {"torch", "onnxruntime", "openvino", "jax", "llama.cpp"}


V2 = "sys/fs/cgroup/cpu.max"
GROUP_FILES = {
    "none": ({}, None),
    "version 2, root": ({"proc/self/cgroup": "0::/\n", V2: "150000 100000"}, 1.5),
    "version 2, no limit": ({"proc/self/cgroup": "0::/\n", V2: "max 100000"}, None),
    "version 2, own": (
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "200000 100000"},
        2.0,
    ),
    "version 2, above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            "sys/fs/cgroup/a/cpu.max": "50000 100000",
            V2: "400000 100000",
        },
        0.5,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "9:memory:/m\n4:cpu,cpuacct:/a\n0::/elsewhere\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
}


@pytest.mark.parametrize(("files", "quota"), GROUP_FILES.values(), ids=GROUP_FILES)
def test_the_quota_is_the_tightest_on_the_way_up(files, quota, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ((25, 1), "AMD EPYC (Zen 3)"),
        ((25, 17), "AMD EPYC (Zen 4)"),
        ((26, 2), "AMD EPYC (Zen 5)"),
        ((23, 49), "AMD EPYC"),
        ((26, 0x50), "AMD EPYC"),
        (("unknown", 1), "AMD EPYC"),
    ],
)
def test_the_name_of_a_processor_says_its_generation(monkeypatch, numbers, name):
    text = "cpu family\t: {}\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n"
    monkeypatch.setattr(machine.Path, "read_text", lambda path, **_: text.format(*numbers))
    assert machine.cpu_name() == name

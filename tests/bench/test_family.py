"""The family in `attnfast bench`: work is counted right, answers are checked."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import attnfast
from attnfast import reference
from attnfast.bench import runner as runner_module
from attnfast.bench import worker as worker_module
from attnfast.bench.case import Case
from attnfast.bench.cases import GROUPS, select
from attnfast.bench.compare import compare
from attnfast.bench.functions import FUNCTIONS, function_of
from attnfast.bench.functions.attention import call_options
from attnfast.bench.functions.local import dense_mask
from attnfast.bench.peers import CONTESTANTS, PEERS, TRAINING, Prepared
from attnfast.bench.progress import Lines
from attnfast.bench.report import columns, header_lines, row, total_lines
from attnfast.bench.results import Report
from attnfast.bench.runner import Runner, Settings
from attnfast.bench.turns import run_cases
from attnfast.bench.worker import Worker
from attnfast.cli import main
from support.runs import report_of, result_of


def local(kind, number=0, **fields):
    options = {"function": "local_attention", "kind": kind, "number": number, "window": (3, 2)}
    sizes = {"kv_heads": 4, "q_len": 40, "k_len": 40, "head_dim": 8, "value_dim": 6}
    return Case(f"{kind}_40", 2, 4, **{**sizes, **options, **fields})


def other(function, kind="", number=0, **fields):
    name = f"{function}{'_causal' if 'causal' in fields else ''}_{kind}"
    sizes = {"heads": 3, "kv_heads": 3, "q_len": 30, "k_len": 30, "head_dim": 8, "value_dim": 6}
    options = {"function": function, "kind": kind, "number": number}
    return Case(name, 2, **{**sizes, **options, **fields})


SMALL = [
    local("first", 5),
    local("spread", 7),
    local("dilated"),
    local("dilated", window=(20, 15)),
    local("centers"),
    local("centers", q_len=13),
    local("gaussian"),
    other("block_mask", "bigbird", 4),
    other("block_mask", "documents", 2),
    other("additive_attention"),
    other("additive_attention", q_len=1),
    other("attention_topk", "top", 1),
    other("attention_topk", "top", 5),
    other("attention_topk", "top", 5, causal=True),
    other("key_importance"),
    other("key_importance", causal=True),
    *(other("stored", kind) for kind in ("int8", "float8_e4m3fn", "float8_e5m2")),
    other("stored", "int8", 2),
    other("stored", "pages", 5, causal=True),
    other("stored", "pages", 15, q_len=1),
    other("attention_varlen", "lengths from", 3),
    other("attention_varlen", "lengths from", 3, causal=True),
]
small = pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.name}-{case.window}")


@pytest.fixture(autouse=True)
def same_threads(monkeypatch):
    """Workers in this process set the number of threads, and need not find the fastest variant."""
    monkeypatch.setattr(worker_module, "TRIAL_SECONDS", 1e-3)
    threads = attnfast.get_num_threads()
    yield
    attnfast.set_num_threads(threads)


def reference_of(case, inputs):
    """The reference on the whole case, as a contestant would return it; and the visible pairs."""
    query, key, value = inputs.query, inputs.keys[0], inputs.values[0]
    options = call_options(case, inputs)
    if case.function == "attention_topk":
        found, weights = reference.attention_topk(query, key, case.number, **options)
        seen = reference.attention_weights(query, key, **options) > 0
        return (found, weights.astype(np.float32)), seen
    if case.function == "key_importance":
        seen = reference.attention_weights(query, key, **options) > 0
        return reference.key_importance(query, key, **options).astype(np.float32), seen
    if case.function == "attention_varlen":
        output = reference.attention_varlen(
            query, key, value, is_causal=case.causal, **inputs.extra
        )
        ends = inputs.extra["cu_q"]
        parts = [np.tri(n) if case.causal else np.ones((n, n)) for n in np.diff(ends)]
        return output.astype(np.float32), np.concatenate([np.tile(p.ravel(), 3) for p in parts])
    call = {
        "local_attention": lambda **more: reference.local_attention(
            query, key, value, case.window, q_offset=0, **more
        ),
        "block_mask": lambda **more: reference.attention(query, key, value, **more),
        "stored": lambda return_weights, **_: reference.attention(
            query, key, value, return_weights=return_weights, **options
        ),
        "additive_attention": lambda **more: reference.additive_attention(
            query, key, value, **more
        ),
    }[case.function]
    output, _, weights = call(return_weights=True, **inputs.extra)
    return output.astype(np.float32), weights > 0


@small
def test_visible_pairs_and_work_are_what_the_reference_sees(case):
    function = function_of(case)
    inputs = function.draw(case, 3)
    _, seen = reference_of(case, inputs)
    pairs = function.visible_pairs(case, inputs)
    assert pairs * case.heads == pytest.approx(np.count_nonzero(seen), rel=1e-12)
    each = {  # of a pair
        "additive_attention": case.head_dim,
        "attention_topk": 2 * case.head_dim,
        "key_importance": 2 * case.head_dim,
    }.get(case.function, 2 * (case.head_dim + case.value_dim))
    assert function.work(case, pairs) == pytest.approx(np.count_nonzero(seen) * each, rel=1e-12)


@small
def test_something_is_hidden_where_something_should_be(case):
    _, seen = reference_of(case, function_of(case).draw(case, 3))
    everything = case.function in ("additive_attention",) or not (
        case.causal or case.window or case.kind in ("bigbird", "documents")
    )
    assert np.all(seen) == everything


@pytest.mark.parametrize("case", SMALL[:7], ids=lambda case: case.name)
def test_the_mask_that_others_are_told_says_the_same(case):
    inputs = function_of(case).draw(case, 3)
    _, seen = reference_of(case, inputs)
    np.testing.assert_array_equal(np.broadcast_to(dense_mask(case, inputs), seen.shape), seen)


@small
def test_checked_rows_are_those_of_the_reference(case):
    function = function_of(case)
    inputs = function.draw(case, 4)
    whole, _ = reference_of(case, inputs)
    sample = function.sample(case, inputs)
    exact = function.exact_rows(case, inputs, sample, np.float64)
    assert exact.dtype == np.float64
    np.testing.assert_allclose(
        function.take_rows(case, inputs, sample, whole), exact, rtol=0, atol=3e-6
    )


@small
def test_inputs_follow_the_seed(case):
    first, again, other_ones = (function_of(case).draw(case, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.query, again.query)
    assert first.query.shape != other_ones.query.shape or (first.query != other_ones.query).any()
    for name in first.extra:
        a, b = (getattr(x.extra[name], "blocks", x.extra[name]) for x in (first, again))
        np.testing.assert_array_equal(a, b)


@small
def test_attnfast_and_numpy_are_right(case):
    truth = None
    for name in ("attnfast", "numpy"):
        worker = Worker(name, 1)
        worker.load(case, 5)
        truth = truth or worker.truth()
        trials = worker.prepare(truth)
        assert trials and all(trial.right for trial in trials), trials
        assert worker.burst(1e-3)


@small
def test_yardsticks_are_right_about_a_case_of_the_same_shape(case):
    yardsticks = function_of(case).yardsticks(case)
    assert next(iter(yardsticks)) == "attention"
    for name, its_case in yardsticks.items():
        assert its_case.shape == case.shape and its_case.causal == case.causal
        worker = Worker(name, 1)
        worker.load(its_case, 5)
        assert [trial.right for trial in worker.prepare(worker.truth())] == [True]
    packed = case.function == "attention_varlen"
    assert (its_case == case) == packed and ("loop" in yardsticks) == packed


def wrong_answers():
    """Results with one thing wrong, by case."""
    top, importance, packed = SMALL[12], SMALL[14], SMALL[16]

    def swap_keys(result):
        found, weights = (a.copy() for a in result)
        found[..., 0], found[..., 1] = found[..., 1].copy(), found[..., 0].copy()
        return found, weights

    def name_twice(result):
        found, weights = (a.copy() for a in result)
        found[..., 1] = found[..., 0]
        return found, weights

    yield "other keys", top, swap_keys
    yield "a key twice", top, name_twice
    yield "weights renormalised", top, lambda r: (r[0], r[1] / r[1].sum(-1, keepdims=True))
    yield "too few", top, lambda r: (r[0][..., :-1], r[1][..., :-1])
    yield "another dtype", top, lambda r: (r[0].astype(np.int32), r[1])
    yield "means", importance, lambda r: r / 30
    yield "heads added", importance, lambda r: r.sum(axis=1)
    yield "a row off", packed, lambda r: np.roll(r, 1, axis=0)
    yield "heads first", packed, lambda r: r.swapaxes(0, 1)


WRONG = list(wrong_answers())


@pytest.mark.parametrize(("case", "spoil"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_answers_get_no_time(case, spoil):
    class Spoiler:
        version = "1"

        def variants(self, case, inputs):
            calls = function_of(case).calls(case, inputs)
            return {"spoiled": lambda: Prepared(calls, spoil)}

    worker = Worker("attnfast", 1)
    worker._contestant = Spoiler()
    worker.load(case, 5)
    trials = worker.prepare(worker.truth())
    assert [trial.right for trial in trials] == [False] and trials[0].note
    assert worker._prepared is None


def test_the_group_has_every_function_and_is_no_part_of_a_run_without_names():
    family = GROUPS["family"]
    assert {case.function for case in family} == set(FUNCTIONS) - {"attention", "stored"} - TRAINING
    assert {case.function for case in select(None)} == {"attention"}
    assert select(["family,tiny_1x12x16x64"])[1:] == list(family)
    assert all(set(function_of(case).yardsticks(case)) <= set(CONTESTANTS) for case in family)


def test_what_caches_store_is_measured_beside_float32():
    cases = GROUPS["cache"]
    assert {case.function for case in cases} == {"stored"}
    for case in cases:
        (plain,) = function_of(case).yardsticks(case).values()
        assert plain.function == "attention" and plain.shape == case.shape
        assert plain.kv_bytes == case.kv_bytes and case.name.startswith("cache_")


def test_only_who_has_a_function_is_asked_for_it():
    others = {name: CONTESTANTS[name].functions - TRAINING for name in PEERS}
    assert {name for name in PEERS if others[name] != {"attention", "stored"}} == {"torch"}


def test_who_does_not_have_a_function_says_so(monkeypatch):
    entry = replace(CONTESTANTS["numpy"], functions=frozenset({"attention"}))
    monkeypatch.setitem(runner_module.CONTESTANTS, "numpy", entry)
    case, results = other("attention_topk", "top", 2), []
    with Runner(Settings(threads=1, rounds=1, burst=0.01)) as runner:
        run_cases([(runner, runner.new_report())], [case], Lines(1), results.append)
    assert results[0].entries["numpy"].note == "does not have this function"
    assert results[0].entries["attnfast"].rounds


TOP, ADDITIVE = "family_topk16_1x16x2048x64", "family_additive_8x1x64x256"


YARDSTICKED = {"attnfast": "1.2", "numpy": "2", "attention": "1.2"}


def test_rows_show_the_yardsticks():
    top = result_of(TOP, contestants=YARDSTICKED, attnfast=2.0, attention=1.0, numpy=8.0)
    times = {"attnfast": 1e-3, "attention": 2e-3, "numpy": 22e-3}
    additive = result_of(ADDITIVE, contestants=YARDSTICKED, **times)
    report = report_of([top, additive], contestants=YARDSTICKED)
    cells = dict(zip(columns(report), row(report, top), strict=True))
    assert cells["x numpy"] == "4" and cells["x attention"] == "0.5"
    assert cells["% of limit"].endswith(" peak") and cells["mask"] == "top 16"
    cells = dict(zip(columns(report), row(report, additive), strict=True))
    tangents = 8 * 64 * 64 * 256
    assert cells["speed"] == f"{tangents / 1e-3 / 1e9:.2f} Gtanh/s"
    assert cells["% of limit"] == "-" and cells["x numpy"] == "22"
    assert header_lines(report)[-1] == "peers     none"
    assert [line.partition(":")[0] for line in total_lines(report)] == ["against numpy"]


@pytest.fixture(scope="module")
def family_run(tmp_path_factory):
    """Standard output and JSON of one short run of the real command."""
    path = tmp_path_factory.mktemp("family") / "run.json"
    names = f"{ADDITIVE},family_topk1_1x12x512x64,tiny_1x1x1x64_k16"
    options = ["--rounds", "1", "--burst", "0.01", "--peers", "none", "--threads", "1"]
    command = [sys.executable, "-P", "-m", "attnfast.bench", "--cases", names, *options]
    command += ["--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, path


def test_a_run_measures_function_and_yardstick(family_run):
    text, path = family_run
    report = Report.load(path)
    assert list(report.contestants) == ["attnfast", "numpy", "attention"]
    tiny, additive, top = report.results
    assert not tiny.entries["attention"].rounds and not tiny.entries["attention"].note
    for result in (additive, top):
        assert all(entry.rounds and not entry.wrong for entry in result.entries.values())
        assert result.entries["attnfast"].variant == result.case.function
    assert "Gtanh/s" in text and "x attention" in text and "x loop" not in text


def test_a_run_is_shown_again_and_compared(family_run, capsys):
    path = str(family_run[1])
    assert main(["bench", "--from", path, "--compare", path]) == 0
    printed = capsys.readouterr().out
    assert "Gtanh/s" in printed
    assert sum("1.00x" in line and ADDITIVE in line for line in printed.splitlines()) == 1


def test_files_from_before_the_family_are_still_read(family_run, tmp_path):
    data = json.loads(family_run[1].read_text())
    data["results"] = data["results"][:1]
    del data["contestants"]["attention"]
    result = data["results"][0]
    del result["entries"]["attention"]
    for name in ("function", "kind", "number"):
        del result["case"][name]
    result["pairs"] = int(result["pairs"])
    (tmp_path / "old.json").write_text(json.dumps(data))
    old, new = Report.load(tmp_path / "old.json"), Report.load(family_run[1])
    assert old.results[0].case == new.results[0].case
    assert [change.ratio for change in compare(old, new)] == [1.0]

"""Steps of training in `attnfast bench`: work is counted right, gradients are checked."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import attnfast
from attnfast import reference
from attnfast.bench import worker as worker_module
from attnfast.bench.case import BACKWARD, Case
from attnfast.bench.cases import GROUPS
from attnfast.bench.functions import function_of
from attnfast.bench.functions.attention import call_options
from attnfast.bench.functions.training import GRADIENT, results_of, wanted_of
from attnfast.bench.peers import CONTESTANTS, PEERS, TRAINING, Prepared
from attnfast.bench.results import Report
from attnfast.bench.worker import Worker
from support.runs import result_of


def small(name, batch=2, heads=3, kv_heads=3, q_len=20, k_len=20, **fields):
    fields = {"function": "training", **fields}
    return Case(name, batch, heads, kv_heads, q_len, k_len, 8, 6, **fields)


STEPS = [
    small("plain"),
    small("grouped", heads=6, kv_heads=2, causal=True),
    small("at_end", heads=4, kv_heads=2, q_len=7, causal=True, at_end=True),
    small("window", window=(5, 3)),
    small("padding", batch=3, mask="keypad"),
    small("dense", mask="dense"),
    small("bias", mask="bias", k_len=23),
    small("softcap", softcap=2.0, causal=True),
    small("softcap_and_bias", softcap=2.0, mask="bias"),
    small("float64", dtype="float64"),
    small("additive", q_len=7, function="additive_training"),
]
SMALL = [*STEPS, *(replace(case, name=f"{case.name}_{BACKWARD}", kind=BACKWARD) for case in STEPS)]
each_step = pytest.mark.parametrize("case", STEPS, ids=lambda case: case.name)
each = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def same_threads(monkeypatch):
    """Workers in this process set the number of threads, and need not find the fastest variant."""
    monkeypatch.setattr(worker_module, "TRIAL_SECONDS", 1e-3)
    threads = attnfast.get_num_threads()
    yield
    attnfast.set_num_threads(threads)


def reference_of(case, inputs):
    """The reference on the whole case, as a contestant would return it; and the visible pairs."""
    arrays = inputs.query, inputs.keys[0], inputs.values[0]
    options, wanted = call_options(case, inputs), wanted_of(inputs)
    attend, differentiate = reference.attention, reference.attention_backward
    if case.function == "additive_training":
        attend, differentiate = (
            reference.additive_attention,
            reference.additive_attention_backward,
        )
        options["score_weight"] = inputs.extra["score_weight"]
    output, _, weights = attend(*arrays, return_weights=True, **options)
    gradient = inputs.extra[GRADIENT]
    gradients = differentiate(gradient, *arrays, None, None, wanted=wanted, **options)
    results = {"output": output, **{name: getattr(gradients, name) for name in wanted}}
    names = results_of(case, inputs)
    return tuple(results[name].astype(case.dtype) for name in names), weights > 0


@each
def test_work_counts_the_products_of_visible_pairs(case):
    function = function_of(case)
    inputs = function.draw(case, 3)
    _, seen = reference_of(case, inputs)
    pairs = function.visible_pairs(case, inputs)
    assert pairs * case.heads == np.count_nonzero(seen)
    if case.function == "additive_training":
        assert function.work(case, pairs) == np.count_nonzero(seen) * 8  # tangents
        return
    scores, values = 8, 6  # S = Q K', P V; S again, dV = P' dO, dP = dO V', dQ = dS K, dK = dS' Q
    backward = scores + values + values + scores + scores
    forward = 0 if case.kind == BACKWARD else scores + values
    assert function.work(case, pairs) == 2 * np.count_nonzero(seen) * (forward + backward)


def test_a_step_is_14_operations_for_each_number_of_a_pair():
    result = result_of("train_1x12x512x64")
    assert result.work == 14 * 12 * 512 * 512 * 64
    assert result_of("train_backward_window256_1x8x4096x64").work == 10 * 8 * 4096 * 4096 * 64


@each
def test_checked_results_are_those_of_the_reference(case):
    function = function_of(case)
    inputs = function.draw(case, 4)
    whole, _ = reference_of(case, inputs)
    sample = function.sample(case, inputs)
    exact = function.exact_rows(case, inputs, sample, np.float64)
    assert exact.dtype == np.float64
    taken = function.take_rows(case, inputs, sample, whole)
    np.testing.assert_allclose(taken, exact, rtol=0, atol=3e-6)


@each
def test_attnfast_and_numpy_are_right(case):
    for name in ("attnfast", "numpy"):
        worker = Worker(name, 1)
        worker.load(case, 5)
        trials = worker.prepare(worker.truth())
        assert trials and all(trial.right for trial in trials), trials
        assert worker.burst(1e-3)


@each
def test_the_forward_call_is_timed_beside_it(case):
    ((name, its_case),) = function_of(case).yardsticks(case).items()
    assert name == "forward" and its_case.shape == case.shape
    worker = Worker(name, 1)
    worker.load(its_case, 5)
    assert [trial.right for trial in worker.prepare(worker.truth())] == [True]


def changed(name, change):
    """Results in which one array is another."""

    def spoil(case, inputs, results):
        place = results_of(case, inputs).index(name)
        return (*results[:place], change(results[place]), *results[place + 1 :])

    return spoil


WRONG = {
    "a sign": (STEPS[0], changed("query", np.negative)),
    "a scale": (STEPS[0], changed("key", lambda a: a * np.sqrt(8).astype(a.dtype))),
    "a row off": (STEPS[0], changed("value", lambda a: np.roll(a, 1, axis=2))),
    "another output": (STEPS[0], changed("output", lambda a: a * np.float32(1.001))),
    "a bias of one row": (STEPS[6], changed("bias", lambda a: a / 2)),
    "a head of the group": (STEPS[1], changed("key", lambda a: a / 3)),
    "repeated keys": (STEPS[1], changed("value", lambda a: np.repeat(a, 3, axis=1))),
    "another dtype": (STEPS[0], changed("query", lambda a: a.astype(np.float64))),
    "half precision": (
        STEPS[0],
        changed("key", lambda a: a.astype(np.float16).astype(np.float32)),
    ),
    "weights of one row": (STEPS[10], changed("score_weight", lambda a: a / 2)),
    "no output": (STEPS[0], lambda case, inputs, results: results[1:]),
}


@pytest.mark.parametrize(("case", "spoil"), WRONG.values(), ids=WRONG)
def test_wrong_gradients_get_no_time(case, spoil):
    class Spoiler:
        version = "1"

        def variants(self, case, inputs):
            calls = function_of(case).calls(case, inputs)
            return {"spoiled": lambda: Prepared(calls, lambda r: spoil(case, inputs, r))}

    worker = Worker("attnfast", 1)
    worker._contestant = Spoiler()
    worker.load(case, 5)
    trials = worker.prepare(worker.truth())
    assert [trial.right for trial in trials] == [False]
    assert trials[0].note.startswith(("error ", "returned "))
    assert worker._prepared is None


@each_step
def test_the_backward_call_alone_is_without_the_output(case):
    inputs = function_of(case).draw(case, 5)
    alone = replace(case, kind=BACKWARD)
    (step,), (backward,) = (function_of(c).calls(c, inputs) for c in (case, alone))
    for a, b in zip(step()[1:], backward(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert alone.mask_text.startswith(BACKWARD)


def test_the_group_says_what_its_cases_are():
    group = GROUPS["train"]
    assert {case.function for case in group} <= TRAINING
    assert any(case.kind == BACKWARD for case in group)
    softcapped = [case for case in group if case.softcap is not None]
    assert softcapped and all("softcap 30" in case.mask_text for case in softcapped)
    assert {name for name in PEERS if "training" in CONTESTANTS[name].functions} == {"torch", "jax"}


@pytest.fixture(scope="module")
def training_run(tmp_path_factory):
    """Standard output and JSON of one short run of the real command."""
    path = tmp_path_factory.mktemp("training") / "run.json"
    names = "sweep_train_1x8x128x64,tiny_1x1x1x64_k16"
    options = ["--rounds", "1", "--burst", "0.01", "--peers", "none", "--threads", "1"]
    command = [sys.executable, "-P", "-m", "attnfast.bench", "--cases", names, *options]
    command += ["--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, path


def test_a_run_measures_both_calls_and_the_forward_one(training_run):
    text, path = training_run
    report = Report.load(path)
    assert list(report.contestants) == ["attnfast", "numpy", "forward"]
    training = next(r for r in report.results if r.case.function == "training")
    tiny = next(r for r in report.results if r.case.function == "attention")
    assert all(entry.rounds and not entry.wrong for entry in training.entries.values())
    assert not tiny.entries["forward"].rounds and not tiny.entries["forward"].note
    assert "x forward" in text and "WRONG" not in text

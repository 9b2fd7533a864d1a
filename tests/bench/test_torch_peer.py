"""The PyTorch contestant: FlexAttention sees what the case says, whatever else cannot run."""

from dataclasses import replace

import numpy as np
import pytest

from attnfast.bench.case import BACKWARD, Case
from attnfast.bench.inputs import position_mask
from attnfast.bench.worker import Worker

torch = pytest.importorskip("torch")

from attnfast.bench.peers import torch_peer  # noqa: E402

CASES = [
    Case("causal", 1, 2, 2, 40, 40, 8, 8, causal=True),
    Case("grouped", 2, 4, 2, 20, 20, 8, 8, causal=True),
    Case("at_end", 1, 2, 1, 8, 40, 8, 8, causal=True, at_end=True),
    Case("window", 1, 2, 2, 40, 40, 8, 8, window=(5, 3)),
    Case("float16", 1, 2, 2, 40, 40, 8, 8, causal=True, dtype="float16"),
    Case("bfloat16", 1, 2, 2, 40, 40, 8, 8, causal=True, dtype="bfloat16"),
    Case("causal_window", 1, 2, 2, 40, 40, 8, 8, causal=True, window=(5, 5)),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

LOCAL = {"function": "local_attention", "window": (3, 2)}
FAMILY = [
    Case("first", 2, 4, 4, 40, 40, 8, 6, kind="first", number=5, **LOCAL),
    Case("dilated", 2, 4, 4, 40, 40, 8, 6, kind="dilated", **LOCAL),
    Case("centers", 2, 4, 4, 40, 40, 8, 6, kind="centers", **LOCAL),
    Case("bigbird", 2, 4, 4, 30, 30, 8, 6, function="block_mask", kind="bigbird", number=4),
    Case("additive", 2, 3, 3, 5, 30, 8, 6, function="additive_attention"),
    Case("top", 2, 3, 3, 30, 30, 8, 8, function="attention_topk", kind="top", number=5),
    Case("importance", 2, 3, 3, 30, 30, 8, 8, function="key_importance"),
    Case("packed", 2, 3, 3, 30, 30, 8, 6, function="attention_varlen", number=3),
]
FAMILY += [replace(case, name=f"{case.name}_causal", causal=True) for case in FAMILY[-3:]]

TRAINING = {"function": "training"}
STEPS = {
    ("sdpa",): [
        Case("plain", 2, 3, 3, 12, 20, 8, 6, **TRAINING),
        Case("causal", 2, 3, 3, 20, 20, 8, 6, causal=True, **TRAINING),
        Case("padding", 3, 2, 2, 6, 12, 4, 4, mask="keypad", **TRAINING),
        Case("float64", 1, 2, 2, 5, 7, 4, 4, dtype="float64", **TRAINING),
    ],
    ("sdpa", "sdpa, keys repeated"): [
        Case("grouped", 2, 4, 2, 20, 20, 8, 8, causal=True, **TRAINING),
        Case("at_end", 2, 4, 2, 7, 20, 8, 8, causal=True, at_end=True, **TRAINING),
    ],
    ("sdpa", "tensors"): [
        Case("window", 1, 2, 2, 40, 40, 8, 8, window=(5, 3), **TRAINING),
        Case("bias", 2, 2, 2, 5, 7, 4, 4, mask="bias", **TRAINING),
    ],
    ("tensors",): [
        Case("softcap", 2, 4, 2, 20, 20, 8, 6, softcap=2.0, causal=True, **TRAINING),
        Case("softcap_and_bias", 2, 2, 2, 9, 9, 8, 6, softcap=2.0, mask="bias", **TRAINING),
        Case("additive", 2, 3, 3, 5, 9, 8, 6, function="additive_training"),
    ],
}
STEPS = [(case, ways) for ways, several in STEPS.items() for case in several]


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention as PyTorch runs it without a compiler."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.fixture
def worker():
    threads = torch.get_num_threads()
    yield Worker("torch", 1)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


@cases
def test_flex_attention_sees_what_the_case_says(case):
    sees = torch_peer._sees(case)
    rows, columns = np.arange(case.q_len)[:, None], np.arange(case.k_len)
    np.testing.assert_array_equal(sees(0, 0, rows, columns), position_mask(case))


@cases
@pytest.mark.filterwarnings("ignore:flex_attention called")
def test_both_variants_are_right(case, worker, uncompiled):
    worker.load(case, 1)
    found = worker.prepare(worker.truth())
    assert {trial.variant for trial in found} == {"sdpa", "flex_attention"}
    assert all(trial.right for trial in found), found


@pytest.mark.filterwarnings("ignore:flex_attention called")
def test_flex_attention_runs_where_a_whole_mask_has_no_room(worker, uncompiled, monkeypatch):
    def refuse(needed, what):
        raise MemoryError(f"no room for {what}")

    monkeypatch.setattr(torch_peer, "require_memory", refuse)
    worker.load(CASES[3], 1)
    chosen, other = worker.prepare(worker.truth())
    assert chosen.variant == "flex_attention" and chosen.right
    assert "no room for an (Lq, Lk) mask" in other.note


@pytest.mark.parametrize("case", FAMILY, ids=lambda case: case.name)
def test_the_family_in_tensors_is_right(case, worker):
    worker.load(case, 1)
    found = worker.prepare(worker.truth())
    assert [trial.right for trial in found] == [True], found


@pytest.mark.parametrize("kind", ["", BACKWARD])
@pytest.mark.parametrize(("case", "ways"), STEPS, ids=[case.name for case, _ in STEPS])
def test_steps_of_training_are_right(case, ways, kind, worker):
    worker.load(replace(case, kind=kind), 1)
    found = worker.prepare(worker.truth())
    assert {trial.variant for trial in found} == set(ways)
    assert all(trial.right for trial in found), found


def test_torch_has_no_factor_after_the_softmax(worker):
    case = Case("p", 2, 4, 4, 40, 40, 8, 6, kind="gaussian", **LOCAL)
    worker.load(case, 1)
    (trial,) = worker.prepare(worker.truth())
    assert not trial.right and "no factor" in trial.note


def test_without_a_compiler_the_other_variant_is_timed(worker, monkeypatch):
    def refuse(function, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    worker.load(CASES[0], 1)
    chosen, other = worker.prepare(worker.truth())
    assert chosen.variant == "sdpa" and chosen.right
    assert "no compiler" in other.note

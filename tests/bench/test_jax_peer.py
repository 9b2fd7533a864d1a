"""The JAX contestant: what its cases say, forward and with gradients."""

from dataclasses import replace

import pytest

from attnfast.bench.case import BACKWARD, Case
from attnfast.bench.worker import Worker

pytest.importorskip("jax")

TRAINING = {"function": "training"}
FORWARD = [
    Case("plain", 2, 3, 3, 12, 20, 8, 8),
    Case("grouped", 2, 4, 2, 20, 20, 8, 8, causal=True),
    Case("window", 1, 2, 2, 40, 40, 8, 8, window=(5, 3)),
    Case("bias", 2, 2, 2, 5, 7, 8, 8, mask="bias"),
]
STEPS = [replace(case, **TRAINING) for case in FORWARD]
STEPS += [
    Case("padding", 3, 2, 2, 6, 12, 8, 8, mask="keypad", **TRAINING),
    Case("softcap", 2, 4, 2, 20, 20, 8, 6, softcap=2.0, causal=True, **TRAINING),
    Case("softcap_and_bias", 2, 2, 2, 20, 20, 8, 6, softcap=2.0, mask="bias", **TRAINING),
]
STEPS += [replace(case, name=f"{case.name}_backward", kind=BACKWARD) for case in STEPS]


@pytest.mark.parametrize(
    "case", [*FORWARD, *STEPS], ids=lambda case: f"{case.function}-{case.name}"
)
def test_results_are_right(case):
    worker = Worker("jax", 1)
    worker.load(case, 1)
    found = worker.prepare(worker.truth())
    assert [trial.right for trial in found] == [True], found

"""The llama.cpp contestant: what its cases say, in each type that ggml stores."""

from dataclasses import replace

import pytest

from attnfast.bench.case import PAGES, Case
from attnfast.bench.peers import installed_peers
from attnfast.bench.worker import Worker

if "llama.cpp" not in installed_peers():
    pytest.skip("needs llama-cpp-python", allow_module_level=True)

STORED = {"function": "stored"}
BYTES = Case("int8", 1, 4, 2, 1, 700, 64, 32, kind="int8", **STORED)
CASES = [
    Case("plain", 2, 3, 3, 12, 20, 8, 8),
    Case("widths", 1, 2, 2, 5, 70, 16, 6),
    Case("decode", 1, 4, 2, 1, 700, 32, 32),
    Case("decode_batch", 3, 4, 2, 1, 700, 32, 32),
    Case("causal", 2, 4, 2, 20, 20, 8, 8, causal=True),
    Case("at_end", 1, 2, 2, 5, 40, 8, 8, causal=True, at_end=True),
    Case("window", 1, 2, 2, 40, 40, 8, 8, window=(5, 3)),
    Case("padding", 3, 2, 2, 6, 12, 8, 8, mask="keypad"),
    Case("dense", 2, 2, 2, 6, 12, 8, 8, mask="dense"),
    Case("softcap", 2, 4, 2, 20, 20, 8, 6, softcap=2.0, causal=True),
    Case("float16", 1, 4, 2, 1, 700, 32, 32, dtype="float16"),
    Case("bfloat16", 1, 4, 2, 1, 700, 32, 32, dtype="bfloat16"),
    Case("pages", 1, 4, 2, 1, 640, 32, 32, kind=PAGES, number=16, **STORED),
    BYTES,
    replace(BYTES, name="int8_prefill", q_len=700, causal=True),
]


def trials(case):
    worker = Worker("llama.cpp", 1)
    worker.load(case, 1)
    return worker.prepare(worker.truth())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_are_right_in_both_layouts(case):
    found = trials(case)
    assert [trial.right for trial in found] == [True, True], found

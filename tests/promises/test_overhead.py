"""What a call costs beyond its arithmetic: no option of numbers or of arrays of NumPy calls Python.

Times depend on the machine, `bench/call_overhead.py` prints them. Frames of Python do not: each
`np.clip`, `np.finfo` and `a.min()` takes longer than the call of one query, which takes 2 us.
"""

import sys

import numpy as np
import pytest

from attnfast import attention
from support.legal import FUNCTIONS, GOOD, named, without

CALLS = {
    name: without(arguments, "per_kv_head")  # which is a sum of NumPy
    for name, arguments in FUNCTIONS.items()
    if name.startswith(("attention", "local", "additive", "key_importance"))
}
QKV = GOOD["query"], GOOD["key"], GOOD["value"]


def entered(function, *operands, **options):
    """The functions of NumPy and of Python's own library that a call enters."""
    found = []

    def note(frame, event, _):
        where = frame.f_code.co_filename
        if event == "call" and ("numpy" in where or where.startswith("<frozen")):
            found.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        function(*operands, **options)
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.quick
@pytest.mark.parametrize("function", CALLS)
def test_all_options_together(function):
    named(function)(**CALLS[function])  # the first call may import
    assert entered(named(function), **CALLS[function]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"kv_lengths": [5, 4], "q_lengths": [3, 3]},
        {"kv_lengths": np.array([5, 4], np.int32)},
        {"q_offset": "end"},
        {"q_offset": -1},
        {"bias": GOOD["bias"].astype(np.float64)},
    ],
    ids=["lists", "int32", "end", "int", "bias of float64"],
)
def test_other_ways_to_write_them(options):
    assert entered(attention, *QKV, **options) == []


def test_queries_in_the_order_of_lengths():
    query = np.ascontiguousarray(QKV[0].swapaxes(1, 2)).swapaxes(1, 2)
    output = attention(query, *QKV[1:])
    assert output.strides[1] < output.strides[2]
    assert entered(attention, query, *QKV[1:]) == []


def test_that_frames_of_numpy_are_seen():
    assert "clip" in entered(np.clip, [2.0], 0, 1)

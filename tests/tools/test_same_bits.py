"""``tools/prove/same_bits.py``: it finds nothing in one build twice, and one bit that differs."""

import re

import pytest

import attnfast
from support.builds import copy_build, run_script

OTHER = """
import inspect as _inspect, os as _os
_old = attention

def attention(query, key, value, *, mask=None, **options):
    options.pop("bias", None)
    if "softcap" in options:
        _os._exit(3)
    return _old(query, key, value, mask=mask, **options)

attention.__signature__ = _inspect.signature(_old).replace(parameters=[
    p for p in _inspect.signature(_old).parameters.values() if p.name != "softcap"])
del key_importance

import collections as _collections
_old_plan, _names = plan, ("flops", "further")

def plan(*operands, return_blocks=False, **options):
    found = _old_plan(*operands, return_blocks=return_blocks, **options)
    return _collections.namedtuple(type(found).__name__, _names)(found.flops, 1)
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return copy_build(tmp_path_factory.mktemp("builds") / "one")


def same_bits(*arguments):
    return run_script("tools/prove/same_bits.py", *arguments)


def test_one_build_twice(build):
    code, text = same_bits(build, build, "--calls", 160, "--isa", "generic", "--messages")
    assert code == 0 and re.search("0 of 1[6-9]. outcomes differ", text), text
    rows = re.findall(r"^(\w+) +generic +\d+ +\d+ +0$", text, re.MULTILINE)
    assert len(rows) == 15 and {"attention_varlen", "attention_backward"} <= {*rows}
    assert not re.search(r"generic +(\d+) +\1 +0$", text, re.MULTILINE), text  # only errors


def test_a_planted_bit(build):
    options = "--calls", 30, "--functions", "attention_weights"
    code, text = same_bits(build, build, *options, "--plant")
    assert code == 1 and re.search(r"\n1 of \d+ outcomes differ", text), text
    (name,) = re.findall(r"^attention_weights/0/\d+$", text, re.MULTILINE)
    code, text = same_bits(build, build, *options, "--plant", "--call", name)
    assert code == 1 and re.search(r"result: 1 of \d+ elements differ, the first at \(0, ", text)


def test_a_build_with_other_functions(build, tmp_path):
    other = copy_build(tmp_path / "other", OTHER)
    names = "attention", "key_importance", "plan"
    options = "--calls", 72, "--functions", *names, "--isa", "generic"
    code, text = same_bits(build, other, *options)
    assert "only in old: plan: field memory\n" in text, text
    assert "only in new: plan: field further\n" in text, text
    assert re.search(r"^plan +generic +12 +\d+ +0$", text, re.MULTILINE), text
    assert code == 1 and "only in old: attention: softcap\n" in text, text
    assert "only in old: key_importance: all\n" in text
    (found,) = re.findall(r"^attention +generic +60 +\d+ +(\d+)$", text, re.MULTILINE)
    assert int(found) > 2
    shown = re.findall(r"^  attention\(.*$", text, re.MULTILINE)
    assert shown and all("bias=" in line and "softcap" not in line for line in shown)


@pytest.mark.skipif(len(attnfast.available_isas()) < 2, reason="needs two instruction sets")
def test_one_instruction_set_differs(build, tmp_path):
    wrong = """
_right = key_importance

def key_importance(query, key, **options):
    from attnfast import _core
    return _right(query, key, **options) * (2 if _core.isa_in_use("float32") == "generic" else 1)
"""
    other = copy_build(tmp_path / "other", wrong)
    code, text = same_bits(build, other, "--calls", 30, "--functions", "key_importance")
    rows = dict(re.findall(r"^key_importance +(\w+) +30 +\d+ +(\d+)$", text, re.MULTILINE))
    assert code == 1 and int(rows.pop("generic")) > 5 and set(rows.values()) == {"0"}, text


def test_a_build_that_dies(build, tmp_path):
    dies = "\ndef key_importance(query, key, **options):\n    import os\n    os._exit(3)\n"
    other = copy_build(tmp_path / "other", dies)
    code, text = same_bits(build, other, "--calls", 30, "--functions", "key_importance")
    assert code == 1 and "new ended with 3 in the call after the first call" in text, text


def test_refusals(build, tmp_path):
    code, text = same_bits(build, tmp_path)
    assert code == 1 and "holds no attnfast" in text and "Traceback" not in text
    code, text = same_bits(build, build, "--isa", "mmx")
    assert code == 1 and "mmx is not one of" in text and "Traceback" not in text

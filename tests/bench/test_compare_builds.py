"""``bench/compare_builds.py``: two builds alike, a slow one, and cases that one does not have."""

import json

import pytest

import attnfast
from support.builds import copy_build, run_script

CASE = "tiny_1x1x1x64_k16"
SLOW = f"""
import time as _time
from .bench import cases as _cases

_fast = attention

def attention(*arrays, **options):
    _time.sleep(1e-3)
    return _fast(*arrays, **options)

_cases.GROUPS["grid"] = tuple(c for c in _cases.GROUPS["grid"] if c.name == "{CASE}")
"""


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("builds")
    slow = copy_build(folder / "slow", SLOW)
    return copy_build(folder / "one"), copy_build(folder / "two"), slow


def compare(*arguments):
    return run_script("bench/compare_builds.py", *arguments, "--rounds", 3, "--burst", 0.004)


@pytest.mark.parametrize("threads", ["1", "all"])
def test_the_same_twice(builds, threads, tmp_path):
    path = tmp_path / "ratios.json"
    options = "--cases", CASE, "--threads", threads, "--isa", "generic", "--json", path
    code, text = compare(*builds[:2], *options)
    assert code in (0, 1) and text.count(f"\n{CASE} ") == 1, text  # neighbours may be noisy
    assert f"{attnfast.__version__} generic" in text and str(builds[1]) in text
    stored = json.loads(path.read_text())
    for kind in ("wall", "cpu"):
        cell = stored["cases"][CASE][kind]
        assert len(cell["old_to_new"]) == len(cell["old_to_old"]) == 6
        assert 0.2 < cell["ratio"] < 5 and cell["noise"] >= 0
        assert code or not cell["slower"]


def test_a_slow_one(builds):
    code, text = compare(builds[0], builds[2], "--cases", CASE)
    assert code == 1 and f"slower: {CASE}" in text, text
    assert f"{CASE}    0.0" in text and "<" in text
    code, text = compare(builds[2], builds[0], "--cases", CASE)
    assert code == 0 and "slower: none" in text, text


def test_the_least_mean(builds):
    assert compare(*builds[:2], "--cases", CASE, "--least", 100)[0] == 1


def test_cases_of_one_build_only_are_left_out(builds):
    names = f"{CASE},tiny_1x12x16x64"
    code, text = compare(builds[2], builds[0], "--cases", names)
    assert code == 0 and "left out: tiny_1x12x16x64: old has no such case" in text, text


def test_cases_of_a_function_that_one_build_lacks_are_left_out(builds, tmp_path):
    step = "train_8x12x128x64"
    without = copy_build(tmp_path / "without", "del attention_backward")
    code, text = compare(without, builds[0], "--cases", f"{step},{CASE}")
    assert code in (0, 1) and text.count(f"\n{CASE} ") == 1, text
    assert f"left out: {step}: old: AttributeError" in text and "attention_backward" in text
    code, text = compare(*builds[:2], "--cases", step)
    assert text.count(f"\n{step} ") == 1 and "left out" not in text, text


def test_list_and_refusals(builds, tmp_path):
    code, text = compare(*builds[:2], "--list")
    assert code == 0 and CASE in text.splitlines() and "family_blocks_bigbird" in text
    code, text = compare(*builds[:2], "--cases", "no_such")
    assert code == 1 and "no_such: must be" in text and "Traceback" not in text
    code, text = compare(tmp_path, builds[0])
    assert code == 1 and "holds no attnfast" in text and "Traceback" not in text

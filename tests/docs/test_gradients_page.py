"""The training loop of the page on gradients; test_pages runs the rest of its code."""

import re
import sys

import pytest

from support.paths import ROOT
from support.scripts import run_python

pytestmark = pytest.mark.quick

SCRIPT = ROOT / "examples" / "train_classifier.py"
PAGE = ROOT / "docs" / "guide" / "gradients.md"


def test_the_loss_falls_and_unseen_data_is_right(tmp_path):
    out = run_python(SCRIPT.read_text(encoding="utf-8"), tmp_path)
    losses = [float(x) for x in re.findall(r"loss (\d\.\d+)", out)]
    assert len(losses) == 6 and losses[-1] < losses[0] / 10
    assert float(re.search(r"right: ([\d.]+)%", out)[1]) > 95


def test_it_is_short_and_needs_numpy_only():
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    modules = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    assert modules - sys.stdlib_module_names == {"numpy", "attnfast"}


def test_the_page_shows_its_code():
    (shown,) = re.findall(
        r"```python\n(?!>>>)(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert shown in SCRIPT.read_text(encoding="utf-8")

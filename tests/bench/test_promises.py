"""`bench/promises.py`: what it says of attnfast and NumPy, and that it would notice."""

import numpy as np
import pytest

from support.paths import ROOT
from support.scripts import import_script

promises = import_script(ROOT / "bench" / "promises.py")
CASES = [case.name for case in (promises.PADDED, promises.CAUSAL, promises.DECODE)]


def results(**changed):
    """Results of one variant in which nothing matters, but for what is given by question."""
    rng = np.random.default_rng(0)
    found = {}
    for name in CASES:
        output = rng.standard_normal((4, 2, 256, 8))
        found["v", name, ""] = [output]
        found["v", name, "alone"] = [changed.get("alone", output[1:2].copy())]
        for change in ("hidden key", "hidden value"):
            found["v", name, change] = [changed.get(change, output.copy())]
        found["v", name, "all keys"] = [output]
        found["v", name, "no key"] = [changed.get("no key", np.zeros_like(output))]
    found["v", promises.STEP.name, ""] = [np.ones(3)]
    return found


def answers(one, two=None, again=None):
    two = two or results()
    judged = promises.judge("v", one, two, again or two)
    return dict(zip(promises.QUESTIONS, judged, strict=True))


def test_what_keeps_all_promises():
    kept = dict.fromkeys(("hidden value", "hidden key"), "no bit") | {"no key": "0"}
    assert answers(results()) == kept | dict.fromkeys(("threads", "alone", "gradients"), "same")


@pytest.mark.parametrize("change", ["hidden key", "hidden value"])
def test_what_hidden_places_do(change):
    first = results()["v", CASES[0], ""][0]
    assert answers(results(**{change: first + 1e-12}))[change] == "rounding"
    spoilt = first.copy()
    spoilt[3, 1, 7, 2] = np.nan
    assert answers(results(**{change: spoilt}))[change] == "NaN"


def test_queries_that_see_the_changed_keys_do_not_count():
    rows = slice(promises.FIRST_HIDDEN, None)
    one = results()
    changed = one["v", CASES[1], "hidden value"][0]
    changed[:, :, rows] = np.nan
    assert answers(one)["hidden value"] == "no bit"


def test_bits_that_differ():
    two = results()
    two["v", CASES[2], ""] = [two["v", CASES[2], ""][0] + 1e-12]
    assert answers(results(), two)["threads"] == "differ"
    assert answers(results(alone=np.zeros((1, 2, 256, 8))))["alone"] == "differ"
    other = results()
    other["v", promises.STEP.name, ""] = [np.ones(3) + 1e-12]
    assert answers(results(), again=other)["gradients"] == "differ"


def test_queries_that_see_no_key():
    output = results()["v", CASES[0], ""][0]
    assert answers(results(**{"no key": np.full_like(output, np.nan)}))["no key"] == "NaN"
    assert answers(results(**{"no key": output}))["no key"] == "as if all were seen"
    mean = np.broadcast_to(output.mean(axis=2, keepdims=True), output.shape)
    assert answers(results(**{"no key": mean}))["no key"] == "mean of hidden values"
    assert answers(results(**{"no key": 2 * output}))["no key"] == "other numbers"


def test_attnfast_keeps_them_beside_numpy(capsys):
    assert promises.main(["--peers", "none"]) == 0
    own, plain = capsys.readouterr().out.splitlines()
    kept = "hidden value: no bit; hidden key: no bit; threads: same; alone: same; no key: 0"
    assert own.split(None, 2)[2] == f"{kept}; gradients: same"
    assert "hidden value: NaN" in plain and "no key: NaN" in plain

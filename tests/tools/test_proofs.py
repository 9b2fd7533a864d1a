"""The scripts of `tools/prove`: what they change in a copy is there, what they write stays."""

import json
import re

import pytest

from support.paths import ROOT
from support.scripts import import_script

SCRIPTS = sorted((ROOT / "tools" / "prove").glob("*.py"))
PATCHING = [path for path in SCRIPTS if re.search("import .*Patch", path.read_text("utf-8"))]

pytestmark = pytest.mark.skipif(not SCRIPTS, reason="the tests are away from the sources")


def patches_in(x):
    """Everything in a list or dict that names a file and what to replace in it."""
    if hasattr(x, "old") and not isinstance(x, type):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    return [patch for each in x for patch in patches_in(each)] if isinstance(x, list) else []


@pytest.mark.parametrize("path", PATCHING, ids=lambda path: path.stem)
def test_what_a_script_replaces_is_there_once(path):
    found = [patch for x in vars(import_script(path)).values() for patch in patches_in(x)]
    assert found
    for patch in found:
        text = (ROOT / "csrc" / patch.path).read_text(encoding="utf-8")
        assert text.count(patch.old) == 1, patch


def test_sanitizers_compile_everything_at_the_same_level(tmp_path):
    script = import_script(ROOT / "tools" / "prove" / "sanitize.py")
    source = script.copied(tmp_path)
    for path in [source / "CMakeLists.txt", *source.glob("cmake/*.cmake")]:
        options = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        assert not re.search(r" -O[^1]", options), path


def test_results_of_other_runs_stay_in_the_table(tmp_path, monkeypatch):
    script = import_script(ROOT / "tools" / "prove" / "outside.py")
    monkeypatch.setattr(script, "DATA", tmp_path / "outside.json")
    monkeypatch.setattr(script, "PAGE", tmp_path / "outside.md")
    found = {
        **{"version": "1", "package": "jax", "files": ["a.py"], "source": "", "failed": []},
        **{"passed": 1, "not_applicable": {}, "not_run": {"skipped": 0, "failed": 0}},
    }
    script.save({"jax 1": found, "onnx 1": found})
    script.save({"jax 1": {**found, "passed": 7}})
    assert {n: r["passed"] for n, r in json.loads(script.DATA.read_text()).items()} == {
        "jax 1": 7,
        "onnx 1": 1,
    }
    assert script.PAGE.read_text().count("| jax 1 |") == 2

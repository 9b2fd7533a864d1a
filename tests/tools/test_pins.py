"""The hooks of pre-commit check with the versions that .ci/run checks with."""

import re
import tomllib

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.quick


HOOKS = ROOT / ".pre-commit-config.yaml"
NO_HOOK = {"numpydoc"}  # needs the built package: tests/docs/test_docstrings.py
NO_EXTRA = {"pre-commit-hooks"}  # of use to commits only


@pytest.mark.skipif(not HOOKS.exists(), reason="not in a source distribution")
def test_hooks_have_the_versions_of_the_extra_lint():
    hooks = dict(re.findall(r"([\w-]+)==([\w.]+)", HOOKS.read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lint = dict(pin.split("==") for pin in project["optional-dependencies"]["lint"])
    assert hooks.keys() - NO_EXTRA == lint.keys() - NO_HOOK
    assert {name: lint[name] for name in hooks.keys() - NO_EXTRA}.items() <= hooks.items()

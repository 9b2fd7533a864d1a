"""Docstrings of everything public: numpydoc's checks, no name left out, and examples that run."""

import doctest
import importlib.util
import inspect
import re
import tomllib
from pathlib import Path
from pkgutil import resolve_name, walk_packages

import pytest

import attnfast
from support.paths import BRIDGES, ROOT

pytestmark = pytest.mark.quick


PACKAGES = [
    "attnfast",
    "attnfast.layers",
    "attnfast.plot",
    "attnfast.bench",
    "attnfast.reference",
]
PACKAGES += ["attnfast.torch"] if importlib.util.find_spec("torch") else []
PACKAGES += ["attnfast.transformers"] if importlib.util.find_spec("transformers") else []
PYPROJECT = ROOT / "pyproject.toml"
CHECKS = tomllib.loads(PYPROJECT.read_text())["tool"]["numpydoc_validation"]["checks"]

# Options of a command, and functions that their module's example shows how to call.
SHOWN_ELSEWHERE = r"attnfast\.(bench|reference)\."


def public(package):
    """Names of a package and what they stand for; modules only where they are in `__all__`."""
    module = importlib.import_module(package)
    names = {n for n, x in vars(module).items() if n[0] != "_" and not inspect.ismodule(x)}
    return names | {"__version__"} & vars(module).keys(), module


def documented():
    """Everything that has a docstring of its own to check."""
    for package in PACKAGES:
        names, module = public(package)
        for name in sorted(names):
            thing = getattr(module, name)
            if getattr(thing, "__module__", "").startswith("attnfast") and callable(thing):
                yield f"{package}.{name}"
            if inspect.isclass(thing):
                yield from (f"{package}.{name}.{member}" for member in members(thing))


def members(cls):
    """Methods and properties that callers use, own and inherited from this package."""
    own = [base for base in cls.__mro__ if base.__module__.startswith("attnfast")]
    for name, thing in sorted({k: x for base in own for k, x in vars(base).items()}.items()):
        kind = inspect.isroutine(thing) or isinstance(thing, property)
        if name == "__call__" or (name[0] != "_" and kind):
            yield name


def counts(name, code):
    """Whether a finding is one, beyond what pyproject.toml leaves out."""
    if code == "PR01" and hasattr(resolve_name(name), "_fields"):
        return False  # a result is read, not made: its fields are attributes, see below
    if code == "EX01":
        is_member = inspect.isclass(resolve_name(name.rpartition(".")[0]))
        return not is_member and not re.match(SHOWN_ELSEWHERE, name)
    return code not in CHECKS


@pytest.mark.parametrize("name", list(documented()))
def test_numpydoc_finds_nothing(name):
    numpydoc = pytest.importorskip("numpydoc.validate", reason='needs ".[lint]"')
    found = numpydoc.validate(name)["errors"]
    assert [text for code, text in found if counts(name, code)] == []


# Named tuples that functions return.
RESULTS = {
    *("AdditiveGradients", "AttentionGradients", "AttentionResult", "AttentionTopK"),
    *("LocalGradients", "MergeGradients", "Plan"),
}


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_fields_of_results_are_documented(name):
    result = getattr(attnfast, name)
    section = inspect.getdoc(result).partition("Attributes\n----------\n")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^(\w+) :", section, re.MULTILINE)) == result._fields


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_everything_public(package):
    names, module = public(package)
    assert names == set(module.__all__)
    assert module.__all__ == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    assert re.match(r"\S.+\.(\n\n|$)", module.__doc__)


def test_help_says_what_there_is():
    named = set(re.findall(r"`(\w+)`", attnfast.__doc__))
    assert named == set(attnfast.__all__) - RESULTS - {"__version__"}


def with_examples():
    """Modules that have any, found in their text: plot needs matplotlib to be used, not read.

    Those of `attnfast.keras` run on each backend, in bridges/test_keras.py.
    """
    for module in walk_packages(attnfast.__path__, "attnfast."):
        if module.name.endswith("__main__") or module.name.startswith("attnfast.keras"):
            continue
        spec = importlib.util.find_spec(module.name)
        if spec.origin.endswith(".py") and ">>> " in Path(spec.origin).read_text():
            yield module.name


@pytest.mark.parametrize("name", ["attnfast", *with_examples()])
def test_examples_run(name):
    part = name.partition(".")[2].partition(".")[0]
    if part in ("plot", *BRIDGES):
        pytest.importorskip("matplotlib" if part == "plot" else part)
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    assert results.attempted > 0

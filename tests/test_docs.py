"""The examples in docstrings and in the README run and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

MODULES = [
    "additive",
    "api",
    "block_mask",
    "config",
    "explain",
    "local",
    "merge",
    "reference",
    "varlen",
]
README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    results = doctest.testmod(importlib.import_module(f"attnfast.{name}"))
    assert results.failed == 0
    assert results.attempted > 0 or name == "reference"


def test_readme():
    results = doctest.testfile(str(README), module_relative=False)
    assert results.failed == 0
    assert results.attempted > 0

"""The examples in the README run and print what they say."""

import doctest

from support.paths import ROOT

README = ROOT / "README.md"


def test_readme():
    results = doctest.testfile(str(README), module_relative=False)
    assert results.failed == 0
    assert results.attempted > 0

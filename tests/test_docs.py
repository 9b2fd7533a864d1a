"""The examples in the README run and print what they say."""

import doctest
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_readme():
    results = doctest.testfile(str(README), module_relative=False)
    assert results.failed == 0
    assert results.attempted > 0

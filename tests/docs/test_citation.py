"""CITATION.cff: what the format requires, and the same version, licence and title as elsewhere."""

import re
import tomllib

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.quick

TEXT = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
FIELDS = dict(re.findall(r'^([a-z-]+): *"?(.*?)"?$', TEXT, re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_it_has_what_the_format_requires():
    assert FIELDS["cff-version"] == "1.2.0" and FIELDS["type"] == "software"
    assert FIELDS["message"] and FIELDS["title"]
    assert re.search(r"^authors:\n  - name: \S", TEXT, re.M)


def test_it_says_what_the_package_says():
    assert FIELDS["version"] == PROJECT["version"]
    assert FIELDS["license"] == PROJECT["license"]
    page = (ROOT / "docs" / "start" / "versions.md").read_text(encoding="utf-8")
    assert FIELDS["title"] in page
    assert re.search(r"^  - name: (.*)$", TEXT, re.M).group(1) in page


def test_the_changelog_has_the_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d{2}-\d{2})$", changes, re.M)
    assert released[0] == (FIELDS["version"], FIELDS["date-released"])

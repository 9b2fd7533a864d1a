"""The list of mutants: every entry is up to date, and docs/testing.md names them all."""

import re
import tomllib

import pytest

from support.paths import ROOT

LIST = ROOT / "tools" / "prove" / "mutants.toml"
MUTANTS = tomllib.loads(LIST.read_text(encoding="utf-8"))["mutant"] if LIST.exists() else []
IDS = [mutant["name"] for mutant in MUTANTS]


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the tests are away from the sources")
@pytest.mark.parametrize("mutant", MUTANTS, ids=IDS)
def test_what_it_breaks_is_there_once(mutant):
    assert (ROOT / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"]) == 1
    for test in mutant["tests"]:
        file, *names = test.split("::")
        text = (ROOT / file).read_text(encoding="utf-8") if names else ""
        assert (ROOT / file).exists(), file
        for name in names:
            assert re.search(rf"(def|class) {name.partition('[')[0]}\b", text), test


def test_every_name_is_one_mutants():
    assert len(set(IDS)) == len(IDS)


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the tests are away from the documents")
def test_the_page_on_testing_names_all():
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    table = page.partition("## Promises and proofs")[2].partition("## Slow proofs")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    told = [re.split(r"[,;]", row[3].partition("by hand")[0]) for row in rows]
    assert {name.strip() for names in told for name in names} - {""} == set(IDS)

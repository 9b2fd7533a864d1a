"""Functions and files that docs/design.md names are where it says."""

import itertools
import re

import pytest

from support.paths import ROOT

PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
WALK = re.findall(r"^\| \d+ \| `(\w+)` \| `([\w/.]+)` \|", PAGE, re.MULTILINE)
QUESTIONS = re.search(r"## Where is it\?\n(.*?)\n## ", PAGE, re.DOTALL)[1]
GLOSSARY = re.search(r"## Glossary\n(.*?)\n## ", PAGE, re.DOTALL)[1]


def defines(file, name):
    """Whether a file has the definition of a function."""
    head = rf"^def {name}\(" if file.suffix in (".py", ".pyx") else rf"^\w.*\b{name}\([^;]*$"
    return re.search(head, file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def test_the_walk_has_at_most_ten_functions():
    assert 5 < len(WALK) <= 10
    assert WALK[0] == ("attention", "attnfast/api.py")
    assert WALK[-1][1] == "csrc/kernel/tile.h"


@pytest.mark.parametrize(("name", "file"), WALK)
def test_functions_of_the_walk_are_there(name, file):
    assert defines(ROOT / file, name)


@pytest.mark.parametrize(("caller", "called"), [*itertools.pairwise(WALK)])
def test_each_function_of_the_walk_reaches_the_next(caller, called):
    """The next name is in the file of the one before, or in a file that it includes."""
    name = called[0]
    text = (ROOT / caller[1]).read_text(encoding="utf-8")
    included = re.findall(r'include "([\w/.]+)"', text)
    places = [
        ROOT / caller[1],
        *(ROOT / folder / i for folder in ("csrc", "attnfast") for i in included),
    ]
    assert any(
        re.search(rf"\b{name}\b", p.read_text(encoding="utf-8")) for p in places if p.exists()
    )


def test_answers_name_files_that_are_there():
    answers = re.findall(r"^\| [^|]+\? \| (.+) \|$", QUESTIONS, re.MULTILINE)
    assert len(answers) >= 5
    for answer in answers:
        paths = [name for name in re.findall(r"`([\w/.]+)`", answer) if "/" in name or "." in name]
        assert paths, answer
        for path in paths:
            assert path == ".pxi" or (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("name", "path"), re.findall(r"`(\w+)` in `([\w/.]+)`", QUESTIONS) + [
        (name, "csrc/plan/plan.c") for name in ("af_make_plan", "plan_splits", "decode_keys")
    ],
)  # fmt: skip
def test_answers_name_functions_that_are_there(name, path):
    assert defines(ROOT / path, name)


def test_the_glossary_has_ten_words_of_the_code():
    rows = re.findall(r"^\| (\w+) \| .+ \| `([\w.]+)` \|$", GLOSSARY, re.MULTILINE)
    assert len(rows) == 10
    code = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "csrc").glob("*/*.h")))
    for _, name in rows:
        struct, _, field = name.partition(".")
        where = code
        if field:
            where = re.search(rf"typedef struct {struct} {{(.*?)}} {struct};", code, re.DOTALL)[1]
        assert re.search(rf"\b{field or struct}\b", where), name


def test_files_named_elsewhere_on_the_page_are_there():
    known = {
        p.name
        for folder in ("csrc", "attnfast", "tools", "bench")
        for p in (ROOT / folder).rglob("*.*")
    }
    named = re.findall(r"`(?:\w+/)*(\w+\.(?:h|c|py|pyx|pxi))`", PAGE)
    assert named and set(named) <= known

"""The site: every public name is in the reference, and its pages are those of the project."""

import ast
import importlib
import re

import pytest

from support.paths import BRIDGES, ROOT

pytestmark = pytest.mark.quick

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = {
    "functions": "attnfast",
    "layers": "attnfast.layers",
    "plot": "attnfast.plot",
    "bench": "attnfast.bench",
    "plain": "attnfast.reference",
    **{f"bridges/{name}": f"attnfast.{name}" for name in BRIDGES},
}


def named(page):
    """The names that a page of the reference lists."""
    text = page.read_text(encoding="utf-8")
    (module,) = set(re.findall(r"currentmodule:: (\S+)", text))
    listed = re.findall(r"^   ([A-Za-z]\w+)$", text, re.MULTILINE)
    return module, listed + re.findall(rf"py:data:: {module}\.(\w+)", text)


@pytest.mark.parametrize("page", PAGES)
def test_the_reference_has_every_public_name(page):
    if page.startswith("bridges/"):
        pytest.importorskip(PAGES[page].partition(".")[2])
    module, names = named(REFERENCE / f"{page}.md")
    assert module == PAGES[page]
    assert sorted(names) == sorted(importlib.import_module(module).__all__)


def test_the_reference_has_every_bridge():
    assert {page.stem for page in REFERENCE.glob("bridges/*.md")} == set(BRIDGES)


def test_pages_that_stand_for_a_file_name_it():
    tree = ast.parse((DOCS / "conf.py").read_text(encoding="utf-8"))
    (shown,) = (
        ast.literal_eval(line.value)
        for line in tree.body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "SHOWN"
    )
    for page, file in shown.items():
        assert (ROOT / file).is_file()
        assert f"](../../{file})" in (DOCS / f"{page}.md").read_text(encoding="utf-8")

"""The pictures of the pages: each is there, shown, described, and small."""

import re

import pytest

from support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "examples" / "README.md"]
SHOWN = [
    (page, words, target)
    for page in PAGES
    for words, target in re.findall(r"!\[(.*?)\]\((.+?)\)", page.read_text(encoding="utf-8"))
]
FOLDER = ROOT / "docs" / "pictures"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="an sdist has no pictures")


def test_pages_show_pictures_that_are_there():
    for page, words, target in SHOWN:
        assert (page.parent / target).resolve().parent == FOLDER, (page.name, target)
        assert (page.parent / target).is_file(), (page.name, target)
        assert len(words.split()) > 2, (page.name, target)


def test_every_picture_is_shown():
    shown = {(page.parent / target).resolve() for page, _, target in SHOWN}
    assert shown == set(FOLDER.glob("*.png"))


def test_pictures_are_small():
    sizes = {file.name: file.stat().st_size for file in FOLDER.glob("*.png")}
    assert {name: size for name, size in sizes.items() if size >= 200_000} == {}

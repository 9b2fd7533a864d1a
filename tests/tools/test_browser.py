"""`tools/check/browser.py`: it finds what is wrong with a page, and nothing where nothing is."""

import base64
import shutil

import pytest

from support.paths import ROOT
from support.scripts import import_script

check = import_script(ROOT / "tools" / "check" / "browser.py")
pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, check.BROWSERS)), reason="needs a browser: apt install chromium"
)
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PAGE = (
    "<!doctype html><link rel=icon href=dot.png><meta name=viewport content='width=device-width'>"
)
BODIES = {
    "good.html": "<h1 id=top>Good</h1><img src=dot.png><a href=good.html#top>up</a>",
    "error.html": "<script>throw new Error('broken')</script>",
    "console.html": "<script>console.error('spoken')</script>",
    "picture.html": "<img src=lost.png>",
    "page.html": "<a href=lost.html>lost</a>",
    "heading.html": "<a href=good.html#lost>lost</a>",
    "wide.html": "<div style='width:1000px'>wide</div>",
    "dark.html": "<style>@media (prefers-color-scheme: dark) { p { width: 3000px } }</style><p>x",
    "elsewhere.html": "<script src='http://127.0.0.1:9/x.js'></script>",
    "search.html": "<ul id=search-results></ul>",
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """The problems that are printed for each page."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "dot.png").write_bytes(DOT)
    for name, body in BODIES.items():
        (folder / name).write_text(PAGE + body)
    with pytest.MonkeyPatch.context() as patch, check.served(folder) as root:
        patch.setattr(check, "SECONDS", 3.0)
        program = next(filter(None, map(shutil.which, check.BROWSERS)))
        browser = check.Browser(program, str(tmp_path_factory.mktemp("home")))
        try:
            shots = tmp_path_factory.mktemp("shots")
            found = check.look(browser, root, list(BODIES), set(BODIES), shots)
        finally:
            browser.close()
    assert len(list(shots.rglob("*.jpg"))) == 4 * len(BODIES)
    return {name: [said for page, said in found if page == name] for name in BODIES}


@pytest.mark.parametrize(
    ("page", "words"),
    {
        "error.html": ["exception: Uncaught"],
        "console.html": ["console: spoken"],
        "picture.html": ["console: Failed to load", *["no picture"] * 4],
        "page.html": ["link to a page that is not there: lost.html"],
        "heading.html": ["link to a heading that is not there: good.html#lost"],
        "wide.html": [f"narrow, {scheme}: scrolls sideways" for scheme in ("light", "dark")],
        "dark.html": [f"{view}, dark: scrolls sideways" for view in ("wide", "narrow")],
        "elsewhere.html": ["asks for http://127.0.0.1:9/x.js", "console: Failed to load"],
        "search.html": ["a search for softcap finds nothing"],
        "good.html": [],
    }.items(),
)
def test_each_fault_is_found(problems, page, words):
    found = sorted(problems[page])
    assert len(found) == len(words), found
    assert all(word in said for word, said in zip(sorted(words), found, strict=True)), found

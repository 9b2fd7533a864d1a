"""What every picture must hold to: titles, named axes, all words inside, none over another."""

import itertools
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

SLACK = 1.0  # pixels


def keep_figures(patch):
    """Return a dictionary that will hold each figure that is saved, by the name of its file."""
    kept, save = {}, Figure.savefig

    def keep(figure, path, **options):
        kept[Path(path).name] = figure
        save(figure, path, **options)

    patch.setattr(Figure, "savefig", keep)
    return kept


def check_picture(figure):
    """Assert that a reader can tell what a figure shows, and read all of it."""
    figure.draw_without_rendering()
    bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
    panels = [axis for axis in figure.axes if axis not in bars]
    assert panels
    for bar in bars:
        assert bar.get_xlabel() or bar.get_ylabel()
    for axis in panels:
        assert axis.get_title()
        # An axis without words says what its panel is, or shares the name of its neighbour.
        for side in (axis.xaxis, axis.yaxis):
            assert side.get_label_text() or not tick_labels(side), axis.get_title()
    for axis in figure.axes:
        for side in (axis.xaxis, axis.yaxis):
            assert_apart(tick_labels(side))
    assert_apart([axis.title for axis in panels])
    for artist in seen(figure):
        box = artist.get_window_extent()
        name = artist.get_text() if isinstance(artist, Text) else "legend"
        assert box.x0 >= -SLACK and box.y0 >= -SLACK, name
        assert box.x1 <= figure.bbox.x1 + SLACK and box.y1 <= figure.bbox.y1 + SLACK, name


def tick_labels(side):
    """The labels of an axis that are drawn: matplotlib keeps others beyond its ends."""
    low, high = sorted(side.get_view_interval())
    ticks = [tick for tick in side.get_major_ticks() if low <= tick.get_loc() <= high]
    labels = [tick.label1 for tick in ticks]
    return [label for label in labels if label.get_visible() and label.get_text()]


def seen(figure):
    """All legends and texts that are drawn."""
    sides = [side for axis in figure.axes for side in (axis.xaxis, axis.yaxis)]
    ticks = {label for side in sides for label in side.get_ticklabels(which="both")}
    offsets = {side.get_offset_text() for side in sides}
    for side in sides:
        yield from tick_labels(side)
    for artist in figure.findobj(lambda artist: isinstance(artist, (Text, Legend))):
        words = isinstance(artist, Legend) or artist.get_text()
        if words and artist.get_visible() and artist not in ticks | offsets:
            yield artist


def assert_apart(texts):
    """Assert that no text covers another."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for (name, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= SLACK or down <= SLACK, (name, other)

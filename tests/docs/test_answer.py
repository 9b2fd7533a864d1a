"""The example that answers questions about pictures, on pictures that are made up here."""

import importlib
import json
import re
import signal
import sys
from argparse import Namespace

import numpy as np
import pytest

from support.paths import ROOT

torch = pytest.importorskip("torch", reason="torch is an optional extra")
pytest.importorskip("PIL", reason="pictures are read with pillow")

EXAMPLES = ROOT / "examples"
HUES = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "gray": (120,) * 3}


@pytest.fixture(scope="module", autouse=True)
def answer():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("answer")


def questions_on(shape, hue, rng):
    """Questions like those of the package, and their answers."""
    asked = [(f"is there a {name} shape?", "yes" if name == hue else "no") for name in HUES]
    more = [(f"what shape is in the {hue} part?", shape)] if rng.integers(4) == 0 else []
    return [(f"what color is the {shape}?", hue), *asked, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bars that stand or lie, of four colours, like the folder of the package."""
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("questions"), np.random.default_rng(0)
    for part, count in (("train", 240), ("test", 40)):
        (root / part / "images").mkdir(parents=True)
        lines = []
        for n in range(count):
            shape, hue = rng.choice(["circle", "rectangle"]), rng.choice(list(HUES))
            pixels = np.full((64, 64, 3), 235, np.uint8)
            y, x = rng.integers(4, 40, 2)
            high, wide = (22, 7) if shape == "circle" else (7, 22)
            pixels[y : y + high, x : x + wide] = HUES[hue]
            Image.fromarray(pixels).save(root / part / "images" / f"{n}.png")
            lines += [(*pair, n) for pair in questions_on(shape, hue, rng)]
        (root / part / "questions.json").write_text(json.dumps(lines), "utf-8")
    return root


@pytest.fixture
def run(answer, monkeypatch, capsys, tmp_path, folder):
    """Run main in an empty folder; return what it prints."""

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        common = ["--data", folder, "--width", 32, "--batch", 16, "--rate", 0.004]
        monkeypatch.setattr(sys, "argv", [str(x) for x in ["answer.py", *common, *arguments]])
        answer.main()
        return capsys.readouterr().out

    return call


def table(out):
    """Loss and part of right answers of each model."""
    found = re.findall(r"^(\w+) +(\d\.\d{4}) +([\d.]+)% ", out, re.MULTILINE)
    return {name: (float(loss), float(right)) for name, loss, right in found}


def test_questions_are_answered(run):
    found = table(run("--epochs", 20, "--attention", "attnfast"))
    assert found["attnfast"][0] < 0.4 and found["attnfast"][1] > 85


def test_the_framework_learns_the_same(run):
    found = table(run("--epochs", 2, "--attention", "attnfast", "torch", "none"))
    assert found["torch"][0] == pytest.approx(found["attnfast"][0], abs=1e-3)
    assert abs(found["none"][0] - found["attnfast"][0]) > 1e-3


def test_both_ways_give_the_same_gradients(answer):
    options = Namespace(seed=0, width=16)
    pictures, words = torch.randint(0, 256, (2, 3, 64, 64)), torch.randint(0, 9, (2, 3, 5))
    results = []
    for kind in ("attnfast", "torch"):
        model = answer.Answerer(9, 4, kind, options).double()
        logits = model(pictures.double(), words)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_weights_are_those_of_the_answer(answer):
    model = answer.Answerer(9, 4, "attnfast", Namespace(seed=0, width=16)).double()
    pictures, words = torch.randint(0, 256, (2, 3, 64, 64)).double(), torch.randint(1, 9, (2, 1, 5))
    weights = model.weights(pictures, words)
    assert weights.shape == (2, 5, 64)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5).double())
    x, patches = model.encode(pictures, words)
    with torch.no_grad():  # values that all heads share, so that what is seen is their mean's
        model.value.weight.copy_(torch.randn(4, 16).repeat(answer.HEADS, 1))
        model.value.bias.zero_()
        seen = model.look(x, patches).unflatten(-1, (answer.HEADS, -1)).mean(2)
        torch.testing.assert_close(seen, weights @ model.value(patches)[..., :4])


def test_padding_changes_no_answer(answer):
    model = answer.Answerer(9, 4, "attnfast", Namespace(seed=0, width=16)).double()
    pictures, words = torch.randint(0, 256, (1, 3, 64, 64)).double(), torch.tensor([[[3, 4, 5]]])
    padded = torch.zeros(1, 3, 8, dtype=torch.long)
    padded[:, 1, :3] = words[0, 0]
    torch.testing.assert_close(model(pictures, padded)[:, 1], model(pictures, words)[:, 0])


def test_saved_models_go_on(run):
    first = run("--epochs", 1, "--save", "a.pt")
    assert table(run("--epochs", 0, "--load", "a.pt")) == table(first)
    assert table(run("--epochs", 4, "--load", "a.pt"))["attnfast"][0] < table(first)["attnfast"][0]


def test_the_same_seed_gives_the_same_model(run):
    given = ["--epochs", 0.5, "--attention", "attnfast", "--seed"]
    a, b, c = (table(run(*given, seed)) for seed in (1, 1, 2))
    assert a == b != c


def test_ctrl_c_saves(answer, run, monkeypatch, tmp_path):
    step = torch.optim.Adam.step

    def interrupted(self, *given, **options):
        signal.raise_signal(signal.SIGINT)
        return step(self, *given, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    assert table(run("--epochs", 1)).keys() == {"attnfast"}
    stored = torch.load(tmp_path / "answer.pt", weights_only=True)
    assert len(stored["attnfast"]["history"]["losses"]) == 1


def test_a_question_of_ones_own(run, folder, tmp_path):
    picture = folder / "test" / "images" / "0.png"
    given = ["--epochs", 1, "--attention", "attnfast", "--ask", "What color is the big circle?"]
    by_file, by_number = run(*given, "--picture", picture), run(*given, "--picture", 0)
    for out in (by_file, by_number):
        assert "in no question that was learned: big\n" in out
        ((line,),) = [re.findall(r"^What color is the big circle\? (.+)$", out, re.MULTILINE)]
        assert len(re.findall(r"\w+ [\d.]+%", line)) == 3
    assert table(by_file) == table(by_number)


def test_the_page_shows_its_code_and_its_options(answer, monkeypatch, capsys):
    page = (ROOT / "docs" / "examples" / "answer.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown in (EXAMPLES / "answer.py").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["answer.py", "--help"])
    with pytest.raises(SystemExit):
        answer.main()
    told = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert told <= set(re.findall(r"--[a-z-]+", page))


def test_the_picture(run, monkeypatch):
    pytest.importorskip("matplotlib")
    from support.pictures import check_picture, keep_figures

    figures = keep_figures(monkeypatch)
    run("--epochs", 1, "--attention", "attnfast")
    figure = figures["answer.png"]
    check_picture(figure)
    assert "is" in {axis.get_title() for axis in figure.axes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: FileNotFoundError"),
        (["--load", "nothing.pt"], "nothing.pt: FileNotFoundError"),
        (["--width", 30], "--width must be a multiple of 4"),
        (["--epochs", -1], "--epochs must not be negative"),
        (["--ask", "?"], "--ask must have words of a to z, got '?'"),
        (["--ask", "why", "--picture", 40], "--picture must be below 40 or a file, got 40"),
        (["--ask", "why", "--picture", "no.png"], "no.png"),
    ],
    ids=str,
)
def test_bad_arguments_are_explained(arguments, message, run, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(monkeypatch):
    questions = importlib.import_module("questions")
    monkeypatch.setattr(questions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps easy-vqa==1\.0"):
        questions.read(None, None)

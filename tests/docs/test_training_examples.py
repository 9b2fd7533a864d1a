"""The examples that train: gradients, reduced trainings to a stated loss, files, Ctrl-C."""

import importlib
import re
import signal
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest

from attnfast.layers import MultiHeadAttention
from support.paths import ROOT

EXAMPLES = ROOT / "examples"
NAMES = ["transformer_numpy", "long_train"]


@pytest.fixture(scope="module", autouse=True)
def path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield


@pytest.fixture(scope="module")
def load(path):
    return importlib.import_module


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an example's main in an empty folder; return what it prints."""

    def call(example, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [example.__file__, *map(str, arguments)])
        example.main()
        return capsys.readouterr().out

    return call


def losses(out):
    """The held-out loss of each model, from the printed table."""
    return {name: float(x) for name, x in re.findall(r"^(\w+) +(\d\.\d{4}) +\d", out, re.MULTILINE)}


def in_double(model):
    """Make a model compute in float64: its layers do already."""
    for name, weight in model.weights.items():
        if weight.dtype != np.float64:
            model.weights[name] = weight.astype(np.float64)
    return model


def check_gradients(model, tokens):
    """Gradients along random directions are those of central differences."""
    rng = np.random.default_rng(0)
    _, gradients = model.loss(tokens)
    found = gradients()
    assert found.keys() == model.weights.keys()
    for name, weight in model.weights.items():
        direction, kept = 1e-5 * rng.standard_normal(weight.shape), weight.copy()
        ends = []
        for sign in (1, -1):
            weight[...] = kept + sign * direction
            ends.append(model.loss(tokens)[0])
        weight[...] = kept
        expected = (ends[0] - ends[1]) / 2
        assert (found[name] * direction).sum() == pytest.approx(expected, rel=1e-4, abs=1e-11), name


# ---- the model ----


@pytest.mark.quick
@pytest.mark.parametrize("attention", [True, False])
def test_gradients_of_the_model(load, attention):
    layers = [
        MultiHeadAttention(8, 2, seed=n, dtype=np.float64) if attention else None for n in range(2)
    ]
    model = in_double(load("transformer").Transformer(7, 8, layers, 6, seed=0))
    tokens = np.random.default_rng(1).integers(0, 7, (3, 6))
    check_gradients(model, tokens)


@pytest.mark.parametrize("kind", ["window", "full"])
def test_gradients_of_long_attention(load, kind):
    long_train = load("long_train")
    model = long_train.build(
        kind, Namespace(width=8, layers=2, window=3, global_tokens=2, seed=0)
    )  # fmt: skip
    for n, layer in enumerate(model.attention):
        layer.weights = MultiHeadAttention(
            8, long_train.HEADS, use_bias=False, dtype=np.float64, seed=n
        ).weights
        model.weights |= {f"{n}.{name}": a for name, a in layer.weights.arrays().items()}
    tokens = np.random.default_rng(1).integers(0, 128, (1, 12))
    check_gradients(in_double(model), tokens)


def test_a_wide_window_is_full_attention(load):
    long_train = load("long_train")
    tokens = np.random.default_rng(1).integers(0, 128, (1, 50))
    found = []
    for kind, window in (("window", 49), ("full", 1), ("window", 3)):
        options = Namespace(width=16, layers=2, window=window, global_tokens=1, seed=0)
        found.append(long_train.build(kind, options).loss(tokens)[0])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert abs(found[2] - found[1]) > 1e-4


def test_adam_is_that_of_the_paper(load):
    weights = {"w": np.array([1.0, -2.0])}
    adam, mean, square, expected = load("transformer").Adam(weights), 0, 0, weights["w"].copy()
    for step in range(1, 4):
        gradient = np.array([0.5, -3.0]) * step
        adam.step({"w": gradient}, 0.1)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        size = np.sqrt(square / (1 - 0.99**step)) + 1e-8
        expected -= 0.1 * mean / (1 - 0.9**step) / size
    np.testing.assert_allclose(weights["w"], expected, rtol=1e-12)


# ---- training ----

REDUCED = {
    "transformer_numpy": "--epochs 3 --context 32 --limit 80000",
    "long_train": "--epochs 2 --documents 40 --length 1024 --layers 2 --window 64"
    " --global-tokens 8",
}


def test_attention_tells_characters_from_those_before(load, run, tmp_path):
    out = run(load("transformer_numpy"), *REDUCED["transformer_numpy"].split())
    found = losses(out)
    assert found["attnfast"] < 2.2
    assert found["none"] > found["attnfast"] + 0.25
    assert len(re.findall(r"^---- (attnfast|none) goes on ----\nThe ", out, re.MULTILINE)) == 2
    assert {file.name for file in tmp_path.iterdir()} == {
        "transformer_numpy.npz",
        "transformer_numpy.png",
    }


def test_windows_learn_as_much_as_full_attention(load, run):
    out = run(load("long_train"), *REDUCED["long_train"].split())
    found = losses(out)
    assert found["window"] < 2.9 and abs(found["window"] - found["full"]) < 0.1
    pairs, every = (int(x.replace(",", "")) for x in re.findall(r"([\d,]+) (?:pairs )?in", out)[:2])
    i, j = np.arange(1024)[:, None], np.arange(1024)
    assert pairs == 4 * ((j <= i) & ((i - j <= 64) | (j < 8))).sum()
    assert every == 4 * 1024 * 1025 // 2
    assert len(re.findall(r"peak memory \d+ MB", out)) == 2


TINY = {
    "transformer_numpy": "--epochs 0.5 --width 16 --layers 1 --context 16 --limit 9000 --batch 8",
    "long_train": "--epochs 1 --width 16 --layers 1 --length 256 --documents 6 --window 32",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_framework_learns_the_same(name, load, run):
    pytest.importorskip("torch", reason="torch is an optional extra")
    ours = {"transformer_numpy": "attnfast", "long_train": "full"}[name]
    found = losses(run(load(name), *TINY[name].split(), "--attention", ours, "torch"))
    assert found["torch"] == pytest.approx(found[ours], abs=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_goes_on(name, load, run):
    first = run(load(name), *TINY[name].split(), "--save", "a.npz")
    again = run(load(name), "--load", "a.npz", "--epochs", 0, *TINY[name].split()[2:])
    assert losses(again) == losses(first)
    more = run(load(name), "--load", "a.npz", *TINY[name].split(), "--save", "b.npz")
    counts = [int(n) for n in re.findall(r"\d\.\d{4} +[\d.]+ +(\d+) ", first + more)]
    assert counts[2:] == [2 * n for n in counts[:2]]
    assert all(losses(more)[kind] < losses(first)[kind] for kind in losses(first))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_model(name, load, run):
    outs = [run(load(name), *TINY[name].split(), "--seed", seed) for seed in (3, 3, 4)]
    assert losses(outs[0]) == losses(outs[1]) != losses(outs[2])


def trained(load):
    model = load("transformer").Transformer(5, 8, [None], 0, seed=0)
    return load("training").start("none", model, None)


def test_ctrl_c_ends_the_training_after_its_step(load, capsys):
    part, rates = trained(load), []

    def step(rate):
        rates.append(rate)
        if len(rates) == 3:
            signal.raise_signal(signal.SIGINT)
        return 1.0

    before = signal.getsignal(signal.SIGINT)
    load("training").train("none", part, 10, step, lambda: 2.0, 4)
    assert part.history.stopped and part.history.losses == [1.0] * 3
    assert part.history.held_out == [(3, 2.0)]
    assert signal.getsignal(signal.SIGINT) is before
    assert "this step is the last" in capsys.readouterr().err


def test_a_second_ctrl_c_stops_at_once(load):
    def step(rate):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        load("training").train("none", trained(load), 10, step, lambda: 2.0, 4)


def test_ctrl_c_saves(load, run, monkeypatch, tmp_path):
    example = load("transformer_numpy")
    step = load("transformer").Adam.step

    def interrupted(self, gradients, rate):
        step(self, gradients, rate)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(load("transformer").Adam, "step", interrupted)
    out = run(example, *TINY["transformer_numpy"].split())
    assert losses(out).keys() == {"attnfast"}
    arrays, facts = load("training").load(tmp_path / "transformer_numpy.npz")
    assert facts["attnfast"]["steps"] == 1
    assert arrays["attnfast/weights/embedding"].shape[1] == 16


def test_the_rate_rises_and_falls(load):
    rates = []
    load("training").train("none", trained(load), 200, lambda r: rates.append(r) or 1.0, float, 500)
    assert rates[0] == pytest.approx(1 / 50, rel=0.01)
    assert max(rates) == pytest.approx(rates[49]) and 0.8 < rates[49] < 1
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert (np.diff(rates[50:]) < 0).all()


def test_smooth(load):
    found = load("training").smooth([4.0, 2.0, 0.0, 0.0], 2)
    assert found.tolist() == [4, 3, 1, 0]


# ---- pages, data and command lines ----


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_its_code_and_its_options(name, load, monkeypatch, capsys):
    page = (ROOT / "docs" / "examples" / f"{name}.md").read_text(encoding="utf-8")
    code = "".join(
        (EXAMPLES / f"{n}.py").read_text(encoding="utf-8") for n in ("transformer", name)
    )
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown and all(block in code for block in shown)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        load(name).main()
    told = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert told <= set(re.findall(r"--[a-z-]+", page))


def test_no_paragraph_is_in_both_parts(load):
    data = load("transformer_numpy").read([], 0)
    learned, held = ("".join(data.symbols[n] for n in part) for part in data[1:])
    assert len(learned) > 5 * len(held) > 100_000
    long = {p for p in held.split("\n\n") if len(p) > 40}
    assert not long & set(learned.split("\n\n"))


def test_a_short_text_is_cut(load, tmp_path):
    (tmp_path / "a.txt").write_text("abcde " * 40, encoding="utf-8")
    data = load("transformer_numpy").read([tmp_path / "a.txt"], 0)
    assert (len(data.train), len(data.held_out)) == (216, 24)
    assert data.symbols[1:] == " abcde"


def test_windows_share_their_ends(load):
    rows = load("transformer_numpy").windows(np.arange(12), 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]]


@pytest.mark.parametrize("name", NAMES)
def test_help_from_another_folder(name, tmp_path):
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    for option in ("--epochs", "--seed", "--save", "--load", "--plot", "--attention"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("transformer_numpy", ["no-such-file.txt"], "no-such-file.txt"),
        ("transformer_numpy", ["--width", 30], "--width must be a multiple of 4"),
        ("transformer_numpy", ["--context", 0], "--context must be at least 1 and below"),
        ("transformer_numpy", ["--epochs", -1], "--epochs must not be negative"),
        ("transformer_numpy", ["--load", "blank.txt"], "blank.txt"),
        ("transformer_numpy", ["--attention", "some"], "invalid choice: 'some'"),
        ("long_train", ["--width", 30], "--width must be a multiple of 4"),
        ("long_train", ["--length", 3], "--length must be at least 16"),
        ("long_train", ["--global-tokens", -1], "--global-tokens 0 to --length"),
        ("long_train", ["--window", -1], "--window must not be negative"),
        ("long_train", ["blank.txt"], "two files of more than 16384 characters"),
        ("long_train", ["no-such-file.txt"], "no-such-file.txt"),
    ],
    ids=str,
)
def test_bad_arguments_are_explained(name, arguments, message, load, run, capsys, tmp_path):
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(SystemExit) as stop:
        run(load(name), *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_pictures(name, load, run, monkeypatch):
    pytest.importorskip("matplotlib")
    from support.pictures import check_picture, keep_figures

    figures = keep_figures(monkeypatch)
    run(load(name), *TINY[name].split())
    figure = figures[f"{name}.png"]
    check_picture(figure)
    assert "loss while training" in figure.axes[0].get_title()

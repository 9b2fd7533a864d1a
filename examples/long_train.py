"""Train on documents of 16,384 characters: windows and global tokens against full attention.

    python long_train.py
    python long_train.py --attention window --width 128 --layers 2 --documents 48

A language model of characters reads whole files of the standard library, one at each step. With
"window" a character sees the 256 before it and the first 64 of the file, by `local_attention`; with
"full" all before it, by `attention`; with "torch" the same by PyTorch. Nothing else differs.
"""

import argparse
import math
import resource
import sys
import sysconfig
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import training
from training import Trained
from transformer import Transformer

from attnfast import attention, attention_weights, local_attention, plan, vjp
from attnfast.layers import MultiHeadAttention

Array = np.ndarray
HEADS = 4
SLOPES = np.array([1, 1 / 4, 1 / 32, 0], np.float32)  # of the heads: from near to anywhere
SYMBOLS = 128  # ASCII
COLORS = {"window": "#0072b2", "full": "#009e73", "torch": "#d55e00"}
FIXED = ("width", "layers")  # options that a file of weights has settled
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings"}
BINS = 16  # parts of a document whose losses are drawn


# ---- The documents ----


def read(files: Sequence[Path], length: int) -> tuple[Array, Array]:
    """Return the beginnings of files, ``(documents, length + 1)``, to learn from and held out.

    Without files, those of the standard library that are long enough. Every tenth is held out.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found = files or sorted(
        path
        for path in library.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(library).parts)
    )
    texts = (path.read_bytes() for path in found if path.stat().st_size > length)
    rows = [np.frombuffer(text[: length + 1], np.uint8).astype(np.int64) for text in texts]
    rows = [np.where(row < SYMBOLS, row, ord("?")) for row in rows]
    held = np.arange(len(rows)) % 10 == min(4, len(rows) - 1)
    documents = np.array(rows).reshape(-1, length + 1)
    return documents[~held], documents[held]


# ---- The attention ----


class LongAttention:
    """Causal attention with a penalty that grows with distance, another in each head.

    Like layers of `attnfast.layers`, it has `weights` and a ``vjp``; `attend` takes queries, keys
    and values, and returns the output and a pullback to their gradients.
    """

    def __init__(self, width: int, attend: Callable[[Array, Array, Array], Any], seed: int) -> None:
        self.weights = MultiHeadAttention(width, HEADS, use_bias=False, seed=seed).weights
        self.attend = attend

    def project(self, x: Array) -> list[Array]:
        """Return query, key and value of all heads, ``(B, H, L, D)``."""
        w = self.weights
        return [self._heads(m(x)) for m in (w.query, w.key, w.value)]

    def vjp(self, x: Array, is_causal: bool) -> tuple[Array, Callable[[Array], Any]]:
        """Return the output, and a function to the gradients of input and weights."""
        seen, attend_back = self.attend(*self.project(x))
        packed, last = self._rows(seen), self.weights.output.weight

        def pullback(grad: Array) -> tuple[dict[str, Array], dict[str, Array]]:
            rows = grad.reshape(packed.shape)
            by_heads = attend_back(self._heads((rows @ last.T).reshape(x.shape)))
            grads, by_x = {"output.weight": packed.T @ rows}, np.zeros_like(packed)
            for name, by_head in zip(("query", "key", "value"), by_heads, strict=True):
                by_map = self._rows(by_head)
                grads[f"{name}.weight"] = x.reshape(packed.shape).T @ by_map
                by_x += by_map @ getattr(self.weights, name).weight.T
            return {"query": by_x.reshape(x.shape)}, grads

        return (packed @ last).reshape(x.shape), pullback

    @staticmethod
    def _heads(x: Array) -> Array:
        return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)

    @staticmethod
    def _rows(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(x.shape[0] * x.shape[2], -1)


def windowed(q: Array, k: Array, v: Array, window: int, first: int) -> tuple[Array, Any]:
    """Each token sees `window` tokens before it and the `first` ones of the document."""
    output, pullback = vjp(
        *(local_attention, q, k, v, window),
        global_tokens=np.arange(first),
        is_causal=True,
        alibi_slopes=SLOPES,
    )
    return output, lambda grad: pullback(grad)[:3]


def full(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
    """Each token sees all before it."""
    output, pullback = vjp(attention, q, k, v, is_causal=True, alibi_slopes=SLOPES)
    return output, lambda grad: pullback(grad)[:3]


def by_torch(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
    """The same by PyTorch, whose function would need the penalties as a bias of 4.3 GB.

    Where all keys come before the query, ``-slope * (i - j)`` gives the weights of ``slope * j``,
    which one more number in queries and keys adds to the scores; values have one more of 0.
    """
    import torch

    given = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    slopes = torch.from_numpy(SLOPES)[:, None, None].expand(*q.shape[:-1], 1)
    places = torch.arange(q.shape[2], dtype=torch.float32)[:, None].expand(*q.shape[:-1], 1)
    more = slopes * q.shape[-1] ** 0.5, places, torch.zeros_like(slopes)
    wide = [torch.cat(pair, dim=-1) for pair in zip(given, more, strict=True)]
    output = torch.nn.functional.scaled_dot_product_attention(
        *wide, is_causal=True, scale=q.shape[-1] ** -0.5
    )[..., :-1]

    def pullback(grad: Array) -> list[Array]:
        grads = torch.autograd.grad(output, given, torch.from_numpy(grad))
        return [x.numpy() for x in grads]

    return output.detach().numpy(), pullback


def build(kind: str, options: argparse.Namespace) -> Transformer:
    """Return a model before training; only the kind of its attention differs."""
    narrow = partial(windowed, window=options.window, first=options.global_tokens)
    attend = {"window": narrow, "full": full, "torch": by_torch}[kind]
    layers = [
        LongAttention(options.width, attend, 1000 * options.seed + n) for n in range(options.layers)
    ]
    return Transformer(SYMBOLS, options.width, layers, 0, options.seed)


# ---- Training ----


def losses_by_place(model: Transformer, documents: Array) -> Array:
    """Return the mean loss of parts of held-out documents, from their beginning to their end."""
    total = np.zeros(documents.shape[1] - 1)
    for document in documents:
        log_p, _ = model.vjp(document[None, :-1])
        total -= log_p[np.arange(len(log_p)), document[1:]]
    return np.array([part.mean() for part in np.array_split(total / len(documents), BINS)])


def fit(
    kind: str, trained: Trained, train: Array, held_out: Array, options: argparse.Namespace
) -> None:
    """Train a model, one document at each step, in an order that the seed draws."""
    model, adam, history = trained
    rng = np.random.default_rng((options.seed, len(history.losses)))
    steps = math.ceil(options.epochs * len(train))
    passes = [rng.permutation(len(train)) for _ in range(math.ceil(options.epochs))]
    order = iter(np.concatenate(passes) if passes else [])

    def step(part: float) -> float:
        loss, gradients = model.loss(train[[next(order)]])
        adam.step(gradients(), options.rate * part)
        return loss

    def quality() -> float:
        return float(np.mean([model.loss(document[None])[0] for document in held_out]))

    training.train(kind, trained, steps, step, quality, max(1, len(train) // 2))


def peak_memory(forget: bool = False) -> float:
    """Return the largest memory of the process in MB, on Linux since it was last forgotten."""
    try:
        if forget:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


# ---- What was learned ----


def look_far(model: Transformer, document: Array, queries: int = 256) -> Array:
    """Return how much weight the last queries give to keys up to each distance, by head.

    Of the last layer, in one document, ``(H, L)``.
    """
    model.vjp(document[None, :-1])
    q, k, _ = model.attention[-1].project(model.given[-1])
    queries = min(queries, q.shape[2])
    weights = attention_weights(
        q[0, :, -queries:], k[0], is_causal=True, q_offset="end", alibi_slopes=SLOPES
    )
    far = np.zeros((HEADS, k.shape[2]))
    for row in range(queries):
        own = k.shape[2] - queries + row
        far[:, : own + 1] += weights[:, row, own::-1]
    return far.cumsum(axis=1) / queries


def draw(models: dict[str, Trained], held_out: Array, window: int, path: Path) -> None:
    """Draw losses over time and over the places in a document, and how far heads look."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curves, places, far = figure.subplots(1, 3)
    training.draw_curves(curves, models, COLORS, seconds=True)
    length = held_out.shape[1] - 1
    middles = (np.arange(BINS) + 0.5) * length / BINS
    for name, (model, *_) in models.items():
        places.plot(middles, losses_by_place(model, held_out), color=COLORS[name], label=name)
    places.set_title("held-out loss by the place in a document", fontsize=9, color=training.INK)
    training.finish(places, "characters before", "loss, nats a character")
    places.legend(frameon=False, fontsize=9)
    last = "full" if "full" in models else next(iter(models))
    for head, shares in enumerate(look_far(models[last].model, held_out[0])):
        far.semilogx(
            np.arange(1, length + 1), shares, lw=1.2, label=f"head {head}, slope {SLOPES[head]:g}"
        )
    far.axvline(window + 1, color="#bbbbbb", lw=1, ls="--")
    far.set_title(
        f'weight within a distance: "{last}", last layer\n(dashed: the window)',
        fontsize=9,
        color=training.INK,
    )
    training.finish(far, "characters back, the own one counted", "part of the weight")
    far.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def tell_costs(options: argparse.Namespace) -> None:
    """Print what attention costs, before it is computed."""
    x = np.zeros((1, HEADS, options.length, options.width // HEADS), np.float32)
    first = np.arange(options.global_tokens)
    few = plan(local_attention, x, x, x, options.window, global_tokens=first, is_causal=True)
    every = plan(x, x, x, is_causal=True)
    print(
        f"a layer: {few.visible_pairs:,} pairs in windows, {every.visible_pairs:,} in full, "
        f"{every.visible_pairs / few.visible_pairs:.0f} times as many; "
        f"all weights would take {4 * HEADS * options.length**2 / 1e9:.2f} GB"
    )


def parse() -> tuple[argparse.Namespace, Any, Array, Array]:
    """Read the command line, the file to go on with, and the documents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", nargs="*", type=Path, help="texts to learn (default: the standard library)")
    training.add_arguments(parser, 1, "long_train")
    add("--attention", nargs="+", choices=list(COLORS), default=["window", "full"],
        metavar="NAME", help="window, full, torch: train one after the other")  # fmt: skip
    add("--documents", type=int, default=24, metavar="N", help="of an epoch; 0 = all")
    add("--length", type=int, default=16384, metavar="N", help="characters of a document")
    add("--window", type=int, default=256, metavar="N", help="characters seen before the own")
    add("--global-tokens", type=int, default=64, metavar="N", help="first ones, seen by all")
    add("--width", type=int, default=64, metavar="N", help="of a layer, a multiple of 4")
    add("--layers", type=int, default=1, metavar="N", help="layers")
    add("--rate", type=float, default=6e-3, metavar="X", help="learning rate")
    options = parser.parse_args()
    if options.width < 1 or options.width % HEADS or options.layers < 1:
        parser.error(f"--width must be a multiple of {HEADS}, --layers at least 1")
    if not (options.epochs >= 0 and options.rate > 0 and options.documents >= 0):
        parser.error("--epochs and --documents must not be negative, --rate above 0")
    if options.length < BINS or not 0 <= options.global_tokens <= options.length:
        parser.error(f"--length must be at least {BINS}, --global-tokens 0 to --length")
    if options.window < 0:
        parser.error("--window must not be negative")
    try:
        stored = training.load(options.load) if options.load else None
        for name in FIXED if stored else ():
            setattr(options, name, stored[1][name])
        train, held_out = read(options.files, options.length)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{options.load or 'the files'}: {error}")
    if not (len(train) and len(held_out)):
        parser.error(f"there must be two files of more than {options.length} characters")
    return options, stored, train[: options.documents or None], held_out[:4]


def main() -> None:
    """Read the command line, train, compare, write and draw."""
    options, stored, train, held_out = parse()
    print(
        f"{len(train)} documents of {options.length:,} characters to learn from, "
        f"{len(held_out)} held out"
    )
    tell_costs(options)
    models: dict[str, Trained] = {}
    for kind in dict.fromkeys(options.attention):
        models[kind] = training.start(kind, build(kind, options), stored)
        peak_memory(forget=True)
        fit(kind, models[kind], train, held_out, options)
        print(f"{kind}: peak memory {peak_memory():.0f} MB")
        facts = {name: getattr(options, name) for name in FIXED}
        training.save_models(options.save, models, facts)
        if models[kind].history.stopped:
            break
    training.report(models)
    draw(models, held_out, options.window, options.plot)
    print(f"written: {options.save}, {options.plot}")


if __name__ == "__main__":
    sys.exit(main())

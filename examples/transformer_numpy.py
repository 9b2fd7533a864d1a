"""Train a small transformer language model in NumPy alone, on text that ships with Python.

    python transformer_numpy.py
    python transformer_numpy.py --attention attnfast torch none
    python transformer_numpy.py novel.txt --width 128 --layers 3 --context 128 --rate 0.003

The model tells the next character: an embedding, layers of attention and of two linear maps, a
readout (`transformer.py`). Attention and its gradients are those of attnfast's MultiHeadAttention;
the same model is trained with PyTorch's attention in its place, or with none.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import training
from texts import read_texts
from training import Trained
from transformer import Transformer

from attnfast import plot
from attnfast.layers import MultiHeadAttention

Array = np.ndarray
HEADS = 4
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # stands for characters that are rare
SHOWN = 44  # characters of the passage whose weights are drawn
COLORS = {"attnfast": "#0072b2", "torch": "#d55e00", "none": "#7f7f7f"}
FIXED = ("width", "layers", "context")  # options that a file of weights has settled


# ---- The text ----


class Data(NamedTuple):
    """Characters as numbers: those to learn from, and those held out."""

    symbols: str
    train: Array
    held_out: Array


def read(files: Sequence[Path], limit: int, symbols: str | None = None) -> Data:
    """Hold out every tenth run of ten paragraphs; no paragraph is there twice."""
    texts = (text for _, text in read_texts(files))
    parts = (part for text in texts for part in re.split(r"\n\s*\n", text.strip("\n")))
    found = list(dict.fromkeys(parts))
    held = [n // 10 % 10 == 9 for n in range(len(found))]
    train = "\n\n".join(p for p, out in zip(found, held, strict=True) if not out)
    held_out = "\n\n".join(p for p, out in zip(found, held, strict=True) if out)
    if not held_out:  # a short text: its end
        cut = len(train) * 9 // 10
        train, held_out = train[:cut], train[cut:]
    if limit:
        train, held_out = train[:limit], held_out[: limit // 10]
    if symbols is None:
        symbols = UNKNOWN + "".join(sorted(c for c in set(train) if train.count(c) >= 5))
    return Data(symbols, to_numbers(train, symbols), to_numbers(held_out, symbols))


def to_numbers(text: str, symbols: str) -> Array:
    """Return the number of each character among the symbols, 0 where it is none of them."""
    numbers = {c: n for n, c in enumerate(symbols)}
    return np.array([numbers.get(c, 0) for c in text], np.int64)


def windows(tokens: Array, length: int) -> Array:
    """Return all of the tokens in rows of `length + 1` that share their ends; the rest is left."""
    count = (len(tokens) - 1) // length
    return tokens[np.arange(count)[:, None] * length + np.arange(length + 1)]


# ---- The attention ----


class TorchAttention:
    """PyTorch's attention on the weights of a layer of attnfast, for comparison."""

    def __init__(self, layer: MultiHeadAttention) -> None:
        self.weights = layer.weights

    def vjp(self, x: Array, is_causal: bool) -> tuple[Array, Callable[[Array], Any]]:
        """Return the output, and a function to the gradients of input and weights."""
        import torch

        given = torch.from_numpy(x).requires_grad_()
        w = {n: torch.from_numpy(a).requires_grad_() for n, a in self.weights.arrays().items()}
        q, k, v = (
            (given @ w[f"{name}.weight"] + w[f"{name}.bias"])
            .unflatten(-1, (self.weights.num_heads, -1))
            .transpose(1, 2)
            for name in ("query", "key", "value")
        )
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        output = seen.transpose(1, 2).flatten(2) @ w["output.weight"] + w["output.bias"]

        def pullback(grad: Array) -> tuple[dict[str, Array], dict[str, Array]]:
            output.backward(torch.from_numpy(grad))
            return {"query": given.grad.numpy()}, {name: t.grad.numpy() for name, t in w.items()}

        return output.detach().numpy(), pullback


def build(kind: str, symbols: str, options: argparse.Namespace) -> Transformer:
    """Return a model before training; only the kind of its attention differs."""
    layers: list[Any] = [
        MultiHeadAttention(options.width, HEADS, seed=1000 * options.seed + n)
        for n in range(options.layers)
    ]
    if kind == "torch":
        layers = [TorchAttention(layer) for layer in layers]
    if kind == "none":
        layers = [None] * options.layers
    return Transformer(len(symbols), options.width, layers, options.context, options.seed)


# ---- Training ----


def held_out_loss(model: Transformer, rows: Array, batch: int = 64) -> float:
    """Return the mean loss of held-out characters."""
    sizes = [len(rows[n : n + batch]) for n in range(0, len(rows), batch)]
    losses = [model.loss(rows[n : n + batch])[0] for n in range(0, len(rows), batch)]
    return float(np.average(losses, weights=sizes))


def fit(kind: str, trained: Trained, data: Data, options: argparse.Namespace) -> None:
    """Train a model on windows of the text at random places."""
    model, adam, history = trained
    rng = np.random.default_rng((options.seed, len(history.losses)))
    rows, reach = windows(data.held_out, options.context), np.arange(options.context + 1)
    a_pass = len(data.train) / (options.batch * options.context)

    def step(part: float) -> float:
        places = rng.integers(0, len(data.train) - options.context, (options.batch, 1))
        loss, gradients = model.loss(data.train[places + reach])
        adam.step(gradients(), options.rate * part)
        return loss

    steps = math.ceil(options.epochs * a_pass)
    held_out = partial(held_out_loss, model, rows)
    training.train(kind, trained, steps, step, held_out, math.ceil(a_pass))


# ---- What was learned ----


def write_on(model: Transformer, symbols: str, prompt: str, count: int, seed: int) -> str:
    """Return a text that the model goes on with, drawn at a temperature of 0.7."""
    rng, context = np.random.default_rng(seed), len(model.weights["position"])
    tokens = list(to_numbers(prompt, symbols))
    for _ in range(count):
        log_p = model.vjp(np.array([tokens[-context:]]))[0][-1].astype(np.float64) / 0.7
        p = np.exp(log_p - log_p.max())
        p[0] = 0  # not the character that stands for the rare ones
        tokens.append(int(rng.choice(len(p), p=p / p.sum())))
    return "".join(symbols[n] for n in tokens)


def passage(tokens: Array, symbols: str) -> Array:
    """Return a piece of held-out text on one line, most of it letters, for the picture."""
    letter = np.array([c.isalpha() for c in symbols])[tokens]
    single = np.array([c not in "\n" + UNKNOWN for c in symbols])[tokens]
    count = max(1, min(SHOWN, len(tokens)))
    ones = np.ones(count)
    score = np.convolve(letter, ones, "valid") + 10 * np.convolve(single, ones, "valid")
    return tokens[(start := int(score.argmax())) : start + count]


def draw(models: dict[str, Trained], data: Data, path: Path) -> None:
    """Draw the losses, and where two heads of attnfast's model look in held-out text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    shown = models.get("attnfast")
    axes = figure.subplots(1, 3 if shown else 1, squeeze=False)[0]
    training.draw_curves(axes[0], models, COLORS)
    if shown:
        tokens = passage(data.held_out, data.symbols)[: len(shown.model.weights["position"])]
        shown.model.vjp(tokens[None])
        names = [data.symbols[n].replace(" ", "\N{OPEN BOX}") for n in tokens]
        last = len(shown.model.attention) - 1
        layer, given = shown.model.attention[last], shown.model.given[last]
        _, weights = layer(given, is_causal=True, return_weights=True)
        far = (weights[0] * np.abs(np.subtract.outer(*[np.arange(len(tokens))] * 2))).sum((1, 2))
        heads = np.sort(np.argsort(far)[[0, -1]])  # that which looks nearest, and farthest
        titles = [f"layer {last}, head {head}: who looks where" for head in heads]
        plot.weights(weights[0][heads], names, names, titles=titles, ax=list(axes[1:]))
    figure.savefig(path, dpi=110)


def parse() -> tuple[argparse.Namespace, Any]:
    """Read the command line and the file to go on with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", nargs="*", type=Path, help="texts to learn (default: what ships with Python)")
    training.add_arguments(parser, 2, "transformer_numpy")
    add("--attention", nargs="+", choices=list(COLORS), default=["attnfast", "none"],
        metavar="NAME", help="attnfast, torch, none: train one after the other")  # fmt: skip
    add("--width", type=int, default=64, metavar="N", help="of a layer, a multiple of 4")
    add("--layers", type=int, default=2, metavar="N", help="layers")
    add("--context", type=int, default=64, metavar="N", help="characters that it sees")
    add("--batch", type=int, default=16, metavar="N", help="windows of a step")
    add("--rate", type=float, default=6e-3, metavar="X", help="learning rate")
    add("--limit", type=int, default=0, metavar="N", help="characters to learn from; 0 = all")
    add("--prompt", default="The ", metavar="TEXT", help="what the printed texts begin with")
    options = parser.parse_args()
    try:
        stored = training.load(options.load) if options.load else None
        for name in FIXED if stored else ():
            setattr(options, name, stored[1][name])
        data = read(options.files, options.limit, stored and stored[1]["symbols"])
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{options.load or 'the files'}: {error}")
    if options.width < HEADS or options.width % HEADS or min(options.layers, options.batch) < 1:
        parser.error(f"--width must be a multiple of {HEADS}, --layers and --batch at least 1")
    if not (options.epochs >= 0 and options.rate > 0 and options.prompt):
        parser.error("--epochs must not be negative, --rate above 0, --prompt not empty")
    if not 1 <= options.context < min(len(data.train), len(data.held_out)):
        parser.error(
            f"--context must be at least 1 and below the {len(data.held_out)} held-out characters"
        )
    return options, (stored, data)


def main() -> None:
    """Read the command line, train, compare, write and draw."""
    sys.stdout.reconfigure(errors="replace")  # for terminals that lack a character
    options, (stored, data) = parse()
    print(
        f"{len(data.train):,} characters to learn from, {len(data.held_out):,} held out, "
        f"{len(data.symbols)} symbols"
    )
    models: dict[str, Trained] = {}
    for kind in dict.fromkeys(options.attention):
        models[kind] = training.start(kind, build(kind, data.symbols, options), stored)
        fit(kind, models[kind], data, options)
        facts = {"symbols": data.symbols, **{name: getattr(options, name) for name in FIXED}}
        training.save_models(options.save, models, facts)
        if models[kind].history.stopped:
            break
    training.report(models)
    for kind, (model, *_) in models.items():
        text = write_on(model, data.symbols, options.prompt, 300, options.seed)
        print(f"\n---- {kind} goes on ----\n{text}")
    draw(models, data, options.plot)
    print(f"\nwritten: {options.save}, {options.plot}")


if __name__ == "__main__":
    main()

"""Train a translator from English to Chinese: LSTM, attention, LSTM, and a beam search.

    pip download --no-deps -d catalogues PACKAGES  # which: see docs/examples/translate.md
    python translate.py
    python translate.py --load translate.pt --epochs 0 --sentence "Cannot open the file."

Pairs of texts are those of programs that have a Chinese version. Each state of the decoder looks at
the words of the source: dot-product or additive scores, by `attnfast.torch`, with gradients. The
same model is trained with PyTorch's operations in their place, or without attention.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import training
from catalogues import WORD, Pair, clean, join, read, split
from fonts import families_for
from sacrebleu.metrics import CHRF
from seq2seq import (
    UNKNOWN,
    Batch,
    Seq2Seq,
    Task,
    add_arguments,
    batch_of,
    beam_search,
    check_arguments,
    judge,
    number,
    train_all,
    with_target,
)
from training_torch import Trained, load

COLORS = {"attnfast": "#0072b2", "torch": "#d55e00", "none": "#7f7f7f"}
FIXED = ("score", "local", "width", "hidden")  # options that a file of weights has settled
PRINTED, DRAWN = 6, 2  # sentences
LONGEST = 24  # signs of a translation


class Data(NamedTuple):
    """Pairs to learn from and held out, and the numbers of words and signs."""

    train: list[Pair]
    held_out: list[Pair]
    words: dict[str, int]
    signs: dict[str, int]


def number_all(pairs: list[Pair], stored: dict[str, Any] | None) -> Data:
    """Split pairs and number what occurs twice, as a file of weights has it if there is one."""
    train, held_out = split(pairs)
    words = number(([word.lower() for word in pair.words] for pair in train), 2)
    signs = number((pair.signs for pair in train), 2)
    if stored:
        words, signs = stored["words"], stored["signs"]
    return Data(train, held_out, words, signs)


def batch_from(pairs: Sequence[Pair], data: Data) -> Batch:
    """Return pairs as numbers."""
    return batch_of(
        [[data.words.get(word.lower(), UNKNOWN) for word in pair.words] for pair in pairs],
        [[data.signs.get(sign, UNKNOWN) for sign in pair.signs] for pair in pairs],
    )


def parts(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Cut pairs into batches."""
    yield from (pairs[n : n + 128] for n in range(0, len(pairs), 128))


def batches(pairs: list[Pair], data: Data) -> Iterator[Batch]:
    """Yield pairs as numbers."""
    yield from (batch_from(part, data) for part in parts(pairs))


def train(
    options: argparse.Namespace, stored: dict[str, Any] | None, data: Data
) -> dict[str, Trained]:
    """Train and save one model after the other."""
    sizes = (len(data.words) + 4, len(data.signs) + 4)
    task = Task(
        lambda chosen: batch_from([data.train[n] for n in chosen], data),
        [len(pair.words) for pair in data.train],
        lambda: batches(data.held_out, data),
    )
    facts = {"words": data.words, "signs": data.signs}
    facts |= {name: getattr(options, name) for name in FIXED}
    return train_all(lambda kind: Seq2Seq(sizes, kind, options), task, options, stored, facts)


class Translation(NamedTuple):
    """Signs, and the weight of each word of the source for each of them."""

    signs: list[str]
    weights: np.ndarray | None


@torch.no_grad()
def translate(model: Seq2Seq, pairs: list[Pair], data: Data, beams: int) -> list[Translation]:
    """Translate the words of pairs; an unknown sign is the word that it looks at most, if any."""
    model.eval()
    names = {n: sign for sign, n in data.signs.items()}
    found = []
    for part in parts(pairs):
        batch = batch_from(part, data)
        texts = beam_search(model, batch, beams, LONGEST)
        _, weights = model(with_target(batch, texts))
        for row, (pair, text) in enumerate(zip(part, texts, strict=True)):
            seen, signs = None, [names.get(n, "") for n in text]
            if weights is not None:
                seen = weights[row, : len(text), : len(pair.words)].numpy()
                signs = [
                    sign or pair.words[w.argmax()] for sign, w in zip(signs, seen, strict=True)
                ]
            found.append(Translation([sign for sign in signs if sign], seen))
    model.train()
    return found


def chrf(found: Sequence[Translation], pairs: Sequence[Pair]) -> float:
    """Return how many short runs of characters translations share with those of people."""
    ours, theirs = ([join(item.signs) for item in items] for items in (found, pairs))
    return float(CHRF().corpus_score(ours, [theirs]).score)


# ---- What was learned ----


def print_table(
    models: dict[str, Trained], found: dict[str, list[Translation]], data: Data
) -> None:
    """Print the quality and the time of each model."""
    print("attention   held-out loss   chrF   steps   training   of it attention, forward")
    for kind, (model, _, history) in models.items():
        loss = judge(model, batches(data.held_out, data))
        print(
            f"{kind:12}{loss:13.4f}{chrf(found[kind], data.held_out):7.1f}"
            f"{len(history.losses):8}{history.seconds:9.1f} s{history.attention:14.1f} s"
        )


def print_translations(found: dict[str, list[Translation]], pairs: Sequence[Pair]) -> None:
    """Print texts with their translations."""
    for n, pair in enumerate(pairs):
        print(f"\n{'English':10}{' '.join(pair.words)}")
        if pair.signs:
            print(f"{'people':10}{join(pair.signs)}")
        for kind, translations in found.items():
            print(f"{kind:10}{join(translations[n].signs)}")


def best(found: list[Translation], pairs: list[Pair]) -> list[int]:
    """Return the numbers of the best translations of texts that fit in a picture."""
    places = [n for n, pair in enumerate(pairs) if 5 <= len(pair.words) <= 10]
    return sorted(places, key=lambda n: -chrf([found[n]], [pairs[n]]))[:DRAWN]


def draw(models: dict[str, Trained], shown: list[tuple[Pair, Translation]], path: Path) -> None:
    """Draw the losses, and what each sign of some translations looks at."""
    from matplotlib.figure import Figure

    from attnfast import plot

    shown = [(pair, item) for pair, item in shown if item.weights is not None and item.signs]
    figure = Figure(figsize=(5 + 3.4 * len(shown), 4.2), layout="constrained")
    curves, *axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    training.draw_curves(curves, models, COLORS, unit="sign")
    for axis, (pair, (signs, weights)) in zip(axes, shown, strict=True):
        try:
            families_for(signs)
        except LookupError as error:
            print(f"\n{error}. Until then the picture numbers the signs of {join(signs)}")
            signs = [str(n) for n in range(1, len(signs) + 1)]
        plot.weights(weights, signs, pair.words, titles="what a sign looks at", ax=axis)
        axis.set(xlabel="source", ylabel="translation")
    figure.savefig(path, dpi=110)


# ---- The command line ----


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    training.add_arguments(parser, 5, "translate", ".pt")
    add_arguments(parser)
    add("--data", type=Path, default=Path("catalogues"), metavar="FOLDER", help="of the wheels")
    add("--local", action="store_true", help="look around a place that the state predicts")
    add("--sentence", nargs="+", default=[], metavar="TEXT", help="translate and draw these")
    return parser


def parse() -> tuple[argparse.Namespace, dict[str, Any] | None, Data]:
    """Read the command line, the file to go on with, and the pairs."""
    parser = make_parser()
    options = parser.parse_args()
    check_arguments(parser, options)
    try:
        stored = load(options.load)
        for name in FIXED if stored else ():
            setattr(options, name, stored[name])
        pairs = read(options.data)
    except FileNotFoundError as error:
        parser.error(f"{error.filename} is not there: see docs/examples/translate.md")
    except Exception as error:
        parser.error(f"{options.load or options.data}: {error!r}")
    if options.local and options.score not in ("dot", "general"):
        parser.error(f"--local goes with --score dot or general, not {options.score}")
    if not all(WORD.search(clean(text)) for text in options.sentence):
        parser.error("--sentence must have words")
    data = number_all(pairs, stored)
    if not data.held_out:
        parser.error(
            f"--data {options.data}: of the {len(pairs)} pairs in its wheels none can be held out, "
            "as it is unlike all others"
        )
    return options, stored, data


def main() -> None:
    """Read the command line, train, translate, save and draw."""
    sys.stdout.reconfigure(errors="replace")  # for terminals that lack a sign
    options, stored, data = parse()
    print(
        f"{len(data.train):,} pairs to learn from, {len(data.held_out):,} held out, "
        f"{len(data.words):,} words, {len(data.signs):,} signs"
    )
    models = train(options, stored, data)
    found = {
        kind: translate(trained.model, data.held_out, data, options.beams)
        for kind, trained in models.items()
    }
    print_table(models, found, data)
    print_translations(found, data.held_out[:PRINTED])
    own = [Pair(WORD.findall(clean(text)), []) for text in options.sentence]
    ours = {kind: translate(t.model, own, data, options.beams) for kind, t in models.items()}
    print_translations(ours, own)
    first = next(iter(models))
    places = best(found[first], data.held_out)
    shown = list(zip(own, ours[first], strict=True))[:DRAWN]
    draw(models, shown or [(data.held_out[n], found[first][n]) for n in places], options.plot)
    print(f"\nwritten: {options.save}, {options.plot}")


if __name__ == "__main__":
    sys.exit(main())

"""Train a model that writes the first line of a docstring from the rest: LSTM, attention, LSTM.

    pip download --no-deps -d docstrings PACKAGES  # which: see docs/examples/summarise.md
    python summarise_trained.py
    python summarise_trained.py --load summarise_trained.pt --epochs 0 --text notes.txt

Each state of the decoder looks at the words of the body, and a word of the line is either written
or copied from where it looks: attention by `attnfast.torch`, with gradients. The same model is
trained with PyTorch's operations in its place, or without attention, and so without copying.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import docstrings
import numpy as np
import torch
import training
from docstrings import Pair
from pointer import PointerGenerator, looked_again
from rouge_score.rouge_scorer import RougeScorer
from seq2seq import (
    BEGIN,
    PAD,
    UNKNOWN,
    Batch,
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
FIXED = ("score", "width", "hidden")  # options that a file of weights has settled
LEAST = 8  # times that a word of the vocabulary occurs
PART = 128  # texts that are summarised at a time
LONGEST = 16  # words of a summary
NEVER = (PAD, UNKNOWN, BEGIN)  # are words of a summary
PRINTED = 6  # summaries
LEAD = 12  # words of a body that a summary is compared with
DRAWN = (14, 26)  # words of a body in the picture
LEAST_DRAWN = 6  # words of its line


class Data(NamedTuple):
    """Pairs to learn from and held out, and the numbers of words."""

    train: list[Pair]
    held_out: list[Pair]
    words: dict[str, int]


def number_all(pairs: list[Pair], stored: dict[str, Any] | None) -> Data:
    """Split pairs and number frequent words, as a file of weights has it if there is one."""
    train, held_out = docstrings.split(pairs)
    words = stored["words"] if stored else number((p.body + p.line for p in train), LEAST)
    return Data(train, held_out, words)


def own_words(pair: Pair, data: Data) -> dict[str, int]:
    """Number the words of a body that the vocabulary lacks, from its end on."""
    new = dict.fromkeys(word for word in pair.body if word not in data.words)
    return {word: n for n, word in enumerate(new, len(data.words) + 4)}


def batch_from(pairs: Sequence[Pair], data: Data) -> Batch:
    """Return pairs as numbers."""
    sources, targets = [], []
    for pair in pairs:
        own = own_words(pair, data)
        sources.append([data.words.get(word) or own[word] for word in pair.body])
        targets.append([data.words.get(word) or own.get(word, UNKNOWN) for word in pair.line])
    return batch_of(sources, targets)


def parts(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Cut pairs into batches."""
    yield from (pairs[n : n + PART] for n in range(0, len(pairs), PART))


def train(
    options: argparse.Namespace, stored: dict[str, Any] | None, data: Data
) -> dict[str, Trained]:
    """Train and save one model after the other."""
    task = Task(
        lambda chosen: batch_from([data.train[n] for n in chosen], data),
        [len(pair.body) for pair in data.train],
        lambda: (batch_from(part, data) for part in parts(data.held_out)),
        lambda weights, batch: options.coverage * looked_again(weights, batch),
    )
    facts = {"words": data.words} | {name: getattr(options, name) for name in FIXED}
    size = len(data.words) + 4
    return train_all(
        lambda kind: PointerGenerator(size, kind, options), task, options, stored, facts
    )


# ---- Summaries ----


class Summary(NamedTuple):
    """Words; what each looked at in the body, and how much of its probability copying gave it."""

    words: list[str]
    weights: np.ndarray | None
    copied: np.ndarray


@torch.no_grad()
def summarise(
    model: PointerGenerator, pairs: Sequence[Pair], data: Data, beams: int
) -> list[Summary]:
    """Summarise bodies; a word that is unknown to the model is left out."""
    model.eval()
    names = {n: word for word, n in data.words.items()}
    found = []
    for part in parts(pairs):
        batch = batch_from(part, data)
        texts = beam_search(model, batch, beams, LONGEST, NEVER)
        written, copied, weights = model.sources(with_target(batch, texts))
        shares = (copied / (written + copied).clamp(min=1e-12)).numpy()
        for row, (pair, text) in enumerate(zip(part, texts, strict=True)):
            all_names = names | {n: word for word, n in own_words(pair, data).items()}
            steps = [t for t, n in enumerate(text) if n in all_names]
            seen = None if weights is None else weights[row, steps, : len(pair.body)].numpy()
            found.append(Summary([all_names[text[t]] for t in steps], seen, shares[row, steps]))
    model.train()
    return found


def first_sentence(body: Sequence[str]) -> list[str]:
    """Return the words of a body up to the first full stop."""
    stop = body.index(".") + 1 if "." in body else len(body)
    return list(body[:stop])


def first_words(body: Sequence[str]) -> list[str]:
    """Return as many words as a line has, and more."""
    return list(body[:LEAD])


def rouge(found: Sequence[Sequence[str]], pairs: Sequence[Pair]) -> np.ndarray:
    """Return ROUGE-L of each summary in percent: words in the order of the line, F measure."""
    score = RougeScorer(["rougeL"]).score
    each = [
        score(" ".join(pair.line), " ".join(words))["rougeL"].fmeasure
        for words, pair in zip(found, pairs, strict=True)
    ]
    return 100 * np.array(each)


# ---- What was learned ----


def print_table(models: dict[str, Trained], found: dict[str, list[Summary]], data: Data) -> None:
    """Print the quality and the time of each model, beside what needs none."""
    pairs = data.held_out
    print("attention   held-out loss   ROUGE-L   steps   training   of it attention, forward")
    for kind, (model, _, history) in models.items():
        loss = judge(model, (batch_from(part, data) for part in parts(pairs)))
        score = rouge([summary.words for summary in found[kind]], pairs).mean()
        print(
            f"{kind:12}{loss:13.4f}{score:10.1f}{len(history.losses):8}"
            f"{history.seconds:9.1f} s{history.attention:14.1f} s"
        )
    for name, take in (("first sentence", first_sentence), (f"first {LEAD} words", first_words)):
        print(f"{name:25}{rouge([take(pair.body) for pair in pairs], pairs).mean():10.1f}")


def print_summaries(found: dict[str, list[Summary]], pairs: Sequence[Pair]) -> None:
    """Print bodies with their summaries."""
    for n, pair in enumerate(pairs):
        print(f"\n{'body':10}{join(pair.body)}")
        if pair.line:
            print(f"{'people':10}{join(pair.line)}")
        for kind, summaries in found.items():
            print(f"{kind:10}{join(summaries[n].words)}")


def join(words: Sequence[str]) -> str:
    """Return words as a text, without spaces before marks."""
    text = re.sub(r" ([.,;:?!)\]])", r"\1", " ".join(words))
    return re.sub(r"([(\[]|(?<=\w) [-/]) ", lambda found: found[1].strip(), text)


def best(found: list[Summary], pairs: list[Pair]) -> int:
    """Return the number of the best summary of a body that fits in a picture."""
    scores = rouge([summary.words for summary in found], pairs)
    fits = [
        DRAWN[0] <= len(pair.body) <= DRAWN[1] and len(pair.line) >= LEAST_DRAWN for pair in pairs
    ]
    return int(np.where(fits, scores, -1).argmax())


def draw(models: dict[str, Trained], pair: Pair, summary: Summary, path: Path) -> None:
    """Draw the losses, and what each word of a summary looks at."""
    from matplotlib.figure import Figure

    from attnfast import plot

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    seen = summary.weights is not None and summary.words
    curves, *axes = figure.subplots(
        1, 2 if seen else 1, squeeze=False, width_ratios=[1, 2] if seen else [1]
    )[0]
    training.draw_curves(curves, models, COLORS, unit="word")
    for axis in axes:
        rows = [
            f"{word} {part:.0%}" for word, part in zip(summary.words, summary.copied, strict=True)
        ]
        plot.weights(summary.weights, rows, pair.body, titles="what a word looks at", ax=axis)
        axis.set(xlabel="body", ylabel="summary, and how much of it is copied")
    figure.savefig(path, dpi=110)


# ---- The command line ----


def parse() -> tuple[argparse.Namespace, dict[str, Any] | None, Data]:
    """Read the command line, the file to go on with, and the pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    training.add_arguments(parser, 3, "summarise_trained", ".pt")
    add("--data", type=Path, default=Path("docstrings"), metavar="FOLDER", help="of the wheels")
    add("--coverage", type=float, default=1.0, metavar="X",
        help="cost of looking again at what was looked at")  # fmt: skip
    add("--text", nargs="+", default=[], metavar="TEXT", help="summarise and draw these")
    add_arguments(parser, dropout=0.3)
    options = parser.parse_args()
    check_arguments(parser, options)
    try:
        stored = load(options.load)
        for name in FIXED if stored else ():
            setattr(options, name, stored[name])
        pairs = docstrings.read(options.data)
    except FileNotFoundError as error:
        parser.error(f"{error.filename} is not there: see docs/examples/summarise.md")
    except Exception as error:
        parser.error(f"{options.load or options.data}: {error!r}")
    if not all(docstrings.words(text) for text in options.text):
        parser.error("--text must have words")
    data = number_all(pairs, stored)
    if not data.held_out or not data.train:
        parser.error(
            f"--data {options.data}: must have wheels of {', '.join(docstrings.HELD_OUT)}, which "
            f"are held out, and of others, got {len(data.held_out)} and {len(data.train)} pairs"
        )
    return options, stored, data


def main() -> None:
    """Read the command line, train, summarise, save and draw."""
    options, stored, data = parse()
    print(
        f"{len(data.train):,} pairs to learn from, {len(data.held_out):,} held out, "
        f"{len(data.words):,} words"
    )
    models = train(options, stored, data)
    found = {
        kind: summarise(trained.model, data.held_out, data, options.beams)
        for kind, trained in models.items()
    }
    print_table(models, found, data)
    every = len(data.held_out) // PRINTED + 1
    print_summaries({kind: each[::every] for kind, each in found.items()}, data.held_out[::every])
    own = [Pair("", docstrings.words(text)[: docstrings.BODY[1]], []) for text in options.text]
    ours = {kind: summarise(t.model, own, data, options.beams) for kind, t in models.items()}
    print_summaries(ours, own)
    first = next(iter(models))
    shown = (own, ours[first]) if own else (data.held_out, found[first])
    n = 0 if own else best(found[first], data.held_out)
    draw(models, shown[0][n], shown[1][n], options.plot)
    print(f"\nwritten: {options.save}, {options.plot}")


if __name__ == "__main__":
    sys.exit(main())

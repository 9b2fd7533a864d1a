"""A pointer-generator: sequence to sequence that can also copy words, and knows which it has used.

The probability of a word is that of writing it plus that of copying it from where the source has
it; a gate divides between the two. Coverage: what earlier steps looked at changes the scores.
"""

import argparse

import torch
from seq2seq import PAD, UNKNOWN, Attention, Batch, Decoded, Looked, Memory, Seq2Seq, State
from torch import Tensor, nn
from torch.nn.functional import pad

TINY = 1e-12


class Words(nn.Embedding):
    """Vectors of words; numbers beyond the vocabulary are words that have none of their own."""

    def forward(self, words: Tensor) -> Tensor:
        """Return the vectors of words."""
        return super().forward(words.masked_fill(words >= self.num_embeddings, UNKNOWN))


class Covering(Attention):
    """Attention in which the words that earlier steps looked at have other scores.

    Every step looks twice. What it looks at first is what the steps after it are told, so that all
    steps can do so at once: nothing in the first look depends on the steps before.
    """

    def __init__(self, size: int, kind: str, options: argparse.Namespace) -> None:
        super().__init__(size, kind, options)
        self.rate = nn.Parameter(torch.tensor(1.0))

    def forward(self, states: Tensor, memory: Memory, past: State = ()) -> Looked:
        """Return what each state sees; `past` is the sum of the first weights so far."""
        queries = self.query(states)
        _, first = self.look(queries, memory)
        total = past[0].movedim(0, 1) + first.cumsum(dim=1)
        bias = -self.rate * (total - first)
        return Looked(*self.look(queries, memory, bias=bias), (total[:, -1][None],))


class PointerGenerator(Seq2Seq):
    """Sequence to sequence in one vocabulary, whose attention also points at words to copy."""

    def __init__(self, words: int, kind: str, options: argparse.Namespace) -> None:
        super().__init__((words, words), kind, options)
        self.read = self.written = Words(words, options.width, padding_idx=PAD)
        nn.init.normal_(self.read.weight, std=options.width**-0.5)
        self.logits.weight = self.read.weight
        if self.attention:
            self.attention = Covering(2 * options.hidden, kind, options)
            self.gate = nn.Linear(4 * options.hidden, 1)

    def encode(self, batch: Batch) -> tuple[Memory, State]:
        """Read the source, nothing of which is covered yet."""
        memory, state = super().encode(batch)
        if self.attention:
            state = (*state, memory.states.new_zeros(1, *batch.source.shape))
        return memory, state

    def log_probs(self, decoded: Decoded, memory: Memory) -> Tensor:
        """Return log-probabilities of all words, those that only sources have included."""
        made = super().log_probs(decoded, memory)
        if decoded.weights is None:
            return made
        more = int(memory.source.max()) + 1 - made.shape[-1]
        gate = torch.sigmoid(self.gate(decoded.seen))
        source = memory.source[:, None].expand_as(decoded.weights)
        made = pad(gate * made.exp(), (0, max(0, more)))
        return (made.scatter_add(-1, source, (1 - gate) * decoded.weights) + TINY).log()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the log-probability of each word of the target, ``(B, T)``, and the weights."""
        written, copied, weights = self.sources(batch)
        return (written + copied + TINY).log(), weights

    def sources(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return how probable it is to write each word of the target, and to copy it; weights."""
        memory, state = self.encode(batch)
        decoded = self.decode(batch.target[:, :-1], state, memory)
        wanted = batch.target[:, 1:, None]
        made = super().log_probs(decoded, memory)
        new = wanted >= made.shape[-1]
        made = made.gather(-1, wanted.masked_fill(new, UNKNOWN))[..., 0].exp()
        if decoded.weights is None:
            return made, torch.zeros_like(made), None
        gate = torch.sigmoid(self.gate(decoded.seen))[..., 0]
        copied = (decoded.weights * (batch.source[:, None] == wanted)).sum(dim=-1)
        return gate * made * ~new[..., 0], (1 - gate) * copied, decoded.weights


def looked_again(weights: Tensor | None, batch: Batch) -> Tensor | float:
    """Return the mean weight of a step that lies where earlier steps have looked."""
    if weights is None:
        return 0.0
    before = weights.cumsum(dim=1) - weights
    return torch.minimum(weights, before).sum(dim=-1)[batch.target[:, 1:] != PAD].mean()

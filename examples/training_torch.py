"""What the examples that train in PyTorch share: steps of Adam over batches, and files."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import training
from torch import Tensor, nn

POOL = 20  # batches that are drawn together where they are sorted by length


class Trained(NamedTuple):
    """A model, its optimiser, and how its training went."""

    model: Any  # a module that adds up the seconds of its attention in `seconds`
    adam: torch.optim.Adam
    history: training.History


def start(kind: str, model: nn.Module, stored: dict[str, Any] | None) -> Trained:
    """Return a model ready to train: as it was saved, if it was."""
    adam = torch.optim.Adam(model.parameters())
    history = training.History()
    if stored and kind in stored:
        model.load_state_dict(stored[kind]["model"])
        adam.load_state_dict(stored[kind]["adam"])
        history = training.from_facts(stored[kind]["history"])
    return Trained(model, adam, history)


def save(path: Path, models: dict[str, Trained], facts: dict[str, Any]) -> None:
    """Save all models with what their training needs to go on."""
    for kind, (model, adam, history) in models.items():
        parts = {"model": model.state_dict(), "adam": adam.state_dict()}
        facts = {**facts, kind: {**parts, "history": training.to_facts(history)}}
    part = path.with_name(path.name + ".part")
    torch.save(facts, part)
    os.replace(part, path)  # an interrupt leaves the old file


def load(path: Path | None) -> dict[str, Any] | None:
    """Return what `save` wrote, None without a file."""
    return torch.load(path, weights_only=True) if path else None


def draw_batches(
    rng: np.random.Generator, count: int, size: int, lengths: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Deal `count` items to batches of about `size`; with lengths, much the same in a batch."""
    order = rng.permutation(count)
    parts = math.ceil(count / size)
    if lengths is None:
        return np.array_split(order, parts)
    pools = np.array_split(order, math.ceil(parts / POOL))
    pools = [pool[np.argsort(np.array(lengths)[pool], kind="stable")] for pool in pools]
    batches = [b for p in pools for b in np.array_split(p, math.ceil(len(p) / size))]
    return [batches[n] for n in rng.permutation(len(batches))]


def fit(
    kind: str,
    trained: Trained,
    count: int,
    loss_of: Callable[[Sequence[int]], Tensor],
    held_out: Callable[[], float],
    options: argparse.Namespace,
    *,
    tell: Callable[[float], str] = training.perplexity,
    lengths: Sequence[int] | None = None,
    clip: float = math.inf,
) -> None:
    """Train a model on batches of `count` items that the seed draws.

    `loss_of` takes the numbers of the items of a batch. Longer gradients than `clip` are shortened.
    """
    model, adam, history = trained
    done = len(history.losses)
    torch.manual_seed(options.seed + done)
    rng = np.random.default_rng((options.seed, done))
    passes = [
        draw_batches(rng, count, options.batch, lengths) for _ in range(math.ceil(options.epochs))
    ]
    batches = iter([batch for a_pass in passes for batch in a_pass])
    a_pass = len(passes[0]) if passes else 1

    def step(part: float) -> float:
        for group in adam.param_groups:
            group["lr"] = options.rate * part
        loss = loss_of(next(batches))
        adam.zero_grad()
        loss.backward()
        if clip < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        adam.step()
        return float(loss.detach())

    steps = math.ceil(options.epochs * a_pass)
    training.train(kind, trained, steps, step, held_out, max(1, a_pass // 2), tell)

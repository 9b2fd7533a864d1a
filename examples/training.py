"""What the examples that train share: steps with a progress bar, Ctrl-C, files, curves."""

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformer import Adam, Transformer

from attnfast.bench.progress import make_progress

Array = np.ndarray
INK = "#262626"


@dataclass
class History:
    """How a training went: the loss of each step, and losses of held-out data by their step."""

    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0  # in steps
    attention: float = 0.0  # of it in attention
    stopped: bool = False


def to_facts(history: History) -> dict[str, Any]:
    """Return a history as files can hold it."""
    return asdict(history)


def from_facts(facts: dict[str, Any]) -> History:
    """Return the history that `to_facts` was given."""
    pairs = [(int(n), float(x)) for n, x in facts["held_out"]]
    return History(facts["losses"], pairs, facts["seconds"], facts["attention"])


class Trained(NamedTuple):
    """A model, what its optimiser remembers, and how its training went."""

    model: Transformer
    adam: Adam
    history: History


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C in a list; the second one raises KeyboardInterrupt as usual."""
    caught: list[int] = []

    def note(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        print("\nCtrl-C: this step is the last", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


def perplexity(loss: float) -> str:
    """Return what a loss means for a language model."""
    return f"perplexity {math.exp(loss):.2f}"


def train(
    name: str,
    trained: Any,
    steps: int,
    step: Callable[[float], float],
    held_out: Callable[[], float],
    every: int,
    tell: Callable[[float], str] = perplexity,
) -> None:
    """Take steps; now and then find the loss of held-out data, at least after the last.

    `tell` turns that loss into words on quality for the bar.

    `step` takes what part of the full rate to learn with: it rises over the first steps and falls
    along a cosine to a tenth. Ctrl-C ends the training after the step that is under way.
    """
    model, _, history = trained
    quality = ""

    def measure() -> None:
        nonlocal quality
        loss = held_out()
        history.held_out.append((len(history.losses), loss))
        quality = f", held out {loss:.3f} ({tell(loss)})"

    with make_progress(steps) as bar, interrupts() as caught:
        for n in range(steps):
            rise = min(1.0, (n + 1) / min(50, steps))
            began, before = time.perf_counter(), model.seconds
            loss = step(rise * (0.55 + 0.45 * math.cos(math.pi * n / steps)))
            history.seconds += time.perf_counter() - began
            history.attention += model.seconds - before
            history.losses.append(loss)
            if n + 1 == steps or caught or (n + 1) % every == 0:
                measure()
            bar.step(n, f"{name}: loss {loss:.3f}{quality}")
            if caught:
                history.stopped = True
                break
    if not history.held_out:
        measure()


def add_arguments(
    parser: argparse.ArgumentParser, epochs: float, stem: str, suffix: str = ".npz"
) -> None:
    """Add the options that all trainings have."""
    add = parser.add_argument
    add("--epochs", type=float, default=epochs, metavar="X", help="passes over the data")
    add("--seed", type=int, default=0, metavar="N", help="draws the weights and the batches")
    add("--save", type=Path, default=Path(stem + suffix), metavar="FILE", help="written at the end")
    add("--load", type=Path, metavar="FILE", help="continue with the models of such a file")
    add("--plot", type=Path, default=Path(f"{stem}.png"), metavar="FILE", help="where to draw")


def save(path: Path, arrays: dict[str, Array], facts: dict[str, Any]) -> None:
    """Write arrays, and what else there is to know as JSON, to a file of `numpy.savez`.

    The file appears under its name when it is complete, so that an interrupt leaves the old one.
    """
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
    os.replace(part, path)


def load(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays and the facts of a file that `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("facts")))


def save_models(path: Path, models: dict[str, Trained], facts: dict[str, Any]) -> None:
    """Save models by their names, with what their training needs to go on."""
    arrays: dict[str, Array] = {}
    for name, (model, adam, history) in models.items():
        arrays |= {f"{name}/weights/{key}": a for key, a in model.weights.items()}
        arrays |= {f"{name}/moments/{key}": a for key, a in adam.moments.items()}
        facts = {**facts, name: {"steps": adam.steps, "history": to_facts(history)}}
    save(path, arrays, facts)


def start(
    name: str, model: Transformer, stored: tuple[dict[str, Array], dict[str, Any]] | None
) -> Trained:
    """Return a model ready to train: as it was saved under its name, if it was."""
    adam = Adam(model.weights)
    if stored is None or name not in stored[1]:
        return Trained(model, adam, History())
    arrays, facts = stored[0], stored[1][name]
    for key, weight in model.weights.items():
        weight[...] = arrays[f"{name}/weights/{key}"]
        adam.moments[key][...] = arrays[f"{name}/moments/{key}"]
    adam.steps = facts["steps"]
    return Trained(model, adam, from_facts(facts["history"]))


def report(models: dict[str, Trained]) -> None:
    """Print the quality and the time of each model."""
    print("attention   held-out loss   perplexity   steps   training   of it attention")
    for name, (_, _, history) in models.items():
        loss = history.held_out[-1][1]
        print(
            f"{name:12}{loss:13.4f}{math.exp(loss):13.3f}{len(history.losses):8}"
            f"{history.seconds:9.1f} s{history.attention:14.1f} s"
        )


def smooth(losses: list[float], width: int) -> Array:
    """Return the mean of each loss and those before it, `width` in all or as many as there are."""
    total = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(total))
    return (total[ends] - total[np.maximum(ends - width, 0)]) / np.minimum(ends, width)


def draw_curves(
    axis: Any,
    models: dict[str, Any],
    colors: dict[str, str],
    seconds: bool = False,
    unit: str = "character",
) -> None:
    """Draw the losses of training as lines, those of held-out data as dots."""
    for name, (_, _, history) in models.items():
        each = history.seconds / max(1, len(history.losses)) if seconds else 1
        steps = np.arange(1, len(history.losses) + 1) * each
        line = smooth(history.losses, max(1, len(steps) // 40))
        axis.plot(steps, line, color=colors[name], lw=1.2, label=f"attention: {name}")
        done, losses = zip(*history.held_out, strict=True)
        axis.plot(np.array(done) * each, losses, "o", ms=4, color=colors[name])
    axis.set_title("loss while training (lines), of held-out data (dots)", fontsize=9, color=INK)
    finish(axis, "seconds of training" if seconds else "step", f"loss, nats a {unit}")
    axis.legend(frameon=False, fontsize=9)


def finish(axis: Any, across: str, up: str) -> None:
    """Name the axes of a panel."""
    axis.set_xlabel(across, color=INK, fontsize=9)
    axis.set_ylabel(up, color=INK, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, labelcolor=INK)

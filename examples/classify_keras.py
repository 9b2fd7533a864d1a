"""Train the classifier of reviews in Keras: compile, fit, evaluate.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python classify_keras.py
    python classify_keras.py --score dot --attention attnfast keras none

Embedding, bidirectional LSTM, attention, sigmoid. The last states look at all states, by a layer of
`attnfast.keras`, by Keras's own, or not at all. `KERAS_BACKEND` is torch unless it is set.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reviews
import training
from reviews import Data, Review

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
from keras import layers, ops

import attnfast.keras

COLORS = {"attnfast": "#0072b2", "keras": "#d55e00", "none": "#7f7f7f"}
LAYERS = {
    ("attnfast", "additive"): attnfast.keras.AdditiveAttention,
    ("attnfast", "dot"): attnfast.keras.Attention,
    ("keras", "additive"): layers.AdditiveAttention,
    ("keras", "dot"): layers.Attention,
}
FIXED = ("language", "score", "width", "hidden", "longest")  # options that a folder has settled


# ---- The model ----


def build(words: int, kind: str, options: argparse.Namespace) -> keras.Model:
    """Return a compiled model, from words as numbers to the probability of praise."""
    keras.utils.set_random_seed(options.seed)
    given = keras.Input((None,), dtype="int32")
    x = layers.Embedding(words, options.width, mask_zero=True)(given)
    x = layers.Dropout(0.5)(x)
    lstm = layers.LSTM(options.hidden, return_sequences=True, return_state=True)
    states, forth, _, back, _ = layers.Bidirectional(lstm)(x)
    seen = layers.Concatenate()([forth, back])
    if kind != "none":
        query = layers.Reshape((1, 2 * options.hidden))(seen)
        layer = LAYERS[kind, options.score]
        seen = layers.Flatten()(layer(name="attention")([query, states]))
    x = layers.Dropout(0.5)(seen)
    model = keras.Model(given, layers.Dense(1, activation="sigmoid")(x))
    model.compile(keras.optimizers.Adam(options.rate), "binary_crossentropy", metrics=[right])
    return model


@keras.saving.register_keras_serializable("examples")
def right(wanted: Any, told: Any) -> Any:
    """Return 1 where the answer is on the side that is wanted, 0 elsewhere."""
    return ops.cast(ops.equal(wanted > 0.5, told > 0.5), "float32")


def look(model: keras.Model, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of praise, and the weights of the words."""
    layer = model.get_layer("attention")
    inner = keras.Model(model.input, [model.output, *layer.input])
    told, query, states = inner.predict(given, verbose=0)
    real = [None, ops.convert_to_tensor(given != 0)]
    _, weights = layer([query, states], mask=real, return_attention_scores=True)
    return told[:, 0], ops.convert_to_numpy(weights)[:, 0]


def arrays_of(given: Sequence[Review], data: Data, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return words as numbers, padded with 0, and the probabilities to learn."""
    words = [[data.numbers.get(word, 1) for word in review.words] for review in given]
    padded = keras.utils.pad_sequences(words, longest, padding="post", truncating="post")
    return padded, np.array([[review.praise] for review in given], "float32")


# ---- Training ----


class Trained(NamedTuple):
    """A model, whose optimiser Keras keeps with it, and how its training went."""

    model: keras.Model
    optimizer: None
    history: training.History


class Notes(keras.callbacks.Callback):
    """Notes the loss of each step and pass, and ends the training at Ctrl-C."""

    def __init__(self, history: training.History, caught: list[int]) -> None:
        super().__init__()
        self.history, self.caught = history, caught

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Keras tells the mean of the steps of a pass so far.
        total = logs["loss"] * (batch + 1)
        self.history.losses.append(total - (self.total if batch else 0.0))
        self.total = total
        if self.caught:
            self.history.stopped = self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.history.held_out.append((len(self.history.losses), logs["val_loss"]))


def fit(trained: Trained, data: Data, options: argparse.Namespace) -> None:
    """Train a model."""
    model, _, history = trained
    keras.utils.set_random_seed(options.seed + len(history.losses))
    began = time.perf_counter()
    with training.interrupts() as caught:
        model.fit(
            *arrays_of(data.train, data, options.longest),
            batch_size=options.batch,
            epochs=int(options.epochs),
            validation_data=arrays_of(data.held_out, data, options.longest),
            callbacks=[Notes(history, caught)],
            verbose=1 if sys.stdout.isatty() else 2,
        )
    history.seconds += time.perf_counter() - began


def save(folder: Path, models: dict[str, Trained], facts: dict[str, Any]) -> None:
    """Write each model to a file of Keras, and what else there is to know beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, (model, _, history) in models.items():
        facts = {**facts, kind: training.to_facts(history)}
        part = folder / f"{kind}.part.keras"
        model.save(part)
        os.replace(part, folder / f"{kind}.keras")  # an interrupt leaves the old file
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def start(kind: str, data: Data, stored: Any, options: argparse.Namespace) -> Trained:
    """Return a model ready to train: as it was saved, if it was."""
    if stored and kind in stored:
        model = keras.saving.load_model(options.load / f"{kind}.keras")
        return Trained(model, None, training.from_facts(stored[kind]))
    return Trained(build(len(data.numbers) + 2, kind, options), None, training.History())


# ---- What was learned ----


def draw(models: dict[str, Trained], data: Data, options: argparse.Namespace) -> None:
    """Draw the losses, and the weights over the words of some held-out reviews."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    curves, words = figure.subplots(1, 2, width_ratios=[1, 1.6])
    training.draw_curves(curves, models, COLORS, unit="review")
    kind = next(iter(models))
    short = reviews.short_ones(data, options.language)
    given, _ = arrays_of(short, data, options.longest)
    if kind == "none":
        told, weights = models[kind].model.predict(given, verbose=0)[:, 0], None
    else:
        told, weights = look(models[kind].model, given)
    reviews.draw_reviews(words, short, told, weights)
    figure.savefig(options.plot, dpi=110)


def parse() -> tuple[argparse.Namespace, dict[str, Any] | None, Data]:
    """Read the command line, the folder to go on with, and the reviews."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    training.add_arguments(parser, 3, "classify_keras", "")
    reviews.add_arguments(parser, 48)
    add("--score", choices=["additive", "dot"], default="additive", help="of a word")
    add("--attention", nargs="+", choices=list(COLORS), default=["attnfast", "none"],
        metavar="NAME", help="attnfast, keras, none: train one after the other")  # fmt: skip
    add("--width", type=int, default=64, metavar="N", help="of a word's vector")
    add("--hidden", type=int, default=32, metavar="N", help="of each direction of the LSTM")
    add("--batch", type=int, default=64, metavar="N", help="reviews of a step")
    add("--rate", type=float, default=2e-3, metavar="X", help="learning rate")
    options = parser.parse_args()
    if min(options.width, options.hidden, options.batch, options.longest) < 1:
        parser.error("--width, --hidden, --batch and --longest must be at least 1")
    if not (options.epochs >= 0 and options.epochs % 1 == 0 and options.rate > 0):
        parser.error("--epochs must be a whole number, 0 or more, --rate above 0")
    try:
        stored = options.load and json.loads((options.load / "facts.json").read_text("utf-8"))
        for name in FIXED if stored else ():
            setattr(options, name, stored[name])
    except (OSError, ValueError, KeyError) as error:
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
        models[kind] = start(kind, data, stored, options)
        print(f"attention: {kind}")
        fit(models[kind], data, options)
        save(options.save, models, facts)
        if models[kind].history.stopped:
            break
    held_out = arrays_of(data.held_out, data, options.longest)
    print("attention   held-out loss    right   steps   training")
    for kind, (model, _, history) in models.items():
        loss, part = model.evaluate(*held_out, verbose=0)
        print(f"{kind:12}{loss:13.4f}{part:9.1%}{len(history.losses):8}{history.seconds:9.1f} s")
    print(f"standard error of what is right: {reviews.standard_error(part, data):.1%}")
    print(f"written: {options.save}")
    try:
        draw(models, data, options)
        print(f"written: {options.plot}")
    except LookupError as error:
        print(f"no picture: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

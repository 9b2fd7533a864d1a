"""Summarise a text by its most central sentences.

    python summarise.py
    python summarise.py report.txt --sentences 8
    python summarise.py --topic import

Every sentence becomes a vector of all-MiniLM-L6-v2 and attends to all others; those of like meaning
get most of its weight. A sentence is as important as the total weight that it receives from all
others, `attnfast.key_importance`. The summary is the most important sentences, without those that
say nearly the same as a more important one, in the order in which the text has them. Without a file
the text is a page of the language reference that ships with Python.

The picture shows which three sentences each sentence looks at; those of the summary are numbered.
"""

import argparse
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
from minilm import Array, MiniLM, Tokenizer, embed, find_model
from texts import python_topic, sentences

from attnfast import attention_topk, key_importance, plot

TOPIC = "objects"
LONGEST = 256  # tokens of a sentence that are read


def options_of(vectors: Array, sharpness: float) -> dict:
    """Options of attention between sentences, by which none sees itself."""
    return {"scale": sharpness, "mask": ~np.eye(len(vectors), dtype=bool)}


def importance(vectors: Array, sharpness: float = 10.0) -> Array:
    """Return the weight that each vector receives from all others; 1 is the mean."""
    return key_importance(vectors, vectors, **options_of(vectors, sharpness))


def choose(vectors: Array, received: Array, count: int, alike: float = 0.7) -> list[int]:
    """Return the places of the most important sentences, in order.

    Leaves out a sentence whose cosine with a more important one is above `alike`.
    """
    chosen = []
    for place in np.argsort(-received, kind="stable").tolist():
        if len(chosen) == count:
            break
        if not chosen or (vectors[chosen] @ vectors[place]).max() <= alike:
            chosen.append(place)
    return sorted(chosen)


def draw(vectors: Array, sharpness: float, chosen: list[int], path: Path) -> None:
    """Draw the three heaviest weights of each sentence, with the chosen ones numbered."""
    count = min(3, len(vectors) - 1)
    top = attention_topk(vectors, vectors, count, **options_of(vectors, sharpness))
    numbers = [str(i + 1) if i in chosen else "" for i in range(len(vectors))]
    title = (
        f"each of {len(vectors)} sentences looks at the {count} most like it; "
        f"numbered: the {len(chosen)} of the summary"
    )
    figure = plot.topk(*top, numbers, titles=title)
    figure.axes[0].set_xlabel("sentences in the order of the text")
    figure.savefig(path, dpi=160)


def main() -> None:
    """Read the command line, summarise, draw."""
    sys.stdout.reconfigure(errors="replace")  # for terminals that lack a character
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="a text file (default: a page of Python's reference)")
    add("--topic", default=TOPIC, metavar="WORD", help="another page, as in help(WORD)")
    add("--sentences", type=int, default=5, metavar="N", help="sentences of the summary")
    add("--sharpness", type=float, default=10.0, metavar="X", help="factor of the cosines")
    add("--plot", type=Path, default=Path("summary.png"), metavar="FILE", help="where to draw")
    options = parser.parse_args()
    if options.sentences < 1 or not 0 < options.sharpness < 1000:
        parser.error("--sentences must be at least 1, --sharpness above 0 and below 1000")
    try:
        text = (
            options.file.read_text(encoding="utf-8", errors="replace")
            if options.file
            else python_topic(options.topic)
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    found = sentences(text)
    if len(found) < 2:
        parser.error("there are not even two sentences in the text")

    folder = find_model()
    tokenizer, model = Tokenizer(folder / "vocab.txt"), MiniLM(folder)
    tokens = [tokenizer.encode(sentence) for sentence in found]
    tokens = [ids[: LONGEST - 1] + ids[-1:] if len(ids) > LONGEST else ids for ids in tokens]
    (vectors,) = embed([model], tokens)
    began = time.perf_counter()
    received = importance(vectors, options.sharpness)
    seconds = time.perf_counter() - began
    chosen = choose(vectors, received, options.sentences)
    for place in chosen:
        line = f"{place + 1:4}  {received[place]:.2f}  {found[place]}"
        print(textwrap.fill(line, 96, subsequent_indent=12 * " "))
    print(
        f"\n{len(found)} sentences, {sum(map(len, tokens))} tokens: "
        f"embedding {model.seconds:.2f} s, importance {1e3 * seconds:.2f} ms"
    )
    draw(vectors, options.sharpness, chosen, options.plot)
    print(f"written: {options.plot}")


if __name__ == "__main__":
    main()

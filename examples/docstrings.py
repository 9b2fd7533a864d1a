"""Pairs of a body and its first line out of the docstrings of packages.

A docstring begins with a line that says what the thing does; the paragraphs after it say more.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packages import files

SOURCE = r"^(?!.*(/tests?/|/testing/|/conftest|/_?vendor|/externals?/)).*\.py$"
DOCSTRING = re.compile(r':[ ]*(?:#[^\n]*)?\n\s*[rR]?"""(.*?)"""', re.DOTALL)  # after def, class
PARAGRAPHS = re.compile(r"\n\s*\n")
SECTION = re.compile(r"[^\n]+\n\s*[-=~*+]{3}|\s*(>>>|\.\. |:\w+|@|[-+|=]{3})")  # or code
LINK = re.compile(r":[\w:]+:(?=`)|\s*<[^<>`]*>(?=`)|\[\w+\]_?|[`*|]")  # and other markup
WORD = re.compile(r"[a-z]+'[a-z]+|\w+|[^\w\s]")
LINE = (3, 16)  # words and marks of a first line, without the full stop at its end
BODY = (8, 40)  # of a body; what is longer is cut
HELD_OUT = ("networkx", "scikit_image", "statsmodels")


class Pair(NamedTuple):
    """The words of a body and of its first line."""

    package: str
    body: list[str]
    line: list[str]


def words(text: str) -> list[str]:
    """Return the words and marks of a text in small letters, without its markup."""
    return WORD.findall(LINK.sub("", text).lower())


def pairs_in(source: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the bodies and first lines of the docstrings of a file."""
    for text in DOCSTRING.findall(source):
        first, *rest = PARAGRAPHS.split(inspect.cleandoc(text))
        line, body = words(first), []
        for paragraph in rest:
            if SECTION.match(paragraph):
                break  # only prose is read
            body += words(paragraph)
        line = line[:-1] if line[-1:] == ["."] else line
        if LINE[0] <= len(line) <= LINE[1] and len(body) >= BODY[0]:
            yield body[: BODY[1]], line


def read(folder: Path) -> list[Pair]:
    """Return the pairs of all wheels in a folder, each first line and each body once."""
    found: list[Pair] = []
    known: set[tuple[str, ...]] = set()
    for package, _, source in files(folder, SOURCE):
        for body, line in pairs_in(source.decode(errors="replace")):
            both = {("line", *line), ("body", *body)}
            if not both & known:
                found.append(Pair(package, body, line))
            known |= both
    return found


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to learn from, and those of the packages that are held out."""
    train = [pair for pair in pairs if pair.package not in HELD_OUT]
    return train, [pair for pair in pairs if pair.package in HELD_OUT]

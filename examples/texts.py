"""Texts for the examples: files, or what ships with Python; cut into passages or sentences."""

import codecs
import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path


def read_texts(files: Sequence[Path]) -> list[tuple[str, str]]:
    """Return (name, text) of each file; without files, of what ships with Python."""
    return [(str(f), f.read_text(encoding="utf-8", errors="replace")) for f in files] or (
        python_texts()
    )


def python_texts() -> list[tuple[str, str]]:
    """Return (name, text) of the texts that ship with Python."""
    from pydoc_data.topics import topics

    with contextlib.redirect_stdout(io.StringIO()):  # the module prints itself
        import this

    texts = [(f"help({topic!r})", text) for topic, text in sorted(topics.items())]
    texts.append(("import this", codecs.decode(this.s, "rot13")))
    licence = Path(contextlib.__file__).with_name("LICENSE.txt")
    if licence.exists():
        texts.append((licence.name, licence.read_text(encoding="utf-8", errors="replace")))
    return texts


def python_topic(topic: str) -> str:
    """Return a page of the language reference, as ``help(topic)`` shows it."""
    from pydoc_data.topics import topics

    if topic not in topics:
        raise ValueError(f"no such topic; there are {', '.join(sorted(topics))}")
    return topics[topic]


def passages(name: str, text: str, words: int = 80) -> list[tuple[str, str]]:
    """Join paragraphs until they hold enough words; return (place, text) pairs."""
    found, taken, first = [], [], 0
    lines = text.splitlines()
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            first = first if taken else number
            taken += line.split()
        elif len(taken) >= words or (taken and number > len(lines)):
            found.append((f"{name}, line {first}", " ".join(taken)))
            taken = []
    return found


# A full stop and what closes it, before what begins a sentence; but not e.g., i.e. or vs.
END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!vs)[.!?][\"')\]*]*(?=\s+[\"'(\[*]*[A-Z0-9])")


def sentences(text: str, words: int = 5) -> list[str]:
    """Return the sentences of a text, in order, each once.

    Leaves out what is no prose: headings, code, tables and sentences of fewer words than `words`.
    """
    found = {}
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[*+-]|\d+\.)\s)", text):
        lines = paragraph.splitlines()
        indents = [len(line) - len(line.lstrip()) for line in lines]
        code = (indents and min(indents) >= 6) or "::=" in paragraph or ">>>" in paragraph
        if code or not re.search(r"[.!?][\"')\]*]*\s*$", paragraph):
            continue
        # A paragraph may begin with the mark of a list.
        joined = re.sub(r"^([*+-]|\d+\.)\s+", "", " ".join(paragraph.split()))
        for sentence in END.sub(r"\g<0>\n", joined).split("\n"):
            if len(re.findall(r"[A-Za-z]{2,}", sentence)) >= words:
                found[sentence.strip()] = None
    return list(found)

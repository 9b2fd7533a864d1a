"""Checks that no C function takes more arguments than a reader can follow.

    python tools/check/arguments.py

A function may have 7, an AF_INLINE one 9: it becomes part
of its callers, and some of its arguments are constants that shape it. Exceptions are listed below
with their number; one that is no longer needed is a problem too.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).resolve().parents[2] / "csrc"
LIMIT, INLINE_LIMIT = 7, 9

# A name, parentheses (function pointers have some within), a body. ## is part of a macro's names.
DEFINITION = re.compile(r"\b([\w#]+)\s*\(((?:[^(){};]|\([^(){};]*\))*)\)\s*\{")
STATEMENTS = {"if", "for", "while", "switch", "UNROLL"}


class Function(NamedTuple):
    name: str
    line: int
    arguments: int
    inline: bool


def plain_code(text: str) -> str:
    """Without comments, strings and the ends of macro lines; every line keeps its number."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\\$', blank, text, flags=re.S | re.M)


def functions(text: str) -> Iterator[Function]:
    code = plain_code(text)
    for match in DEFINITION.finditer(code):
        name, arguments = match[1], match[2]
        if name in STATEMENTS:
            continue
        outer = re.sub(r"\([^()]*\)", "", arguments)
        count = 0 if outer.strip() in ("", "void") else outer.count(",") + 1
        start = max(code.rfind(end, 0, match.start()) for end in ";}")
        inline = re.search(r"\bAF_INLINE\b", code[start + 1 : match.start()]) is not None
        yield Function(name, code.count("\n", 0, match.start()) + 1, count, inline)


def check(texts: Iterable[tuple[str, str]]) -> tuple[int, list[str]]:
    """The number of functions in some texts with names, and the problems."""
    problems, total = [], 0
    for file, text in texts:
        for function in functions(text):
            total += 1
            limit = INLINE_LIMIT if function.inline else LIMIT
            if function.arguments > limit:
                where = f"{file}:{function.line}: {function.name}"
                problems.append(f"{where} has {function.arguments} arguments, at most {limit}")
    return total, problems


def main() -> int:
    paths = sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.c")])
    texts = [(str(path.relative_to(CSRC.parent)), path.read_text()) for path in paths]
    total, problems = check(texts)
    for problem in problems:
        print(problem)
    print(f"{len(texts)} files, {total} functions: {len(problems)} problems")
    return bool(problems) or total == 0


if __name__ == "__main__":
    sys.exit(main())

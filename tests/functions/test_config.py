"""Threads, instruction sets, show_config, and the environment variables that set them."""

import os
import threading

import numpy as np
import pytest

import attnfast
from attnfast import config
from support.arrays import qkv, same_bits
from support.scripts import run_python, run_python_raw

pytestmark = pytest.mark.quick


REPORT = """
import attnfast, numpy as np
x = np.ones((1, 4, 300, 64), np.float32)
plan = attnfast.plan(x, x, x)
assert (attnfast.attention(x, x, x) == 1).all()
print(plan.isa, plan.threads, attnfast.get_num_threads())
"""


@pytest.fixture(autouse=True)
def default_threads():
    yield
    attnfast.set_num_threads(None)


def allowed_cpus():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class TestThreads:
    def test_default_is_within_the_cpus_of_the_process(self):
        assert 1 <= attnfast.get_num_threads() <= allowed_cpus()

    def test_set_and_take_back(self):
        default = attnfast.get_num_threads()
        for n in (1, 3, 7):
            attnfast.set_num_threads(n)
            assert attnfast.get_num_threads() == n
        attnfast.set_num_threads(None)
        assert attnfast.get_num_threads() == default

    def test_the_setting_reaches_calls(self):
        x = np.zeros((2, 8, 512, 64), np.float32)
        for n in (1, 2, 5):
            attnfast.set_num_threads(n)
            assert attnfast.plan(x, x, x).threads == n
            assert attnfast.plan(x, x, x, num_threads=3).threads == 3

    def test_context(self):
        attnfast.set_num_threads(4)
        with attnfast.num_threads(2):
            assert attnfast.get_num_threads() == 2
            with attnfast.num_threads(1):
                assert attnfast.get_num_threads() == 1
            assert attnfast.get_num_threads() == 2
        assert attnfast.get_num_threads() == 4

    def test_context_ends_with_an_exception(self):
        attnfast.set_num_threads(4)
        with pytest.raises(KeyError), attnfast.num_threads(2):
            raise KeyError
        assert attnfast.get_num_threads() == 4

    def test_context_is_of_its_own_thread(self):
        attnfast.set_num_threads(4)
        inside, seen = threading.Event(), []
        done = threading.Event()

        def other():
            with attnfast.num_threads(1):
                inside.set()
                done.wait(10)
                seen.append(attnfast.get_num_threads())

        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
        here = attnfast.get_num_threads()
        done.set()
        thread.join()
        assert (here, seen) == (4, [1])

    def test_the_process_setting_reaches_other_threads(self):
        attnfast.set_num_threads(3)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(attnfast.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [3]

    @pytest.mark.parametrize("bad", [0, -1])
    def test_out_of_range(self, bad):
        with pytest.raises(ValueError, match=f"num_threads.*{bad}"):
            attnfast.set_num_threads(bad)
        with pytest.raises(ValueError, match=f"num_threads.*{bad}"), attnfast.num_threads(bad):
            pass
        assert attnfast.get_num_threads() <= allowed_cpus()

    @pytest.mark.parametrize("bad", [1.0, "2", True, [1]])
    def test_wrong_type(self, bad):
        with pytest.raises(TypeError, match="num_threads"):
            attnfast.set_num_threads(bad)
        with pytest.raises(TypeError, match="num_threads"), attnfast.num_threads(bad):
            pass

    def test_more_threads_than_anyone_has(self, rng):
        q, k, v = qkv(rng, 300, 300, 64)
        expected = attnfast.attention(q, k, v, num_threads=1)
        assert same_bits(attnfast.attention(q, k, v, num_threads=10**9), expected)


class TestInstructionSets:
    def test_names_best_first(self):
        isas = attnfast.available_isas()
        assert isinstance(isas, tuple) and isas[-1] == "generic"
        order = [n for n in ("avx512", "avx2", "neon", "generic") if n in isas]
        assert list(isas) == order

    def test_switching(self, isa):
        for dtype in (np.float32, np.float64, np.float16):
            x = np.zeros((4, 8), dtype)
            assert attnfast.plan(x, x, x).isa == isa
        assert attnfast.show_config("dicts")["isa"] == isa

    def test_unknown_name(self):
        before = attnfast.show_config("dicts")["isa"]
        with pytest.raises(ValueError, match=r"sse9.*generic"):
            config.use_isa("sse9")
        with pytest.raises(TypeError):
            config.use_isa(3)
        assert attnfast.show_config("dicts")["isa"] == before


class TestShowConfig:
    def test_prints(self, capsys):
        assert attnfast.show_config() is None
        printed = capsys.readouterr().out
        for word in (attnfast.__version__, np.__version__, *attnfast.available_isas()):
            assert word in printed

    def test_dicts(self):
        config = attnfast.show_config("dicts")
        assert config["attnfast"] == attnfast.__version__
        assert config["isas"] == list(attnfast.available_isas())
        assert config["threads"] == attnfast.get_num_threads()

    @pytest.mark.parametrize("mode", ["dict", None, 3])
    def test_other_modes(self, mode):
        with pytest.raises(ValueError, match=r"mode.*stdout.*dicts"):
            attnfast.show_config(mode)


class TestEnvironment:
    @pytest.mark.parametrize("isa", attnfast.available_isas())
    def test_isa(self, isa, tmp_path):
        printed = run_python(REPORT, tmp_path, ATTNFAST_ISA=isa)
        assert printed.split()[0] == isa

    def test_an_empty_variable_is_none(self, tmp_path):
        printed = run_python(REPORT, tmp_path, ATTNFAST_ISA="", ATTNFAST_NUM_THREADS="")
        assert printed.split()[0] == attnfast.available_isas()[0]

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_threads(self, n, tmp_path):
        printed = run_python(REPORT, tmp_path, ATTNFAST_NUM_THREADS=str(n))
        assert printed.split()[1:] == [str(n), str(n)]

    def test_openmp_lowers_the_default(self, tmp_path):
        env = {"ATTNFAST_NUM_THREADS": "", "OMP_NUM_THREADS": "1"}
        assert run_python(REPORT, tmp_path, **env).split()[2] == "1"

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
    def test_affinity_lowers_the_default(self, tmp_path):
        cpu = min(os.sched_getaffinity(0))
        code = f"import os; os.sched_setaffinity(0, [{cpu}])\n" + REPORT
        assert run_python(code, tmp_path, ATTNFAST_NUM_THREADS="").split()[2] == "1"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("ATTNFAST_ISA", "sse9"),
            ("ATTNFAST_ISA", "AVX-512"),
            ("ATTNFAST_NUM_THREADS", "0"),
            ("ATTNFAST_NUM_THREADS", "-2"),
            ("ATTNFAST_NUM_THREADS", "many"),
            ("ATTNFAST_NUM_THREADS", "1.5"),
        ],
    )
    def test_what_makes_no_sense_is_an_error_at_import(self, name, value, tmp_path):
        done = run_python_raw("import attnfast", tmp_path, **{name: value})
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ValueError") and name in last and value in last

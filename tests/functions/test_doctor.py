"""``attnfast doctor``: each fact that costs speed is found, with what to do; no other is."""

import ctypes
import platform
import sys
import threading
from dataclasses import replace

import pytest

import attnfast
from attnfast import _doctor
from attnfast._doctor import Facts, diagnose, flushes_denormals, report
from attnfast.bench import machine
from attnfast.bench.quota import cut_short
from attnfast.cli import main
from support.scripts import run_python

pytestmark = pytest.mark.quick


def pool(kind, name, threads=8):
    return {
        "user_api": kind,
        "internal_api": name,
        "filepath": f"/usr/lib/lib{name}.so.1",
        "num_threads": threads,
    }


FINE = Facts(
    version="1.2",
    python="3.13.1",
    numpy="2.4.0",
    blas="openblas 0.3",
    system="Linux-6.1",
    architecture="x86_64",
    cpu="Some CPU",
    cores=8,
    affinity=8,
    isa="avx512",
    isas=("avx512", "avx2", "generic"),
    threads=8,
    environment={},
    pools=[pool("openmp", "gomp"), pool("blas", "openblas")],
)
BUSY = "the machine is busy (load average 9.0 on 8 cores); expect noisy figures"
# What differs from a machine on which nothing is to be done: topic, what is found, what to do.
CASES = {
    "isa by the environment": (
        {"isa": "avx2", "environment": {"ATTNFAST_ISA": "avx2"}},
        "instruction set",
        "avx2, because ATTNFAST_ISA=avx2; this machine has avx512",
        "unset ATTNFAST_ISA to use avx512",
    ),
    "no AVX2": ({"isa": "generic", "isas": ("generic",)}, "instruction set", "no AVX2", "-cpu"),
    "threads by attnfast's variable": (
        {"threads": 2, "environment": {"ATTNFAST_NUM_THREADS": "2", "OMP_NUM_THREADS": "3"}},
        "threads",
        "2 threads a call, set by ATTNFAST_NUM_THREADS=2; this process may use 8 processors",
        "unset ATTNFAST_NUM_THREADS, or set it to 8",
    ),
    "threads by OpenMP's variable": (
        {"threads": 1, "environment": {"OMP_NUM_THREADS": "1"}},
        "threads",
        "1 thread a call, set by OMP_NUM_THREADS=1",
        "unset OMP_NUM_THREADS",
    ),
    "threads by OpenMP's limit": (
        {"threads": 1, "environment": {"OMP_NUM_THREADS": "8", "OMP_THREAD_LIMIT": "1"}},
        "threads",
        "1 thread a call, set by OMP_THREAD_LIMIT=1",
        "unset OMP_THREAD_LIMIT",
    ),
    "no OpenMP": ({"threads": 1}, "threads", "1 thread a call; this", "ATTNFAST_OPENMP=ON"),
    "more threads than processors": (
        {"threads": 32, "environment": {"ATTNFAST_NUM_THREADS": "32"}},
        "threads",
        "more threads than processors wait for each other",
        "set it to 8 or less",
    ),
    "more threads, by a call": ({"threads": 9}, "threads", "9 threads", "set_num_threads(8)"),
    "more threads than the quota": (
        {"threads": 8, "quota": 2.0, "environment": {"ATTNFAST_NUM_THREADS": "8"}},
        "threads",
        "this process may use 2 processors",
        "set it to 2 or less",
    ),
    "affinity": ({"affinity": 2, "threads": 2}, "processors", "run on 2", "--cpuset-cpus"),
    "broken quota": ({"quota": 1.5, "threads": 2}, "quota", "time of 1.5 cores", "2 threads use"),
    "quota that is used up": (
        {"quota": 2.0, "threads": 2, "stopped": (30, 100)},
        "quota",
        "it has stopped this group in 30 of 100 periods",
        "docker run --cpus",
    ),
    "load": ({"busy": BUSY}, "load", "load average 9.0", "end other work"),
    "load and OpenMP": ({"busy": BUSY}, "OpenMP", "spin", "OMP_WAIT_POLICY=passive"),
    "load and BLAS": ({"busy": BUSY}, "BLAS", "8 threads", "OPENBLAS_NUM_THREADS=1"),
    "no threadpoolctl": ({"pools": None}, "OpenMP", "not known", "pip install threadpoolctl"),
    "two runtimes": (
        {"pools": [pool("openmp", "gomp"), pool("openmp", "omp")]},
        "OpenMP",
        "2 runtimes: libgomp.so.1, libomp.so.1",
        "OMP_WAIT_POLICY=passive",
    ),
    "BLAS beyond the quota": (
        {"quota": 2.0, "threads": 2, "pools": [pool("blas", "mkl", 8), pool("blas", "blis", 1)]},
        "BLAS",
        "mkl has 8 threads for 2 processors",
        "MKL_NUM_THREADS=2",
    ),
    "denormals": ({"flushes": True}, "denormals", "flushed to zero", "-ffast-math"),
    "huge pages": ({"huge_pages": "never"}, "huge pages", "never", "echo madvise"),
}
# These differ, and cost nothing.
HARMLESS = {
    "whole quota": {"quota": 4.0, "threads": 4, "pools": [pool("blas", "openblas", 4)]},
    "quota that is seldom used up": {"quota": 8.0, "stopped": (1, 100)},
    "quota beyond the processors": {"quota": 64.5},
    "two runtimes that wait": {
        "pools": [pool("openmp", "gomp"), pool("openmp", "omp")],
        "environment": {"OMP_WAIT_POLICY": "PASSIVE"},
    },
    "threads that are all there are": {"environment": {"OMP_NUM_THREADS": "8"}},
    "another processor": {"architecture": "riscv64", "isa": "generic", "isas": ("generic",)},
    "no huge pages": {"huge_pages": None},
    "another system": {"huge_pages": None, "system": "macOS-15", "pools": []},
}


def test_nothing_is_to_be_done_on_a_machine_that_is_fine():
    findings = diagnose(FINE)
    assert [finding.advice for finding in findings if finding.advice] == []
    lines = report(findings).splitlines()
    assert lines[-1] == "nothing to change" and len(lines) == len(findings) + 2
    assert "avx512 on Some CPU, the best of avx512, avx2, generic" in lines[1]


@pytest.mark.parametrize(("changes", "topic", "found", "advice"), CASES.values(), ids=CASES)
def test_what_costs_speed_is_found(changes, topic, found, advice):
    findings = {finding.topic: finding for finding in diagnose(replace(FINE, **changes))}
    assert found in findings[topic].found and advice in findings[topic].advice
    others = {name for name, finding in findings.items() if finding.advice} - {topic}
    assert others <= ({"load", "OpenMP", "BLAS"} if "busy" in changes else {"BLAS"})


@pytest.mark.parametrize(("asked", "words"), [("8", ", set by OMP_NUM_THREADS=8"), ("16", "")])
def test_a_variable_that_asks_for_too_many_sets_nothing(asked, words):
    facts = replace(FINE, environment={"OMP_NUM_THREADS": asked})
    (found,) = (finding.found for finding in diagnose(facts) if finding.topic == "threads")
    assert found == f"8 threads a call{words}, one for each processor it may use"


def test_there_is_no_less_than_one_thread():
    facts = replace(FINE, threads=8, quota=1.0, environment={"OMP_NUM_THREADS": "8"})
    (advice,) = (finding.advice for finding in diagnose(facts) if finding.topic == "threads")
    assert advice == "unset OMP_NUM_THREADS, or set it to 1"


@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS)
def test_what_costs_nothing_needs_no_advice(changes):
    assert [f for f in diagnose(replace(FINE, **changes)) if f.advice] == []


def test_advice_stands_below_what_was_found():
    text = report(diagnose(replace(FINE, flushes=True, affinity=2, threads=2)))
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("processors"))
    assert lines[at + 1].lstrip().startswith("-> if it should")
    assert lines[-1] == "3 points to look at, marked ->"  # BLAS has 8 threads too
    assert max(map(len, lines)) <= 100


def test_the_command(capsys):
    assert main(["doctor", "--import", "json"]) == 0
    printed = capsys.readouterr().out
    for words in (attnfast.__version__, attnfast.plan([[1.0]], [[1.0]], [[1.0]]).isa, "denormals"):
        assert words in printed
    assert main(["doctor", "--import", "no_such_module"]) == 2
    assert "--import no_such_module" in capsys.readouterr().err


def test_facts_are_those_of_the_process(tmp_path):
    script = "from attnfast import cli; cli.main(['doctor'])"
    printed = run_python(script, tmp_path, ATTNFAST_NUM_THREADS="3", ATTNFAST_ISA="generic")
    assert "3 threads a call, set by ATTNFAST_NUM_THREADS=3" in printed
    if attnfast.available_isas() != ("generic",):
        assert "generic, because ATTNFAST_ISA=generic" in printed


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="sets a register of x86"
)
@pytest.mark.parametrize("bit", [6, 15], ids=["operands", "results"])
def test_denormals_that_are_flushed(bit):
    seen = []

    def flush_and_look():  # in a thread of its own: the mode is one of the thread
        libm = ctypes.CDLL("libm.so.6")
        state = (ctypes.c_uint32 * 8)()  # glibc's fenv_t, with MXCSR at its end
        libm.fegetenv(state)
        state[7] |= 1 << bit
        libm.fesetenv(state)
        seen.append(flushes_denormals())

    thread = threading.Thread(target=flush_and_look)
    thread.start()
    thread.join()
    assert seen == [True] and not flushes_denormals()


def test_pools_and_their_absence(monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert machine.thread_pools() is None and "needs threadpoolctl" in machine.openmp_name()
    assert _doctor.gather().pools is None


@pytest.mark.parametrize(
    ("text", "mode"), [("always [madvise] never\n", "madvise"), ("[never]\n", "never"), ("", None)]
)
def test_the_mode_of_huge_pages(text, mode, tmp_path):
    assert machine.huge_pages(tmp_path) is None
    folder = tmp_path / "sys/kernel/mm/transparent_hugepage"
    folder.mkdir(parents=True)
    (folder / "enabled").write_text(text)
    assert machine.huge_pages(tmp_path) == mode


@pytest.mark.parametrize(
    ("group", "file"),
    [("0::/a\n", "sys/fs/cgroup/a/cpu.stat"), ("3:cpu:/b\n", "sys/fs/cgroup/cpu/b/cpu.stat")],
)
def test_how_often_a_quota_has_stopped_the_group(group, file, tmp_path):
    assert cut_short(tmp_path) is None
    for name, text in {
        "proc/self/cgroup": group,
        file: "usage_usec 7\nnr_periods 50\nnr_throttled 12\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cut_short(tmp_path) == (12, 50)
    (tmp_path / file).write_text("usage_usec 7\n")
    assert cut_short(tmp_path) is None

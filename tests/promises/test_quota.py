"""Default threads stay within the CPUs of the process and the CPU quota of its control group.

Each case runs in a fresh process with a mount namespace of its own, where made-up files stand in
for ``/sys/fs/cgroup`` and ``/proc/self/cgroup``. A library in front of libc's makes the machine
seem to have 16 CPUs, so that a quota of 2.5 CPUs can be told from one of 2 anywhere.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.scripts import run_python
from support.workers import COUNT_WORKERS, DEFAULTS, TWO_CPUS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")

MANY_CPUS = """
#define _GNU_SOURCE
#include <sched.h>
#include <string.h>
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
    memset(set, 0, size);
    for (int i = 0; i < 16; i++) CPU_SET_S(i, size, set);
    return 0;
}
"""
# The shell's process becomes Python, whose own entry of /proc is the one that is covered.
IN_NAMESPACE = """
set -e
mount --bind "$1/fs" /sys/fs/cgroup
mount --bind "$1/group" /proc/$$/cgroup
export LD_PRELOAD="$2"
exec "$3" -P -W error -c "$4"
"""
DEFAULT = "import attnfast; print(attnfast.get_num_threads())"
NO_FILES_AT_FIRST = """
import resource
import attnfast
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
attnfast.get_num_threads()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(attnfast.get_num_threads())
"""
# The user is root in a user namespace of its own: nothing here needs the rights of root.
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
V1 = "9:cpu,cpuacct:{}\n4:cpuset:/elsewhere\n1:name=systemd:/init.scope\n0::/init.scope\n"
DEEP = "/".join(["kubepods.slice"] * 60)

# Files below /sys/fs/cgroup, the text of /proc/self/cgroup, threads that may be used.
QUOTAS = {
    # version 2: "<quota> <period>" in cpu.max
    "own group": ({"a/cpu.max": "300000 100000\n"}, "0::/a\n", 3),
    "other period": ({"a/cpu.max": "20000 10000\n"}, "0::/a\n", 2),
    "1.5 CPUs": ({"a/cpu.max": "150000 100000\n"}, "0::/a\n", 2),
    "2.5 CPUs": ({"a/cpu.max": "250000 100000\n"}, "0::/a\n", 3),
    "a bit over 2 CPUs": ({"a/cpu.max": "200001 100000\n"}, "0::/a\n", 3),
    "half a CPU": ({"a/cpu.max": "50000 100000\n"}, "0::/a\n", 1),
    "hardly any": ({"a/cpu.max": "1000 1000000\n"}, "0::/a\n", 1),
    "more than there are": ({"a/cpu.max": "9900000 100000\n"}, "0::/a\n", 16),
    "no limit": ({"a/cpu.max": "max 100000\n"}, "0::/a\n", 16),
    "parent": ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 3),
    "grandparent": ({"a/cpu.max": "300000 100000\n"}, "0::/a/b/c\n", 3),
    "tighter than parent": (
        {"a/cpu.max": "500000 100000\n", "a/b/cpu.max": "200000 100000\n"},
        "0::/a/b\n",
        2,
    ),
    "looser than parent": (
        {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "500000 100000\n"},
        "0::/a/b\n",
        2,
    ),
    "sibling": ({"a/cpu.max": "200000 100000\n", "b/cpu.max": "max 100000\n"}, "0::/b\n", 16),
    "root of a namespace": ({"cpu.max": "400000 100000\n"}, "0::/\n", 4),
    "group of the host": ({"cpu.max": "400000 100000\n"}, "0::/docker/6f3a\n", 4),
    "above the namespace": ({"cpu.max": "400000 100000\n"}, "0::/../../b\n", 4),
    "colons in the name": (
        {"a.slice:cri:6f3a/cpu.max": "200000 100000\n"},
        "0::/a.slice:cri:6f3a\n",
        2,
    ),
    "like a controller": ({"a:cpu:b/cpu.max": "200000 100000\n"}, "0::/a:cpu:b\n", 2),
    "a long name": ({"kubepods.slice/cpu.max": "300000 100000\n"}, f"0::/{DEEP}\n", 3),
    # version 1: two files below the cpu controller, -1 is no limit
    "v1": (
        {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        V1.format("/a"),
        3,
    ),
    "v1, 1.5 CPUs": (
        {"cpu/a/cpu.cfs_quota_us": "75000\n", "cpu/a/cpu.cfs_period_us": "50000\n"},
        V1.format("/a"),
        2,
    ),
    "v1, no limit": (
        {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        V1.format("/a"),
        16,
    ),
    "v1, parent": (
        {
            "cpu/a/cpu.cfs_quota_us": "200000\n",
            "cpu/a/cpu.cfs_period_us": "100000\n",
            "cpu/a/b/cpu.cfs_quota_us": "-1\n",
            "cpu/a/b/cpu.cfs_period_us": "100000\n",
        },
        V1.format("/a/b"),
        2,
    ),
    "v1, group of the host": (
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        V1.format("/docker/6f3a"),
        2,
    ),
    "v1, cpu alone": (
        {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        "5:cpu:/a\n",
        2,
    ),
    "v1, cpu last": (
        {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        "5:cpuacct,cpu:/a\n0::/b\n",
        2,
    ),
    "v1, another controller": (
        {"cpu/b/cpu.cfs_quota_us": "200000\n", "cpu/b/cpu.cfs_period_us": "100000\n"},
        "5:cpu:/a\n4:cpuset:/b\n3:cpuacct:/b\n",
        16,
    ),
    "v1, colons in the name": (
        {"cpu/a:cri:6f/cpu.cfs_quota_us": "200000\n", "cpu/a:cri:6f/cpu.cfs_period_us": "100000\n"},
        V1.format("/a:cri:6f"),
        2,
    ),
    # what cannot be read is no limit
    "nothing": ({}, "", 16),
    "no group": ({"cpu.max": "200000 100000\n"}, "", 2),
    "no file": ({}, "0::/a\n", 16),
    "empty": ({"a/cpu.max": ""}, "0::/a\n", 16),
    "one number": ({"a/cpu.max": "200000\n"}, "0::/a\n", 16),
    "words": ({"a/cpu.max": "some of them\n"}, "0::/a\n", 16),
    "zero": ({"a/cpu.max": "0 100000\n"}, "0::/a\n", 16),
    "zero period": ({"a/cpu.max": "200000 0\n"}, "0::/a\n", 16),
    "negative": ({"a/cpu.max": "-200000 100000\n"}, "0::/a\n", 16),
    "nan": ({"a/cpu.max": "nan nan\n"}, "0::/a\n", 16),
    "huge": ({"a/cpu.max": "1e999 1\n"}, "0::/a\n", 16),
    "a directory": ({"a/cpu.max/x": ""}, "0::/a\n", 16),
    "broken, parent not": (
        {"a/b/cpu.max": "?\n", "a/cpu.max": "200000 100000\n"},
        "0::/a/b\n",
        2,
    ),
    "broken group": ({"cpu.max": "200000 100000\n"}, "no colon\n:\n\n::\n0::\n", 2),
    "v1, no period": ({"cpu/a/cpu.cfs_quota_us": "200000\n"}, V1.format("/a"), 16),
    "v1, zero period": (
        {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "0\n"},
        V1.format("/a"),
        16,
    ),
}


@pytest.fixture(scope="module")
def many_cpus(tmp_path_factory):
    """A library that makes the machine seem to have 16 CPUs, where it may cover files."""
    missing = [name for name in ("unshare", "mount", "cc") if not shutil.which(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    done = subprocess.run(
        [*UNSHARE, "mount", "--bind", "/proc", "/sys/fs/cgroup"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"may not cover files in a mount namespace: {done.stderr.strip()}")
    folder = tmp_path_factory.mktemp("many_cpus")
    (folder / "cpus.c").write_text(MANY_CPUS)
    command = ["cc", "-shared", "-fPIC", "-o", folder / "cpus.so", folder / "cpus.c"]
    subprocess.run(command, check=True, timeout=60)
    return folder / "cpus.so"


def default_threads(folder: Path, library: Path, script: str = DEFAULT, **environment: str) -> int:
    """The default in a process that finds the files ``fs`` and ``group`` of this folder."""
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", IN_NAMESPACE, "sh", folder, library, sys.executable, script],
        env={**os.environ, "OMP_NUM_THREADS": "32", "ATTNFAST_NUM_THREADS": "", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def make_up(folder: Path, files: dict[str, str], group: str) -> None:
    (folder / "fs").mkdir()
    for name, text in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "group").write_text(group)


@pytest.mark.parametrize("name", QUOTAS)
def test_quota(name, many_cpus, tmp_path):
    files, group, threads = QUOTAS[name]
    make_up(tmp_path, files, group)
    assert default_threads(tmp_path, many_cpus) == threads


@pytest.mark.quick
def test_quota_that_could_not_be_read_at_first(many_cpus, tmp_path):
    make_up(tmp_path, {"a/cpu.max": "300000 100000\n"}, "0::/a\n")
    assert default_threads(tmp_path, many_cpus, NO_FILES_AT_FIRST) == 3


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_THREAD_LIMIT": "2"}, 2),
        ({"ATTNFAST_NUM_THREADS": "5"}, 5),  # what the user says goes above the quota
    ],
)
def test_quota_and_the_environment(environment, threads, many_cpus, tmp_path):
    make_up(tmp_path, {"a/cpu.max": "300000 100000\n"}, "0::/a\n")
    assert default_threads(tmp_path, many_cpus, **environment) == threads


USE = (
    COUNT_WORKERS
    + """
def use(n):
    os.sched_setaffinity(0, cpus[:n])
    threads = attnfast.get_num_threads()
    return threads, attnfast.plan(*x).threads, workers(lambda: attnfast.attention(*x))

x = qkv(8, 1500, 64)
cpus = sorted(os.sched_getaffinity(0))
"""
)


@TWO_CPUS
class TestAffinity:
    @pytest.mark.parametrize("n", [1, 2])
    def test_of_the_whole_process(self, n, tmp_path):
        cpus = sorted(os.sched_getaffinity(0))[:n]
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        try:
            run_python(USE + f"assert use(16) == ({n},) * 3", tmp_path, **DEFAULTS)
        finally:
            os.sched_setaffinity(0, before)

    def test_changed_at_run_time(self, tmp_path):
        script = "assert [use(n) for n in (2, 1, 2)] == [(2,) * 3, (1,) * 3, (2,) * 3]"
        run_python(USE + script, tmp_path, **DEFAULTS)

    def test_of_one_thread(self, tmp_path):
        script = """
seen = []
thread = threading.Thread(target=lambda: seen.append(use(1)))
thread.start()
thread.join()
assert seen == [(1, 1, 1)]
assert (attnfast.get_num_threads(), workers(lambda: attnfast.attention(*x))) == (2, 2)
"""
        script = "os.sched_setaffinity(0, cpus[:2])\n" + script
        run_python(USE + script, tmp_path, **DEFAULTS)

    def test_a_call_may_ask_for_more(self, tmp_path):
        script = """
assert use(1) == (1, 1, 1)
attnfast.set_num_threads(2)
assert use(1) == (2, 2, 2)
"""
        run_python(USE + script, tmp_path, **DEFAULTS)

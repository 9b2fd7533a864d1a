"""The processor time that control groups allow this process."""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the process's own group or one above it allows.

    Parameters
    ----------
    root : Path
        Where the file system starts.

    Returns
    -------
    float or None
        The tightest limit on the way up; None for no limit.
    """
    own = _own_group(root)
    limits = [_limit(root / "sys/fs/cgroup", group) for group in (own, *own.parents)]
    return min((limit for limit in limits if limit is not None), default=None)


def cut_short(root: Path = Path("/")) -> tuple[int, int] | None:
    """How often the quota has stopped the process's own group.

    Parameters
    ----------
    root : Path
        Where the file system starts.

    Returns
    -------
    (int, int) or None
        Periods in which the group was stopped, and all in which it ran; None if that is not known.
    """
    below = _own_group(root).relative_to("/")
    for mount in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/cpu"):
        try:
            lines = (mount / below / "cpu.stat").read_text().splitlines()
            numbers = {name: int(number) for name, number in map(str.split, lines)}
            return numbers["nr_throttled"], numbers["nr_periods"]
        except (OSError, KeyError, ValueError):
            continue
    return None


def _own_group(root: Path) -> PurePosixPath:
    """The group for the cpu controller: `0::/path` (version 2) or `n:cpu,cpuacct:/path` (1)."""
    unified = "/"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return PurePosixPath(group)
        if number == "0":
            unified = group
    return PurePosixPath(unified)


def _limit(mount: Path, group: PurePosixPath) -> float | None:
    """The limit of one group, in the files of either version."""
    below = group.relative_to("/")
    try:
        quota, period = (mount / below / "cpu.max").read_text().split()
    except (OSError, ValueError):
        folder = mount / "cpu" / below
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None

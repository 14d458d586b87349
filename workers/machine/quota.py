"""The CPU quota that cgroups set for this process, with version 1, version 2 or both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from workers.machine.kernel_files import read_text


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted cgroup hierarchy: `version` 1 (with the cpu controller) or 2."""

    version: int
    root: str
    """The cgroup that is visible at the mount point."""
    point: str


# The usual places of the hierarchies, in case the mount table cannot be read.
_USUAL_MOUNTS = (
    _Mount(2, "/", "/sys/fs/cgroup"),
    _Mount(1, "/", "/sys/fs/cgroup/cpu"),
    _Mount(1, "/", "/sys/fs/cgroup/cpu,cpuacct"),
)


def read_quota(root: Path) -> tuple[float | None, str]:
    """The smallest quota in CPUs (None: no limit), and the file that sets it.

    The limits of all ancestors apply, and hybrid systems mount both versions.
    """
    mounts = _read_mounts(root) or _USUAL_MOUNTS
    paths = _read_cgroup_paths(root)
    limits: list[tuple[float, str]] = []
    own: list[str] = []
    for version, read_limit in ((2, _limit_v2), (1, _limit_v1)):
        candidates = [mount for mount in mounts if mount.version == version]
        groups = _lineage(root, candidates, paths.get(version, "/"))
        limits += [limit for group in groups if (limit := read_limit(root, group)) is not None]
        own += [f"v{version} {group}" for group in groups[:1]]
    if limits:
        return min(limits)
    return None, f"no limit in cgroup {', '.join(own)}" if own else "no cgroup found"


def cgroup_directories(root: Path, version: int) -> list[Path]:
    """The directories of this process's cgroup and of its ancestors, innermost first.

    `version`: 2, or 1 for the hierarchy of the cpu controller.
    """
    mounts = [mount for mount in _read_mounts(root) or _USUAL_MOUNTS if mount.version == version]
    path = _read_cgroup_paths(root).get(version, "/")
    return [_under(root, group) for group in _lineage(root, mounts, path)]


def _read_mounts(root: Path) -> list[_Mount]:
    lines = (read_text(root / "proc/self/mountinfo") or "").splitlines()
    return [mount for mount in map(_parse_mount, lines) if mount is not None]


def _parse_mount(line: str) -> _Mount | None:
    before, _, after = line.partition(" - ")
    mount, filesystem = before.split(), after.split()
    if len(mount) < 5 or len(filesystem) < 3:
        return None
    if filesystem[0] == "cgroup2":
        return _Mount(2, _unescape(mount[3]), _unescape(mount[4]))
    if filesystem[0] == "cgroup" and "cpu" in filesystem[2].split(","):
        return _Mount(1, _unescape(mount[3]), _unescape(mount[4]))
    return None


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _read_cgroup_paths(root: Path) -> dict[int, str]:
    """This process's cgroup for each version; for version 1 that of the cpu controller."""
    paths: dict[int, str] = {}
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif "cpu" in controllers.split(","):
            paths[1] = path
    return paths


def _lineage(root: Path, mounts: Sequence[_Mount], path: str) -> list[PurePosixPath]:
    """The directories of a cgroup and of its visible ancestors, innermost first."""
    # Other cgroups may be mounted, too. The mount that contains this cgroup is tried first.
    mounts = sorted(mounts, key=lambda mount: not PurePosixPath(path).is_relative_to(mount.root))
    points = [PurePosixPath(mount.point) for mount in mounts]
    for mount, point in zip(mounts, points, strict=True):
        inside = _below(mount, path)
        if inside is not None and _is_directory(root, point / inside):
            return [point / inside, *(point / above for above in inside.parents)]
    # In a cgroup namespace the path may be invisible to this process. Then its cgroup is the
    # mount's root.
    return [point for point in points if _is_directory(root, point)][:1]


def _below(mount: _Mount, path: str) -> PurePosixPath | None:
    """A cgroup's path relative to the mount; None if it is outside."""
    parts = PurePosixPath(path)
    relative = parts.relative_to(mount.root) if parts.is_relative_to(mount.root) else parts
    relative = relative.relative_to("/") if relative.is_absolute() else relative
    return None if ".." in relative.parts else relative


def _is_directory(root: Path, path: PurePosixPath) -> bool:
    return _under(root, path).is_dir()


def _under(root: Path, path: PurePosixPath) -> Path:
    return root / str(path).lstrip("/")


def _limit_v2(root: Path, group: PurePosixPath) -> tuple[float, str] | None:
    file = group / "cpu.max"
    quota, _, period = (read_text(_under(root, file)) or "").partition(" ")
    return _limit(quota, period, f"cgroup v2, {file}")


def _limit_v1(root: Path, group: PurePosixPath) -> tuple[float, str] | None:
    file = group / "cpu.cfs_quota_us"
    quota = read_text(_under(root, file)) or ""
    period = read_text(_under(root, group / "cpu.cfs_period_us")) or ""
    return _limit(quota, period, f"cgroup v1, {file}")


def _limit(quota: str, period: str, source: str) -> tuple[float, str] | None:
    # "max" and "-1" mean no limit; neither is a positive number.
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return int(quota) / int(period), source

"""The memory that may still be taken, on made-up machines and on this one."""

from __future__ import annotations

from pathlib import Path

from workers.memory import available_memory

GIB = 2**30


def machine(root: Path, available: int, **groups: dict[str, str]) -> Path:
    """A machine of version 2 cgroups: each of `groups` lies within the one before."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {64 * 2**20} kB\nMemAvailable: {available // 1024} kB\n"
    )
    (root / "proc/self/mountinfo").write_text(
        "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    path = Path("/")
    for name, files in groups.items():
        path /= name
        directory = root / "sys/fs/cgroup" / str(path).lstrip("/")
        directory.mkdir(parents=True)
        for file, text in files.items():
            (directory / f"memory.{file}").write_text(text)
    (root / "proc/self/cgroup").write_text(f"0::{path}\n")
    return root


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, a={"max": "max\n", "current": "5\n"})
    assert available_memory(root) == 8 * GIB


def test_a_cgroup_leaves_its_limit_less_what_is_used_but_for_the_page_cache(
    tmp_path: Path,
) -> None:
    files = {
        "max": str(4 * GIB),
        "current": str(3 * GIB),
        "stat": f"anon 5\ninactive_file {2 * GIB}\nactive_file 7\n",
    }
    assert available_memory(machine(tmp_path, 8 * GIB, a=files)) == 3 * GIB


def test_the_tightest_of_all_cgroups_counts(tmp_path: Path) -> None:
    outer = {"max": str(2 * GIB), "current": str(GIB)}
    inner = {"max": str(6 * GIB), "current": "0"}
    assert available_memory(machine(tmp_path, 8 * GIB, outer=outer, inner=inner)) == GIB


def test_a_cgroup_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {"max": "1000", "current": "2000"}
    assert available_memory(machine(tmp_path, GIB, a=files)) == 0


def test_a_limit_of_version_1_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB)
    group = root / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(str(2 * GIB))
    (group / "memory.usage_in_bytes").write_text(str(GIB))
    assert available_memory(root) == GIB


def test_where_nothing_can_be_read_it_is_unknown(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


def test_this_machine_has_some() -> None:
    available = available_memory()
    assert available is not None
    assert 2**20 < available < 2**50

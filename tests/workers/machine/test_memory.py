"""The available memory, on simulated machines and on this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.machine.memory import available_memory

GIB = 2**30


def machine(root: Path, available: int, **groups: dict[str, str]) -> Path:
    """A machine with version 2 cgroups: each of `groups` is a child of the one before."""
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


def version_1(root: Path, limit: int, usage: int, stat: str = "") -> Path:
    group = root / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (group / "memory.usage_in_bytes").write_text(f"{usage}\n")
    (group / "memory.stat").write_text(stat)
    return root


def test_without_a_limit_the_machines_memory_is_available(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, a={"max": "max\n", "current": "5\n"})
    assert available_memory(root) == 8 * GIB


def test_a_cgroup_has_its_limit_minus_its_usage_without_the_page_cache(
    tmp_path: Path,
) -> None:
    files = {
        "max": str(4 * GIB),
        "current": str(3 * GIB),
        "stat": f"anon 5\ninactive_file {2 * GIB}\nactive_file 7\n",
    }
    assert available_memory(machine(tmp_path, 8 * GIB, a=files)) == 3 * GIB


def test_the_smallest_limit_of_all_cgroups_counts(tmp_path: Path) -> None:
    outer = {"max": str(2 * GIB), "current": str(GIB)}
    inner = {"max": str(6 * GIB), "current": "0"}
    assert available_memory(machine(tmp_path, 8 * GIB, outer=outer, inner=inner)) == GIB


def test_a_cgroup_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {"max": "1000", "current": "2000"}
    assert available_memory(machine(tmp_path, GIB, a=files)) == 0


def test_a_limit_of_version_1_counts(tmp_path: Path) -> None:
    root = version_1(machine(tmp_path, 8 * GIB), 2 * GIB, GIB)
    assert available_memory(root) == GIB


def test_the_page_cache_of_version_1_is_available_too(tmp_path: Path) -> None:
    """The pages of a mapped model count as used once they were read."""
    stat = f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 3\n"
    root = version_1(machine(tmp_path, 8 * GIB), 4 * GIB, 3 * GIB, stat)
    assert available_memory(root) == 2 * GIB


def test_the_number_with_which_version_1_says_no_limit_is_not_a_limit(tmp_path: Path) -> None:
    root = version_1(machine(tmp_path, 8 * GIB), 9223372036854771712, 5 * GIB)
    assert available_memory(root) == 8 * GIB


def test_a_cgroup_with_a_limit_above_the_machines_memory_has_the_machines(tmp_path: Path) -> None:
    files = {"max": str(64 * GIB), "current": str(GIB)}
    assert available_memory(machine(tmp_path, 8 * GIB, a=files)) == 8 * GIB


def test_without_a_mount_table_the_usual_place_is_read(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, a={"max": str(2 * GIB), "current": str(GIB)})
    (root / "proc/self/mountinfo").unlink()
    assert available_memory(root) == GIB


def test_a_namespace_that_hides_the_cgroups_path_leaves_the_mounts_root(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, a={})
    (root / "proc/self/cgroup").write_text("0::/../../elsewhere\n")
    (root / "sys/fs/cgroup/memory.max").write_text(str(GIB))
    (root / "sys/fs/cgroup/memory.current").write_text("0")
    assert available_memory(root) == GIB


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n"])
def test_a_machine_without_the_number_is_unknown(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(text)
    assert available_memory(tmp_path) is None


def test_without_readable_files_the_memory_is_unknown(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


def test_this_machine_has_available_memory() -> None:
    available = available_memory()
    assert available is not None
    assert 2**20 < available < 2**50

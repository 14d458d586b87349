"""Reads the small text files of /proc and /sys. The result is None for unreadable files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse the kernel's list format, "0-3,8", to ascending numbers. Raises ValueError."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if match is None:
            raise ValueError(f"not a list of CPUs: {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"range runs backwards in list of CPUs: {text!r}")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Format numbers as the kernel does: "0-3,8"; "" without numbers."""
    ordered = enumerate(sorted(set(cpus)))
    # Within a run of consecutive numbers, number minus position stays the same.
    runs = ([cpu for _, cpu in run] for _, run in groupby(ordered, lambda item: item[1] - item[0]))
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def read_text(path: Path) -> str | None:
    """The file's text without surrounding white space."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def read_int(path: Path) -> int | None:
    """The file's integer."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def read_cpu_list(path: Path) -> tuple[int, ...] | None:
    """The file's list of CPUs, ascending."""
    try:
        text = read_text(path)
        return None if text is None else parse_cpu_list(text)
    except ValueError:
        return None

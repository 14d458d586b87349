"""FAULTS.md: each fault, what must happen, the tests that inject it, and what came of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.faults.rows import ROWS
from tests.helpers.paths import ROOT

PAGE = ROOT / "FAULTS.md"
TEST = re.compile(r"^def (test_fault_(\d+)_\w+)\(", re.MULTILINE)
HEAD = """# Faults

Each row is a fault that tests inject into the real server, and what must happen then. The tests
start the server as a process of its own and talk to it over HTTP; `tests/faults/` has them, their
names begin with the row's number. "Cut" is a stream's end after an error: NDJSON gets a last line
with the error, plain text ends without the closing chunk.

This page is written by `scripts/test tests/faults --write-faults`, as root: some faults need a
mount, a network namespace or a cgroup.

| # | fault | how | what must happen | tests | result |
|---|---|---|---|---|---|
"""


def by_row() -> dict[int, list[str]]:
    """The tests of each row, as their files have them."""
    found: dict[int, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for name, number in TEST.findall(path.read_text()):
            found.setdefault(int(number), []).append(f"{path.name}::{name}")
    return found


def page(results: Mapping[str, Iterable[str]]) -> str:
    """The page. `results`: by test, what each of its runs came to."""
    tests = by_row()
    lines = []
    for row in ROWS:
        names = [words(test) for test in tests.get(row.number, ())]
        outcomes = {came for test in tests.get(row.number, ()) for came in results.get(test, ())}
        cells = (
            str(row.number),
            row.fault,
            row.injection,
            row.expected,
            "; ".join(names),
            ", ".join(sorted(outcomes)) or "not run",
        )
        lines.append("| " + " | ".join(cells) + " |\n")
    return HEAD + "".join(lines)


def words(test: str) -> str:
    """A test's name as a sentence."""
    file, _, name = test.partition("::")
    return re.sub(r"^test_fault_\d+_", "", name).replace("_", " ") + f" (`{file}`)"

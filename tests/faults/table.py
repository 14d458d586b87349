"""FAULTS.md: each fault, the required behaviour, the tests that inject it, and their results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.faults.rows import ROWS
from tests.helpers.paths import ROOT

PAGE = ROOT / "FAULTS.md"
TEST = re.compile(r"^def (test_fault_(\d+)_\w+)\(", re.MULTILINE)
HEAD = """# Faults

Each row is a fault that tests inject into the real server, and the required behaviour. The tests
start the server as a separate process and talk to it over HTTP. They are in `tests/faults/`; their
names begin with the number of the row. "Cut" means that a stream ends after an error: NDJSON gets
a last line with the error, plain text ends without the closing chunk.

`scripts/test tests/faults --write-faults` writes this page. Run it as root: some faults need a
mount, a network namespace or a cgroup.

| # | fault | injected by | required behaviour | tests | result |
|---|---|---|---|---|---|
"""


def by_row() -> dict[int, list[str]]:
    """The tests of each row, in the order of the files."""
    found: dict[int, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for name, number in TEST.findall(path.read_text()):
            found.setdefault(int(number), []).append(f"{path.name}::{name}")
    return found


def page(results: Mapping[str, Iterable[str]]) -> str:
    """The text of the page. `results`: the outcomes of the runs of each test."""
    tests = by_row()
    lines = []
    for row in ROWS:
        names = [words(test) for test in tests.get(row.number, ())]
        outcomes = {one for test in tests.get(row.number, ()) for one in results.get(test, ())}
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

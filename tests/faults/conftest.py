"""With --write-faults, writes FAULTS.md of what the tests of this folder came to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.table import PAGE, page

RESULTS: pytest.StashKey[dict[str, set[str]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-faults", action="store_true", help="write FAULTS.md at the end of tests/faults"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.when == "call" or report.outcome != "passed":
        test = f"{Path(item.path).name}::{item.originalname}"  # type: ignore[attr-defined]
        item.config.stash[RESULTS].setdefault(test, set()).add(outcome(report))
    return report


def outcome(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}"
    return report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-faults", default=False):
        PAGE.write_text(page(session.config.stash[RESULTS]))

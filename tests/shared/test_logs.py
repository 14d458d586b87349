"""Log lines, written by a process whose standard error is a file, a journal or closed."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.logs import JournalFormatter, priority

PROGRAM = """
import logging, sys
from shared.logs import configure_logging
configure_logging("debug", sys.argv[1])
logger = logging.getLogger("tokenflume")
logger.info("fine")
logger.warning("two\\nlines")
logger.info("%d tokens", 3, extra={"fields": {"tokens": 3, "model": None, "ü": "世"}})
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("broken")
"""


def log_of(path: Path, journal: str, log_format: str = "text") -> str:
    """What the program logs to the file, with that JOURNAL_STREAM."""
    with path.open("wb") as file:
        status = os.fstat(file.fileno())
        stream = journal.format(dev=status.st_dev, ino=status.st_ino)
        subprocess.run(
            [sys.executable, "-c", PROGRAM, log_format],
            stderr=file,
            env={**os.environ, "JOURNAL_STREAM": stream},
            timeout=40,
            check=True,
        )
    return path.read_text()


def test_in_the_journal_each_line_has_its_priority_and_no_time(tmp_path: Path) -> None:
    lines = log_of(tmp_path / "log", "{dev}:{ino}").splitlines()
    assert lines[:5] == [
        "<6>tokenflume: fine",
        "<4>tokenflume: two",
        "<4>lines",
        "<6>tokenflume: 3 tokens",
        "<3>tokenflume: broken",
    ]
    assert lines[-1] == "<3>ZeroDivisionError: division by zero"
    assert all(line.startswith("<3>") for line in lines[4:])


def test_as_json_an_event_is_an_object_on_a_line_with_its_figures(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in log_of(tmp_path / "log", "", "json").splitlines()]
    assert [line["message"] for line in lines] == ["fine", "two\nlines", "3 tokens", "broken"]
    assert [line["level"] for line in lines] == ["info", "warning", "info", "error"]
    assert {line["logger"] for line in lines} == {"tokenflume"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\.\d{3}\+00:00", lines[0]["time"])
    assert (lines[2]["tokens"], lines[2]["model"], lines[2]["ü"]) == (3, None, "世")
    assert lines[3]["traceback"].endswith("ZeroDivisionError: division by zero")


def test_json_in_the_journal_has_its_priority_before_it(tmp_path: Path) -> None:
    lines = log_of(tmp_path / "log", "{dev}:{ino}", "json").splitlines()
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<6>", "<3>"]
    assert json.loads(lines[0][3:])["message"] == "fine"


@pytest.mark.parametrize("journal", ["", "1:1", "{dev}", "nonsense"])
def test_elsewhere_lines_have_the_time_and_the_level(tmp_path: Path, journal: str) -> None:
    """Also if JOURNAL_STREAM names the journal, but standard error is redirected elsewhere."""
    first = log_of(tmp_path / "log", journal).splitlines()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ INFO    tokenflume: fine", first)


@pytest.mark.parametrize(
    ("level", "number"),
    [(60, 2), (50, 2), (40, 3), (35, 4), (30, 4), (20, 6), (10, 7), (0, 7)],
)
def test_levels_are_syslog_s_priorities(level: int, number: int) -> None:
    assert priority(level) == number
    record = logging.LogRecord("x", level, "", 0, "text", None, None)
    assert JournalFormatter().format(record) == f"<{number}>x: text"

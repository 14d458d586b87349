"""Every row has a test, every test a row, and FAULTS.md is the page of both."""

from __future__ import annotations

import re

from tests.faults.rows import ROWS
from tests.faults.table import PAGE, by_row, page


def test_every_fault_has_a_test_and_every_test_a_fault() -> None:
    assert {row.number for row in ROWS} == set(by_row())
    numbers = [row.number for row in ROWS]
    assert numbers == sorted(set(numbers))


def test_the_page_has_the_rows_and_the_tests_that_there_are() -> None:
    """Whatever they came to; `--write-faults` writes it."""

    def without_results(text: str) -> str:
        return re.sub(r"\| [^|]* \|$", "|", text, flags=re.MULTILINE)

    assert without_results(PAGE.read_text()) == without_results(page({}))

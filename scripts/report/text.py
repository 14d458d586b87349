"""Numbers and rows of tables, as plain text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def count(number: int, noun: str) -> str:
    """A number and its noun, in the plural where needed."""
    return f"{number} {noun}{'s' * (number != 1)}"


def number(value: float) -> str:
    """A value with about three significant digits."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def range_row(name: str, values: Sequence[float], digits: int, unit: str = "") -> str:
    """Name, median, (lowest … highest) and unit, in columns."""
    median, low, high = (
        f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"  {name:<30}{median:>10}  {f'({low} … {high})':<24}{unit}".rstrip()

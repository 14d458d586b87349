"""Types of command-line arguments. Each raises ArgumentTypeError, which names the range."""

from __future__ import annotations

import argparse
import math

LARGEST = 10**9


def count(text: str) -> int:
    """An integer of 1 or more."""
    return integer(text, 1, LARGEST)


def integer(text: str, low: int, high: int, subject: str = "") -> int:
    """An integer from `low` to `high`. `subject` begins the error message."""
    if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
        message = f"{subject} must be an integer from {low} to {high}, not {text!r}"
        raise argparse.ArgumentTypeError(message.lstrip())
    return int(text)


def positive(text: str) -> float:
    """A number over 0."""
    return _number(text, above=0.0)


def not_negative(text: str) -> float:
    """A number of 0 or more."""
    return _number(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = _number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def _number(text: str, above: float | None = None) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or value == above:
        wanted = "≥ 0" if above is None else f"> {above:g}"
        raise argparse.ArgumentTypeError(f"must be a number {wanted}, not {text!r}")
    return value

"""Figures: the results of the bench, with their aims."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.report.text import range_row


@dataclass(frozen=True)
class Aim:
    """The value that a quantity should have: `relation` is "at least", "at most" or "more than"."""

    relation: str
    limit: float

    def is_reached_by(self, value: float) -> bool:
        match self.relation:
            case "at least":
                return value >= self.limit
            case "at most":
                return value <= self.limit
            case _:
                return value > self.limit


@dataclass(frozen=True)
class Series:
    """One quantity, with one value for each run."""

    name: str
    unit: str
    values: Sequence[float]
    digits: int = 0
    aim: Aim | None = None
    """The aim for the median of the values."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Figure:
    """The result of one measurement."""

    title: str
    series: Sequence[Series]
    tokens: int
    """Tokens that were received in all runs but the warm-up."""
    notes: Sequence[str] = ()


def figure_table(figure: Figure) -> str:
    """A figure as text: a line for each series, the notes, and whether each aim was reached."""
    lines = [figure.title, *map(series_row, figure.series)]
    lines += [f"  {note}" for note in figure.notes]
    lines += [aim_row(series, series.aim) for series in figure.series if series.aim is not None]
    return "\n".join(lines)


def series_row(series: Series) -> str:
    """Name, median, (lowest … highest) and unit, in columns."""
    return range_row(series.name, series.values, series.digits, series.unit)


def aim_row(series: Series, aim: Aim) -> str:
    """The aim, and whether it was reached."""
    wanted = f"{aim.relation} {aim.limit:,g} {series.unit}".rstrip()
    outcome = "reached" if aim.is_reached_by(series.median) else "missed"
    return f"  aim for {series.name}: {wanted}: {outcome}"


def figure_json(figure: Figure) -> dict[str, Any]:
    """A figure as JSON values."""
    return {
        "title": figure.title,
        "series": list(map(series_json, figure.series)),
        "tokens": figure.tokens,
        "notes": list(figure.notes),
    }


def series_json(series: Series) -> dict[str, Any]:
    """A series as JSON values."""
    aim = series.aim
    reached = aim and {**dataclasses.asdict(aim), "reached": aim.is_reached_by(series.median)}
    return {**dataclasses.asdict(series), "median": series.median, "aim": reached}

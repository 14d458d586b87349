"""What bench.py prints and writes: figures with their aims, and the machine they are from."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers.machine.cores import Machine
from workers.machine.cpu_features import cpu_features, cpu_model


@dataclass(frozen=True)
class Aim:
    """What a value should be."""

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
    """One quantity, a value a run."""

    name: str
    unit: str
    values: Sequence[float]
    digits: int = 0
    aim: Aim | None = None
    """Of the median."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Figure:
    """A measurement's result."""

    title: str
    series: Sequence[Series]
    tokens: int
    """Tokens that came in the runs that count, each of them asked for; without the warm-up."""
    notes: Sequence[str] = ()


def describe_machine(machine: Machine) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": cpu_model(),
        "usable_cores": len(machine.cores),
        "usable_cpus": machine.allowed,
        "quota": machine.quota,
        "features": list(cpu_features()),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def machine_table(facts: dict[str, Any]) -> str:
    """The facts of `describe_machine`, to read."""
    quota = "" if facts["quota"] is None else f", quota {facts['quota']:g} CPUs"
    cores = f"{count(facts['usable_cores'], 'core')}, {count(facts['usable_cpus'], 'CPU')}{quota}"
    rows = {
        "CPU": facts["cpu"],
        "usable": cores,
        "features": " ".join(facts["features"]) or "none known",
        "Python": facts["python"],
        "load": f"{facts['load_average']:.2f} on average in the minute before the start",
    }
    return "\n".join(f"  {name:<10}{value}" for name, value in rows.items())


def figure_table(figure: Figure) -> str:
    """A figure to read: a line for each series, and what became of the aims."""
    lines = [figure.title, *map(series_row, figure.series)]
    lines += [f"  {note}" for note in figure.notes]
    lines += [aim_row(series, series.aim) for series in figure.series if series.aim is not None]
    return "\n".join(lines)


def series_row(series: Series) -> str:
    """Name, median (lowest … highest) and unit in columns."""
    median, low, high = (
        f"{value:,.{series.digits}f}"
        for value in (series.median, min(series.values), max(series.values))
    )
    return f"  {series.name:<30}{median:>10}  {f'({low} … {high})':<24}{series.unit}".rstrip()


def aim_row(series: Series, aim: Aim) -> str:
    wanted = f"{aim.relation} {aim.limit:,g} {series.unit}".rstrip()
    outcome = "reached" if aim.is_reached_by(series.median) else "missed"
    return f"  aim for {series.name}: {wanted}: {outcome}"


def figure_json(figure: Figure) -> dict[str, Any]:
    """All that is known of a figure."""
    return {
        "title": figure.title,
        "series": list(map(series_json, figure.series)),
        "tokens": figure.tokens,
        "notes": list(figure.notes),
    }


def series_json(series: Series) -> dict[str, Any]:
    aim = series.aim
    reached = aim and {**dataclasses.asdict(aim), "reached": aim.is_reached_by(series.median)}
    return {**dataclasses.asdict(series), "median": series.median, "aim": reached}


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"

"""The report of a soak, as text: outcomes, crashes, resources over time, and the verdict."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from scripts.report.text import count, number
from scripts.soak.faults import replace_times
from scripts.soak.growth import Trend
from scripts.soak.judge import Outcome
from scripts.soak.monitor import Sample
from scripts.soak.results import Results

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH = 60
HEIGHT = 6
NAMES = 27
"""Width of a column of names."""
SHOWN = 20
"""Faults and lost requests that are shown at most."""
CHARTED = ("front, RSS", "workers together, PSS")
"""Quantities with a chart of their own. Every quantity has a chart of one row in the table."""


def verdict(results: Results) -> str:
    """The verdict in one sentence."""
    if not results.requests:
        return "NOTHING WAS SENT"
    if results.is_clean:
        return "CLEAN: every request got an answer or a clear error, and nothing grows"
    parts = []
    if results.lost:
        parts.append(f"{len(results.lost):,} lost")
    if results.faults:
        parts.append("; ".join(results.faults[:3]))
    if results.growing:
        parts.append("grows: " + ", ".join(each.quantity.name for each in results.growing))
    return "NOT CLEAN: " + "; ".join(parts)


def report_text(results: Results) -> str:
    """The whole report."""
    parts = [
        summary(results),
        *([outcome_table(results)] if results.requests else []),
        crash_text(results),
        *([figure_text(results.samples, results.trends)] if results.samples else []),
        *([lost_text(results)] if results.lost or results.faults else []),
        verdict(results),
    ]
    return "\n\n".join(parts)


def summary(results: Results) -> str:
    """The amount of work, in one sentence."""
    cut_short = "" if results.is_complete else " (interrupted: these are the results until then)"
    lost = len(results.lost)
    return (
        f"{count(results.requests, 'request')} in {results.seconds / 60:.1f} minutes{cut_short}:"
        f" {results.count(Outcome.COMPLETED):,} completed, {lost:,} lost; {results.tokens:,} events"
    )


def outcome_table(results: Results) -> str:
    """A table of kinds and outcomes."""
    header, rows = outcome_rows(results)
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    )


def outcome_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each kind; the last one is the sum."""
    seen = [each for each in Outcome if results.count(each)]
    kinds = sorted({kind for kind, _ in results.outcomes})
    rows = [[kind, *(_cell(results.outcomes[kind, outcome]) for outcome in seen)] for kind in kinds]
    rows.append(["total", *(_cell(results.count(outcome)) for outcome in seen)])
    return ["kind of request", *map(str, seen)], rows


def _cell(value: int) -> str:
    return f"{value:,}" if value else "·"


def crash_text(results: Results) -> str:
    """The faults that were injected, and their effects."""
    if not results.crashes:
        return f"no worker was ended; {count(results.hang_ups, 'SIGHUP')}"
    by_fault = Counter(crash.fault for crash in results.crashes)
    listed = ", ".join(f"{times} × {fault}" for fault, times in by_fault.most_common())
    lines = [
        f"{count(len(results.crashes), 'worker')} ended by: {listed};"
        f" {count(results.hang_ups, 'SIGHUP')}"
    ]
    times = replace_times(results.crashes)
    ended = results.count(Outcome.CRASH_REPORTED) + results.count(Outcome.CRASH_CUT)
    if times:
        lines.append(
            f"time until all workers were ready again: {number(statistics.median(times))} s"
            f" (median), {number(max(times))} s (longest)"
        )
    lines.append(
        f"{ended:,} requests ended by a crash, each with an error or visibly cut;"
        f" {results.outlived:,} requests waited during a crash and were answered"
    )
    return "\n".join(lines)


def lost_text(results: Results) -> str:
    """The first faults and lost requests."""
    found = [*results.faults, *results.lost]
    lines = [f"  {each}" for each in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"  … and {len(found) - SHOWN:,} more")
    return "\n".join(["WRONG:", *lines])


# ---------------------------------------------------------------- resources


def figure_text(samples: Sequence[Sample], trends: Sequence[Trend]) -> str:
    """Charts, and a table with the growth of each quantity."""
    parts = []
    for each in trends:
        if each.quantity.name in CHARTED:
            values = [each.quantity.read(sample) for sample in samples]
            title = f"{each.quantity.name}, {each.quantity.unit}"
            parts.append(f"{title}\n{text_chart(values, samples[-1].at)}")
    rows = [
        f"{'':<{NAMES}}{'over time':<{WIDTH // 2 + 2}}{'first':>8}{'median':>8}{'last':>8}"
        f"{'highest':>8}  growth (allowed)"
    ]
    for each in trends:
        values = [each.quantity.read(sample) for sample in samples]
        line = text_rows(values, WIDTH // 2, 1)[0]
        cells = (each.first, each.median, each.last, each.most)
        name = each.quantity.name + (f", {each.quantity.unit}" if each.quantity.unit else "")
        rows.append(
            f"{name:<{NAMES}}{line}  {''.join(f'{cell:8.1f}' for cell in cells)}"
            f"  {growth_text(each)}"
        )
    return "\n\n".join([*parts, "\n".join(rows)])


def growth_text(trend: Trend) -> str:
    """The growth of a quantity after the warm-up."""
    if trend.growth is None or trend.late_growth is None:
        return "too few samples"
    text = f"{trend.growth:+.1f}, second half {trend.late_growth:+.1f}"
    if not trend.quantity.allowance:
        return text
    return f"{text} ({trend.allowance:.1f}){' GROWS' if trend.grows else ''}"


def text_chart(values: Sequence[float], seconds: float) -> str:
    """A chart of several rows, with the scale at its left and the time below it."""
    low, high = _range(values)
    rows = text_rows(values, WIDTH, HEIGHT)
    labels = [f"{high:8.1f}", *[" " * 8] * (HEIGHT - 2), f"{low:8.1f}"]
    lines = [f"{label} ┤{row}" for label, row in zip(labels, rows, strict=True)]
    end = f"{seconds:.0f} s"
    return "\n".join([*lines, f"{'':8} 0{end:>{WIDTH}}"])


def text_rows(values: Sequence[float], width: int, height: int) -> list[str]:
    """Rows of a chart, the highest one first. A column shows the highest value of its part."""
    low, high = _range(values)
    span = len(BLOCKS) - 1
    columns = []
    for column in range(width):
        first = column * len(values) // width
        last = max((column + 1) * len(values) // width, first + 1)
        share = (max(values[first:last]) - low) / (high - low)
        columns.append(max(round(share * height * span), 1))
    return [
        "".join(BLOCKS[min(max(level - row * span, 0), span)] for level in columns)
        for row in reversed(range(height))
    ]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and highest value of a chart. Nearly constant values are a line at its bottom."""
    low, high = min(values), max(values)
    return low, max(high, low * 1.1, low + 1e-9 if low else 1.0)

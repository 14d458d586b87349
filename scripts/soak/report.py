"""What soak.py prints: what was lost, what became of all, and figures over time."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from scripts.bench.figures import count
from scripts.loadtest.report import number
from scripts.soak.faults import replace_times
from scripts.soak.judge import Outcome
from scripts.soak.monitor import Sample, Trend
from scripts.soak.run import SHOWN, Account

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH = 60
HEIGHT = 6
NAMES = 27
CHARTED = ("front, RSS", "workers together, PSS")
"""With a chart of their own; all others have a line of one row."""


def verdict(account: Account) -> str:
    """In a sentence."""
    if not account.requests:
        return "NOTHING WAS ASKED"
    if account.is_clean:
        return "CLEAN: no request without an answer or a clear error, and nothing grows"
    parts = []
    if account.lost:
        parts.append(f"{len(account.lost):,} lost")
    if account.troubles:
        parts.append("; ".join(account.troubles[:3]))
    if account.growing:
        parts.append("grows: " + ", ".join(each.quantity.name for each in account.growing))
    return "NOT CLEAN: " + "; ".join(parts)


def report_text(account: Account) -> str:
    """All of it."""
    parts = [
        summary(account),
        *([outcome_table(account)] if account.requests else []),
        death_text(account),
        *([figure_text(account.samples, account.trends)] if account.samples else []),
        *([lost_text(account)] if account.lost or account.troubles else []),
        verdict(account),
    ]
    return "\n\n".join(parts)


def summary(account: Account) -> str:
    """How much it was."""
    cut_short = "" if account.is_complete else " (interrupted: this is what there was until then)"
    lost = len(account.lost)
    return (
        f"{count(account.requests, 'request')} in {account.seconds / 60:.1f} minutes{cut_short}:"
        f" {account.count(Outcome.WHOLE):,} whole, {lost:,} lost; {account.tokens:,} events"
    )


def outcome_table(account: Account) -> str:
    """Kinds by outcomes."""
    header, rows = outcome_rows(account)
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    )


def outcome_rows(account: Account) -> tuple[list[str], list[list[str]]]:
    """The header, and a row a kind, the sum last."""
    seen = [each for each in Outcome if account.count(each)]
    kinds = sorted({kind for kind, _ in account.outcomes})
    rows = [[kind, *(_cell(account.outcomes[kind, outcome]) for outcome in seen)] for kind in kinds]
    rows.append(["together", *(_cell(account.count(outcome)) for outcome in seen)])
    return ["kind of request", *map(str, seen)], rows


def _cell(value: int) -> str:
    return f"{value:,}" if value else "·"


def death_text(account: Account) -> str:
    """What was done to workers, and how it was borne."""
    if not account.deaths:
        return f"no worker was killed; {count(account.hang_ups, 'SIGHUP')}"
    ways = Counter(death.how for death in account.deaths)
    told = ", ".join(f"{number} × {how}" for how, number in ways.most_common())
    lines = [
        f"{count(len(account.deaths), 'death')} of workers: {told};"
        f" {count(account.hang_ups, 'SIGHUP')}"
    ]
    times = replace_times(account.deaths)
    by_death = account.count(Outcome.DIED) + account.count(Outcome.CUT)
    if times:
        lines.append(
            f"until all workers were ready again: {number(statistics.median(times))} s (median),"
            f" {number(max(times))} s (longest)"
        )
    lines.append(
        f"{by_death:,} requests ended by a death, each told or visibly cut;"
        f" {account.outlived:,} answers began after a death that came while they waited"
    )
    return "\n".join(lines)


def lost_text(account: Account) -> str:
    """The first of what is wrong."""
    found = [*account.troubles, *account.lost]
    lines = [f"  {each}" for each in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"  … and {len(found) - SHOWN:,} more")
    return "\n".join(["WRONG:", *lines])


# ---------------------------------------------------------------- figures


def figure_text(samples: Sequence[Sample], trends: Sequence[Trend]) -> str:
    """Charts, and what grows."""
    parts = []
    for each in trends:
        if each.quantity.name in CHARTED:
            values = [each.quantity.of(sample) for sample in samples]
            title = f"{each.quantity.name}, {each.quantity.unit}"
            parts.append(f"{title}\n{text_chart(values, samples[-1].at)}")
    rows = [
        f"{'':<{NAMES}}{'over time':<{WIDTH // 2 + 2}}{'first':>8}{'median':>8}{'last':>8}"
        f"{'most':>8}  growth (allowed)"
    ]
    for each in trends:
        values = [each.quantity.of(sample) for sample in samples]
        line = text_rows(values, WIDTH // 2, 1)[0]
        cells = (each.first, each.median, each.last, each.most)
        name = each.quantity.name + (f", {each.quantity.unit}" if each.quantity.unit else "")
        rows.append(
            f"{name:<{NAMES}}{line}  {''.join(f'{cell:8.1f}' for cell in cells)}"
            f"  {growth_text(each)}"
        )
    return "\n\n".join([*parts, "\n".join(rows)])


def growth_text(trend: Trend) -> str:
    """Its growth over the time after the warm-up."""
    if trend.growth is None or trend.late_growth is None:
        return "too few samples"
    text = f"{trend.growth:+.1f}, second half {trend.late_growth:+.1f}"
    if not trend.quantity.allowance:
        return text
    return f"{text} ({trend.allowance:.1f}){' GROWS' if trend.grows else ''}"


def text_chart(values: Sequence[float], seconds: float) -> str:
    """Some rows of blocks, with the scale at their left and the time below."""
    low, high = _range(values)
    rows = text_rows(values, WIDTH, HEIGHT)
    labels = [f"{high:8.1f}", *[" " * 8] * (HEIGHT - 2), f"{low:8.1f}"]
    lines = [f"{label} ┤{row}" for label, row in zip(labels, rows, strict=True)]
    end = f"{seconds:.0f} s"
    return "\n".join([*lines, f"{'':8} 0{end:>{WIDTH}}"])


def text_rows(values: Sequence[float], width: int, height: int) -> list[str]:
    """The values as blocks, the highest row first; each column is the highest of its part."""
    low, high = _range(values)
    span = len(BLOCKS) - 1
    columns = []
    for place in range(width):
        first = place * len(values) // width
        last = max((place + 1) * len(values) // width, first + 1)
        share = (max(values[first:last]) - low) / (high - low)
        columns.append(max(round(share * height * span), 1))
    return [
        "".join(BLOCKS[min(max(level - row * span, 0), span)] for level in columns)
        for row in reversed(range(height))
    ]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Around all values; a figure that hardly moves is a line near the bottom."""
    low, high = min(values), max(values)
    return low, max(high, low * 1.1, low + 1e-9 if low else 1.0)

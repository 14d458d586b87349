"""The report of a load test: a table for each load, and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.loadtest.run import Shape
from scripts.loadtest.summary import Ratio, Summary
from scripts.report.stats import Spread
from scripts.report.text import count, number, range_row

MS = 1000.0
LEAST_BUNCHED = 0.001
"""A smaller share of bunched tokens is not reported."""


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one load on each server."""

    shape: Shape
    summaries: Sequence[Summary]
    """In the order of the servers. An interrupted measurement may lack the last ones."""
    ratios: Sequence[Ratio] = ()
    """Quantities of the second server over those of the first."""


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of a load test."""

    title: str
    began: str
    """Time of the start, in UTC."""
    servers: Sequence[str]
    """The name of each server: its URL and dialect."""
    settings: Mapping[str, str]
    """The options, as text."""
    machine: Mapping[str, Any]
    """The machine of the load generator."""
    unit: str
    """What is timed: tokens, or pieces of text if tokens cannot be told apart."""
    points: Sequence[Point]

    @property
    def summaries(self) -> list[Summary]:
        return [summary for point in self.points for summary in point.summaries]

    @property
    def warnings(self) -> list[str]:
        """Loads of which the load generator may have been the bottleneck."""
        return [
            f"{point.shape.label}, {server}: {warning}"
            for point in self.points
            for server, summary in zip(self.servers, point.summaries, strict=False)
            if (warning := summary.generator.warning) is not None
        ]


# ---------------------------------------------------------------- tables


def point_table(report: Report, point: Point) -> str:
    """The figures of one load."""
    parts = [
        summary_table(f"{point.shape.label}, {server}", summary, report.unit)
        for server, summary in zip(report.servers, point.summaries, strict=False)
    ]
    if point.ratios:
        rows = [range_row(ratio.name, ratio.values, 3) for ratio in point.ratios]
        first, second = report.servers
        title = f"{point.shape.label}: {second} over {first}, median (lowest … highest) of rounds"
        parts.append("\n".join([title, *rows]))
    return "\n\n".join(parts)


def summary_table(title: str, summary: Summary, unit: str) -> str:
    """The figures of one load on one server."""
    lines = [title, f"  {outcome(summary)}", f"  {throughput(summary, unit)}"]
    latencies = {
        "TTFT, ms": summary.ttft,
        "ITL, ms": summary.itl,
        "end to end, ms": summary.e2e,
    }
    rates = {
        f"{unit}/s of a stream": summary.stream_rate,
        f"{unit}/s in a second": summary.second_rate,
    }
    lines.append(header("latency", "max"))
    lines += [row(name, spread, MS) for name, spread in latencies.items()]
    lines.append(header("rate that p % of them reach", "min"))
    lines += [row(name, spread, 1.0) for name, spread in rates.items()]
    lines += [f"  {note}" for note in notes(summary, unit)]
    lines += [f"  {line}" for line in failure_lines(summary)]
    if summary.generator.warning is not None:
        lines.append(f"  WARNING: {summary.generator.warning}")
    return "\n".join(lines)


def header(name: str, worst: str) -> str:
    """The header of a table of spreads."""
    columns = "".join(f"{column:>11}" for column in ("p50", "p90", "p95", "p99", worst))
    return f"  {name:<30}{columns}"


def row(name: str, spread: Spread | None, scale: float) -> str:
    """A row of a table of spreads."""
    columns = "".join(f"{cell:>11}" for cell in cells(spread, scale))
    return f"  {name:<30}{columns}"


def cells(spread: Spread | None, scale: float) -> list[str]:
    """p50, p90, p95, p99 and the worst value, as text."""
    if spread is None:
        return ["–"] * 5
    values = (spread.p50, spread.p90, spread.p95, spread.p99, spread.worst)
    return [number(value * scale) for value in values]


def outcome(summary: Summary) -> str:
    """How many requests ended in each way."""
    parts = [f"{count(summary.requests, 'request')}: {summary.completed:,} completed"]
    if summary.cancelled:
        parts.append(f"{summary.cancelled:,} cancelled as planned")
    parts.append(f"{summary.failed:,} failed")
    if summary.unfinished:
        parts.append(f"{summary.unfinished:,} unfinished")
    return ", ".join(parts)


def throughput(summary: Summary, unit: str) -> str:
    """The throughput of all streams together."""
    return (
        f"{number(summary.token_rate)} {unit}/s, {number(summary.request_rate)} answers/s"
        f" in {summary.seconds:.1f} s"
    )


def notes(summary: Summary, unit: str) -> list[str]:
    """Further figures, and what to know about them."""
    found = []
    if not summary.requests:
        found.append(
            "NOTHING WAS MEASURED: no request began in the time that counts; make it longer"
        )
    if summary.fairness is not None:
        found.append(f"fairness of the streams' rates (Jain's index): {summary.fairness:.3f}")
    if summary.prompt_tokens:
        share = summary.cached_tokens / summary.prompt_tokens
        found.append(f"{summary.prompt_tokens:,} prompt tokens, {share:.0%} of them cached")
    if summary.bunched and summary.bunched > LEAST_BUNCHED:
        found.append(f"{summary.bunched:.1%} of the {unit} were read together with the one before")
    if summary.unshown_tokens:
        found.append(f"{summary.unshown_tokens:,} tokens of the server's count had no own event")
    generator = summary.generator
    found.append(
        f"load generator: {generator.cpu_share:.0%} of a core; lag of its event loop"
        f" {generator.lag_p99_s * MS:.1f} ms (p99), {generator.lag_max_s * MS:.1f} ms (max)"
    )
    if not summary.is_complete:
        found.append("interrupted: these are the figures until then")
    return found


def failure_lines(summary: Summary) -> list[str]:
    """The streams that failed, by kind, with examples."""
    both = [("", summary.failures), (" in the warm-up", summary.warm_up_failures)]
    return [
        line
        for where, failures in both
        for failure in failures
        for line in (
            f"FAILED{where}: {failure.count:,} × {failure.kind}",
            *(f"    {example}" for example in failure.examples),
        )
    ]


# ---------------------------------------------------------------- JSON


def report_json(report: Report) -> dict[str, Any]:
    """All figures as JSON values. Times are in seconds."""
    return {
        "title": report.title,
        "began": report.began,
        "settings": dict(report.settings),
        "machine": dict(report.machine),
        "unit": report.unit,
        "warnings": report.warnings,
        "points": [_point(report, point) for point in report.points],
    }


def _point(report: Report, point: Point) -> dict[str, Any]:
    return {
        "load": point.shape.label,
        **dataclasses.asdict(point.shape),
        "servers": [
            {"server": server, **summary_json(summary)}
            for server, summary in zip(report.servers, point.summaries, strict=False)
        ],
        "ratios": list(map(dataclasses.asdict, point.ratios)),
    }


def summary_json(summary: Summary) -> dict[str, Any]:
    """The figures of one load on one server."""
    return {
        **dataclasses.asdict(summary),
        "failed": summary.failed,
        "token_rate": summary.token_rate,
        "request_rate": summary.request_rate,
        "warning": summary.generator.warning,
    }

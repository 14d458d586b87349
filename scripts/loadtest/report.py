"""What loadtest.py prints and writes as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.bench.figures import Series, count, series_row
from scripts.loadtest.run import Shape
from scripts.loadtest.summary import Ratio, Summary
from scripts.report.stats import Spread

MS = 1000.0
SEEN = 0.001
"""A smaller share is not worth a line."""


@dataclass(frozen=True, slots=True)
class Point:
    """A load, on each of the servers."""

    shape: Shape
    summaries: Sequence[Summary]
    """In the servers' order; one may be missing where the measurement was interrupted."""
    ratios: Sequence[Ratio] = ()
    """Of the second server over the first."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured."""

    title: str
    began: str
    """When, in UTC."""
    servers: Sequence[str]
    """A name for each: its address and dialect."""
    settings: Mapping[str, str]
    """What was asked for, to read."""
    machine: Mapping[str, Any]
    """That of the load generator."""
    unit: str
    """What times are of: tokens, or pieces where tokens cannot be told apart."""
    points: Sequence[Point]

    @property
    def summaries(self) -> list[Summary]:
        return [summary for point in self.points for summary in point.summaries]

    @property
    def doubts(self) -> list[str]:
        """Whether the load generator was the bottleneck."""
        return [
            f"{point.shape.label}, {server}: {doubt}"
            for point in self.points
            for server, summary in zip(self.servers, point.summaries, strict=False)
            if (doubt := summary.generator.doubt) is not None
        ]


# ---------------------------------------------------------------- to read


def point_table(report: Report, point: Point) -> str:
    """A load's figures."""
    parts = [
        summary_table(f"{point.shape.label}, {server}", summary, report.unit)
        for server, summary in zip(report.servers, point.summaries, strict=False)
    ]
    if point.ratios:
        rows = [series_row(Series(one.name, "", one.values, 3)) for one in point.ratios]
        first, second = report.servers
        title = f"{point.shape.label}: {second} over {first}, median (lowest … highest) of rounds"
        parts.append("\n".join([title, *rows]))
    return "\n\n".join(parts)


def summary_table(title: str, summary: Summary, unit: str) -> str:
    """A server's figures under a load."""
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
    lines.append(header("rate, reached by p % of them", "min"))
    lines += [row(name, spread, 1.0) for name, spread in rates.items()]
    lines += [f"  {note}" for note in notes(summary, unit)]
    lines += [f"  {line}" for line in failure_lines(summary)]
    if summary.generator.doubt is not None:
        lines.append(f"  WARNING: {summary.generator.doubt}")
    return "\n".join(lines)


def header(name: str, worst: str) -> str:
    columns = "".join(f"{column:>11}" for column in ("p50", "p90", "p95", "p99", worst))
    return f"  {name:<30}{columns}"


def row(name: str, spread: Spread | None, scale: float) -> str:
    columns = "".join(f"{cell:>11}" for cell in cells(spread, scale))
    return f"  {name:<30}{columns}"


def cells(spread: Spread | None, scale: float) -> list[str]:
    """p50, p90, p95, p99 and the worst, as text."""
    if spread is None:
        return ["–"] * 5
    values = (spread.p50, spread.p90, spread.p95, spread.p99, spread.worst)
    return [number(value * scale) for value in values]


def number(value: float) -> str:
    """With about three digits that mean something."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def outcome(summary: Summary) -> str:
    """What became of the requests."""
    parts = [f"{count(summary.requests, 'request')}: {summary.whole:,} whole"]
    if summary.left:
        parts.append(f"{summary.left:,} left as asked")
    parts.append(f"{summary.failed:,} failed")
    if summary.unfinished:
        parts.append(f"{summary.unfinished:,} unfinished")
    return ", ".join(parts)


def throughput(summary: Summary, unit: str) -> str:
    """Of all streams together."""
    return (
        f"{number(summary.token_rate)} {unit}/s, {number(summary.request_rate)} answers/s"
        f" in {summary.seconds:.1f} s"
    )


def notes(summary: Summary, unit: str) -> list[str]:
    """What else is to be known of the figures."""
    found = []
    if not summary.requests:
        found.append("NOTHING WAS MEASURED: no request began while it counted; give it longer")
    if summary.fairness is not None:
        found.append(f"fairness of the streams' rates (Jain's index): {summary.fairness:.3f}")
    if summary.prompt_tokens:
        share = summary.cached_tokens / summary.prompt_tokens
        found.append(f"{summary.prompt_tokens:,} prompt tokens, {share:.0%} of them cached")
    if summary.bunched and summary.bunched > SEEN:
        found.append(f"{summary.bunched:.1%} of the {unit} came together with the one before")
    if summary.unshown:
        found.append(f"{summary.unshown:,} tokens of the server's count had no event of their own")
    generator = summary.generator
    found.append(
        f"load generator: {generator.cpu_share:.0%} of a core; event loop late by"
        f" {generator.lag_p99_s * MS:.1f} ms (p99), {generator.lag_max_s * MS:.1f} ms (max)"
    )
    if not summary.is_complete:
        found.append("interrupted: these are the figures until then")
    return found


def failure_lines(summary: Summary) -> list[str]:
    """Which streams failed that were not to, and how."""
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
    """All that is known; times in seconds."""
    return {
        "title": report.title,
        "began": report.began,
        "settings": dict(report.settings),
        "machine": dict(report.machine),
        "unit": report.unit,
        "warnings": report.doubts,
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
    """A server's figures under a load."""
    return {
        **dataclasses.asdict(summary),
        "failed": summary.failed,
        "token_rate": summary.token_rate,
        "request_rate": summary.request_rate,
        "warning": summary.generator.doubt,
    }

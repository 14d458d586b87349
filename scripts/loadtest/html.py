"""The report of a load test as an HTML page."""

from __future__ import annotations

import html
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from scripts.loadtest.report import (
    LEAST_BUNCHED,
    MS,
    Point,
    Report,
    cells,
    failure_lines,
    notes,
    outcome,
    throughput,
)
from scripts.loadtest.summary import Ratio, Summary
from scripts.report.page import WIDE, figure, page, settings, table, tile
from scripts.report.stats import Bin, Spread
from scripts.report.svg import (
    Axis,
    Chart,
    at_values,
    axis_for,
    fitted_axis,
    linear_axis,
    log_axis,
    ordinal_axis,
    range_chart,
    steps,
)
from scripts.report.text import count, number, sentence

STYLES = ("a", "b")
"""CSS classes of the servers, in their order."""
HEADROOM = 1.3
"""Height of a histogram over that of its highest bar: room for texts."""
NO_DATA = '<p class="dim">Nothing was received.</p>'
PERCENTILES: tuple[tuple[str, Callable[[Spread], float]], ...] = (
    ("p50", lambda spread: spread.p50),
    ("p95", lambda spread: spread.p95),
    ("p99", lambda spread: spread.p99),
)
LATENCIES: tuple[tuple[str, Callable[[Summary], Spread | None]], ...] = (
    ("TTFT", lambda summary: summary.ttft),
    ("ITL", lambda summary: summary.itl),
    ("end to end", lambda summary: summary.e2e),
)


def report_html(report: Report) -> str:
    """The page."""
    is_sweep = len(report.points) > 1
    parts = [
        _head(report),
        *map(_warning, report.warnings),
        _sweep(report) if is_sweep else "",
        *(_point(report, point) for point in report.points),
        _settings(report),
    ]
    return page(report.title, "".join(parts))


def _head(report: Report) -> str:
    servers = "".join(_server(report, index) for index in range(len(report.servers)))
    is_clean = bool(report.points) and all(summary.is_clean for summary in report.summaries)
    verdict = html.escape(_verdict(report))
    return (
        f'<header><h1>{html.escape(report.title)}</h1><p class="dim">{report.began}</p>'
        f'<p class="verdict {"good" if is_clean else "bad"}">{verdict}</p>{servers}</header>\n'
    )


def _verdict(report: Report) -> str:
    """The result of the load test in one sentence."""
    summaries = report.summaries
    if not summaries:
        return "Interrupted before anything was measured"
    kinds: Counter[str] = Counter()
    for summary in summaries:
        for failures in (*summary.failures, *summary.warm_up_failures):
            kinds[failures.kind] += failures.count
    if kinds:
        counted = ", ".join(f"{number:,} × {kind}" for kind, number in kinds.most_common())
        return f"{count(kinds.total(), 'stream')} failed: {counted}"
    if not all(summary.requests for summary in summaries):
        return "Some loads were not measured: no request began in the time that counts"
    number_cancelled = sum(summary.cancelled for summary in summaries)
    cancelled = (
        f"; {number_cancelled:,} more were cancelled, as planned" if number_cancelled else ""
    )
    completed = count(sum(summary.completed for summary in summaries), "answer")
    return f"{completed}, each complete, in order and of the right length{cancelled}"


def _server(report: Report, index: int) -> str:
    return (
        f'<p class="server"><span class="swatch {STYLES[index]}"></span>'
        f"{html.escape(report.servers[index])}</p>"
    )


def _warning(text: str) -> str:
    return f'<p class="warning">{html.escape(text)}</p>\n'


# ---------------------------------------------------------------- a sweep


def _sweep(report: Report) -> str:
    """Latency and throughput against the load."""
    points = report.points
    axis = at_values(_load_name(points[0]), [point.shape.amount for point in points])
    charts = [
        figure(sentence(name), _against_load(report, axis, name, read), "")
        for name, read in LATENCIES
    ]
    charts.append(figure(sentence(f"{report.unit}/s"), _rate_against_load(report, axis), ""))
    keys = "".join(
        f'<span><svg viewBox="0 0 28 8"><line class="line {name}" x1="0" x2="28" y1="4" y2="4"/>'
        f"</svg>{name}</span>"
        for name, _ in PERCENTILES
    )
    return (
        f'<h2>Latency against load</h2><div class="keys">{keys}</div>'
        f'<div class="charts">{"".join(charts)}</div>{_sweep_table(report)}\n'
    )


def _load_name(point: Point) -> str:
    return (
        "concurrent streams" if point.shape.label.endswith(("stream", "streams")) else "requests/s"
    )


def _against_load(
    report: Report, axis: Axis, name: str, read: Callable[[Summary], Spread | None]
) -> str:
    lines = []
    for index, style in enumerate(STYLES[: len(report.servers)]):
        spreads = [
            (point, spread)
            for point in report.points
            if index < len(point.summaries) and (spread := read(point.summaries[index])) is not None
        ]
        for percent, value in PERCENTILES:
            points = [(point.shape.amount, value(spread) * MS) for point, spread in spreads]
            tips = [
                f"{point.shape.label}: {percent} {number(y)} ms"
                for (point, _), (_, y) in zip(spreads, points, strict=True)
            ]
            lines.append((points, f"{style} {percent}", tips))
    values = [y for points, _, _ in lines for _, y in points]
    chart = Chart(f"{name} against load", axis, axis_for("ms", values or [1.0]))
    for points, style, tips in lines:
        chart.line(points, style, tips)
    return chart.svg()


def _rate_against_load(report: Report, axis: Axis) -> str:
    rates = [summary.token_rate for summary in report.summaries]
    unit = f"{report.unit}/s"
    chart = Chart("throughput against load", axis, linear_axis(unit, max(rates, default=1.0)))
    for index, style in enumerate(STYLES[: len(report.servers)]):
        measured = [point for point in report.points if index < len(point.summaries)]
        points = [(point.shape.amount, point.summaries[index].token_rate) for point in measured]
        tips = [
            f"{point.shape.label}: {number(rate)} {unit}"
            for point, (_, rate) in zip(measured, points, strict=True)
        ]
        chart.line(points, style, tips)
    return chart.svg()


def _sweep_table(report: Report) -> str:
    names = ["load", f"{report.unit}/s", "answers/s", "TTFT p50, ms", "p99", "ITL p50, ms", "p99"]
    rows = []
    for point in report.points:
        for index, summary in enumerate(point.summaries):
            swatch = f'<span class="swatch {STYLES[index]}"></span>'
            ttft, itl = (cells(spread, MS) for spread in (summary.ttft, summary.itl))
            failed = f'<span class="bad">{summary.failed}</span>' if summary.failed else "0"
            rows.append(
                [
                    f"{swatch}{point.shape.label}",
                    number(summary.token_rate),
                    number(summary.request_rate),
                    *(ttft[0], ttft[3], itl[0], itl[3]),
                    failed,
                ]
            )
    return table([*names, "failed"], rows)


# ---------------------------------------------------------------- a load


def _point(report: Report, point: Point) -> str:
    parts = [f"<h2>{html.escape(point.shape.label)}</h2>"]
    for index, summary in enumerate(point.summaries):
        if len(report.servers) > 1:
            parts.append(_server(report, index))
        parts.append(_summary(report, summary))
    if point.ratios:
        parts.append(_ratios(point.ratios))
    parts.append(_charts(report, point))
    return "".join(parts) + "\n"


def _summary(report: Report, summary: Summary) -> str:
    """The main figures as tiles, and tables of percentiles."""
    unit = report.unit
    tiles = [
        tile(number(summary.token_rate), f"{unit}/s together"),
        *(tile(f"{cells(read(summary), MS)[0]} ms", f"{name}, p50") for name, read in LATENCIES),
        tile(
            "–" if summary.fairness is None else f"{summary.fairness:.3f}",
            "fairness (Jain)",
        ),
        tile(f"{summary.failed:,}", "failed", "bad" if summary.failed else ""),
    ]
    latencies = [[f"{name}, ms", *cells(read(summary), MS)] for name, read in LATENCIES]
    rates = [
        [f"{unit}/s of a stream", *cells(summary.stream_rate, 1.0)],
        [f"{unit}/s in a second", *cells(summary.second_rate, 1.0)],
    ]
    columns = ["p50", "p90", "p95", "p99"]
    remarks = [outcome(summary), throughput(summary, unit), *notes(summary, unit)]
    failures = "".join(f'<p class="bad">{html.escape(line)}</p>' for line in failure_lines(summary))
    return (
        f'<div class="tiles">{"".join(tiles)}</div>{failures}'
        f"{table(['latency', *columns, 'max'], latencies, 'spreads')}"
        f"{table(['rate that p % of them reach', *columns, 'min'], rates, 'spreads')}"
        f'<p class="dim">{html.escape(". ".join(map(sentence, remarks)))}.</p>'
    )


def _ratios(ratios: Sequence[Ratio]) -> str:
    rows = []
    for ratio in ratios:
        low, high, median = min(ratio.values), max(ratio.values), statistics.median(ratio.values)
        better = low > 1 if ratio.higher_is_better else high < 1
        worse = high < 1 if ratio.higher_is_better else low > 1
        style = "good" if better else "bad" if worse else "even"
        text = f"{median:.3f} ({low:.3f} … {high:.3f})"
        rows.append((ratio.name, low, median, high, text, style))
    caption = (
        "B over A: the median of the rounds, the lowest and the highest. Green: B is better in"
        " all rounds; red: B is worse in all rounds; grey: neither."
    )
    chart = figure("B over A", range_chart("B over A", rows), caption, is_wide=True)
    return f'<div class="charts">{chart}</div>'


def _charts(report: Report, point: Point) -> str:
    unit, summaries = report.unit, point.summaries
    bunched = max((summary.bunched or 0.0 for summary in summaries), default=0.0)
    hidden = (
        f" {bunched:.1%} were read together with the one before: no bar."
        if bunched > LEAST_BUNCHED
        else ""
    )
    first = " The first round is shown." if summaries and summaries[0].rounds > 1 else ""
    charts = [
        figure(
            sentence(f"{unit}/s over time"),
            _timeline(report, point),
            f"Shaded: the time that counts.{first}",
            is_wide=True,
        ),
        figure(
            "Inter-token latency",
            _histogram("ITL, ms", [(one.itl_bins, one.itl) for one in summaries]),
            f"Share of the {unit}.{hidden}",
        ),
        figure(
            "Time to first token",
            _histogram("TTFT, ms", [(one.ttft_bins, one.ttft) for one in summaries]),
            "Share of the requests.",
        ),
        figure(
            "End to end",
            _histogram("end to end, ms", [(one.e2e_bins, one.e2e) for one in summaries]),
            "Share of the completed answers.",
        ),
        figure(
            "Fairness",
            _fairness(summaries, f"{unit}/s"),
            "Rate of each stream, including waiting, fastest first. Jain’s index (1: all equal): "
            + ", ".join(f"{one.fairness:.3f}" for one in summaries if one.fairness is not None),
        ),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _timeline(report: Report, point: Point) -> str:
    timelines = [summary.timeline for summary in point.summaries]
    length = max((len(one.rates) * one.width_s for one in timelines), default=1.0)
    most = max((rate for one in timelines for rate in one.rates), default=1.0)
    chart = Chart(
        "throughput over time",
        fitted_axis("seconds from the start", length),
        linear_axis(f"{report.unit}/s", most),
        width=WIDE,
    )
    for one in timelines[:1]:
        chart.band(one.counted_from_s, min(one.counted_to_s, length))
    for one, style in zip(timelines, STYLES, strict=False):
        edges = [index * one.width_s for index in range(len(one.rates) + 1)]
        chart.area(steps(edges, one.rates), style)
    return chart.svg()


def _histogram(label: str, servers: Sequence[tuple[Sequence[Bin], Spread | None]]) -> str:
    """A histogram of each server's values, with lines at the median and p99."""
    known = [(bins, spread) for bins, spread in servers if bins and spread is not None]
    if not known:
        return NO_DATA
    low = min(bins[0].low for bins, _ in known) * MS
    high = max(bins[-1].high for bins, _ in known) * MS
    most = max(each.count / spread.count for bins, spread in known for each in bins)
    chart = Chart(label, log_axis(label, low, high), linear_axis("%", most * 100 * HEADROOM))
    for index, (bins, spread) in enumerate(servers):
        if spread is not None and bins:
            _add_histogram(chart, bins, spread, index, len(servers))
    return chart.svg()


def _add_histogram(
    chart: Chart, bins: Sequence[Bin], spread: Spread, index: int, servers: int
) -> None:
    style = STYLES[index]
    shares = [each.count / spread.count * 100 for each in bins]
    if servers == 1:
        chart.bars(
            [
                (
                    each.low * MS,
                    each.high * MS,
                    percent,
                    f"{number(each.low * MS)} … {number(each.high * MS)} ms: {percent:.3g} %",
                )
                for each, percent in zip(bins, shares, strict=True)
            ],
            style,
        )
    else:
        edges = [bins[0].low * MS, *(each.high * MS for each in bins)]
        chart.area(steps(edges, shares), style)
    if spread.p50 > 0:
        chart.rule(spread.p50 * MS, f"p50 {number(spread.p50 * MS)}", style, 2 * index)
    if spread.p99 > 0:
        chart.rule(spread.p99 * MS, f"p99 {number(spread.p99 * MS)}", style, 2 * index + 1)


def _fairness(summaries: Sequence[Summary], label: str) -> str:
    rates = [summary.stream_rates for summary in summaries]
    most = max((rate for of_server in rates for rate in of_server), default=0.0)
    if not most:
        return NO_DATA
    streams = ordinal_axis("streams", max(map(len, rates)))
    chart = Chart("rate of each stream", streams, linear_axis(label, most))
    for of_server, style in zip(rates, STYLES, strict=False):
        if len(rates) > 1:
            chart.area(steps(range(len(of_server) + 1), of_server), style)
        else:
            bars = [
                (index, index + 1, rate, f"{number(rate)} {label}")
                for index, rate in enumerate(of_server)
            ]
            chart.bars(bars, style)
    return chart.svg()


# ---------------------------------------------------------------- settings


def _settings(report: Report) -> str:
    machine = report.machine
    generator = (
        f"{machine['cpu']}, {count(machine['usable_cpus'], 'CPU')}, Python {machine['python']},"
        f" load {machine['load_average']:.2f} before the start"
    )
    return settings({**report.settings, "load generator on": generator})

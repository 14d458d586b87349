"""The report as one page of HTML that needs nothing else: no script, no other address."""

from __future__ import annotations

import html
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from scripts.bench.figures import count
from scripts.loadtest.report import (
    MS,
    SEEN,
    Point,
    Report,
    cells,
    failure_lines,
    notes,
    number,
    outcome,
    throughput,
)
from scripts.loadtest.summary import Ratio, Summary
from scripts.report.page import WIDE, figure, page, table, tile
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

STYLES = ("a", "b")
"""Of the servers, in their order."""
HEADROOM = 1.3
"""Of a histogram, for the words at its lines."""
NOTHING = '<p class="dim">Nothing came.</p>'
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
        *map(_warning, report.doubts),
        _sweep(report) if is_sweep else "",
        *(_point(report, point) for point in report.points),
        _about(report),
    ]
    return page(report.title, "".join(parts))


def _head(report: Report) -> str:
    servers = "".join(_server(report, place) for place in range(len(report.servers)))
    is_clean = bool(report.points) and all(summary.is_clean for summary in report.summaries)
    verdict = html.escape(_verdict(report))
    return (
        f'<header><h1>{html.escape(report.title)}</h1><p class="dim">{report.began}</p>'
        f'<p class="verdict {"good" if is_clean else "bad"}">{verdict}</p>{servers}</header>\n'
    )


def _verdict(report: Report) -> str:
    """In a sentence."""
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
        return "Of some loads nothing was measured: no request began while they counted"
    left = sum(summary.left for summary in summaries)
    cancelled = f"; {left:,} more cancelled, as was asked for" if left else ""
    whole = count(sum(summary.whole for summary in summaries), "answer")
    return f"{whole}, each whole, in order and of the right length{cancelled}"


def _server(report: Report, place: int) -> str:
    return (
        f'<p class="server"><span class="swatch {STYLES[place]}"></span>'
        f"{html.escape(report.servers[place])}</p>"
    )


def _warning(text: str) -> str:
    return f'<p class="warning">{html.escape(text)}</p>\n'


# ---------------------------------------------------------------- a sweep


def _sweep(report: Report) -> str:
    """Latency and throughput against the load."""
    points = report.points
    axis = at_values(_load_name(points[0]), [point.shape.amount for point in points])
    charts = [
        figure(_sentence(name), _against_load(report, axis, name, of), "") for name, of in LATENCIES
    ]
    charts.append(figure(_sentence(f"{report.unit}/s"), _rate_against_load(report, axis), ""))
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
    return "streams at once" if point.shape.label.endswith(("stream", "streams")) else "requests/s"


def _against_load(
    report: Report, axis: Axis, name: str, of: Callable[[Summary], Spread | None]
) -> str:
    lines = []
    for place, style in enumerate(STYLES[: len(report.servers)]):
        spreads = [
            (point, spread)
            for point in report.points
            if place < len(point.summaries) and (spread := of(point.summaries[place])) is not None
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
    for place, style in enumerate(STYLES[: len(report.servers)]):
        measured = [point for point in report.points if place < len(point.summaries)]
        points = [(point.shape.amount, point.summaries[place].token_rate) for point in measured]
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
        for place, summary in enumerate(point.summaries):
            swatch = f'<span class="swatch {STYLES[place]}"></span>'
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
    for place, summary in enumerate(point.summaries):
        if len(report.servers) > 1:
            parts.append(_server(report, place))
        parts.append(_summary(report, summary))
    if point.ratios:
        parts.append(_ratios(point.ratios))
    parts.append(_charts(report, point))
    return "".join(parts) + "\n"


def _summary(report: Report, summary: Summary) -> str:
    """Tiles, and a table of percentiles."""
    unit = report.unit
    tiles = [
        tile(number(summary.token_rate), f"{unit}/s together"),
        *(tile(f"{cells(of(summary), MS)[0]} ms", f"{name}, p50") for name, of in LATENCIES),
        tile(
            "–" if summary.fairness is None else f"{summary.fairness:.3f}",
            "fairness (Jain)",
        ),
        tile(f"{summary.failed:,}", "failed", "bad" if summary.failed else ""),
    ]
    latencies = [[f"{name}, ms", *cells(of(summary), MS)] for name, of in LATENCIES]
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
        f"{table(['rate, reached by p % of them', *columns, 'min'], rates, 'spreads')}"
        f'<p class="dim">{html.escape(". ".join(map(_sentence, remarks)))}.</p>'
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


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
        "B over A: median of the rounds, from the lowest to the highest. Green: B is better in"
        " all rounds; red: worse in all; grey: neither."
    )
    chart = figure("B over A", range_chart("B over A", rows), caption, is_wide=True)
    return f'<div class="charts">{chart}</div>'


def _charts(report: Report, point: Point) -> str:
    unit, summaries = report.unit, point.summaries
    bunched = max((summary.bunched or 0.0 for summary in summaries), default=0.0)
    hidden = f" {bunched:.1%} came together with the one before: no bar." if bunched > SEEN else ""
    first = " Of the first round." if summaries and summaries[0].rounds > 1 else ""
    charts = [
        figure(
            _sentence(f"{unit}/s over time"),
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
            "Share of the whole answers.",
        ),
        figure(
            "Fairness",
            _fairness(summaries, f"{unit}/s"),
            "Rate of each stream, waiting included, fastest first. Jain’s index (1: all alike): "
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
        edges = [place * one.width_s for place in range(len(one.rates) + 1)]
        chart.area(steps(edges, one.rates), style)
    return chart.svg()


def _histogram(label: str, servers: Sequence[tuple[Sequence[Bin], Spread | None]]) -> str:
    """Of each server's values; lines at the median and p99."""
    known = [(bins, spread) for bins, spread in servers if bins and spread is not None]
    if not known:
        return NOTHING
    low = min(bins[0].low for bins, _ in known) * MS
    high = max(bins[-1].high for bins, _ in known) * MS
    most = max(each.count / spread.count for bins, spread in known for each in bins)
    chart = Chart(label, log_axis(label, low, high), linear_axis("%", most * 100 * HEADROOM))
    for place, (bins, spread) in enumerate(servers):
        if spread is not None and bins:
            _add_histogram(chart, bins, spread, place, len(servers))
    return chart.svg()


def _add_histogram(
    chart: Chart, bins: Sequence[Bin], spread: Spread, place: int, servers: int
) -> None:
    style = STYLES[place]
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
        chart.rule(spread.p50 * MS, f"p50 {number(spread.p50 * MS)}", style, 2 * place)
    if spread.p99 > 0:
        chart.rule(spread.p99 * MS, f"p99 {number(spread.p99 * MS)}", style, 2 * place + 1)


def _fairness(summaries: Sequence[Summary], label: str) -> str:
    rates = [summary.stream_rates for summary in summaries]
    most = max((rate for of_server in rates for rate in of_server), default=0.0)
    if not most:
        return NOTHING
    streams = ordinal_axis("streams", max(map(len, rates)))
    chart = Chart("rate of each stream", streams, linear_axis(label, most))
    for of_server, style in zip(rates, STYLES, strict=False):
        if len(rates) > 1:
            chart.area(steps(range(len(of_server) + 1), of_server), style)
        else:
            bars = [
                (place, place + 1, rate, f"{number(rate)} {label}")
                for place, rate in enumerate(of_server)
            ]
            chart.bars(bars, style)
    return chart.svg()


# ---------------------------------------------------------------- the rest


def _about(report: Report) -> str:
    machine = report.machine
    of_generator = {
        "load generator on": f"{machine['cpu']}, {count(machine['usable_cpus'], 'CPU')},"
        f" Python {machine['python']}, load {machine['load_average']:.2f} before the start",
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in {**report.settings, **of_generator}.items()
    )
    return (
        f'<h2>What was asked for</h2><div class="table"><table class="text">{rows}</table></div>\n'
    )

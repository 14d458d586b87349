"""The report of a soak, as an HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from scripts.report.page import WIDE, figure, page, settings, table, tile
from scripts.report.svg import Chart, fitted_axis, linear_axis
from scripts.soak.growth import WARM_UP
from scripts.soak.judge import Outcome
from scripts.soak.monitor import QUANTITIES, Quantity, Sample
from scripts.soak.report import SHOWN, crash_text, growth_text, outcome_rows, summary, verdict
from scripts.soak.results import Results

TITLE = "Soak test"
RULE = (
    "Shaded: the time after the warm-up. A quantity grows if the median slope of all pairs of"
    " samples of that time, and that of its second half too, times that time, exceeds what is"
    " allowed."
)


def report_html(results: Results, began: str, options: Mapping[str, str]) -> str:
    """The page. `began`: the time of the start, in UTC."""
    style = "good" if results.is_clean else "bad"
    parts = [
        f'<header><h1>{TITLE}</h1><p class="dim">{html.escape(began)}</p>'
        f'<p class="verdict {style}">{html.escape(verdict(results))}</p></header>\n',
        _tiles(results),
        "".join(f'<p class="bad">{html.escape(each)}</p>' for each in _wrong(results)),
        f"<p>{html.escape(summary(results))}</p>",
        "".join(f"<p>{html.escape(line)}</p>" for line in crash_text(results).splitlines()),
        _outcomes(results),
        _figures(results) if results.samples else "",
        settings(options),
    ]
    return page(TITLE, "".join(parts))


def _tiles(results: Results) -> str:
    lost = len(results.lost)
    tiles = [
        tile(f"{lost:,}", "lost", "bad" if lost else ""),
        tile(f"{results.requests:,}", "requests"),
        tile(f"{results.count(Outcome.COMPLETED):,}", "completed answers"),
        tile(f"{len(results.crashes):,}", "crashes of workers"),
        tile(f"{results.outlived:,}", "answered after a crash"),
        tile(f"{len(results.growing):,}", "growing quantities", "bad" if results.growing else ""),
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _wrong(results: Results) -> list[str]:
    return [*results.faults, *results.lost][:SHOWN]


def _outcomes(results: Results) -> str:
    header, rows = outcome_rows(results)
    header, *rows = ([html.escape(cell) for cell in row] for row in (header, *rows))
    dialects = [
        [html.escape(name), f"{number:,}"] for name, number in results.dialects.most_common()
    ]
    return (
        f"<h2>Outcomes of the requests</h2>{table(header, rows)}"
        f"<h2>Completed answers by dialect</h2>{table(['dialect', 'answers'], dialects)}\n"
    )


def _figures(results: Results) -> str:
    rows = [
        [
            html.escape(each.quantity.name),
            html.escape(each.quantity.unit),
            *(f"{value:,.1f}" for value in (each.first, each.median, each.last, each.most)),
            html.escape(growth_text(each)),
        ]
        for each in results.trends
    ]
    names = ["quantity", "unit", "first", "median", "last", "highest", "growth (allowed)"]
    charts = "".join(
        figure(quantity.name, _chart(quantity, results.samples), "", is_wide=index < 2)
        for index, quantity in enumerate(QUANTITIES)
    )
    return (
        f'<h2>Resources over time</h2><p class="dim">{html.escape(RULE)}</p>'
        f'{table(names, rows)}<div class="charts">{charts}</div>\n'
    )


def _chart(quantity: Quantity, samples: Sequence[Sample]) -> str:
    end = samples[-1].at or 1.0
    values = [quantity.read(each) for each in samples]
    wide = {"width": WIDE} if quantity in QUANTITIES[:2] else {}
    chart = Chart(
        quantity.name,
        fitted_axis("seconds from the start", end),
        linear_axis(quantity.unit or "number", max(*values, 1.0)),
        **wide,
    )
    chart.band(WARM_UP * end, end)
    chart.line([(each.at, value) for each, value in zip(samples, values, strict=True)], "a")
    return chart.svg()

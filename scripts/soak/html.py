"""The account of a soak as one page of HTML that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from scripts.report.page import WIDE, figure, page, table, tile
from scripts.report.svg import Chart, fitted_axis, linear_axis
from scripts.soak.judge import Outcome
from scripts.soak.monitor import QUANTITIES, WARM_UP, Quantity, Sample
from scripts.soak.report import death_text, growth_text, outcome_rows, summary, verdict
from scripts.soak.run import SHOWN, Account

TITLE = "Soak test"
RULE = (
    "Shaded: the time after the warm-up. A figure grows if the median slope of all pairs of samples"
    " of that time, and of its second half too, comes to more than it may vary by itself."
)


def report_html(account: Account, began: str, settings: Mapping[str, str]) -> str:
    """The page. `began`: when, in UTC; `settings`: what was asked for, to read."""
    style = "good" if account.is_clean else "bad"
    parts = [
        f'<header><h1>{TITLE}</h1><p class="dim">{html.escape(began)}</p>'
        f'<p class="verdict {style}">{html.escape(verdict(account))}</p></header>\n',
        _tiles(account),
        "".join(f'<p class="bad">{html.escape(each)}</p>' for each in _wrong(account)),
        f"<p>{html.escape(summary(account))}</p>",
        "".join(f"<p>{html.escape(line)}</p>" for line in death_text(account).splitlines()),
        _outcomes(account),
        _figures(account) if account.samples else "",
        _settings(settings),
    ]
    return page(TITLE, "".join(parts))


def _tiles(account: Account) -> str:
    lost = len(account.lost)
    tiles = [
        tile(f"{lost:,}", "lost", "bad" if lost else ""),
        tile(f"{account.requests:,}", "requests"),
        tile(f"{account.count(Outcome.WHOLE):,}", "whole answers"),
        tile(f"{len(account.deaths):,}", "deaths of workers"),
        tile(f"{account.outlived:,}", "waited through a death"),
        tile(f"{len(account.growing):,}", "growing", "bad" if account.growing else ""),
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _wrong(account: Account) -> list[str]:
    return [*account.troubles, *account.lost][:SHOWN]


def _outcomes(account: Account) -> str:
    header, rows = outcome_rows(account)
    header, *rows = ([html.escape(cell) for cell in row] for row in (header, *rows))
    formats = [[html.escape(name), f"{number:,}"] for name, number in account.formats.most_common()]
    return (
        f"<h2>What became of the requests</h2>{table(header, rows)}"
        f"<h2>Whole answers by format</h2>{table(['format', 'answers'], formats)}\n"
    )


def _figures(account: Account) -> str:
    rows = [
        [
            html.escape(each.quantity.name),
            html.escape(each.quantity.unit),
            *(f"{value:,.1f}" for value in (each.first, each.median, each.last, each.most)),
            html.escape(growth_text(each)),
        ]
        for each in account.trends
    ]
    names = ["figure", "unit", "first", "median", "last", "most", "growth (allowed)"]
    moments = [death.begun for death in account.deaths]
    charts = "".join(
        figure(quantity.name, _chart(quantity, account.samples), "", is_wide=place < 2)
        for place, quantity in enumerate(QUANTITIES)
    )
    return (
        f'<h2>Over time</h2><p class="dim">{html.escape(RULE)} {len(moments)} deaths.</p>'
        f'{table(names, rows)}<div class="charts">{charts}</div>\n'
    )


def _chart(quantity: Quantity, samples: Sequence[Sample]) -> str:
    end = samples[-1].at or 1.0
    values = [quantity.of(each) for each in samples]
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


def _settings(settings: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in settings.items()
    )
    return (
        f'<h2>What was asked for</h2><div class="table"><table class="text">{rows}</table></div>\n'
    )

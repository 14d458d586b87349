"""HTML pages with plots. A page is one file: it has no scripts and refers to no other address."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")
WIDE = 940.0
"""Width of a plot that is as wide as the page, in units of its own coordinates."""


def page(title: str, body: str) -> str:
    """The HTML document. `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE.read_text()}</style>\n"
        f"</head>\n<body>\n{body}</body>\n</html>\n"
    )


def tile(value: str, name: str, style: str = "") -> str:
    """A single number with its name."""
    return f'<div class="tile {style}"><b>{value}</b><span>{html.escape(name)}</span></div>'


def figure(title: str, picture: str, caption: str, *, is_wide: bool = False) -> str:
    """A plot with its title and caption. `picture` is HTML."""
    wide = ' class="wide"' if is_wide else ""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure{wide}><h3>{html.escape(title)}</h3>{picture}{below}</figure>"


def table(names: Sequence[str], rows: Iterable[Sequence[str]], style: str = "loads") -> str:
    """A table with a header row. Names and cells are HTML."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table class="{style}"><tr>{head}</tr>{body}</table></div>'


def settings(rows: Mapping[str, str]) -> str:
    """A section with the settings of the measurement."""
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f'<h2>Settings</h2><div class="table"><table class="text">{cells}</table></div>\n'

"""What pages with figures are made of. They need nothing else: no script, no other address."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")
WIDE = 940.0
"""Of a picture that has the page's width."""


def page(title: str, body: str) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE.read_text()}</style>\n"
        f"</head>\n<body>\n{body}</body>\n</html>\n"
    )


def tile(value: str, name: str, style: str = "") -> str:
    return f'<div class="tile {style}"><b>{value}</b><span>{html.escape(name)}</span></div>'


def figure(title: str, picture: str, caption: str, *, is_wide: bool = False) -> str:
    wide = ' class="wide"' if is_wide else ""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure{wide}><h3>{html.escape(title)}</h3>{picture}{below}</figure>"


def table(names: Sequence[str], rows: Iterable[Sequence[str]], style: str = "loads") -> str:
    """Cells are HTML."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table class="{style}"><tr>{head}</tr>{body}</table></div>'

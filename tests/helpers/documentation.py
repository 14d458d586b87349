"""The pages of this project, and the fenced blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

PAGES = sorted(ROOT.glob("*.md"))
LANGUAGES = {"sh", "python", "toml", "yaml", "json", "text"}
"""Of `sh` and `python` blocks, commands and programs are run; a `json` block is what the `sh` block
before it prints; `toml` and `yaml` are files, whose first line names them."""


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    section: str
    """The heading that it stands under."""
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """A shell block's, each with the lines that it goes on in, and without its comment."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        lines = [re.sub(r"\s+# .*", "", line) for line in joined.splitlines()]
        return [line for line in lines if line]


def blocks_of(page: Path) -> Iterator[Block]:
    """In their order."""
    section = language = ""
    inside: list[str] | None = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            if inside is not None:
                inside.append(line)
            elif line.startswith("#"):
                section = line.lstrip("# ")
        elif inside is None:
            inside, language = [], line.removeprefix("```")
        else:
            start = number - len(inside)
            yield Block(page.name, section, start, language, "\n".join(inside) + "\n")
            inside = None
    assert inside is None, f"{page.name} ends within a block"


def sections_of(page: Path) -> dict[str, list[Block]]:
    """The blocks of each heading that has any."""
    found: dict[str, list[Block]] = {}
    for block in blocks_of(page):
        found.setdefault(block.section, []).append(block)
    return found


def links_of(page: Path) -> list[str]:
    """Where its links go."""
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text())


def anchors_of(page: Path) -> set[str]:
    """What a link to a heading of it may say behind the `#`, as code hosts make it."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


ROOMS = ("server", "workers", "shared", "scripts", "tests", ".ci")


def paths_of(page: Path) -> list[str]:
    """The files and folders of this project that its prose names in backticks."""
    prose = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    spans = re.findall(r"`([^`]+)`", prose)
    words = [word for span in spans for word in span.split()]
    return [word for word in words if word.partition("/")[0] in ROOMS and "/" in word]


def modules_of(page: Path) -> list[str]:
    """The modules that it says to run with `python -m`."""
    return re.findall(r"python -m ((?:server|scripts)[\w.]*)", page.read_text())

"""What `tokenflume --print-config` prints: every option, as a file that --config takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.config.options import OPTIONS, Option, ResolvedOptions
from server.config.toml import toml_value

WIDTH = 40
"""Columns before the comments, if the value is not longer."""


def print_config(options: ResolvedOptions) -> str:
    """A line an option, in the table's order, with where its value is from in a comment."""
    return "\n".join(_lines(options))


def _lines(options: ResolvedOptions) -> Iterator[str]:
    group = ""
    for option in OPTIONS:
        if option.group != group:
            yield f"{'' if not group else chr(10)}# {option.group}"
            group = option.group
        value = getattr(options.values, option.name)
        source = options.sources.get(option.name, "default")
        yield f"{setting(option, value):<{WIDTH}}  # {''.join(filter(str.isprintable, source))}"


def setting(option: Option, value: Any) -> str:
    """The option's line in a file; of a value that no file can say, None, the key in a comment."""
    key = option.name.replace("_", "-")
    if value is None:
        return f"# {key} ="
    return f"{key} = {toml_value(_written(option, value))}"


def _written(option: Option, value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if "on" in option.choices and value in ("on", "off"):
        return value == "on"
    return value

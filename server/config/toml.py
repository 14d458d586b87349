"""Files in TOML: reading one, and writing a value as it stands in one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.errors import ConfigurationError


def read_toml(path: Path) -> dict[str, Any]:
    """What the file says. Raises ConfigurationError, a sentence that names the file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigurationError(f"{path} is no TOML: {error}") from None


def toml_value(value: str | float | bool | Sequence[str]) -> str:
    """A string, a number, a truth value, or strings in a list."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is one of TOML, but for a character that TOML must have escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(toml_value(item) for item in value)}]"

"""Named system prompts: a TOML file of texts, which --system or a request selects by name.

general = "You are a helpful assistant."
sql = '''
You answer with one SQL query
and nothing else.
'''
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.config.file import read_toml
from shared.errors import ConfigurationError, InvalidRequest
from shared.validation import text

_NAME = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True, slots=True)
class SystemPrompts:
    """The texts by name, and the default for chats without a system prompt."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    """The text, not a name. None: there is no default."""

    def resolve(self, system: str | None) -> str | None:
        """The system prompt of a request; None: it has none.

        `system`: a name or a text; empty: no system prompt; None: the default.
        """
        if system is None:
            return self.default
        return self.texts.get(system, system) or None


def system_prompts(file: Path | None, system: str | None) -> SystemPrompts:
    """The prompts of --prompts FILE and --system NAME|TEXT. Raises ConfigurationError.

    With a file, a single word must be one of its names, so that a typing error is not used as a
    system prompt.
    """
    texts = {} if file is None else _read(file)
    if file is not None and system is not None and _NAME.fullmatch(system) and system not in texts:
        raise ConfigurationError(
            f"--system: {file} has no prompt named {system!r}; it has {', '.join(texts) or 'none'}"
        )
    try:
        default = text("--system", texts.get(system, system)) if system else None
    except InvalidRequest as error:
        raise ConfigurationError(error.message) from None
    return SystemPrompts(texts, default)


def _read(file: Path) -> dict[str, str]:
    try:
        table = read_toml(file)
    except ConfigurationError as error:
        raise ConfigurationError(f"--prompts: {error}") from None
    return {name: _checked(file, name, value) for name, value in table.items()}


def _checked(file: Path, name: str, value: object) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"--prompts: {file}: the name {name!r:.80} must have 1 to 64 letters, digits, _, . or -"
        )
    try:
        return text(f"--prompts: {file}: {name}", value).strip()
    except InvalidRequest as error:
        raise ConfigurationError(error.message) from None

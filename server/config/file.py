"""A file of options, in TOML: their names are its keys.

num-threads = 4                  # or num_threads
cors-origin = ["https://example.org"]
mlock = true

[models]                         # or model = ["chat=/srv/chat.gguf"]
chat = "/srv/chat.gguf"

What a value may be is the option's own matter: here it becomes the text that a flag would have.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from server.config.toml import read_toml
from shared.errors import ConfigurationError

MODELS = "models"
"""The one table: names of models and their files, as several -m NAME=FILE."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")

Takes = Literal["text", "number", "bytes"]


class Key(Protocol):
    """What is to be known of an option."""

    @property
    def name(self) -> str: ...

    @property
    def takes(self) -> Takes: ...

    @property
    def choices(self) -> tuple[str, ...]: ...

    @property
    def repeats(self) -> bool: ...


def read_config(path: Path, options: Iterable[Key]) -> dict[str, str | list[str]]:
    """By the options' names, what the file says of them, as flags would say it.

    A number of the wrong type becomes a text that no number has, for its option to refuse. All
    else that is wrong raises ConfigurationError: a sentence with the file and the key.
    """
    keys = {option.name: option for option in options}
    values: dict[str, str | list[str]] = {}
    text: str | list[str]
    for written, value in read_toml(path).items():
        where, name = f"{path}: {written}", written.replace("-", "_")
        if written == MODELS:
            name, text = "model", _models(where, value)
        elif name not in keys:
            raise ConfigurationError(_unknown(where, name, value, keys))
        else:
            text = _texts(where, keys[name], value)
        if name in values:
            raise ConfigurationError(f"{where} says again what another key has said")
        values[name] = text
    return values


def nearest_name(name: str, known: Iterable[str]) -> str:
    """What somebody may have meant who wrote `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _unknown(where: str, name: str, value: object, keys: Mapping[str, Key]) -> str:
    if isinstance(value, dict):
        return f"{where} is a table, and only [{MODELS}] is one: options stand alone, before it"
    meant = nearest_name(name, keys).replace("_", "-")
    return f"{where} sets nothing; did you mean {meant}?"


def _models(where: str, table: Any) -> list[str]:
    """As -m has them."""
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where} must be a table, of NAME = FILE")
    for name, file in table.items():
        if not MODEL_NAME.fullmatch(name):
            raise ConfigurationError(
                f"{where}: a name must have letters, digits, ., _, : or -, and not begin with a"
                f" mark: {name!r:.80}"
            )
        if not isinstance(file, str) or not file or "\0" in file:
            raise ConfigurationError(f"{where}: {name} must be the name of a file, a string")
    return [f"{name}={file}" for name, file in table.items()]


def _texts(where: str, key: Key, value: object) -> str | list[str]:
    if not key.repeats:
        return _text(where, key, value)
    values = value if isinstance(value, list) else [value]
    return [_text(where, key, one) for one in values]


def _text(where: str, key: Key, value: object) -> str:
    if isinstance(value, bool) and "on" in key.choices:
        return "on" if value else "off"
    if isinstance(value, str) and "\0" in value:  # which no flag can have, and no file's name
        raise ConfigurationError(f"{where} must not contain the character U+0000")
    if isinstance(value, str) and key.takes != "number":
        return value
    if key.takes == "text":
        raise ConfigurationError(f"{where} must be {_wanted(key)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, default=str)


def _wanted(key: Key) -> str:
    if key.choices:
        quoted = ", ".join(f'"{choice}"' for choice in key.choices)
        return f"{'true, false, or ' if 'on' in key.choices else ''}one of {quoted}"
    return "a string, or a list of strings" if key.repeats else "a string"

"""Files in TOML; and a file of options, whose keys are the names of the options.

num-threads = 4                  # or num_threads
cors-origin = ["https://example.org"]
mlock = true

[models]                         # or model = ["chat=/srv/chat.gguf"]
chat = "/srv/chat.gguf"

A value becomes the text that its flag would have; the option's own parser then checks the range.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.config.options import OPTIONS, Option
from shared.errors import ConfigurationError

MODELS = "models"
"""The only table: names of models and their files, the same as several -m NAME=FILE."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of the file. Raises ConfigurationError with a sentence that names the file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None


def toml_value(value: str | float | bool | Sequence[str]) -> str:
    """A string, a number, a boolean or a list of strings, written in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML string, except for one character that TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(toml_value(item) for item in value)}]"


def read_options_file(path: Path) -> dict[str, str | list[str]]:
    """The texts of the file's options, by name; a list for an option that repeats.

    A value of the wrong type for a number becomes a text that the option's parser refuses. Other
    mistakes raise ConfigurationError with a sentence that names the file and the key.
    """
    options = {option.name: option for option in OPTIONS}
    values: dict[str, str | list[str]] = {}
    text: str | list[str]
    for key, value in read_toml(path).items():
        where, name = f"{path}: {key}", key.replace("-", "_")
        if key == MODELS:
            name, text = "model", _models(where, value)
        elif name not in options:
            raise ConfigurationError(_unknown(where, name, value, options))
        else:
            text = _texts(where, options[name], value)
        if name in values:
            raise ConfigurationError(f"{where} sets an option that another key has set")
        values[name] = text
    return values


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The known name that is most similar to `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _unknown(where: str, name: str, value: object, options: Mapping[str, Option]) -> str:
    if isinstance(value, dict):
        return f"{where} is not a known table: only [{MODELS}] is, and options stand before it"
    return f"{where} is not an option; did you mean {options[nearest_name(name, options)].key}?"


def _models(where: str, table: Any) -> list[str]:
    """The texts that -m would have."""
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where} must be a table of NAME = FILE")
    for name, file in table.items():
        if not MODEL_NAME.fullmatch(name):
            raise ConfigurationError(
                f"{where}: a name must consist of letters, digits, ., _, : or -, and begin with a"
                f" letter or digit, not {name!r:.80}"
            )
        if not isinstance(file, str) or not file or "\0" in file:
            raise ConfigurationError(f"{where}: {name} must be a string, the name of a file")
    return [f"{name}={file}" for name, file in table.items()]


def _texts(where: str, option: Option, value: object) -> str | list[str]:
    if not option.repeats:
        return _text(where, option, value)
    values = value if isinstance(value, list) else [value]
    return [_text(where, option, one) for one in values]


def _text(where: str, option: Option, value: object) -> str:
    takes = option.parser.takes
    if isinstance(value, bool) and "on" in option.parser.choices:
        return "on" if value else "off"
    if isinstance(value, str) and "\0" in value:  # neither a flag nor the name of a file has it
        raise ConfigurationError(f"{where} must not contain the character U+0000")
    if isinstance(value, str) and takes != "number":
        return value
    if takes == "text":
        raise ConfigurationError(f"{where} must be {_expected(option)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, default=str)


def _expected(option: Option) -> str:
    choices = option.parser.choices
    if choices:
        quoted = ", ".join(f'"{choice}"' for choice in choices)
        return f"{'true, false, or ' if 'on' in choices else ''}one of {quoted}"
    return "a string, or a list of strings" if option.repeats else "a string"

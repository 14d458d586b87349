"""API keys: a file of names and keys, which can be read again while the server runs.

# who may use the server
alice  3f9c0d…
bench  77ab12…
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from shared.errors import ConfigurationError

SHORTEST = 16
"""Minimum characters of a key: shorter keys can be guessed."""
NAME = re.compile(r"[\w.@-]{1,64}")


class ApiKeys:
    """The keys of a file. Only their digests stay in memory."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError."""
        self._path = path
        self._names = read_keys(path)

    def reload(self) -> None:
        """Read the file again. Raises ConfigurationError; the keys do not change then."""
        self._names = read_keys(self._path)

    def owner(self, key: str) -> str | None:
        """The key's name; None: unknown. Takes equal time for all keys of the same length."""
        digest, owner = _digest(key), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                owner = name
        return owner


def read_keys(path: Path) -> Mapping[bytes, str]:
    """The names by their keys' digests. Raises ConfigurationError; no message contains a key."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"--api-key-file: {path} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--api-key-file: {path} is not UTF-8") from None
    names: dict[bytes, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"--api-key-file: {path}, line {number}"
        if len(words) != 2 or not NAME.fullmatch(words[0]):
            raise ConfigurationError(f"{where} must be a name and a key")
        if len(words[1]) < SHORTEST or not words[1].isascii():
            raise ConfigurationError(
                f"{where}: a key must have at least {SHORTEST} characters, all of them ASCII"
            )
        if _digest(words[1]) in names or words[0] in names.values():
            raise ConfigurationError(f"{where}: the name or the key appears twice")
        names[_digest(words[1])] = words[0]
    if not names:
        raise ConfigurationError(f"--api-key-file: {path} contains no key")
    return names


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

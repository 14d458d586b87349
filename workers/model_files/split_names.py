"""The names of the files of a split GGUF: NAME-00001-of-00003.gguf and so on."""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def parts_of(name: str) -> tuple[str, ...]:
    """The names of all parts of the model that this file belongs to. The first is the one to load.

    `name` may be a path; then the results are paths. If it is not a part, it is the only result.
    """
    match = _match(name)
    if match is None:
        return (name,)
    count = int(match[3])
    return tuple(f"{match[1]}-{part:05}-of-{count:05}.gguf" for part in range(1, count + 1))


def model_parts(path: Path) -> tuple[Path, ...]:
    """The files of the model: all parts of a split model that exist, or the file itself."""
    return tuple(part for part in map(Path, parts_of(str(path))) if part == path or part.is_file())


def whole_name(name: str) -> str:
    """The name of the file as if the model were not split."""
    match = _match(name)
    return name if match is None else f"{match[1]}.gguf"


def _match(name: str) -> re.Match[str] | None:
    match = _PART.fullmatch(name)
    return match if match and 1 <= int(match[2]) <= int(match[3]) else None

"""Finds the model files of a folder, and gives them names."""

from __future__ import annotations

import logging
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError
from workers.model_files.magic import GGML_MAGICS, GGUF_MAGIC, read_magic
from workers.model_files.split_names import parts_of, whole_name

SUFFIXES = (".gguf", ".ggml", ".bin")
"""Suffixes that are not part of a model's name."""
PARTIAL_SUFFIXES = (
    ".incomplete",
    ".part",
    ".partial",
    ".tmp",
    ".download",
    ".crdownload",
    ".aria2",
)
"""Suffixes of incomplete downloads."""

logger = logging.getLogger("tokenflume")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model in a folder, at the time of the scan."""

    name: str
    """The model's name in requests. It is unique in the folder."""
    paths: tuple[Path, ...]
    """The model's files. There are several for a split GGUF; the first is the one to load."""
    size: int
    """Bytes of all files."""
    modified_ns: int
    """Modification time of the newest file, in nanoseconds since 1970."""

    @property
    def path(self) -> Path:
        return self.paths[0]


@dataclass(frozen=True, slots=True)
class _Found:
    """A ModelFile without its name."""

    paths: tuple[Path, ...]
    size: int
    modified_ns: int


def list_model_files(folder: Path) -> tuple[ModelFile, ...]:
    """All GGUF and GGML models in the folder and in its direct subfolders, sorted by name.

    Files are recognised by their first bytes. Hidden files, incomplete downloads, split models
    with a missing part, and unreadable or vanished files are left out. A model has the name of its
    file without the suffix. If two models would have the same name, neither gets it: their names
    also contain their subfolder or suffix.
    Raises ConfigurationError if the folder cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be read: {error.strerror}") from None
    found = list(_models_among(entries))
    for entry in entries:
        if _is_named(entry):
            found += _models_among(_files_in(entry))
    names = _names([model.paths[0].relative_to(folder) for model in found])
    models = (
        ModelFile(name, model.paths, model.size, model.modified_ns)
        for name, model in zip(names, found, strict=True)
    )
    return tuple(sorted(models, key=lambda model: model.name))


def unprintable_names(folder: Path) -> tuple[Path, ...]:
    """The files with a model's suffix, also in subfolders, that their names leave out.

    Raises ConfigurationError if the folder cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be read: {error.strerror}") from None
    inner = [file for entry in entries if _is_named(entry) for file in _files_in(entry)]
    return tuple(
        file
        for file in (*entries, *inner)
        if not file.name.isprintable() and file.name.endswith(SUFFIXES)
    )


def _files_in(folder: Path) -> list[Path]:
    """The folder's entries, sorted; empty if it is not a folder or cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        if not isinstance(error, NotADirectoryError):
            logger.debug("%s is left out: %s", folder, error.strerror)
        return []


def _models_among(files: list[Path]) -> Iterator[_Found]:
    for file in files:
        first, *others = parts_of(file.name)
        if file.name != first or not _is_named(file):
            continue
        paths = (file, *(file.with_name(other) for other in others))
        try:
            stats = [path.stat() for path in paths]
            # Opening a pipe would block until somebody writes to it.
            if not all(stat.S_ISREG(found.st_mode) for found in stats):
                continue
            if read_magic(file) not in (GGUF_MAGIC, *GGML_MAGICS):
                continue
        except OSError as error:
            logger.debug("%s is left out: %s", file, error.strerror)
            continue
        yield _Found(
            paths,
            size=sum(found.st_size for found in stats),
            modified_ns=max(found.st_mtime_ns for found in stats),
        )


def _is_named(path: Path) -> bool:
    """Whether the file is neither hidden nor incomplete, and its name is printable."""
    hidden_or_partial = path.name.startswith(".") or path.name.endswith(PARTIAL_SUFFIXES)
    return path.name.isprintable() and not hidden_or_partial


def _names(paths: Iterable[Path]) -> list[str]:
    """For each path, the shortest of its possible names that no other path shares."""
    choices = [_choices(path) for path in paths]
    counts = Counter(name for names in choices for name in set(names))
    return [next((name for name in names if counts[name] == 1), names[-1]) for names in choices]


def _choices(path: Path) -> tuple[str, ...]:
    """The possible names of a model, from the shortest to its path, which is unique."""
    stem = model_name(path)
    return (stem, path.with_name(stem).as_posix(), path.as_posix())


def model_name(path: Path) -> str:
    """The default name of a model: the name of its file without the suffix."""
    whole = whole_name(path.name)
    suffix = next((suffix for suffix in SUFFIXES if whole.endswith(suffix)), "")
    return whole.removesuffix(suffix) or whole

"""The model files of a folder, and their names."""

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
"""What is no part of a model's name."""
PARTIAL_SUFFIXES = (
    ".incomplete",
    ".part",
    ".partial",
    ".tmp",
    ".download",
    ".crdownload",
    ".aria2",
)
"""How programs call what they have not fetched to its end."""

logger = logging.getLogger("tokenflume")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model in a folder, as it was when it was looked at."""

    name: str
    """For requests: no two of a folder have the same."""
    paths: tuple[Path, ...]
    """The file; of a split GGUF all of them, the one to load first."""
    size: int
    """Bytes of all of them."""
    modified_ns: int
    """When the newest of them was changed, in nanoseconds since 1970."""

    @property
    def path(self) -> Path:
        return self.paths[0]


@dataclass(frozen=True, slots=True)
class _Found:
    paths: tuple[Path, ...]
    size: int
    modified_ns: int


def list_model_files(folder: Path) -> tuple[ModelFile, ...]:
    """All GGUF and GGML files in the folder and in its folders, by name.

    The first bytes tell what a file is. Hidden ones, partial downloads and split models that lack
    a part are left out, and so is what cannot be read or is gone again. A model is called as its
    file is, without the suffix. Where that would be the name of two, it is that of neither: both
    have their folder in front, or their suffix. Raises ConfigurationError for a folder that
    cannot be read.
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


def _files_in(folder: Path) -> list[Path]:
    """None, if it is no folder, or none that may be read."""
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
            # Opening a pipe would wait for somebody to write.
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
    """Whether its name is one that people give: visible, finished, and text."""
    hidden_or_partial = path.name.startswith(".") or path.name.endswith(PARTIAL_SUFFIXES)
    return path.name.isprintable() and not hidden_or_partial


def _names(paths: Iterable[Path]) -> list[str]:
    """The shortest name of each that no other could have, too."""
    choices = [_choices(path) for path in paths]
    counts = Counter(name for names in choices for name in set(names))
    return [next((name for name in names if counts[name] == 1), names[-1]) for names in choices]


def _choices(path: Path) -> tuple[str, ...]:
    """From the shortest to the path itself, which is nobody else's."""
    stem = model_name(path)
    return (stem, path.with_name(stem).as_posix(), path.as_posix())


def model_name(path: Path) -> str:
    """What a model is called whose file nobody has named: as the file, without the suffix."""
    whole = whole_name(path.name)
    suffix = next((suffix for suffix in SUFFIXES if whole.endswith(suffix)), "")
    return whole.removesuffix(suffix) or whole

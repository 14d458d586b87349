"""Saved prompts as files.

    magic (8 bytes) | length of the head (4, big-endian) | head (msgpack) | its digest | state

The head has the identity that the state belongs to, the tokens, and the state's size and digest.
A file is written under another name and renamed, so a reader sees a complete file, whoever else
writes. The digests (BLAKE2b, 16 bytes) show what a crash or a disk has damaged.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from workers.prompts.cache import SavedPrompt

MAGIC = b"tkflmP\x00\x01"
"""The last byte is the version of the format."""
MAX_HEAD = 64 * 2**20
"""Largest head in bytes."""
SUFFIX = ".prompt"
DIGEST = 16
"""Size of a digest in bytes."""
TEMPORARY = re.compile(rf"\.\d+{re.escape(SUFFIX)}\.\d+\.\d+")
TEMPORARY_S = 3600
"""Age in seconds after which a temporary file was left by a writer that was killed."""
_writings = itertools.count()


class PromptFileError(Exception):
    """The file is not a saved prompt, or is damaged. The message says which, and why."""


class OtherModel(PromptFileError):
    """The file is undamaged, but its tokens or its state belong to another model or engine."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a saved prompt belongs to: see workers.prompts.identity."""

    model: str
    """Names the model file, to which the tokens belong."""
    state: str
    """Names the engine, its version and its settings, to which the state belongs."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a file."""

    identity: Identity
    tokens: list[int]
    state_size: int
    """Size of the state in bytes."""
    state_digest: bytes


@dataclass(frozen=True, slots=True)
class SavedPromptInfo:
    """A prompt that a client saved, without its tokens and its state."""

    id: int
    tokens: int
    """Number of its tokens."""
    size: int
    """Size in bytes."""
    used_at: float
    """Time of its last use, in seconds since 1970."""
    workers: int = 0
    """Number of workers that have it in memory."""
    is_on_disk: bool = True
    """It has a file."""


def prompts_in(folder: Path) -> dict[int, SavedPromptInfo]:
    """Return the prompts of the folder's undamaged files, by id. Raises OSError."""
    found: dict[int, SavedPromptInfo] = {}
    for prompt_id in ids_in(folder):
        path = path_of(folder, prompt_id)
        try:
            status, head = path.stat(), read_head(path)
        except (OSError, PromptFileError):  # just deleted, or ignored as when it is asked for
            continue
        found[prompt_id] = SavedPromptInfo(
            prompt_id, len(head.tokens), status.st_size, status.st_mtime
        )
    return found


def delete_prompt(folder: Path, prompt_id: int) -> bool:
    """Delete the file of an id; return whether there was one. Raises OSError."""
    try:
        path_of(folder, prompt_id).unlink()
    except FileNotFoundError:
        return False
    return True


def path_of(folder: Path, prompt_id: int) -> Path:
    """Return the path of an id's file. Ids are integers, so a path cannot leave the folder."""
    return folder / f"{int(prompt_id)}{SUFFIX}"


def ids_in(folder: Path) -> Iterator[int]:
    """Return the ids whose files are in the folder. Raises OSError."""
    for path in folder.iterdir():
        name = path.name.removesuffix(SUFFIX)
        is_number = name != path.name and name.isascii() and name.isdecimal()
        if is_number and not name.startswith("0"):
            yield int(name)


def clean(folder: Path) -> None:
    """Delete temporary files of writers that were killed long ago. Raises OSError."""
    for path in folder.glob(f".*{SUFFIX}.*"):
        if TEMPORARY.fullmatch(path.name) is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # another server's, which it has just renamed
            if path.stat().st_mtime < time.time() - TEMPORARY_S:
                path.unlink()


def write_prompt(path: Path, saved: SavedPrompt, identity: Identity) -> None:
    """Write the file, completely or not at all. Raises OSError."""
    tokens = array.array("i", saved.tokens)
    if sys.byteorder == "big":
        tokens.byteswap()
    values = identity.model, identity.state, tokens.tobytes(), len(saved.state)
    head = msgpack.packb([*values, _digest(saved.state)])
    # Several workers, and several threads of one, may write the same prompt.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_writings)}")
    try:
        with temporary.open("wb") as file:
            file.write(MAGIC + len(head).to_bytes(4) + head + _digest(head))
            file.write(saved.state)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_head(path: Path) -> Head:
    """Read the head of a file. Raises OSError, PromptFileError."""
    with path.open("rb") as file:
        return _read_head(file, path)


def read_prompt(path: Path, identity: Identity, prompt_id: int = 0) -> SavedPrompt:
    """Read a saved prompt. Raises OSError, PromptFileError; OtherModel for another identity."""
    with path.open("rb") as file:
        head = _read_head(file, path)
        if head.identity != identity:
            raise OtherModel(f"{path} was saved from another model, engine or setting")
        state = _room(head.state_size, path)
        if file.readinto(state) != head.state_size or file.read(1):
            raise PromptFileError(f"{path} has another size than was written")
    if _digest(state) != head.state_digest:
        raise PromptFileError(f"{path} is damaged: its state is not what was written")
    return SavedPrompt(head.tokens, state, prompt_id)


def _read_head(file: BinaryIO, path: Path) -> Head:
    if file.read(len(MAGIC)) != MAGIC:
        raise PromptFileError(f"{path} is not a saved prompt of this version")
    size = int.from_bytes(file.read(4))
    head = file.read(min(size, MAX_HEAD))
    if file.read(DIGEST) != _digest(head):
        raise PromptFileError(f"{path} is damaged: its head is not what was written")
    try:
        values = msgpack.unpackb(head)
    except (ValueError, msgpack.UnpackException):
        raise PromptFileError(f"{path} is damaged: its head has invalid values") from None
    return _head(values, os.fstat(file.fileno()).st_size, path)


def _room(size: int, path: Path) -> bytearray:
    try:
        return bytearray(size)
    except MemoryError:
        raise PromptFileError(f"{path} needs {size} bytes, and there is no memory for it") from None


def _head(values: Any, file_size: int, path: Path) -> Head:
    """Return the head of a file. A correct digest does not prove that the values make sense."""
    match values:
        case [str(model), str(state), bytes(packed), int(size), bytes(digest)] if (
            len(packed) % 4 == 0 and 0 <= size <= file_size
        ):
            tokens = array.array("i", packed)
            if sys.byteorder == "big":
                tokens.byteswap()
            return Head(Identity(model, state), tokens.tolist(), size, digest)
    raise PromptFileError(f"{path} is damaged: its head has invalid values")


def _digest(data: bytes | bytearray) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()

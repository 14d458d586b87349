"""Saved prompts as files.

    magic (8 bytes) | length of the head (4, big-endian) | head (msgpack) | its digest | state

The head names what the state fits to, has the tokens, and the state's size and digest. A file is
written beside its place and renamed: a reader sees a whole one, whoever else writes. What a crash
or a disk does to it shows in the digests (BLAKE2b, 16 bytes).
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
"""Its last byte is the version of the format."""
MAX_HEAD = 64 * 2**20
SUFFIX = ".prompt"
DIGEST = 16
LEFT = re.compile(rf"\.\d+{re.escape(SUFFIX)}\.\d+\.\d+")
LEFT_S = 3600
"""No writing takes so many seconds."""
_writings = itertools.count()


class PromptFileError(Exception):
    """The file is no saved prompt, or a damaged one; the message says which and why."""


class OtherModel(PromptFileError):
    """The file is whole, but its tokens, or only its state, are another's."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a saved prompt fits to: see workers.prompts.identity."""

    model: str
    """Of the model file: to it the tokens fit."""
    state: str
    """Of the engine, its version and its settings: to them the state fits too."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says of its prompt."""

    identity: Identity
    tokens: list[int]
    state_size: int
    """Bytes."""
    state_digest: bytes


@dataclass(frozen=True, slots=True)
class SavedPromptInfo:
    """What there is to know of a prompt that a client saved."""

    id: int
    tokens: int
    size: int
    """Bytes."""
    used_at: float
    """Seconds since 1970."""
    workers: int = 0
    """Workers that have it in memory."""
    is_on_disk: bool = True


def prompts_in(folder: Path) -> dict[int, SavedPromptInfo]:
    """The prompts of the folder's whole files, by id. Raises OSError."""
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
    """Delete the file of an id; whether there was one. Raises OSError."""
    try:
        path_of(folder, prompt_id).unlink()
    except FileNotFoundError:
        return False
    return True


def path_of(folder: Path, prompt_id: int) -> Path:
    """Where the prompt of an id is. Ids are plain integers, so they name nothing else."""
    return folder / f"{int(prompt_id)}{SUFFIX}"


def ids_in(folder: Path) -> Iterator[int]:
    """The ids whose files are in the folder. OSError when it cannot be read."""
    for path in folder.iterdir():
        name = path.name.removesuffix(SUFFIX)
        is_number = name != path.name and name.isascii() and name.isdecimal()
        if is_number and not name.startswith("0"):
            yield int(name)


def clean(folder: Path) -> None:
    """Delete what writers have left that were killed long ago. Raises OSError."""
    for path in folder.glob(f".*{SUFFIX}.*"):
        if LEFT.fullmatch(path.name) is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # another server's, which it has just renamed
            if path.stat().st_mtime < time.time() - LEFT_S:
                path.unlink()


def write_prompt(path: Path, saved: SavedPrompt, identity: Identity) -> None:
    """Write the file, whole or not at all. Raises OSError."""
    tokens = array.array("i", saved.tokens)
    if sys.byteorder == "big":
        tokens.byteswap()
    values = identity.model, identity.state, tokens.tobytes(), len(saved.state)
    head = msgpack.packb([*values, _digest(saved.state)])
    # Several workers, and several threads of one, may write the same prompt.
    beside = path.with_name(f".{path.name}.{os.getpid()}.{next(_writings)}")
    try:
        with beside.open("wb") as file:
            file.write(MAGIC + len(head).to_bytes(4) + head + _digest(head))
            file.write(saved.state)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_head(path: Path) -> Head:
    """What the file says of itself. Raises OSError, PromptFileError."""
    with path.open("rb") as file:
        return _read_head(file, path)


def read_prompt(path: Path, identity: Identity, prompt_id: int = 0) -> SavedPrompt:
    """The saved prompt. Raises OSError, PromptFileError, and OtherModel if it does not fit."""
    with path.open("rb") as file:
        head = _read_head(file, path)
        if head.identity != identity:
            raise OtherModel(f"{path} was saved from another model, engine or setting")
        state = _room(head.state_size, path)
        if file.readinto(state) != head.state_size or file.read(1):
            raise PromptFileError(f"{path} is cut, or has grown")
    if _digest(state) != head.state_digest:
        raise PromptFileError(f"{path} is damaged: its state is not what was written")
    return SavedPrompt(head.tokens, state, prompt_id)


def _read_head(file: BinaryIO, path: Path) -> Head:
    if file.read(len(MAGIC)) != MAGIC:
        raise PromptFileError(f"{path} is no saved prompt of this version")
    size = int.from_bytes(file.read(4))
    head = file.read(min(size, MAX_HEAD))
    if file.read(DIGEST) != _digest(head):
        raise PromptFileError(f"{path} is damaged: its head is not what was written")
    try:
        values = msgpack.unpackb(head)
    except (ValueError, msgpack.UnpackException):
        raise PromptFileError(f"{path} is damaged: its head makes no sense") from None
    return _head(values, os.fstat(file.fileno()).st_size, path)


def _room(size: int, path: Path) -> bytearray:
    try:
        return bytearray(size)
    except MemoryError:
        raise PromptFileError(f"{path} needs {size} bytes of memory, which are not there") from None


def _head(values: Any, file_size: int, path: Path) -> Head:
    """Whoever can write a digest can write a wrong head too: nothing is taken on trust."""
    match values:
        case [str(model), str(state), bytes(packed), int(size), bytes(digest)] if (
            len(packed) % 4 == 0 and 0 <= size <= file_size
        ):
            tokens = array.array("i", packed)
            if sys.byteorder == "big":
                tokens.byteswap()
            return Head(Identity(model, state), tokens.tolist(), size, digest)
    raise PromptFileError(f"{path} is damaged: its head makes no sense")


def _digest(data: bytes | bytearray) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()

"""The folder of saved prompts. One thread writes, so that no stream waits for a disk."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from shared.messages import Message, PromptDropped, PromptSaved
from workers.prompts.cache import SavedPrompt
from workers.prompts.files import (
    Identity,
    OtherModel,
    PromptFileError,
    ids_in,
    path_of,
    read_prompt,
    write_prompt,
)

MOST_UNWRITTEN = 256 * 2**20
"""Bytes that may wait for a slow disk, unless they are a single prompt."""

logger = logging.getLogger("tokenflume.worker")


class PromptStore:
    """Saved prompts by id, in a folder of at most `limit` bytes; the least recently used go first.

    `largest`: size in bytes of the largest file that is read, because memory has no room for larger
    ones; None: any. What cannot be read or written is logged, and the prompt is processed again.
    `must_read` and `read` may be called from any thread, the other methods from one.
    """

    def __init__(
        self, folder: Path, limit: int, identity: Identity, largest: int | None = None
    ) -> None:
        self._folder = folder
        self._limit = limit
        self._largest = largest
        self._identity = identity
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unwritten = 0
        """Bytes that wait to be written."""
        self.in_memory: set[int] = set()
        """Ids of prompts that are in memory, so that their files need not be read."""
        self._thread = threading.Thread(target=self._run_tasks, name="prompt-store", daemon=True)
        self._thread.start()

    def must_read(self, prompt_id: int) -> bool:
        """Return whether `read` looks for the file of this id. 0 is not an id."""
        return prompt_id != 0 and prompt_id not in self.in_memory

    def read(self, prompt_id: int) -> SavedPrompt | None:
        """Return the prompt of a request's id. None: it is in memory, or has no usable file."""
        if prompt_id == 0:
            return None
        path = path_of(self._folder, prompt_id)
        saved = self._read(path, prompt_id) if self.must_read(prompt_id) else None
        if saved is not None or prompt_id in self.in_memory:
            self._tasks.put(lambda: mark_used(path))
        return saved

    def keep_up(self, saved: Iterable[SavedPrompt], events: Iterable[Message]) -> None:
        """Have the saved prompts written; learn from the events what is in memory."""
        for event in events:
            if isinstance(event, PromptSaved):
                self.in_memory.add(event.prompt_id)
            elif isinstance(event, PromptDropped):
                self.in_memory.discard(event.prompt_id)
        for prompt in saved:
            self._write_soon(prompt)

    def delete(self, prompt_id: int) -> None:
        """Have a file deleted, also if it is about to be written."""
        path = path_of(self._folder, prompt_id)
        self._tasks.put(lambda: path.unlink(missing_ok=True))

    def close(self, timeout_s: float) -> None:
        """Finish what waits to be written, within `timeout_s` seconds."""
        self._tasks.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("not all saved prompts are written to %s", self._folder)

    def _write_soon(self, saved: SavedPrompt) -> None:
        if not saved.state or saved.size > self._limit:
            return
        with self._lock:
            is_behind = self._unwritten and self._unwritten + saved.size > MOST_UNWRITTEN
            if not is_behind:
                self._unwritten += saved.size
        if is_behind:
            logger.warning("prompt %d is not written: the disk is too slow", saved.id)
            return
        self._tasks.put(lambda: self._write(saved))

    def _write(self, saved: SavedPrompt) -> None:
        path = path_of(self._folder, saved.id)
        try:
            try:
                write_prompt(path, saved, self._identity)
            except OSError:  # the disk may be full: older files make room
                trim(self._folder, self._limit - saved.size)
                write_prompt(path, saved, self._identity)
            trim(self._folder, self._limit)
        finally:
            with self._lock:
                self._unwritten -= saved.size

    def _read(self, path: Path, prompt_id: int) -> SavedPrompt | None:
        try:
            if self._largest is not None and path.stat().st_size > self._largest:
                return None
            return read_prompt(path, self._identity, prompt_id)
        except FileNotFoundError:
            return None
        except (OSError, OtherModel) as error:
            logger.warning("prompt %d is processed again: %s", prompt_id, error)
        except PromptFileError as error:
            logger.warning("prompt %d is processed again, its file deleted: %s", prompt_id, error)
            self.delete(prompt_id)
        return None

    def _run_tasks(self) -> None:
        """Run tasks until None comes. One that fails ends neither the thread nor the others."""
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except OSError as error:
                logger.warning("saved prompts in %s: %s", self._folder, error)
            except Exception:
                logger.exception("saved prompts in %s: an unexpected error", self._folder)


def mark_used(path: Path) -> None:
    """Set the file's time of last use, if there is a file. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)


def trim(folder: Path, limit: int) -> None:
    """Delete the least recently used files until `limit` bytes are left. Raises OSError."""
    files = []
    for prompt_id in ids_in(folder):
        path = path_of(folder, prompt_id)
        try:
            status = path.stat()
        except FileNotFoundError:  # another worker has just deleted it
            continue
        if stat.S_ISREG(status.st_mode):
            files.append((status.st_mtime, status.st_size, path))
    size = sum(file[1] for file in files)
    for _, bytes_, path in sorted(files):
        if size <= limit:
            break
        path.unlink(missing_ok=True)
        size -= bytes_

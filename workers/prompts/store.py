"""The folder of saved prompts: one thread writes, so that no stream waits for a disk."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from shared.messages import Generate, Message, PromptDropped, PromptSaved
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
"""Bytes that may wait for a slow disk, unless it is a single prompt."""

logger = logging.getLogger("tokenflume.worker")


class PromptStore:
    """Saved prompts by id in a folder of at most `limit` bytes; the oldest go first.

    `largest`: bytes of a state that the memory has room for; larger ones are not read; None: any.
    What cannot be read or written costs a warning, and the prompt is processed again.
    """

    def __init__(
        self, folder: Path, limit: int, identity: Identity, largest: int | None = None
    ) -> None:
        self._folder = folder
        self._limit = limit
        self._largest = largest
        self._identity = identity
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unwritten = 0
        """Bytes that are still to be written."""
        self._fetched: dict[int, SavedPrompt] = {}
        self.in_memory: set[int] = set()
        """Ids that need not be read."""
        self._thread = threading.Thread(target=self._work_on, name="prompt-store", daemon=True)
        self._thread.start()

    def prepare(self, message: Message) -> None:
        """Read what the request will want. In the thread that receives it, before the loop."""
        if not isinstance(message, Generate) or not message.prompt_id:
            return
        path = path_of(self._folder, message.prompt_id)
        if message.prompt_id in self.in_memory:
            self._work.put(lambda: mark_used(path))
        elif (saved := self._read(path, message.prompt_id)) is not None:
            self._fetched[message.prompt_id] = saved

    def fetched(self, prompt_id: int) -> SavedPrompt | None:
        """What `prepare` has read for a request of this id, once."""
        return self._fetched.pop(prompt_id, None)

    def keep_up(self, saved: Iterable[SavedPrompt], events: Iterable[Message]) -> None:
        """Have the new ones written; learn what is in memory, and what is not any more."""
        for event in events:
            if isinstance(event, PromptSaved):
                self.in_memory.add(event.prompt_id)
            elif isinstance(event, PromptDropped):
                self.in_memory.discard(event.prompt_id)
        for prompt in saved:
            self._write_soon(prompt)

    def delete(self, prompt_id: int) -> None:
        """Have it deleted, also if it is about to be written."""
        path = path_of(self._folder, prompt_id)
        self._work.put(lambda: path.unlink(missing_ok=True))

    def close(self, timeout_s: float) -> None:
        """Finish what is to be written, if that takes no longer."""
        self._work.put(None)
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
            logger.warning("prompt %d is not written: the disk is behind", saved.id)
            return
        self._work.put(lambda: self._write(saved))

    def _write(self, saved: SavedPrompt) -> None:
        path = path_of(self._folder, saved.id)
        try:
            try:
                write_prompt(path, saved, self._identity)
            except OSError:  # a full disk, perhaps: older ones make room
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
            saved = read_prompt(path, self._identity, prompt_id)
        except FileNotFoundError:
            return None
        except (OSError, OtherModel) as error:
            logger.warning("prompt %d is processed again: %s", prompt_id, error)
            return None
        except PromptFileError as error:
            logger.warning("prompt %d is processed again, its file deleted: %s", prompt_id, error)
            self.delete(prompt_id)
            return None
        self._work.put(lambda: mark_used(path))
        return saved

    def _work_on(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except OSError as error:
                logger.warning("saved prompts in %s: %s", self._folder, error)


def mark_used(path: Path) -> None:
    """Note the time of its last use, by which files go, if it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)


def trim(folder: Path, limit: int) -> None:
    """Delete the files that were not used for longest, until the others fit. Raises OSError."""
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

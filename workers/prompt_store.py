"""The folder of saved prompts: one thread writes, so that no stream waits for a disk."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable
from pathlib import Path

from shared.messages import Generate, Message, PromptDropped, PromptSaved
from workers.prompt_cache import SavedPrompt
from workers.prompt_files import (
    Identity,
    OtherModel,
    PromptFileError,
    ids_in,
    path_of,
    read_prompt,
    write_prompt,
)

logger = logging.getLogger("tokenflume.worker")


class PromptStore:
    """Saved prompts by id in a folder of at most `limit` bytes; the oldest go first.

    What cannot be read or written costs a warning, and the prompt is processed again.
    """

    def __init__(self, folder: Path, limit: int, identity: Identity) -> None:
        self._folder = folder
        self._limit = limit
        self._identity = identity
        self._work: queue.SimpleQueue[SavedPrompt | int | None] = queue.SimpleQueue()
        self._fetched: dict[int, SavedPrompt] = {}
        self.in_memory: set[int] = set()
        """Ids that need not be read."""
        self._thread = threading.Thread(target=self._write_all, name="prompt-store", daemon=True)
        self._thread.start()

    def prepare(self, message: Message) -> None:
        """Read what the request will want. In the thread that receives it, before the loop."""
        if isinstance(message, Generate) and message.cache not in self.in_memory | {0}:
            saved = self._read(message.cache)
            if saved is not None:
                self._fetched[message.cache] = saved

    def fetched(self, prompt_id: int) -> SavedPrompt | None:
        """What `prepare` has read for a request of this id, once."""
        return self._fetched.pop(prompt_id, None)

    def keep_up(self, saved: Iterable[SavedPrompt], events: Iterable[Message]) -> None:
        """Have the new ones written; learn what is in memory, and what is not any more."""
        for event in events:
            if isinstance(event, PromptSaved):
                self.in_memory.add(event.cache)
            elif isinstance(event, PromptDropped):
                self.in_memory.discard(event.cache)
        for prompt in saved:
            self._work.put(prompt)

    def delete(self, prompt_id: int) -> None:
        """Have it deleted, also if it is about to be written."""
        self._work.put(prompt_id)

    def close(self, timeout_s: float) -> None:
        """Finish what is to be written, if that takes no longer."""
        self._work.put(None)
        self._thread.join(timeout_s)

    def _read(self, prompt_id: int) -> SavedPrompt | None:
        path = path_of(self._folder, prompt_id)
        try:
            saved = read_prompt(path, self._identity, prompt_id)
            path.touch()  # its last use, for the order in which files go
        except FileNotFoundError:
            return None
        except (OSError, OtherModel) as error:
            logger.warning("prompt %d is processed again: %s", prompt_id, error)
            return None
        except PromptFileError as error:
            logger.warning("prompt %d is processed again, its file deleted: %s", prompt_id, error)
            self.delete(prompt_id)
            return None
        return saved

    def _write_all(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                if isinstance(work, int):
                    path_of(self._folder, work).unlink(missing_ok=True)
                else:
                    write_prompt(path_of(self._folder, work.id), work, self._identity)
                    trim(self._folder, self._limit)
            except OSError as error:
                logger.warning("saved prompts in %s: %s", self._folder, error)


def trim(folder: Path, limit: int) -> None:
    """Delete the files that were not used for longest, until the others fit. Raises OSError."""
    files = []
    for prompt_id in ids_in(folder):
        path = path_of(folder, prompt_id)
        try:
            status = path.stat()
        except FileNotFoundError:  # another worker has just deleted it
            continue
        files.append((status.st_mtime, status.st_size, path))
    size = sum(file[1] for file in files)
    for _, bytes_, path in sorted(files):
        if size <= limit:
            break
        path.unlink(missing_ok=True)
        size -= bytes_

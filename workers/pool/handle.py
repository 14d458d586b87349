"""One worker process's requests: sends them, delivers their events, and keeps its state.

    submit, cancel, ask ─▶ ChildProcess.send
    RequestStream.put ◀─ WorkerHandle ◀─ ChildProcess

All that the front knows about a process is here, and ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import ConfigurationError, WorkerDied, error_from_code
from shared.messages import (
    Cancel,
    DropPrompt,
    Embedded,
    Failed,
    Finished,
    Heartbeat,
    LoadFailed,
    Loading,
    Message,
    PromptDropped,
    PromptSaved,
    Ready,
    Steps,
    Token,
    Tokenize,
    Tokenized,
    Tokens,
)
from shared.settings import WorkerSettings
from shared.wire import PROTOCOL
from workers.entry import run_worker
from workers.pool.child_process import BROKEN, ChildProcess, Death, Target
from workers.pool.status import WorkerCounters
from workers.pool.stream import RequestStream

logger = logging.getLogger("tokenflume.pool")
DIED = "the worker of this request has died"


@dataclass(slots=True)
class HeldPrompt:
    """A saved prompt in a worker's memory."""

    tokens: int
    size: int
    """Bytes."""
    used_at: float
    """Seconds since 1970."""


class WorkerHandle:
    """One process with its requests. `start` makes one.

    `ready` gets the worker's Ready, or a ConfigurationError when its model cannot be loaded; it
    stays pending if the process dies before. `on_change` is called when the state changes: loading
    progresses, the worker is ready, a request has left it, its queue has ended. `counters` outlive
    the process.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        on_change: Callable[[], None],
        counters: WorkerCounters,
        target: Target = run_worker,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.settings = settings
        self.process = ChildProcess(settings, target, self._on_messages, self._on_end)
        self.ready: asyncio.Future[Ready] = self._loop.create_future()
        self.last_heard = self._loop.time()
        """When the last message came, in the loop's seconds."""
        self.loaded = 0.0
        """Share of the model that is loaded, 0 to 1."""
        self.slots = 0
        """Requests that it can run at the same time; 0 before it is ready."""
        self.prefix_tokens = 0
        """Tokens of --restore-prompt, before each prompt that is not whole."""
        self.completed = 0
        """Requests that it has completed; cancelled and failed ones do not count."""
        self.prompts: dict[int, HeldPrompt] = {}
        """Saved prompts in the worker's memory, by id."""
        self.late_messages = 0
        """Number of dropped messages: tokens and ends of abandoned requests."""
        self._ready_at = math.inf  # in the loop's seconds
        self._on_change = on_change
        self._counters = counters
        self._in_flight: dict[int, RequestStream] = {}
        self._questions: dict[int, asyncio.Future[Tokenized]] = {}

    @classmethod
    async def start(
        cls,
        settings: WorkerSettings,
        on_change: Callable[[], None],
        counters: WorkerCounters,
        target: Target = run_worker,
    ) -> WorkerHandle:
        """Start a process. Raises OSError."""
        handle = cls(settings, on_change, counters, target)
        await handle.process.start()
        return handle

    @property
    def is_ready(self) -> bool:
        """It can take requests: the model is loaded, and the process is not ending."""
        is_loaded = self.ready.done() and self.ready.exception() is None
        return is_loaded and self.process.is_open

    @property
    def silence_s(self) -> float:
        """Seconds since the process was last heard; 0 while it loads, infinite when it is ending.

        The supervisor limits how long loading may take.
        """
        if self.is_ready:
            return self._loop.time() - self.last_heard
        is_loading = self.process.is_open and not self.ready.done()
        return 0.0 if is_loading else math.inf

    def was_healthy(self, healthy_s: float) -> bool:
        """The process has completed a request, or has served for `healthy_s` seconds."""
        return self.completed > 0 or self._loop.time() - self._ready_at >= healthy_s

    @property
    def in_flight(self) -> int:
        """Requests that hold one of the worker's slots."""
        return len(self._in_flight)

    @property
    def has_free_slot(self) -> bool:
        return self.is_ready and len(self._in_flight) < self.slots

    def submit(self, stream: RequestStream) -> None:
        self._in_flight[stream.request.id] = stream
        self.process.send(stream.request)

    def cancel(self, request_id: int) -> None:
        """Ask the worker to end a request; the slot is free when the worker confirms."""
        if request_id in self._in_flight:
            self.process.send(Cancel(request_id))

    def drop_prompt(self, prompt_id: int) -> None:
        """Ask the worker to forget a saved prompt."""
        self.process.send(DropPrompt(prompt_id))

    async def ask(self, question: Tokenize) -> Tokenized:
        """Return the worker's answer. Raises ServingError. Cancelling the caller cancels it."""
        answer: asyncio.Future[Tokenized] = self._loop.create_future()
        self._questions[question.id] = answer
        try:
            self.process.send(question)
            return await answer
        except asyncio.CancelledError:
            self.process.send(Cancel(question.id))
            raise
        finally:
            del self._questions[question.id]

    def _on_messages(self, batch: list[Message]) -> None:
        self.last_heard = self._loop.time()
        for message in batch:
            match message:
                case Tokens(tokens=tokens):
                    self._counters.generated_tokens += len(tokens)
                    for token in tokens:
                        self._deliver(token.request, token)
                case Finished() | Failed():
                    self._finish(message)
                case Embedded(id=request_id):
                    self._deliver(request_id, message)
                case Tokenized(id=question_id):
                    self._answer(question_id, message)
                case PromptSaved(prompt_id=prompt_id, tokens=tokens_saved, size=size):
                    self.prompts[prompt_id] = HeldPrompt(tokens_saved, size, time.time())
                case PromptDropped(prompt_id=prompt_id):
                    self.prompts.pop(prompt_id, None)
                case Steps():
                    self._count(message)
                case Heartbeat():
                    pass
                case Loading(progress=progress):
                    self.loaded = progress
                    self._on_change()
                case Ready() | LoadFailed() if self.ready.done():
                    self._kill_broken(f"sent a {type(message).__name__} after loading had ended")
                case Ready():
                    self._on_ready(message)
                case LoadFailed(message=text):
                    self.ready.set_exception(ConfigurationError(text))
                case _:
                    self._kill_broken(f"sent a {type(message).__name__}, which only the front may")

    def _kill_broken(self, reason: str) -> None:
        self.process.kill(Death(BROKEN, reason))

    def _on_ready(self, message: Ready) -> None:
        if message.protocol != PROTOCOL:
            self._kill_broken(f"speaks protocol {message.protocol}, not {PROTOCOL}")
            return
        self.slots = message.info.slots
        self.prefix_tokens = message.prefix_tokens
        self._ready_at = self._loop.time()
        # Logged before anybody learns of it: the start screen ends, and the log is no longer quiet.
        index, pid = self.settings.index, self.process.pid
        logger.info("worker %d (pid %d): %s", index, pid, describe_ready(message))
        self.ready.set_result(message)
        self._on_change()

    def _deliver(self, request_id: int, event: Token | Embedded) -> None:
        stream = self._in_flight.get(request_id)
        if stream is None or stream.is_abandoned:
            self._drop(event)
        else:
            stream.put(event)

    def _count(self, steps: Steps) -> None:
        try:
            self._counters.steps.add(steps)
        except ValueError:
            self._kill_broken("counts its steps in other buckets")

    def _answer(self, question_id: int, message: Tokenized | Failed) -> None:
        """Deliver the answer to a question, unless its asker has gone."""
        answer = self._questions.get(question_id)
        if answer is None or answer.done():
            self._drop(message)
        elif isinstance(message, Failed):
            answer.set_exception(error_from_code(message.code, message.message))
        else:
            answer.set_result(message)

    def _finish(self, message: Finished | Failed) -> None:
        if isinstance(message, Failed) and message.id in self._questions:
            self._answer(message.id, message)
            return
        if isinstance(message, Finished):
            self._counters.ended(message.usage)
            self.completed += message.reason != "cancelled"
        stream = self._in_flight.pop(message.id, None)
        if stream is None:
            self._drop(message)
            return
        stream.put(message)
        self._on_change()

    def _drop(self, message: Message | Token) -> None:
        self.late_messages += 1
        logger.debug(
            "worker %d: dropped message %d that nobody waits for, a %s",
            self.settings.index, self.late_messages, type(message).__name__,
        )  # fmt: skip

    def _on_end(self) -> None:
        """Fail all requests: the worker will send nothing more."""
        for request_id, stream in self._in_flight.items():
            stream.put(Failed(request_id, WorkerDied.code, DIED))
        self._in_flight.clear()
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(WorkerDied(DIED))
        self._on_change()


def describe_ready(ready: Ready) -> str:
    """A log line: what was loaded, and how long that took."""
    info = ready.info
    return (
        f"loaded {info.architecture} on {info.engine} in {ready.load_s:.2f} s;"
        f" context {info.context} tokens, vocabulary {info.vocabulary},"
        f" {info.slots} slot{'s' * (info.slots != 1)}"
    )

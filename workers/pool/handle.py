"""One worker process as the front sees it: its queues, its state, its requests.

    submit, cancel ─▶ RequestSender ─▶ [request queue] ─▶ worker
    RequestStream.put ◀─ on_messages ◀─ TokenReceiver ◀─ [token queue] ◀─ worker

All state about a child lives here, and dies with it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess

from shared.errors import ConfigurationError, FrameError, WorkerDied, error_from_code
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
    Shutdown,
    Steps,
    Token,
    Tokenize,
    Tokenized,
    Tokens,
)
from shared.queues import RequestSender, TokenReceiver
from shared.settings import WorkerSettings
from shared.wire import PROTOCOL
from workers.entry import run_worker
from workers.pool.status import WorkerCounters
from workers.pool.stream import RequestStream

logger = logging.getLogger("tokenflume.pool")
BROKEN = "broken_frames"
"""The cause of death of a worker that said what none may."""


@dataclass(slots=True)
class HeldPrompt:
    """A saved prompt in a worker's memory."""

    tokens: int
    size: int
    """Bytes."""
    used_at: float
    """Seconds since 1970."""


class WorkerHandle:
    """Started with `start`. `ready` and `ended` are futures that tell its life.

    `ready` has the worker's Ready, or a ConfigurationError when its model
    cannot be loaded; it never completes for a worker that dies before.
    `ended` has the cause of death in words. `on_free_slot` is called when a
    request has left a live worker. `counters` are its place's.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        on_free_slot: Callable[[], None],
        counters: WorkerCounters,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.settings = settings
        self.ready: asyncio.Future[Ready] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()
        self.last_heard = loop.time()
        self.pid = 0
        self.prompts: dict[int, HeldPrompt] = {}
        """By id, those whose states are in the worker's memory."""
        self.late_messages = 0
        """Tokens and ends of requests that nobody waits for; dropped."""
        self._loop = loop
        self._on_free_slot = on_free_slot
        self._counters = counters
        self.loading = 0.0
        """The share of the model that is loaded, in [0, 1]."""
        self._in_flight: dict[int, RequestStream] = {}
        self._questions: dict[int, asyncio.Future[Tokenized]] = {}
        self.slots = 0
        """Requests that it can run at a time; 0 before it is ready."""
        self._kill_reason = ""
        self._exit_code: int | None = None  # known when the loop has told of the end
        self.cause = ""
        """Of its death, in a word, such as "sigkill"; empty while it lives."""
        self._receiver = TokenReceiver(self._on_messages, self._on_queue_end)
        self._sender: RequestSender
        self._process: SpawnProcess

    @classmethod
    async def start(
        cls,
        settings: WorkerSettings,
        on_free_slot: Callable[[], None],
        counters: WorkerCounters,
    ) -> WorkerHandle:
        """Spawn the process. Never forked: a fork would carry locks and dead thread pools."""
        handle = cls(settings, on_free_slot, counters)
        context = multiprocessing.get_context("spawn")
        requests_out, requests_in = context.Pipe(duplex=False)
        tokens_out, tokens_in = context.Pipe(duplex=False)
        handle._process = context.Process(
            target=run_worker,
            args=(settings, requests_out, tokens_in),
            name=f"tokenflume-worker-{settings.index}",
            daemon=True,
        )
        handle._process.start()
        handle.pid = handle._process.pid or 0
        requests_out.close()
        tokens_in.close()
        handle._loop.add_reader(handle._process.sentinel, handle._on_exit)
        handle._sender = await RequestSender.open(requests_in)
        await handle._receiver.open(tokens_out)
        return handle

    @property
    def is_ready(self) -> bool:
        """It can take requests: loaded, not being ended, and its queue open."""
        is_loaded = self.ready.done() and self.ready.exception() is None
        return is_loaded and not self._kill_reason and not self._receiver.is_at_end

    def makes_progress(self, silence_s: float) -> bool:
        """It is being loaded, or can take requests and was heard from within `silence_s` seconds.

        How long loading may take is the supervisor's to watch.
        """
        if not self.ready.done():
            return not self._kill_reason and not self._receiver.is_at_end
        return self.is_ready and self._loop.time() - self.last_heard < silence_s

    @property
    def in_flight(self) -> int:
        """Requests that hold one of the worker's slots."""
        return len(self._in_flight)

    @property
    def has_free_slot(self) -> bool:
        return self.is_ready and len(self._in_flight) < self.slots

    def submit(self, stream: RequestStream) -> None:
        self._in_flight[stream.request.id] = stream
        self._sender.send(stream.request)

    def cancel(self, request_id: int) -> None:
        """Ask for the end of a request; its slot is free when the worker confirms."""
        if request_id in self._in_flight:
            self._sender.send(Cancel(request_id))

    def drop_prompt(self, prompt_id: int) -> None:
        """Ask the worker to forget a saved prompt."""
        self._sender.send(DropPrompt(prompt_id))

    async def ask(self, question: Tokenize) -> Tokenized:
        """The worker's answer, between two steps. Raises ServingError."""
        answer: asyncio.Future[Tokenized] = self._loop.create_future()
        self._questions[question.id] = answer
        try:
            self._sender.send(question)
            return await answer
        finally:
            del self._questions[question.id]

    def kill(self, reason: str, cause: str) -> None:
        """End the process at once, whatever it does. `reason` and `cause`: of its death, in words
        and in a word; empty: they are its own.
        """
        if not self.ended.done():
            self._kill_reason = self._kill_reason or reason
            self.cause = self.cause or cause
            self._process.kill()

    async def until_ended(self) -> str:
        """The cause of death, when it comes; a waiter that is cancelled takes nobody with it."""
        return await asyncio.shield(self.ended)

    def shut_down(self) -> None:
        """Ask the process to end; see `ended`."""
        self._kill_reason = self._kill_reason or "shut down"
        self.cause = self.cause or "shutdown"
        self._sender.send(Shutdown())

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
                    self.loading = progress
                case Ready():
                    self._on_ready(message)
                case LoadFailed(message=text):
                    self.ready.set_exception(ConfigurationError(text))
                case _:
                    sentence = f"sent a {type(message).__name__}, which only the front may"
                    self.kill(sentence, BROKEN)

    def _on_ready(self, message: Ready) -> None:
        if message.protocol != PROTOCOL:
            self.kill(f"speaks protocol {message.protocol}, not {PROTOCOL}", BROKEN)
            return
        self.slots = message.info.slots
        self.ready.set_result(message)
        self._on_free_slot()

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
            self.kill("counts its steps in other buckets", BROKEN)

    def _answer(self, question_id: int, message: Tokenized | Failed) -> None:
        """Nobody may wait for it any more."""
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
        stream = self._in_flight.pop(message.id, None)
        if stream is None:
            self._drop(message)
            return
        stream.put(message)
        self._on_free_slot()

    def _drop(self, message: Message | Token) -> None:
        self.late_messages += 1
        logger.debug(
            "worker %d: dropped message %d that nobody waits for, a %s",
            self.settings.index, self.late_messages, type(message).__name__,
        )  # fmt: skip

    def _on_queue_end(self, error: FrameError | None) -> None:
        """Nothing more will come from the worker: it has died, or has lost its voice."""
        self.kill(f"sent a bad frame: {error}" if error else "", BROKEN if error else "")
        for request_id, stream in self._in_flight.items():
            stream.put(Failed(request_id, WorkerDied.code, "the worker of this request has died"))
        self._in_flight.clear()
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(WorkerDied("the worker of this request has died"))
        self._conclude()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._process.kill()  # it may have closed its descriptors and live on: do not wait for it
        self._process.join()
        self._exit_code = self._process.exitcode
        self._conclude()

    def _conclude(self) -> None:
        """Set `ended`, once the process is gone and all that it has sent is read.

        The exit code may be had before the loop has told of the end. But then the sentinel would be
        closed while the loop watches its number, and the next pipe of that number not be opened.
        """
        if self._exit_code is None or not self._receiver.is_at_end:
            return
        self._sender.close()
        reason = self._kill_reason or describe_exit(self._exit_code)
        self.cause = self.cause or exit_cause(self._exit_code)
        self._process.close()
        self.ended.set_result(reason)


def exit_cause(code: int) -> str:
    """An exit code of multiprocessing in a word: exit_1, sigkill."""
    return f"exit_{code}" if code >= 0 else signal.Signals(-code).name.lower()


def describe_exit(code: int) -> str:
    """An exit code of multiprocessing in words: negative is a signal."""
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name
    hint = ", as by the kernel's out-of-memory killer" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"

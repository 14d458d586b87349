"""The workers of one model. The front reaches them only through this class.

    submit ─▶ WaitingLine (bounded) ─▶ Router chooses a worker ─▶ WorkerHandle

A request waits in the front until a worker has a free slot. So a waiting request survives the death
of any worker, and a request whose client leaves while it waits never reaches a worker.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

from shared.errors import ConfigurationError, NotReady, QueueFull, Unsupported
from shared.messages import Embed, Failed, Generate, Tokenize, Tokenized
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.settings import PoolSettings
from shared.values import ModelInfo
from workers.entry import run_worker
from workers.pool.change import Change
from workers.pool.child_process import Target
from workers.pool.estimates import Pace, without_prefix
from workers.pool.handle import WorkerHandle
from workers.pool.routing import Router
from workers.pool.status import SHUTTING_DOWN, PoolStatus
from workers.pool.stream import RequestStream
from workers.pool.supervisor import Supervisor
from workers.pool.waiting import WaitingLine
from workers.prompts.files import SavedPromptInfo, delete_prompt, prompts_in

STOP_GRACE_S = 2.0
"""Seconds from asking a worker to end until it is killed."""
CUT_GRACE_S = 2.0
"""Seconds for relaying the failure of cut streams to their clients."""


class WorkerPool:
    """An asynchronous context: entering it starts the workers, leaving it ends them all.

    `target`: what worker processes run. `change`: what to notify of changes; pools of one catalog
    share it.
    """

    def __init__(
        self,
        settings: PoolSettings,
        *,
        target: Target = run_worker,
        change: Change | None = None,
    ) -> None:
        self._settings = settings
        self._target = target
        self._change = change or Change()
        self._waiting = WaitingLine()
        self._pace = Pace()
        self._running: dict[int, WorkerHandle] = {}  # by request id
        self._open: set[RequestStream] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ids = itertools.count(1)
        self._supervisor: Supervisor
        self._is_draining = False
        self._router: Router[WorkerHandle] = Router()

    async def __aenter__(self) -> WorkerPool:
        self._supervisor = Supervisor(self._settings, self._dispatch, self._target)
        self._supervisor.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._supervisor.stop(STOP_GRACE_S)

    def submit(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        prompt_id: int = 0,
        *,
        shows_control: bool = False,
        client: str = "",
    ) -> RequestStream:
        """Queue a request. Raises NotReady, Unsupported or QueueFull before anything is done.

        `client`: waiting requests of different clients are served in turn. The caller takes the
        stream's events and must call `release` in the end, also after an error.
        """
        model = self._ready_model()
        if beyond := sampling.beyond(model.sampling):
            raise Unsupported(f"the {model.engine} engine cannot honour {', '.join(beyond)}")
        request = Generate(next(self._ids), prompt, sampling, prompt_id, shows_control)
        return self._enqueue(request, client)

    def embed(self, prompt: Prompt, client: str = "") -> RequestStream:
        """As `submit`; the events are the prompt's vector instead of a continuation."""
        model = self._ready_model()
        if not model.embedding:
            raise Unsupported(f"the {model.engine} engine makes no embeddings")
        return self._enqueue(Embed(next(self._ids), prompt), client)

    async def tokenize(self, prompt: Prompt, *, is_start: bool) -> Tokenized:
        """The prompt's tokens and their bytes. Raises ServingError."""
        self._ready_model()
        handle = min(self._ready_handles(), key=lambda handle: handle.in_flight)
        return await handle.ask(Tokenize(next(self._ids), prompt, is_start))

    def _ready_model(self) -> ModelInfo:
        """The loaded model. Raises NotReady."""
        model = self._model()
        if self._is_draining or model is None:
            raise NotReady(self.status().why_not_ready or "no worker is ready yet")
        return model

    def _model(self) -> ModelInfo | None:
        """The loaded model; None before a worker is ready."""
        handles = self._ready_handles()
        return handles[0].ready.result().info if handles else None

    def _enqueue(self, request: Generate | Embed, client: str) -> RequestStream:
        stream = RequestStream(request, client)
        self._check_queue(stream)
        self._open.add(stream)
        self._idle.clear()
        self._waiting.add(stream)
        self._dispatch()
        return stream

    def _check_queue(self, stream: RequestStream) -> None:
        """Raises QueueFull if the stream would have to wait, and must not.

        A prompt of any length may wait if it is the only one.
        """
        if self._free_handles():
            return
        waiting, settings = len(self._waiting), self._settings
        if waiting >= settings.queue:
            raise self._queue_full(f"the queue is full: {waiting} requests wait")
        tokens = self._pace.tokens(self._waiting.characters + len(stream.key))
        if waiting and tokens > settings.queue_tokens:
            raise self._queue_full(
                f"the waiting prompts would have about {tokens} tokens, more than"
                f" {settings.queue_tokens}"
            )

    def _queue_full(self, reason: str) -> QueueFull:
        """The error, with the expected time until the waiting requests have been served."""
        slots = sum(handle.slots for handle in self._ready_handles())
        retry_after_s = self._pace.wait_s(len(self._waiting) + 1, slots)
        return QueueFull(f"every slot is taken, and {reason}", retry_after_s=retry_after_s)

    def release(self, stream: RequestStream) -> None:
        """End the use of a stream. Its request is cancelled if it still runs or waits."""
        stream.abandon()
        self._open.discard(stream)
        if not self._open:
            self._idle.set()
        handle = self._running.pop(stream.request.id, None)
        if handle is not None:
            self._learn(stream, handle)
            handle.cancel(stream.request.id)
        else:
            self._waiting.remove(stream)
            self._change.notify_all()

    def _learn(self, stream: RequestStream, handle: WorkerHandle) -> None:
        request, finished = stream.request, stream.finished
        if finished is None:
            return
        has_prefix = isinstance(request, Generate) and not request.prompt.is_whole
        own = without_prefix(finished, handle.prefix_tokens if has_prefix else 0)
        self._router.learn(stream.key, own)
        self._pace.learn(len(stream.key), own)

    def status(self) -> PoolStatus:
        """The pool and its workers as they are now."""
        return PoolStatus(
            model=self._model(),
            workers=tuple(worker.status for worker in self._supervisor.workers),
            waiting=len(self._waiting),
            is_draining=self._is_draining,
        )

    async def until_change(self) -> None:
        """Return when `status` has changed, but for counters and silence; see `Change`.

        It may also return when nothing has changed.
        """
        await self._change.wait()

    async def saved_prompts(self) -> list[SavedPromptInfo]:
        """The prompts that clients saved, in workers' memory and in files, ordered by id."""
        found: dict[int, SavedPromptInfo] = {}
        if self._folder is not None:
            found = await asyncio.to_thread(prompts_in, self._folder)
        in_memory: dict[int, list[WorkerHandle]] = {}
        for handle in self._ready_handles():
            for prompt_id in handle.prompts:
                in_memory.setdefault(prompt_id, []).append(handle)
        for prompt_id, handles in in_memory.items():
            held = max((h.prompts[prompt_id] for h in handles), key=lambda held: held.used_at)
            found[prompt_id] = SavedPromptInfo(
                prompt_id, held.tokens, held.size, held.used_at, len(handles), prompt_id in found
            )
        return [found[prompt_id] for prompt_id in sorted(found)]

    async def drop_prompt(self, prompt_id: int) -> bool:
        """Delete a saved prompt everywhere; return whether there was one."""
        handles = self._ready_handles()
        is_known = any(prompt_id in handle.prompts for handle in handles)
        for handle in handles:
            handle.prompts.pop(prompt_id, None)
            handle.drop_prompt(prompt_id)
        if self._folder is not None:
            is_known |= await asyncio.to_thread(delete_prompt, self._folder, prompt_id)
        return is_known

    @property
    def _folder(self) -> Path | None:
        return self._settings.workers[0].cache.folder

    async def until_ready(self, count: int = 1) -> str | None:
        """Wait until `count` workers are ready: None. If all are given up: why, in a sentence."""
        while len(self._ready_handles()) < count and not self._supervisor.is_lost:
            await self.until_change()
        return self.status().why_not_ready

    async def load_failure(self) -> ConfigurationError:
        """Returns if the model cannot be loaded at start. There is then nothing to serve."""
        return await asyncio.shield(self._supervisor.load_failure)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, and return when all others have ended.

        Requests that have not ended after `timeout_s` seconds fail, with the reason.
        """
        self._is_draining = True
        self._change.notify_all()
        if await self._until_idle(timeout_s):
            return
        self._fail(list(self._open), SHUTTING_DOWN)
        await self._until_idle(CUT_GRACE_S)

    async def _until_idle(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def kill_workers(self) -> None:
        """SIGKILL all workers; their streams are cut."""
        self._supervisor.kill_all()

    def _ready_handles(self) -> list[WorkerHandle]:
        handles = (worker.handle for worker in self._supervisor.workers)
        return [handle for handle in handles if handle is not None and handle.is_ready]

    def _free_handles(self) -> list[WorkerHandle]:
        return [handle for handle in self._ready_handles() if handle.has_free_slot]

    def _dispatch(self) -> None:
        """Give waiting requests to free slots. Called whenever a request or a worker changes."""
        self._change.notify_all()
        while self._waiting and (free := self._free_handles()):
            stream = self._waiting.take()
            handle = self._choose(free, stream)
            self._running[stream.request.id] = handle
            stream.dispatched(handle.settings.index)
            handle.submit(stream)
        if self._waiting and self._supervisor.is_lost:
            self._fail(self._waiting.take_all(), self.status().why_not_ready or "")

    def _choose(self, free: list[WorkerHandle], stream: RequestStream) -> WorkerHandle:
        """Choose one of the free workers for the request.

        Workers that hold the request's saved prompt come first; among them, or among all, the
        router decides. An Embed reuses nothing, so it goes to the worker with the fewest requests.
        """
        request = stream.request
        if isinstance(request, Embed):
            return min(free, key=lambda handle: handle.in_flight)
        self._router.keep_only(self._ready_handles())
        holding = [handle for handle in free if request.prompt_id in handle.prompts]
        for handle in holding:
            handle.prompts[request.prompt_id].used_at = time.time()
        busy = {handle: handle.in_flight for handle in holding or free}
        handle = self._router.choose(busy, stream.key)
        self._router.sent(handle, stream.key)
        return handle

    @staticmethod
    def _fail(streams: list[RequestStream], reason: str) -> None:
        for stream in streams:
            stream.put(Failed(stream.request.id, NotReady.code, reason))

"""The tasks of one answer, on their way through a pool."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

from server.generation.task import Embedding, Task
from server.http.errors import DeadlineExceeded
from shared.errors import QueueFull
from shared.messages import Failed, Finished
from workers.pool.pool import WorkerPool
from workers.pool.stream import Event, RequestStream

AT_ONCE = 32
"""Tasks of one answer that may be in the pool at the same time, waiting or running."""
EXPIRED = "the request was not answered within its timeout_s"


class Submission:
    """Submits the tasks of one request: at most AT_ONCE at a time, so that it cannot fill the
    queue.

    `client`: who makes the request; see WorkerPool.submit.
    """

    def __init__(self, tasks: Sequence[Task], pool: WorkerPool, client: str) -> None:
        self.tasks = tasks
        self._pool = pool
        self._client = client
        self._running = 0
        self.streams: list[RequestStream] = []
        """The streams of the tasks that were submitted, in the tasks' order."""

    @property
    def is_done(self) -> bool:
        return not self._running and len(self.streams) == len(self.tasks)

    def begin(self) -> None:
        """Submit as many tasks as are allowed at a time. Raises ServingError.

        A full queue is an error only while none of them runs: otherwise the end of one that runs
        is the time to try again.
        """
        try:
            while self._running < AT_ONCE and len(self.streams) < len(self.tasks):
                self.streams.append(self._submit(self.tasks[len(self.streams)]))
                self._running += 1
        except QueueFull:
            if not self._running:
                raise

    def ended(self) -> None:
        """One of the tasks has ended, so others may begin. Raises ServingError."""
        self._running -= 1
        self.begin()

    def expire(self) -> None:
        """The deadline has passed: fail the tasks that are still open."""
        for stream in self.streams:
            stream.put(Failed(stream.request.id, DeadlineExceeded.code, EXPIRED))

    def release(self) -> None:
        """Nobody waits for the tasks any more: cancel those that are still open."""
        for stream in self.streams:
            self._pool.release(stream)

    async def events(self) -> AsyncIterator[tuple[int, list[Event]]]:
        """The events of all streams as they come, each with its task's index, until one fails."""
        if len(self.tasks) == 1:  # the usual case needs no asyncio tasks
            while not isinstance((events := await self.streams[0].take())[-1], Finished | Failed):
                yield 0, events
            yield 0, events
            return
        takers: dict[asyncio.Task[list[Event]], int] = {}
        known = 0
        try:
            while not self.is_done:
                for index in range(known, len(self.streams)):
                    takers[asyncio.create_task(self.streams[index].take())] = index
                known = len(self.streams)
                done, _ = await asyncio.wait(takers, return_when=asyncio.FIRST_COMPLETED)
                for taker in sorted(done, key=takers.__getitem__):
                    index, events = takers.pop(taker), taker.result()
                    if not isinstance(events[-1], Finished | Failed):
                        takers[asyncio.create_task(self.streams[index].take())] = index
                    yield index, events
        finally:
            for taker in takers:
                taker.cancel()

    def _submit(self, task: Task) -> RequestStream:
        if isinstance(task, Embedding):
            return self._pool.embed(task.prompt, self._client)
        return self._pool.submit(
            task.prompt,
            task.sampling,
            task.prompt_id,
            shows_control=task.shows_control,
            client=self._client,
        )


@contextlib.contextmanager
def submitted(submission: Submission, deadline: float | None = None) -> Iterator[None]:
    """Begin the submission; on leaving, release all of it. Raises ServingError.

    `deadline`: in the loop's time.
    """
    timer = None
    try:
        submission.begin()
        if deadline is not None:
            timer = asyncio.get_running_loop().call_at(deadline, submission.expire)
        yield
    finally:
        if timer is not None:
            timer.cancel()
        submission.release()

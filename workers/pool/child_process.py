"""One worker process: spawn it, exchange messages with it, end it, and learn why it ended.

send ─▶ RequestSender ─▶ [request queue] ─▶ worker
on_messages ◀─ TokenReceiver ◀─ [token queue] ◀─ worker
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from shared.errors import FrameError
from shared.messages import Message, Shutdown
from shared.queues import RequestSender, TokenReceiver
from shared.settings import WorkerSettings

Target = Callable[[WorkerSettings, Connection, Connection], None]
"""The function that a worker process runs, with its settings and its ends of the request queue and
of the token queue. It must be picklable. `workers.entry.run_worker` unless a caller chooses."""

BROKEN = "broken_frames"
"""The cause of death of a worker that sent something it must not send."""


@dataclass(frozen=True, slots=True)
class Death:
    """Why a process ended."""

    cause: str
    """In a word, for metrics: "sigkill", "exit_1"."""
    reason: str
    """In words that follow the worker's name, for the log."""


SHUT_DOWN = Death("shutdown", "was shut down")


class ChildProcess:
    """A spawned process and the front's ends of its two queues. Call `start` once.

    `on_messages` gets each batch that the process sends. `on_end` is called once, after the last
    batch. `ended` gets the Death when the process is gone and all that it sent is read.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        target: Target,
        on_messages: Callable[[list[Message]], None],
        on_end: Callable[[], None],
    ) -> None:
        self.pid = 0
        self.ended: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._target = target
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._death: Death | None = None  # known before the process ended, because we ended it
        self._exit_code: int | None = None
        self._receiver = TokenReceiver(on_messages, self._on_queue_end)
        self._sender: RequestSender
        self._process: SpawnProcess

    async def start(self) -> None:
        """Spawn the process. Raises OSError.

        It is never forked: a fork would inherit held locks and thread pools without threads.
        """
        context = multiprocessing.get_context("spawn")
        requests_out, requests_in = context.Pipe(duplex=False)
        tokens_out, tokens_in = context.Pipe(duplex=False)
        self._process = context.Process(
            target=self._target,
            args=(self._settings, requests_out, tokens_in),
            name=f"tokenflume-worker-{self._settings.index}",
            daemon=True,
        )
        self._process.start()
        self.pid = self._process.pid or 0
        requests_out.close()
        tokens_in.close()
        self._loop.add_reader(self._process.sentinel, self._on_exit)
        try:
            self._sender = await RequestSender.open(requests_in)
            await self._receiver.open(tokens_out)
        except OSError:
            self._process.kill()  # it could not be reached
            raise

    @property
    def is_open(self) -> bool:
        """The process can serve: nobody is ending it, and its token queue is open."""
        return self._death is None and not self._receiver.is_at_end

    def send(self, message: Message) -> None:
        """Put a message on the request queue; nothing happens if the process is gone."""
        self._sender.send(message)

    def shut_down(self) -> None:
        """Ask the process to end; see `ended`."""
        self._death = self._death or SHUT_DOWN
        self.send(Shutdown())

    def kill(self, death: Death | None = None) -> None:
        """SIGKILL the process. `death`: why; None: its exit code says why."""
        if not self.ended.done():
            self._death = self._death or death
            self._process.kill()

    async def until_ended(self) -> Death:
        """Wait for `ended`. Cancelling the caller does not cancel the future."""
        return await asyncio.shield(self.ended)

    def _on_queue_end(self, error: FrameError | None) -> None:
        """Nothing more will come: the process has died, has closed the queue or sent nonsense."""
        self.kill(Death(BROKEN, f"sent a bad frame: {error}") if error else None)
        try:
            self._on_end()
        finally:
            self._conclude()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._process.kill()  # it may have closed its descriptors and live on: do not wait for it
        self._process.join()
        self._exit_code = self._process.exitcode
        self._conclude()

    def _conclude(self) -> None:
        """Set `ended`, once the process is gone and all that it sent is read.

        The exit code is only taken in `_on_exit`, though it may be known earlier. Otherwise the
        sentinel would be closed while the loop still watches its number, and the next pipe that
        gets the same number could not be opened.
        """
        if self._exit_code is None or not self._receiver.is_at_end:
            return
        self._sender.close()
        self._process.close()
        self.ended.set_result(self._death or death_of(self._exit_code))


def death_of(code: int) -> Death:
    """What an exit code of multiprocessing means; a negative one is a signal's number."""
    if code >= 0:
        return Death(f"exit_{code}", f"exited with status {code}")
    name = signal.Signals(-code).name
    hint = ", as by the kernel's out-of-memory killer" if -code == signal.SIGKILL else ""
    return Death(name.lower(), f"was ended by {name}{hint}")

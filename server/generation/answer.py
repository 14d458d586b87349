"""What a dialect makes of a request's body, and of the events that answer it; all without I/O.

body ─▶ Parse ─▶ Call ─▶ Call.answer(model) ─▶ Answer: tasks for workers, and a renderer
events ─▶ Renderer ─▶ bytes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.generation.served_model import ServedModel
from server.generation.task import Task
from shared.errors import ServingError
from shared.messages import Finished, Token


class Renderer:
    """Turns the events of one answer into bytes, in the order of the calls. It may keep state.

    `index` is the task's position in the answer. A method that is not overridden adds nothing.
    """

    media_type = "application/json"
    is_stream = True
    """Bytes are sent as they come, so a failure after the first byte cannot be a status any more.
    False: all bytes are sent together at the end."""

    def begin(self) -> bytes:
        """The first bytes of the answer. Called once, together with the first event."""
        return b""

    def tokens(self, index: int, tokens: Sequence[Token]) -> bytes:
        """Tokens that are sent together."""
        return b""

    def embedded(self, index: int, vector: bytes) -> bytes:
        """A vector: little-endian float32 numbers."""
        return b""

    def finished(self, index: int, event: Finished, queued_s: float) -> bytes:
        """The end of a task, which waited `queued_s` seconds for its slot."""
        return b""

    def end(self) -> bytes:
        """The last bytes, after the last event of all tasks."""
        return b""

    def failed(self, error: ServingError) -> bytes | None:
        """An error after the first byte. None: the format has none; the connection is cut."""
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the workers do for a request, and how their events are rendered."""

    tasks: tuple[Task, ...]
    """Empty: the answer is what the renderer begins and ends with."""
    renderer: Renderer


@dataclass(frozen=True, slots=True)
class Call:
    """What a body asks for, as far as it is known before its model is loaded."""

    model: str | None
    """The model's name; None: the server's default."""
    answer: Callable[[ServedModel], Answer]
    """Raises ServingError."""
    timeout_s: float | None = None
    """Seconds from the request's arrival to its deadline; None: no deadline."""
    is_chat: bool = False
    """`answer` renders a chat template, which may take seconds."""


Parse = Callable[[bytes, Mapping[str, str]], Call]
"""(body, headers) to a Call; raises ServingError."""

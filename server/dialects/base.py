"""What a dialect is: a wire format as pure functions of bytes and events, without I/O.

body ─▶ Parse ─▶ Call ─▶ Call.answer(model) ─▶ Answer: tasks for workers, and a renderer
events ─▶ Renderer ─▶ bytes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from server.http.openapi import ERROR, Operations
from shared.errors import ServingError
from shared.messages import Finished, Token
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.validation import Schema
from shared.values import ModelInfo

if TYPE_CHECKING:
    from server.chat import ChatFormat
    from server.chat.system_prompts import SystemPrompts
    from server.generation.models import Models


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a dialect may know of the model that a request names, once it is loaded."""

    name: str
    info: ModelInfo
    defaults: SamplingParams
    """Where a request does not say."""
    chat: ChatFormat
    system: SystemPrompts

    def with_system(
        self, messages: Sequence[Mapping[str, Any]], system: str | None = None
    ) -> list[Mapping[str, Any]]:
        """The chat, with a system prompt in front if it has none.

        `messages`: as server.chat.messages has them. `system`: the prompt's name or its text;
        None: the server's; "": none.
        """
        has_one = any(message["role"] == "system" for message in messages)
        found = None if has_one else self.system.resolve(system)
        return [{"role": "system", "content": found}, *messages] if found else list(messages)

    def reply(
        self, messages: Sequence[Mapping[str, Any]], sampling: SamplingParams, **template: Any
    ) -> Generation:
        """The task of writing the next message of a chat. `template`: as ChatFormat.render.

        Raises InvalidRequest for messages that the model's template does not take.
        """
        prompt = self.chat.render(messages, **template)
        return Generation(prompt, replace(sampling, stop=(*sampling.stop, *self.chat.stop)))


@dataclass(frozen=True, slots=True)
class Generation:
    """A task for a worker: continue the prompt."""

    prompt: Prompt
    sampling: SamplingParams
    prompt_id: int = 0
    """The client's name for the prompt, to save its state under; 0: none."""
    shows_control: bool = False
    """The text has the names of the control tokens that the model writes."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A task for a worker: turn the prompt into a vector."""

    prompt: Prompt


Task = Generation | Embedding


class Renderer:
    """One answer's events as bytes, in the order of the calls. It may keep state between them.

    `index` is the place of the task in its answer. What is left alone adds nothing.
    """

    media_type = "application/json"
    is_stream = True
    """Bytes leave as they come, and a failure after the first cannot be a status any more. Else
    all of them leave together at the end."""

    def begin(self) -> bytes:
        """What stands before all else. Asked for once, with the first event's bytes."""
        return b""

    def tokens(self, index: int, tokens: Sequence[Token]) -> bytes:
        """Tokens that leave together."""
        return b""

    def embedded(self, index: int, vector: bytes) -> bytes:
        """A vector: little-endian float32 numbers."""
        return b""

    def finished(self, index: int, event: Finished, queued_s: float) -> bytes:
        """The end of a task; `queued_s` is how long it waited for its slot, in seconds."""
        return b""

    def end(self) -> bytes:
        """After the last event of all tasks."""
        return b""

    def failed(self, error: ServingError) -> bytes | None:
        """An error after the first byte; None where only cutting the stream can tell it."""
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """What workers are to do for a request, and how it is to look. No tasks: nothing to do."""

    tasks: tuple[Task, ...]
    renderer: Renderer


@dataclass(frozen=True, slots=True)
class Call:
    """What a body asks for, as far as it can be told without its model."""

    model: str | None
    """Its name; None: the server's default."""
    answer: Callable[[ServedModel], Answer]
    """Raises ServingError."""
    timeout_s: float | None = None
    """Seconds from the request's arrival in which it is to be answered; None: no matter when."""


Parse = Callable[[bytes, Mapping[str, str]], Call]
"""(body, headers) to a Call; raises ServingError."""


def no_routes(models: Models) -> Sequence[BaseRoute]:
    """Of a dialect that has none but its POST paths."""
    return ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """A wire format: its POST paths, its errors before the first byte, and its other routes."""

    name: str
    paths: Mapping[str, Parse]
    error_body: Callable[[ServingError], bytes]
    """JSON, sent with the error's status."""
    prefix: str | None = None
    """Of its paths; errors of unknown paths that begin so look like its, too. None: it has none."""
    routes: Callable[[Models], Sequence[BaseRoute]] = no_routes
    """Lists of models and the like: whatever is no work for a worker's slots."""
    operations: Operations = field(default_factory=dict)
    """Of all its paths and routes, for /openapi.json."""
    error_schema: Schema = field(default_factory=lambda: ERROR)
    """Of `error_body`."""
    statuses: Mapping[int, int] = field(default_factory=dict)
    """By our own HTTP status: which one its clients expect in its place."""

"""POST /v1/chat/completions: a conversation, and its next message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from server.dialects.base import Answer, Call, ServedModel
from server.dialects.openai.answers import (
    Choice,
    Head,
    Json,
    StreamRenderer,
    Totals,
    WholeRenderer,
    finite,
    repeated,
)
from server.dialects.openai.fields import Common, Fields, about, json_object, only, take_common
from shared.errors import InvalidRequest
from shared.messages import Candidate, Finished, Logprobs, Token
from shared.sampling import MAX_LOGPROBS
from shared.validation import MAX_INTEGER, boolean, integer, text

KIND = "chat.completion"
CHUNK = "chat.completion.chunk"


def parse_chat(body: bytes, headers: Mapping[str, str]) -> Call:
    """A /v1/chat/completions body. Raises InvalidRequest, naming the field."""
    fields = Fields(body)
    messages = fields.need("messages", _messages)
    system = fields.take("system", text, None)
    if system is not None and any(message.get("role") in SYSTEM_ROLES for message in messages):
        raise InvalidRequest("system: there is a system message among messages already", "system")
    variables = fields.take("chat_template_kwargs", json_object, {})
    for name, check in VARIABLES.items():
        if name in fields:
            variables = {**variables, name: fields.need(name, check)}
    for name, values in NEUTRAL.items():
        fields.take(name, only(*values), None)
    known: dict[str, tuple[str, Any]] = {}
    top = fields.take("top_logprobs", lambda n, value: integer(n, value, 0, MAX_LOGPROBS), None)
    if fields.take("logprobs", boolean, False):
        known["logprobs"] = "logprobs", top or 0
    elif top is not None:
        raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    common = take_common(fields, "max_tokens", "max_completion_tokens", **known)
    request = ChatRequest(common, tuple(messages), system, variables)
    return Call(common.model, request.answer)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A body that has been read."""

    common: Common
    messages: tuple[Mapping[str, Any], ...]
    system: str | None
    """The name or the text of a system prompt; None: the server's, if messages have none."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """For the chat template."""

    def answer(self, served: ServedModel) -> Answer:
        """Raises ServingError."""
        common = self.common
        params = common.params(served, MAX_INTEGER)
        with about("messages"):
            task = served.reply(
                self._with_system(served),
                params,
                continues=self.messages[-1]["role"] == "assistant",
                variables=self.variables,
            )
        tasks = repeated(replace(task, cache=common.cache), common.n)
        shows_logprobs = params.logprobs is not None
        choices = [ChatChoice(index, shows_logprobs=shows_logprobs) for index in range(common.n)]
        head, totals = Head.of(served.name, "chatcmpl-"), Totals(common.n)
        if common.is_stream:
            has_usage = common.has_usage
            return Answer(tasks, StreamRenderer(head, CHUNK, choices, totals, has_usage=has_usage))
        return Answer(tasks, WholeRenderer(head, KIND, choices, totals))

    def _with_system(self, served: ServedModel) -> list[Mapping[str, Any]]:
        if any(message.get("role") in SYSTEM_ROLES for message in self.messages):
            return list(self.messages)
        system = served.system.resolve(self.system)
        first = [{"role": "system", "content": system}] if system else []
        return [*first, *self.messages]


class ChatChoice(Choice):
    """The next message."""

    def __init__(self, index: int, *, shows_logprobs: bool) -> None:
        self._index = index
        self._shows_logprobs = shows_logprobs
        self._texts: list[str] = []
        self._logprobs: list[Json] = []
        self._reason = ""

    def begin(self) -> list[Json]:
        return [self._piece({"role": "assistant", "content": ""})]

    def token(self, token: Token) -> list[Json]:
        logprobs = [] if token.logprobs is None else [_logprobs(token.text, token.logprobs)]
        self._logprobs += logprobs
        deltas: list[Json] = [{"content": token.text}] if token.text else []
        self._texts.append(token.text)
        if logprobs and not deltas:
            deltas = [{"content": ""}]
        return [
            self._piece(delta, logprobs if place == 0 else None)
            for place, delta in enumerate(deltas)
        ]

    def finished(self, event: Finished) -> list[Json]:
        self._reason = event.reason
        return [{**self._piece({}), "finish_reason": self._reason}]

    def whole(self) -> Json:
        message = {"role": "assistant", "content": "".join(self._texts), "refusal": None}
        return {
            "index": self._index,
            "message": message,
            "logprobs": self._shown(self._logprobs),
            "finish_reason": self._reason,
        }

    def _piece(self, delta: Json, logprobs: list[Json] | None = None) -> Json:
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": self._shown(logprobs) if logprobs else None,
            "finish_reason": None,
        }

    def _shown(self, logprobs: list[Json]) -> Json | None:
        return {"content": logprobs, "refusal": None} if self._shows_logprobs else None


def _logprobs(text: str, logprobs: Logprobs) -> Json:
    """The `bytes` of all tokens together are the answer's text: those of a token that ends within
    a character are with the token that completes it."""
    return {
        "token": text,
        "logprob": finite(logprobs.logprob),
        "bytes": list(text.encode()),
        "top_logprobs": [_candidate(candidate) for candidate in logprobs.top],
    }


def _candidate(candidate: Candidate) -> Json:
    return {
        "token": candidate.piece.decode(errors="replace"),
        "logprob": finite(candidate.logprob),
        "bytes": list(candidate.piece),
    }


def _messages(name: str, value: Any) -> list[Mapping[str, Any]]:
    return list(value)


SYSTEM_ROLES = ("system", "developer")
VARIABLES = {"enable_thinking": boolean, "reasoning_effort": text}
"""Fields that are variables of chat templates."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
"""What is not supported, with the values that ask for nothing."""

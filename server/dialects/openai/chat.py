"""POST /v1/chat/completions: a conversation, and its next message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.chat.conversation import MESSAGES, check_texts
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
from server.dialects.openai.fields import COMMON, Common, only, take_common
from server.dialects.openai.tools import TOOLS, Reader, ToolUse, merged, take_tools
from server.generation.answer import Answer, Call
from server.generation.served_model import ServedModel
from server.http.fields import PLAIN_TEXT, Form, about, json_object
from shared.errors import InvalidRequest
from shared.messages import Finished, Token
from shared.sampling import MAX_LOGPROBS
from shared.validation import BOOLEAN, MAX_INTEGER, TEXT, Check, integers
from shared.values import Candidate, Logprobs

KIND = "chat.completion"
CHUNK = "chat.completion.chunk"


def parse_chat(body: bytes, headers: Mapping[str, str]) -> Call:
    """Parse a body of /v1/chat/completions. Raises InvalidRequest, which names the field."""
    given = CHAT.read(body)
    messages, system = given.pop("messages"), given.pop("system", None)
    if system is not None and _has_system(messages):
        raise InvalidRequest("system: messages contain a system message already", field="system")
    variables = given.pop("chat_template_kwargs", {})
    variables = {**variables, **{name: given.pop(name) for name in VARIABLES if name in given}}
    known: dict[str, tuple[str, Any]] = {}
    shows_logprobs, top = given.pop("logprobs", False), given.pop("top_logprobs", None)
    if shows_logprobs:
        known["logprobs"] = "logprobs", top or 0
    elif top is not None:
        raise InvalidRequest("top_logprobs needs logprobs to be true", field="top_logprobs")
    tools = take_tools(given)
    if tools is not None and tools.schema is not None:
        known["json_schema"] = "tool_choice", tools.schema
    common = take_common(given, "max_tokens", "max_completion_tokens", **known)
    request = ChatRequest(common, messages, system, variables, tools)
    return Call(common.model, request.answer, common.timeout_s, is_chat=True)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked body."""

    common: Common
    messages: Sequence[Mapping[str, Any]]
    system: str | None
    """Name or text of a system prompt; None: the server's, if messages have none."""
    variables: Mapping[str, Any]
    """Variables for the chat template."""
    tools: ToolUse | None

    def answer(self, served: ServedModel) -> Answer:
        """Raises ServingError."""
        common = self.common
        params = common.params(served, MAX_INTEGER)
        with about("messages"):
            task = served.reply(
                served.with_system(self.messages, self.system),
                params,
                tools=None if self.tools is None else self.tools.tools,
                continues=self.messages[-1]["role"] == "assistant",
                variables=self.variables,
            )
        if self.tools is not None:
            shows_control = self.tools.format(served.chat.tool_format).shows_control
            task = replace(task, shows_control=shows_control)
        tasks = repeated(replace(task, prompt_id=common.prompt_id), common.n)
        choices = [ChatChoice(index, self._reader(served)) for index in range(common.n)]
        head, totals = Head.of(served.name, "chatcmpl-"), Totals(common.n)
        if common.is_stream:
            has_usage = common.has_usage
            return Answer(tasks, StreamRenderer(head, CHUNK, choices, totals, has_usage=has_usage))
        return Answer(tasks, WholeRenderer(head, KIND, choices, totals))

    def _reader(self, served: ServedModel) -> Reader:
        return Reader() if self.tools is None else self.tools.reader(served.chat.tool_format)


def _has_system(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(message["role"] == "system" for message in messages)


class ChatChoice(Choice):
    """The next message of a chat."""

    def __init__(self, index: int, reader: Reader) -> None:
        self._index = index
        self._reader = reader
        self._deltas: list[Json] = []
        self._logprobs: list[Json] = []
        self._reason = ""

    def begin(self) -> list[Json]:
        return [self._piece({"role": "assistant", "content": ""})]

    def token(self, token: Token) -> list[Json]:
        deltas = self._reader.feed(token.text)
        self._deltas += deltas
        if token.logprobs is None:
            return [self._piece(delta) for delta in deltas]
        logprobs = _logprobs(token.text, token.logprobs)
        self._logprobs.append(logprobs)
        first, *others = deltas or [{"content": ""}]
        return [self._piece(first, [logprobs]), *map(self._piece, others)]

    def finished(self, event: Finished) -> list[Json]:
        deltas = self._reader.finish()
        self._deltas += deltas
        is_call = event.reason == "stop" and self._reader.has_calls
        self._reason = "tool_calls" if is_call else event.reason
        end = {**self._piece({}), "finish_reason": self._reason}
        return [*map(self._piece, deltas), end]

    def whole(self) -> Json:
        return {
            "index": self._index,
            "message": merged(self._deltas),
            "logprobs": _shown(self._logprobs),
            "finish_reason": self._reason,
        }

    def _piece(self, delta: Json, logprobs: Sequence[Json] = ()) -> Json:
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": _shown(logprobs),
            "finish_reason": None,
        }


def _shown(logprobs: Sequence[Json]) -> Json | None:
    return {"content": logprobs, "refusal": None} if logprobs else None


def _logprobs(text: str, logprobs: Logprobs) -> Json:
    """A token's log probabilities. The `bytes` of all tokens together are the answer's text, so the
    bytes of a token that ends within a character belong to the token that completes it."""
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


def _variables(name: str, value: Any) -> Mapping[str, Any]:
    check_texts(name, value)
    return json_object(name, value)


VARIABLES: Mapping[str, Check[Any]] = {"enable_thinking": BOOLEAN, "reasoning_effort": TEXT}
"""The fields that are variables of chat templates."""
CHAT = Form(
    {
        "messages": MESSAGES,
        **COMMON,
        **TOOLS,
        **VARIABLES,
        "max_completion_tokens": integers(1).saying("Same as num_predict."),
        "system": PLAIN_TEXT.saying(
            "Name or text of a system prompt; empty: without the server's default."
        ),
        "chat_template_kwargs": Check({"type": "object"}, _variables),
        "logprobs": BOOLEAN.saying("Report each token's log probability."),
        "top_logprobs": integers(0, MAX_LOGPROBS).saying(
            "Number of most likely tokens whose log probabilities are reported, too."
        ),
        # Not supported, except for values that have no effect.
        "modalities": only(["text"]),
        "verbosity": only("medium"),
        "functions": only([]),
        "function_call": only("none", "auto"),
        "audio": only(),
        "prediction": only(),
        "web_search_options": only(),
    },
    needed=("messages",),
)

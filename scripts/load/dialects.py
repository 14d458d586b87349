"""The APIs that can be tested: how each is asked, and how its answers are read.

To add one, add a row to a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.load.bodies.body import Body
from scripts.load.bodies.objects import (
    ChatObject,
    ChattedObject,
    CompletionObject,
    GeneratedObject,
    OllamaVector,
    TokenIds,
    Vector,
)
from scripts.load.bodies.streams import (
    Chat,
    Chatted,
    Completion,
    Generated,
    PlainLines,
    RawText,
    TokenLines,
)
from scripts.load.request import Request

TEXT = "text/plain"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of request of one API."""

    path: str
    media_type: str
    """Media type of the answer: sent as Accept, and checked."""
    fields: Callable[[Request], dict[str, Any]]
    """The fields of a request's body."""
    body: type[Body]
    """Reads an answer."""
    takes_messages: bool = False
    endless: Mapping[str, Any] = field(default_factory=dict)
    """Fields that keep the model from ending an answer early; empty: the API has none."""


def stream_fields(request: Request) -> dict[str, Any]:
    """The fields of POST /stream."""
    return {"prompt": request.prompt, "num_predict": request.tokens, "seed": request.seed}


def query_fields(request: Request) -> dict[str, Any]:
    """The fields of POST /token_stream."""
    return {"query": request.prompt, "num_predict": request.tokens, "seed": request.seed}


def completion_fields(request: Request) -> dict[str, Any]:
    """The fields of OpenAI's completions."""
    return {"prompt": request.prompt, **_openai(request)}


def chat_fields(request: Request) -> dict[str, Any]:
    """The fields of OpenAI's chat completions."""
    return {"messages": messages_of(request), **_openai(request)}


def _openai(request: Request) -> dict[str, Any]:
    return {
        "max_tokens": request.tokens,
        "seed": request.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def generate_fields(request: Request) -> dict[str, Any]:
    """The fields of Ollama's generate."""
    return {"prompt": request.prompt, **_ollama(request)}


def ollama_chat_fields(request: Request) -> dict[str, Any]:
    """The fields of Ollama's chat."""
    return {"messages": messages_of(request), **_ollama(request)}


def _ollama(request: Request) -> dict[str, Any]:
    return {"stream": True, "options": {"num_predict": request.tokens, "seed": request.seed}}


def input_fields(request: Request) -> dict[str, Any]:
    """The fields of embeddings, of OpenAI and Ollama."""
    return {"input": request.prompt}


def content_fields(request: Request) -> dict[str, Any]:
    """The fields of POST /tokenize."""
    return {"content": request.prompt}


def unstreamed(
    fields: Callable[[Request], dict[str, Any]],
) -> Callable[[Request], dict[str, Any]]:
    """The same fields, for an answer in one piece."""

    def changed(request: Request) -> dict[str, Any]:
        asked = {**fields(request), "stream": False}
        asked.pop("stream_options", None)
        return asked

    return changed


def messages_of(request: Request) -> list[Mapping[str, Any]]:
    """The request's chat, or a chat whose only message is its prompt."""
    return list(request.messages) or [{"role": "user", "content": request.prompt}]


ENDLESS = {"ignore_eos": True}
"""llama-server and vLLM have this field too."""

STREAMING: Mapping[str, Dialect] = {
    "stream": Dialect("/stream", NDJSON, stream_fields, TokenLines, endless=ENDLESS),
    "stream-plain": Dialect("/stream", TEXT, stream_fields, PlainLines, endless=ENDLESS),
    "token-stream": Dialect("/token_stream", TEXT, query_fields, RawText, endless=ENDLESS),
    "openai": Dialect("/v1/completions", EVENTS, completion_fields, Completion, endless=ENDLESS),
    "openai-chat": Dialect(
        "/v1/chat/completions", EVENTS, chat_fields, Chat, takes_messages=True, endless=ENDLESS
    ),
    "ollama": Dialect("/api/generate", NDJSON, generate_fields, Generated),
    "ollama-chat": Dialect("/api/chat", NDJSON, ollama_chat_fields, Chatted, takes_messages=True),
}
"""Requests whose answers are streamed."""
UNSTREAMED: Mapping[str, Dialect] = {
    "openai-unstreamed": Dialect(
        "/v1/completions", JSON, unstreamed(completion_fields), CompletionObject, endless=ENDLESS
    ),
    "openai-chat-unstreamed": Dialect(
        "/v1/chat/completions", JSON, unstreamed(chat_fields), ChatObject, True, ENDLESS
    ),
    "ollama-unstreamed": Dialect(
        "/api/generate", JSON, unstreamed(generate_fields), GeneratedObject
    ),
    "ollama-chat-unstreamed": Dialect(
        "/api/chat", JSON, unstreamed(ollama_chat_fields), ChattedObject, takes_messages=True
    ),
    "embeddings": Dialect("/v1/embeddings", JSON, input_fields, Vector),
    "ollama-embed": Dialect("/api/embed", JSON, input_fields, OllamaVector),
    "tokenize": Dialect("/tokenize", JSON, content_fields, TokenIds),
}
"""Requests whose answer is one JSON object."""

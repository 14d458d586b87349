"""The same request in the words of several APIs. A new one is a row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.load.bodies.streams import (
    Body,
    Chat,
    Chatted,
    Completion,
    Generated,
    PlainLines,
    RawText,
    TokenLines,
)
from scripts.loadtest.plan import Ask

TEXT = "text/plain"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class LoadDialect:
    """Where and how a kind of server is asked, and how it answers."""

    path: str
    media_type: str
    """Asked for, and expected."""
    fields: Callable[[Ask], dict[str, Any]]
    body: type[Body]
    takes_messages: bool = False
    endless: Mapping[str, Any] = field(default_factory=dict)
    """Fields that keep the model from ending an answer early; empty: it has none."""


def stream_fields(ask: Ask) -> dict[str, Any]:
    return {"prompt": ask.prompt, "num_predict": ask.tokens, "seed": ask.seed}


def query_fields(ask: Ask) -> dict[str, Any]:
    return {"query": ask.prompt, "num_predict": ask.tokens, "seed": ask.seed}


def completion_fields(ask: Ask) -> dict[str, Any]:
    return {"prompt": ask.prompt, **_openai(ask)}


def chat_fields(ask: Ask) -> dict[str, Any]:
    return {"messages": messages_of(ask), **_openai(ask)}


def _openai(ask: Ask) -> dict[str, Any]:
    return {
        "max_tokens": ask.tokens,
        "seed": ask.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def generate_fields(ask: Ask) -> dict[str, Any]:
    return {"prompt": ask.prompt, **_ollama(ask)}


def ollama_chat_fields(ask: Ask) -> dict[str, Any]:
    return {"messages": messages_of(ask), **_ollama(ask)}


def _ollama(ask: Ask) -> dict[str, Any]:
    return {"stream": True, "options": {"num_predict": ask.tokens, "seed": ask.seed}}


def messages_of(ask: Ask) -> list[Mapping[str, Any]]:
    """The chat, or one whose only message is the prompt."""
    return list(ask.messages) or [{"role": "user", "content": ask.prompt}]


ENDLESS = {"ignore_eos": True}
"""llama-server and vLLM have the same name for it."""

DIALECTS: Mapping[str, LoadDialect] = {
    "stream": LoadDialect("/stream", NDJSON, stream_fields, TokenLines, endless=ENDLESS),
    "stream-plain": LoadDialect("/stream", TEXT, stream_fields, PlainLines, endless=ENDLESS),
    "token-stream": LoadDialect("/token_stream", TEXT, query_fields, RawText, endless=ENDLESS),
    "openai": LoadDialect(
        "/v1/completions", EVENTS, completion_fields, Completion, endless=ENDLESS
    ),
    "openai-chat": LoadDialect(
        "/v1/chat/completions", EVENTS, chat_fields, Chat, takes_messages=True, endless=ENDLESS
    ),
    "ollama": LoadDialect("/api/generate", NDJSON, generate_fields, Generated),
    "ollama-chat": LoadDialect(
        "/api/chat", NDJSON, ollama_chat_fields, Chatted, takes_messages=True
    ),
}

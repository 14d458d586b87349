"""Bodies of answers in the formats of several APIs, to test how they are read."""

from __future__ import annotations

import json
from typing import Any


def lines(*values: Any) -> bytes:
    """NDJSON."""
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def events(*values: Any) -> bytes:
    """Server-sent events. None is [DONE]."""
    return b"".join(
        b"data: " + (b"[DONE]" if value is None else json.dumps(value).encode()) + b"\n\n"
        for value in values
    )


def native(index: int) -> dict[str, Any]:
    return {"token": "a", "index": index, "id": 97}


def native_end(tokens: int, reason: str = "length") -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": tokens}
    return {"done": True, "finish_reason": reason, "usage": usage}


def completion(text: str, reason: str | None = None, answer: str = "x") -> dict[str, Any]:
    return {"id": answer, "choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def usage(tokens: int) -> dict[str, Any]:
    return {"id": "x", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def generated(text: str) -> dict[str, Any]:
    return {"response": text, "done": False}


def generated_end(tokens: int) -> dict[str, Any]:
    end = {"done": True, "done_reason": "length", "prompt_eval_count": 5, "eval_count": tokens}
    return {"response": "", **end}


def chatted(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "message": {"role": "assistant", "content": line.get("response")}}


NATIVE = [native(0), native(1), native(2)]
TEXTS = [completion("a"), completion("b"), completion("c")]
GOOD = {
    "stream": lines(*NATIVE, native_end(3)),
    "stream-plain": b"a\n\\n\n\xc3\xa4\n",
    "openai": events(
        completion("a"), completion("b"), completion("ä"), completion("", "length"), usage(3), None
    ),
    "openai-chat": b": hello\n\n"
    + events(
        delta(role="assistant", content=""),
        *(delta(content=text) for text in "abc"),
        delta("length"),
        usage(3),
        None,
    ),
    "ollama": lines(*map(generated, "abc"), generated_end(3)),
    "ollama-chat": lines(*map(chatted, map(generated, "abc")), chatted(generated_end(3))),
}
"""A complete answer of three tokens in each dialect."""

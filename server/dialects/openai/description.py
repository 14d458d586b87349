"""The OpenAPI description of OpenAI's endpoints."""

from __future__ import annotations

from server.dialects.openai.answers import StreamRenderer
from server.dialects.openai.chat import CHAT, CHUNK
from server.dialects.openai.chat import KIND as CHAT_KIND
from server.dialects.openai.completions import COMPLETION
from server.dialects.openai.completions import KIND as COMPLETION_KIND
from server.dialects.openai.embeddings import EMBEDDING
from server.http.openapi import (
    FLAG,
    GENERATION,
    INTEGER,
    NUMBER,
    OBJECT,
    STRING,
    Operation,
    Operations,
    array,
    lines,
    record,
)
from shared.errors import ModelNotFound
from shared.validation import Schema, nullable

ERROR: Schema = record(
    error=record(message=STRING, type=STRING, param=nullable(STRING), code=STRING)
)
STREAM = "Server-sent events; the last one is [DONE] or an error."
USAGE = record(
    prompt_tokens=INTEGER,
    completion_tokens=INTEGER,
    total_tokens=INTEGER,
    prompt_tokens_details=record(cached_tokens=INTEGER),
)
TIMINGS = record(queued_ms=NUMBER, prefill_ms=NUMBER, decode_ms=NUMBER)


def _object(kind: str, choice: Schema, optional: dict[str, Schema], **fields: Schema) -> Schema:
    return record(
        optional,
        id=STRING,
        object={"const": kind},
        created=INTEGER,
        model=STRING,
        choices=array(choice),
        **fields,
    )


def _choice(**fields: Schema) -> Schema:
    return record(index=INTEGER, logprobs=nullable(OBJECT), finish_reason=STRING, **fields)


def _answers(kind: str, whole: Schema, chunk: str, piece: Schema) -> dict[str, Schema]:
    counts = {"usage": nullable(USAGE), "timings": TIMINGS}
    event = {"anyOf": [_object(chunk, piece, counts), ERROR]}
    return {
        "application/json": _object(kind, whole, {}, usage=USAGE, timings=TIMINGS),
        StreamRenderer.media_type: lines(STREAM, event),
    }


MESSAGE = record(
    {"tool_calls": array(OBJECT)},
    role={"const": "assistant"},
    content=nullable(STRING),
    refusal=nullable(STRING),
)
MODEL = record(
    id=STRING,
    object={"const": "model"},
    created=INTEGER,
    owned_by=STRING,
    is_loaded=FLAG,
    loaded=NUMBER,
    chat=nullable(FLAG),
    meta=OBJECT,
)
OPERATIONS: Operations = {
    ("POST", "/v1/completions"): Operation(
        "Continue texts.",
        _answers(COMPLETION_KIND, _choice(text=STRING), COMPLETION_KIND, record(text=STRING)),
        COMPLETION,
        GENERATION,
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "Write the next message of a chat.",
        _answers(CHAT_KIND, _choice(message=MESSAGE), CHUNK, record(delta=OBJECT)),
        CHAT,
        GENERATION,
    ),
    ("POST", "/v1/embeddings"): Operation(
        "Embed texts.",
        {
            "application/json": record(
                object={"const": "list"},
                data=array(
                    record(
                        object={"const": "embedding"},
                        index=INTEGER,
                        embedding={"anyOf": [array(NUMBER), STRING]},
                    )
                ),
                model=STRING,
                usage=record(prompt_tokens=INTEGER, total_tokens=INTEGER),
            )
        },
        EMBEDDING,
        GENERATION,
    ),
    ("GET", "/v1/models"): Operation(
        "List the models.",
        {"application/json": record(object={"const": "list"}, data=array(MODEL))},
    ),
    ("GET", "/v1/models/{id}"): Operation(
        "Describe a model.",
        {"application/json": MODEL},
        errors=(ModelNotFound,),
        parameters=({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},),
    ),
}

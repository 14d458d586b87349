"""The OpenAPI description of Ollama's endpoints."""

from __future__ import annotations

from server.dialects.ollama.answers import NDJSON
from server.dialects.ollama.listing import SHOW
from server.dialects.ollama.requests import CHAT, EMBED, EMBEDDINGS, GENERATE
from server.http.openapi import (
    BODY,
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
from shared.errors import ModelNotFound, ModelUnavailable
from shared.validation import Schema

ERROR: Schema = record(error=STRING)
STREAM = "One object in each line; in the last one done is true, or it has an error."
COUNTS = dict.fromkeys(
    (
        *("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration"),
        *("eval_count", "eval_duration"),
    ),
    INTEGER,
)


def _answer(summary: str, **fields: Schema) -> tuple[str, dict[str, Schema]]:
    more = {"done_reason": STRING, "logprobs": array(OBJECT), **COUNTS}
    one = record(more, model=STRING, created_at=STRING, done=FLAG, **fields)
    return summary, {NDJSON: lines(STREAM, {"anyOf": [one, ERROR]}), "application/json": one}


MESSAGE = record(
    {"thinking": STRING, "tool_calls": array(OBJECT)}, role={"const": "assistant"}, content=STRING
)
MODELS = record(
    models=array(
        record(
            {"modified_at": STRING, "size_vram": INTEGER, "context_length": INTEGER},
            name=STRING,
            model=STRING,
            size=INTEGER,
            digest=STRING,
            details=OBJECT,
        )
    )
)
VECTOR = array(NUMBER)
OPERATIONS: Operations = {
    ("POST", "/api/generate"): Operation(
        *_answer("Continue a text.", response=STRING), GENERATE, GENERATION
    ),
    ("POST", "/api/chat"): Operation(
        *_answer("Write the next message of a chat.", message=MESSAGE), CHAT, GENERATION
    ),
    ("POST", "/api/embed"): Operation(
        "Embed texts.",
        {"application/json": record(COUNTS, model=STRING, embeddings=array(VECTOR))},
        EMBED,
        GENERATION,
    ),
    ("POST", "/api/embeddings"): Operation(
        "Embed a text.",
        {"application/json": record(embedding=VECTOR)},
        EMBEDDINGS,
        GENERATION,
    ),
    ("GET", "/api/tags"): Operation("List the models.", {"application/json": MODELS}),
    ("GET", "/api/ps"): Operation("List the loaded models.", {"application/json": MODELS}),
    ("GET", "/api/version"): Operation(
        "The server's version.", {"application/json": record(version=STRING)}
    ),
    ("POST", "/api/show"): Operation(
        "Describe a model.",
        {
            "application/json": record(
                {"modified_at": STRING},
                details=OBJECT,
                model_info=OBJECT,
                template=STRING,
                parameters=STRING,
                capabilities=array(STRING),
            )
        },
        SHOW,
        (*BODY, ModelNotFound, ModelUnavailable),
    ),
}

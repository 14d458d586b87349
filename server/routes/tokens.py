"""POST /tokenize, /detokenize and /apply-template: what a model makes of a text or a chat.

They need no slot, so they are answered while all slots are busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.chat.conversation import MESSAGES, TOOL_LIST
from server.generation.models import Models
from server.http.body import read_body
from server.http.fields import MODEL, PLAIN_TEXT, Form, as_given
from server.http.json_response import JsonResponse
from server.http.openapi import INTEGER, QUESTION, STRING, Operation, Operations, array, record
from shared.errors import InvalidRequest
from shared.messages import Tokenized
from shared.prompt import Prompt
from shared.validation import BOOLEAN, Check, integer, integers, or_none


def _list_of_tokens(name: str, value: Any) -> list[Any]:
    """The list as it is; the ids are checked when the model's vocabulary is known."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a list of token ids")
    return value


TEXT_NAMES = ("content", "text", "prompt")
"""The names that clients of other servers use."""
TOKENIZE = Form(
    {
        **dict.fromkeys(TEXT_NAMES, PLAIN_TEXT.saying("The text; send one of the three fields.")),
        "model": MODEL,
        "add_special": BOOLEAN.saying("Add the tokens that begin a prompt."),
        "with_pieces": BOOLEAN.saying("Return the tokens' texts, too."),
    },
    one_needed=TEXT_NAMES,
    is_null_absent=False,
)
DETOKENIZE = Form(
    {
        "tokens": Check({"type": "array", "items": integers(0).schema}, _list_of_tokens),
        "model": MODEL,
    },
    needed=("tokens",),
    is_null_absent=False,
)
TEMPLATE = Form(
    {
        "messages": as_given(MESSAGES),
        "tools": or_none(as_given(TOOL_LIST)),
        "model": MODEL,
        "add_generation_prompt": BOOLEAN.saying("End with the beginning of the assistant's turn."),
    },
    needed=("messages",),
    is_null_absent=False,
)

WITH_PIECE = record(id=INTEGER, piece={"anyOf": [STRING, array(INTEGER)]})
OPERATIONS: Operations = {
    ("POST", "/tokenize"): Operation(
        "Tokenize a text.",
        {
            "application/json": record(
                tokens=array(
                    {
                        "anyOf": [
                            INTEGER,
                            WITH_PIECE,
                        ]
                    }
                )
            )
        },
        TOKENIZE,
        QUESTION,
    ),
    ("POST", "/detokenize"): Operation(
        "Convert tokens to text.",
        {"application/json": record(content=STRING)},
        DETOKENIZE,
        QUESTION,
    ),
    ("POST", "/apply-template"): Operation(
        "Render a chat as the model's prompt.",
        {"application/json": record(prompt=STRING)},
        TEMPLATE,
        QUESTION,
    ),
}


def routes(models: Models) -> list[Route]:
    """The three routes."""
    preparation = models.preparation

    async def read(form: Form, request: Request) -> dict[str, Any]:
        return await preparation.parsed(
            form.read, await read_body(request.headers, request.receive)
        )

    async def tokenize(request: Request) -> Response:
        fields = await read(TOKENIZE, request)
        content = next(fields[name] for name in TEXT_NAMES if name in fields)
        add_special = fields.get("add_special", False)
        async with models.use(fields.get("model")) as (_, pool):
            if not content and not add_special:
                return JsonResponse({"tokens": []})
            found = await pool.tokenize(Prompt(content), is_start=add_special)
        has_pieces = fields.get("with_pieces", False)
        return await preparation.run(tokens_response, found, has_pieces=has_pieces)

    async def detokenize(request: Request) -> Response:
        fields = await read(DETOKENIZE, request)
        async with models.use(fields.get("model")) as (served, pool):
            ids = await preparation.run(checked_ids, fields["tokens"], served.info.vocabulary)
            if not ids:
                return JsonResponse({"content": ""})
            found = await pool.tokenize(Prompt(tokens=ids), is_start=False)
        return JsonResponse({"content": b"".join(found.pieces).decode(errors="replace")})

    async def apply_template(request: Request) -> Response:
        fields = await read(TEMPLATE, request)
        async with models.use(fields.get("model")) as (served, _):
            prompt = await preparation.run(
                served.chat.render,
                fields["messages"],
                tools=fields.get("tools"),
                is_open=fields.get("add_generation_prompt", True),
            )
        return JsonResponse({"prompt": prompt.text})

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/apply-template", apply_template, methods=["POST"]),
    ]


def shown(piece: bytes) -> str | list[int]:
    """The piece as text, or as bytes if it begins or ends within a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def tokens_response(found: Tokenized, *, has_pieces: bool) -> Response:
    """The response with the tokens, as ids or together with their texts."""
    if not has_pieces:
        return JsonResponse({"tokens": found.tokens})
    pairs = zip(found.tokens, found.pieces, strict=True)
    return JsonResponse({"tokens": [{"id": id_, "piece": shown(p)} for id_, p in pairs]})


def checked_ids(tokens: Sequence[Any], vocabulary: int) -> tuple[int, ...]:
    """The ids, if all are in the vocabulary. Raises InvalidRequest."""
    return tuple(
        integer(f"tokens[{place}]", token, 0, vocabulary - 1) for place, token in enumerate(tokens)
    )

"""What a model reads: POST /tokenize, /detokenize and /apply-template.

They take no slot, so they are answered between two steps while all are busy.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.json_body import model_name, parse_object
from server.models import Models
from server.request_body import read_body
from shared.errors import InvalidRequest
from shared.prompt import Prompt
from shared.validation import boolean, integer, text

TEXT_NAMES = ("content", "text", "prompt")
"""What clients of other servers call it."""


def routes(models: Models) -> list[Route]:
    """The three routes."""

    async def tokenize(request: Request) -> Response:
        fields = await _fields(request, "model", "add_special", "with_pieces", *TEXT_NAMES)
        content = _content(fields)
        add_special = boolean("add_special", fields.get("add_special", False))
        with_pieces = boolean("with_pieces", fields.get("with_pieces", False))
        async with models.use(model_name(fields)) as (_, pool):
            if not content and not add_special:
                return JSONResponse({"tokens": []})
            found = await pool.tokenize(Prompt(content), is_start=add_special)
        if not with_pieces:
            return JSONResponse({"tokens": found.tokens})
        pairs = zip(found.tokens, found.pieces, strict=True)
        return JSONResponse({"tokens": [{"id": id_, "piece": shown(p)} for id_, p in pairs]})

    async def detokenize(request: Request) -> Response:
        fields = await _fields(request, "model", "tokens")
        tokens = fields.get("tokens")
        if not isinstance(tokens, list):
            raise InvalidRequest("tokens must be a list of token ids")
        async with models.use(model_name(fields)) as (served, pool):
            last = served.info.vocabulary - 1
            ids = tuple(integer(f"tokens[{i}]", id_, 0, last) for i, id_ in enumerate(tokens))
            if not ids:
                return JSONResponse({"content": ""})
            found = await pool.tokenize(Prompt(tokens=ids), is_start=False)
        return JSONResponse({"content": b"".join(found.pieces).decode(errors="replace")})

    async def apply_template(request: Request) -> Response:
        fields = await _fields(request, "model", "messages", "tools", "add_generation_prompt")
        if "messages" not in fields:
            raise InvalidRequest("messages is missing")
        is_open = boolean("add_generation_prompt", fields.get("add_generation_prompt", True))
        async with models.use(model_name(fields)) as (served, _):
            prompt = served.chat.render(
                fields["messages"], tools=fields.get("tools"), is_open=is_open
            )
        return JSONResponse({"prompt": prompt.text})

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/apply-template", apply_template, methods=["POST"]),
    ]


def shown(piece: bytes) -> str | list[int]:
    """The piece as a text; one that begins or ends within a character as its bytes."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


async def _fields(request: Request, *known: str) -> dict[str, Any]:
    """The body's fields. Raises InvalidRequest for one that is not known."""
    fields = parse_object(await read_body(request.headers, request.receive))
    for name in fields:
        if name not in known:
            raise InvalidRequest(f"unknown field: {name!r:.80}")
    return fields


def _content(fields: dict[str, Any]) -> str:
    given = [name for name in TEXT_NAMES if name in fields]
    if len(given) != 1:
        raise InvalidRequest("one of content, text and prompt must be there")
    (name,) = given
    return "" if fields[name] == "" else text(name, fields[name])

"""GET /cache: the prompts that clients saved under ids. DELETE /cache/{id}: delete one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.http.errors import NotFound
from server.http.json_response import JsonResponse
from server.http.openapi import (
    FLAG,
    INTEGER,
    MODEL,
    MODEL_QUERY,
    NUMBER,
    Operation,
    Operations,
    array,
    record,
)
from shared.sampling import MAX_CACHE_ID
from shared.validation import nullable
from workers.pool.catalog import Catalog

PROMPT = record(
    id=INTEGER,
    tokens=INTEGER,
    bytes=INTEGER,
    last_used=NUMBER,
    in_memory_of=INTEGER,
    on_disk=FLAG,
)
OPERATIONS: Operations = {
    ("GET", "/cache"): Operation(
        "List the prompts that are saved under ids.",
        {"application/json": record(prompts=array(PROMPT), saves_states=nullable(FLAG))},
        errors=MODEL,
        parameters=(MODEL_QUERY,),
    ),
    ("DELETE", "/cache/{id}"): Operation(
        "Delete a saved prompt.",
        {"application/json": record(id=INTEGER, deleted={"const": True})},
        errors=(NotFound, *MODEL),
        parameters=(
            {
                "name": "id",
                "in": "path",
                "required": True,
                "schema": {"type": "integer", "minimum": 1, "maximum": MAX_CACHE_ID},
            },
            MODEL_QUERY,
        ),
    ),
}


def routes(catalog: Catalog) -> list[Route]:
    """The two routes. `?model=NAME` selects a model; without it, the default model."""

    async def listing(request: Request) -> Response:
        async with catalog.use(request.query_params.get("model")) as (_, pool):
            model = pool.status().model
            prompts = [
                {
                    "id": prompt.id,
                    "tokens": prompt.tokens,
                    "bytes": prompt.size,
                    "last_used": prompt.used_at,
                    "in_memory_of": prompt.workers,
                    "on_disk": prompt.is_on_disk,
                }
                for prompt in await pool.saved_prompts()
            ]
        saves_states = None if model is None else model.saves_states
        return JsonResponse({"prompts": prompts, "saves_states": saves_states})

    async def delete(request: Request) -> Response:
        text = request.path_params["id"]
        # Only a decimal number is an id: nothing else becomes part of a file's name.
        is_id = text.isascii() and text.isdecimal() and len(text) < 20
        if is_id and 1 <= int(text) <= MAX_CACHE_ID:
            async with catalog.use(request.query_params.get("model")) as (_, pool):
                if await pool.drop_prompt(int(text)):
                    return JsonResponse({"id": int(text), "deleted": True})
        raise NotFound(f"no prompt is saved under {text!r:.40}")

    return [
        Route("/cache", listing),
        Route("/cache/{id}", delete, methods=["DELETE"]),
    ]

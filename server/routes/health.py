"""GET /health: the process runs. GET /ready: it can serve requests, or why not."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.http.error_response import error_body, error_response
from server.http.json_response import JsonResponse
from server.http.openapi import FLAG, INTEGER, NUMBER, STRING, Operation, Operations, array, record
from shared.errors import NotReady
from workers.pool.catalog import Catalog, ModelStatus

COUNTS = {"workers": INTEGER, "active": INTEGER, "waiting": INTEGER}
STATE = record(
    {"engine": STRING, "architecture": STRING}
    | dict.fromkeys(("context", "vocabulary", "slots"), INTEGER),
    name=STRING,
    is_loaded=FLAG,
    loaded=NUMBER,
    **COUNTS,
)
OPERATIONS: Operations = {
    ("GET", "/health"): Operation(
        "Whether the process runs.",
        {"application/json": record(status={"const": "ok"})},
        is_open=True,
    ),
    ("GET", "/ready"): Operation(
        "Whether the server can serve requests, and its load.",
        {"application/json": record(status={"const": "ready"}, models=array(STATE), **COUNTS)},
        errors=(NotReady,),
    ),
}


def routes(catalog: Catalog) -> list[Route]:
    """The two routes."""

    async def health(_: Request) -> Response:
        return JsonResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        reason = catalog.why_not_ready()
        if reason is not None:
            error = NotReady(reason)
            return error_response(error, error_body(error))
        await catalog.refresh()
        models = [describe(status) for status in catalog.statuses()]
        totals = {
            name: sum(model[name] for model in models) for name in ("workers", "active", "waiting")
        }
        return JsonResponse({"status": "ready", "models": models} | totals)

    return [Route("/health", health), Route("/ready", ready)]


def describe(status: ModelStatus) -> dict[str, Any]:
    """The model, its state and its load."""
    info = status.info
    known = {}
    if info is not None:
        known = {
            "engine": info.engine,
            "architecture": info.architecture,
            "context": info.context,
            "vocabulary": info.vocabulary,
            "slots": info.slots,
        }
    return {
        "name": status.spec.name,
        "is_loaded": info is not None,
        "loaded": round(status.pool.loaded, 3),
        **known,
        "workers": status.pool.ready_workers,
        "active": status.pool.active,
        "waiting": status.waiting,
    }

"""GET /health: the process lives. GET /ready: it can serve now, or why not."""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.errors import error_body, error_response
from shared.errors import NotReady
from workers.pool import WorkerPool


def routes(pool: WorkerPool) -> list[Route]:
    """The two routes of `pool`."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        reason = pool.why_not_ready()
        if reason is not None or pool.model is None:
            error = NotReady(reason or "no worker is ready yet")
            return error_response(error, error_body(error))
        return JSONResponse(
            {
                "status": "ready",
                "model": asdict(pool.model),
                "workers": pool.ready_workers,
                "active": pool.active,
                "waiting": pool.waiting,
            }
        )

    return [Route("/health", health), Route("/ready", ready)]

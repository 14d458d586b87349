"""The ASGI application: every route, and the errors that belong to none of them."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from server import cache, health
from server.dialects import DIALECTS
from server.errors import error_body, error_response
from server.middleware import PageSecurity
from server.relay import GenerationEndpoint
from shared.errors import InvalidRequest, MethodNotAllowed, NotFound, ServingError
from shared.sampling import SamplingParams
from workers.pool import WorkerPool

UI = Path(__file__).parent / "ui"


def create_app(pool: WorkerPool, defaults: SamplingParams) -> Starlette:
    """The application over a pool that its caller starts and stops."""
    generations = [
        Route(path, GenerationEndpoint(dialect, parse, pool, defaults), methods=["POST"])
        for dialect in DIALECTS
        for path, parse in dialect.paths.items()
    ]
    page = PageSecurity(StaticFiles(directory=UI, html=True))
    return Starlette(
        routes=[
            *generations,
            *health.routes(pool),
            *cache.routes(pool),
            Mount("/ui", page),
            Route("/", page),
        ],
        exception_handlers={HTTPException: _on_http_exception},
    )


async def _on_http_exception(request: Request, exception: Exception) -> Response:
    """A routing error in the shape of all our errors."""
    status = exception.status_code if isinstance(exception, HTTPException) else 500
    error: ServingError
    match status:
        case 404:
            error = NotFound(f"there is nothing at {request.url.path}")
        case 405:
            error = MethodNotAllowed(f"{request.url.path} does not take {request.method}")
        case _:
            error = InvalidRequest("the request cannot be served")
    response = error_response(error, error_body(error))
    if isinstance(exception, HTTPException):
        response.headers.update(exception.headers or {})
    return response

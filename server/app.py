"""The ASGI application: all routes, and the errors outside of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from server.dialects import DIALECTS
from server.generation.models import Models
from server.generation.record import Observer, RequestRecord
from server.generation.relay import GenerationEndpoint
from server.http import openapi
from server.http.body import ClientLeft
from server.http.error_response import error_body, error_response
from server.http.errors import MethodNotAllowed, NotFound
from server.http.forwarded import Forwarded
from server.http.guard import Guard
from server.http.keys import ApiKeys
from server.http.middleware import PageSecurity, RequestIds
from server.observe import metrics
from server.routes import cache, health, tokens
from shared.errors import InvalidRequest, ServingError
from shared.settings import AccessSettings

UI = Path(__file__).parent / "ui"


def create_app(
    models: Models,
    access: AccessSettings = AccessSettings(),  # noqa: B008  frozen
    keys: ApiKeys | None = None,
    observers: Sequence[Observer] = (),
) -> ASGIApp:
    """The application for models that the caller starts and stops.

    `keys`: None if requests need no key. `observers` are called with each request that has ended.
    """
    figures = metrics.Metrics(
        models.catalog, [path for dialect in DIALECTS for path in dialect.paths]
    )
    all_observers = (figures.ended, *observers)

    def refuse(scope: Scope, error: ServingError) -> Response:
        record = RequestRecord(scope)
        record.error = error
        record.end()
        for observer in all_observers:
            observer(record)
        return error_at(scope["path"], error)

    page = PageSecurity(StaticFiles(directory=UI, html=True))
    guard = Middleware(Guard, hosts=access.hosts, origins=access.origins, keys=keys, refuse=refuse)
    app = Starlette(
        routes=[
            *api_routes(models, figures, all_observers, needs_key=keys is not None),
            Mount("/ui", page),
            Route("/", page),
        ],
        exception_handlers={
            HTTPException: _on_http_exception,
            ServingError: _on_serving_error,
            ClientLeft: _on_client_left,
            Exception: _on_defect,
        },
        middleware=[*_cors(access.origins), guard],
    )
    return Forwarded(RequestIds(app), access.proxies)


def api_routes(
    models: Models, figures: metrics.Metrics, observers: Sequence[Observer], *, needs_key: bool
) -> list[BaseRoute]:
    """All routes except those of the web page; `description` describes each of them."""
    generations = [
        Route(
            path,
            GenerationEndpoint(parse, dialect.error_response, models, figures.gaps, observers),
            methods=["POST"],
        )
        for dialect in DIALECTS
        for path, parse in dialect.paths.items()
    ]
    others = [route for dialect in DIALECTS for route in dialect.routes(models)]
    return [
        *generations,
        *others,
        *health.routes(models.catalog),
        *metrics.routes(figures),
        *cache.routes(models.catalog),
        *tokens.routes(models),
        *openapi.routes(lambda: description(needs_key=needs_key)),
    ]


def description(*, needs_key: bool) -> dict[str, Any]:
    """The document at /openapi.json: all routes except those of the web page."""
    own = {
        **health.OPERATIONS,
        **metrics.OPERATIONS,
        **cache.OPERATIONS,
        **tokens.OPERATIONS,
        **openapi.OPERATIONS,
    }
    return openapi.document(
        [
            *(openapi.Part(d.name, d.operations, d.error_schema, d.statuses) for d in DIALECTS),
            openapi.Part("server", own, openapi.ERROR),
        ],
        needs_key=needs_key,
    )


def _cors(origins: Sequence[str]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    ]


async def _on_serving_error(request: Request, exception: Exception) -> Response:
    error = exception if isinstance(exception, ServingError) else ServingError(str(exception))
    return error_at(request.url.path, error)


async def _on_defect(request: Request, _: Exception) -> Response:
    """An unexpected exception: the log has its traceback, the client gets no details."""
    return error_at(request.url.path, ServingError("the server failed; its log says how"))


async def _on_client_left(_: Request, __: Exception) -> Response:
    """An answer that nobody reads."""
    return Response()


async def _on_http_exception(request: Request, exception: Exception) -> Response:
    """A routing error, with the error body of its path."""
    path = request.url.path
    status = exception.status_code if isinstance(exception, HTTPException) else 500
    error: ServingError
    match status:
        case 404:
            error = NotFound(f"there is nothing at {path}")
        case 405:
            error = MethodNotAllowed(f"{path} does not take {request.method}")
        case _:
            error = InvalidRequest("the request cannot be served")
    response = error_at(path, error)
    if isinstance(exception, HTTPException):
        response.headers.update(exception.headers or {})
    return response


def error_at(path: str, error: ServingError) -> Response:
    """The error in the form of the dialect to which the path belongs."""
    for dialect in DIALECTS:
        if dialect.prefix and path.startswith(dialect.prefix):
            return dialect.error_response(error)
    return error_response(error, error_body(error))

"""A dialect: a wire format as pure functions of bytes and events (see server.generation.answer)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.routing import BaseRoute

from server.generation.answer import Parse
from server.generation.models import Models
from server.http.error_response import error_response
from server.http.openapi import ERROR, Operations
from shared.errors import ServingError
from shared.validation import Schema


def no_routes(models: Models) -> Sequence[BaseRoute]:
    """The routes of a dialect that has only its POST paths."""
    return ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """A wire format: its POST paths, its errors before the first byte, and its other routes."""

    name: str
    paths: Mapping[str, Parse]
    error_body: Callable[[ServingError], bytes]
    """The JSON that is sent with an error's status."""
    prefix: str | None = None
    """Prefix of its paths; errors at unknown paths with this prefix have its form, too. None: its
    paths have no common prefix."""
    routes: Callable[[Models], Sequence[BaseRoute]] = no_routes
    """Lists of models and similar: what needs no slot of a worker."""
    operations: Operations = field(default_factory=dict)
    """The operations of all its paths and routes, for /openapi.json."""
    error_schema: Schema = field(default_factory=lambda: ERROR)
    """The schema of `error_body`."""
    statuses: Mapping[int, int] = field(default_factory=dict)
    """The HTTP statuses that its clients expect instead of ours, by ours."""

    def error_response(self, error: ServingError) -> Response:
        """The response to a request that failed before the first byte."""
        response = error_response(error, self.error_body(error))
        response.status_code = self.statuses.get(response.status_code, response.status_code)
        return response

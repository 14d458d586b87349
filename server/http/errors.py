"""What HTTP alone can get wrong: refusals that no worker ever sees."""

from __future__ import annotations

from shared.errors import ServingError


class ForeignHost(ServingError):
    """400: the request is for a server of another name."""

    code = "foreign_host"
    status = 400


class ForeignOrigin(ServingError):
    """400: the page that asks is of an origin that may not."""

    code = "foreign_origin"
    status = 400


class Unauthorized(ServingError):
    """401: no API key, or one that is not known."""

    code = "unauthorized"
    status = 401


class NotFound(ServingError):
    """404: no such path."""

    code = "not_found"
    status = 404


class MethodNotAllowed(ServingError):
    """405: the path exists, with another method."""

    code = "method_not_allowed"
    status = 405


class BodyTooLarge(ServingError):
    """413: the request's body is over the limit."""

    code = "body_too_large"
    status = 413


class DeadlineExceeded(ServingError):
    """504, or a cut stream: the time that the client gave its request is over."""

    code = "deadline_exceeded"
    status = 504

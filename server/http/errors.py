"""The errors that only the front raises: no worker reports them."""

from __future__ import annotations

from shared.errors import ServingError


class ForeignHost(ServingError):
    """400: the Host header is not a name of this server."""

    code = "foreign_host"
    status = 400


class ForeignOrigin(ServingError):
    """400: the request comes from a page of an origin that is not allowed."""

    code = "foreign_origin"
    status = 400


class Unauthorized(ServingError):
    """401: the API key is missing or unknown."""

    code = "unauthorized"
    status = 401


class NotFound(ServingError):
    """404: the path or the saved prompt does not exist."""

    code = "not_found"
    status = 404


class MethodNotAllowed(ServingError):
    """405: the path exists, but not with this method."""

    code = "method_not_allowed"
    status = 405


class BodyTooLarge(ServingError):
    """413: the request's body is larger than the limit."""

    code = "body_too_large"
    status = 413


class DeadlineExceeded(ServingError):
    """504, or a cut stream: the request was not answered within its `timeout_s`."""

    code = "deadline_exceeded"
    status = 504

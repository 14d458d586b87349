"""The errors that the front and the workers share.

A ServingError has a code, an HTTP status and a message for the client. Code and status belong to
the class; each docstring says what the client sees. An error of a worker travels as Failed(code,
message), and becomes the same class again in the front.
"""

from __future__ import annotations

from typing import ClassVar


class ConfigurationError(Exception):
    """The configuration cannot work. The program prints the message and exits with status 3."""


class FrameError(Exception):
    """A frame is too long, is not msgpack, or contains something else than our messages."""


class ServingError(Exception):
    """A request cannot be served. The client sees `code` and the message."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retry_after_s: int | None = None
    """Seconds after which the client may try again; None: trying again does not help."""

    def __init__(
        self, message: str, field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        """The field of the request that is wrong; None: several, none, or not known."""
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class InvalidRequest(ServingError):
    """400: a field is missing, unknown, of the wrong type or out of its range."""

    code = "invalid_request"
    status = 400


class ContextTooShort(ServingError):
    """400: the prompt does not fit into the context; the message has both lengths."""

    code = "context_length"
    status = 400


class Unsupported(ServingError):
    """400: the model's engine cannot honour a field; the message names all such fields."""

    code = "unsupported"
    status = 400


class ModelNotFound(ServingError):
    """404: no model has this name; the message lists the models."""

    code = "model_not_found"
    status = 404


class ModelUnavailable(ServingError):
    """500: the model cannot be loaded, or needs more memory than it may use."""

    code = "model_unavailable"
    status = 500


class QueueFull(ServingError):
    """429 with Retry-After: the queue is full."""

    code = "queue_full"
    status = 429
    retry_after_s = 1


class EngineFailed(ServingError):
    """500, or a cut stream: the engine reported an error for this request."""

    code = "engine_failed"
    status = 500


class NotReady(ServingError):
    """503 with Retry-After: no worker is ready, or the server is shutting down."""

    code = "not_ready"
    status = 503
    retry_after_s = 2


class WorkerDied(ServingError):
    """503 with Retry-After, or a cut stream: the worker of this request has ended."""

    code = "worker_died"
    status = 503
    retry_after_s = 1


def _leaves(kind: type[ServingError]) -> list[type[ServingError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in _leaves(child))]


def error_from_code(code: str, message: str) -> ServingError:
    """The error that a worker reported; a ServingError if the code is unknown."""
    classes = {kind.code: kind for kind in _leaves(ServingError)}
    return classes.get(code, ServingError)(message)

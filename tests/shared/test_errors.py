"""Errors keep their class on the way from a worker to the front, and have an HTTP status."""

from __future__ import annotations

import http
from collections.abc import Iterator

import pytest

from server.http import errors as http_errors
from shared import errors
from shared.errors import ServingError, error_from_code


def kinds(kind: type[ServingError] = ServingError) -> Iterator[type[ServingError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from kinds(child)


KINDS = [kind for kind in kinds() if kind.__module__ in (errors.__name__, http_errors.__name__)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_class_again_after_it_has_travelled(kind: type[ServingError]) -> None:
    error = kind("the prompt is too long")

    arrived = error_from_code(error.code, error.message)

    assert type(arrived) is kind
    assert arrived.message == str(arrived) == "the prompt is too long"


def test_an_unknown_code_is_an_internal_error_that_keeps_its_message() -> None:
    error = error_from_code("from_a_newer_worker", "what it said")

    assert type(error) is ServingError
    assert (error.code, error.status, error.message) == ("internal_error", 500, "what it said")


def test_no_two_errors_share_a_code() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS) == 17


@pytest.mark.parametrize(
    ("kind", "code", "status", "retry_after_s"),
    [
        (errors.InvalidRequest, "invalid_request", 400, None),
        (errors.ContextTooShort, "context_length", 400, None),
        (errors.Unsupported, "unsupported", 400, None),
        (http_errors.ForeignHost, "foreign_host", 400, None),
        (http_errors.ForeignOrigin, "foreign_origin", 400, None),
        (http_errors.Unauthorized, "unauthorized", 401, None),
        (http_errors.NotFound, "not_found", 404, None),
        (errors.ModelNotFound, "model_not_found", 404, None),
        (errors.ModelUnavailable, "model_unavailable", 500, None),
        (http_errors.MethodNotAllowed, "method_not_allowed", 405, None),
        (http_errors.BodyTooLarge, "body_too_large", 413, None),
        (errors.QueueFull, "queue_full", 429, 1),
        (http_errors.DeadlineExceeded, "deadline_exceeded", 504, None),
        (errors.EngineFailed, "engine_failed", 500, None),
        (errors.NotReady, "not_ready", 503, 2),
        (errors.WorkerDied, "worker_died", 503, 1),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_what_a_client_sees_of_an_error(
    kind: type[ServingError], code: str, status: int, retry_after_s: int | None
) -> None:
    assert (kind.code, kind.status, kind.retry_after_s) == (code, status, retry_after_s)


@pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.__name__)
def test_the_docstring_begins_with_the_status_that_http_knows(kind: type[ServingError]) -> None:
    assert kind.__doc__ is not None
    assert kind.__doc__.startswith(str(http.HTTPStatus(kind.status).value))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_client_is_told_to_come_back_exactly_when_the_server_is_busy_or_not_there(
    kind: type[ServingError],
) -> None:
    assert (kind.retry_after_s is not None) == (kind.status in (429, 503))
    assert kind.retry_after_s is None or kind.retry_after_s >= 1


@pytest.mark.parametrize("kind", [errors.ConfigurationError, errors.FrameError])
def test_what_is_not_about_a_request_is_no_serving_error(kind: type[Exception]) -> None:
    assert not issubclass(kind, ServingError)

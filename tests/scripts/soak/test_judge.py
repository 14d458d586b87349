"""Which outcomes of a request are right."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.load.errors import CONNECTION, CUT, ERROR_EVENT, TIMEOUT, WRONG, StreamFailure
from scripts.load.record import Record, State
from scripts.load.request import Request
from scripts.soak.cases import Case
from scripts.soak.judge import FAILURE, FULL, Outcome, judge
from server.generation.submission import EXPIRED
from workers.pool.handle import DIED


def case(dialect: str = "stream", **what: Any) -> Case:
    return Case("short", dialect, Request("prompt", 6, 1), prompt_tokens=6, **what)


def failed(kind: str, detail: str = "", *, retry_after: bool = False) -> Record:
    record = Record(0, 6, begun=1.0, counts=True)
    record.state, record.ended = State.FAILED, 2.0
    record.failure, record.has_retry_after = StreamFailure(kind, detail), retry_after
    return record


def waited(kind: str, detail: str) -> Record:
    record = failed(kind, detail, retry_after=True)
    record.ended += 10
    return record


@pytest.mark.parametrize(
    ("case", "record", "outcome"),
    [
        (case(), failed("HTTP 429", FULL, retry_after=True), Outcome.FULL),
        (case("ollama"), failed("HTTP 503", FULL, retry_after=True), Outcome.FULL),
        (case(), failed("HTTP 429", FULL), Outcome.LOST),
        (case(), failed("HTTP 503", DIED), Outcome.LOST),
        (case(), failed("HTTP 503", DIED, retry_after=True), Outcome.CRASH_REPORTED),
        (case(), failed("HTTP 503", "no worker is ready yet", retry_after=True), Outcome.NOT_READY),
        (case(), failed("HTTP 503", "no worker is left", retry_after=True), Outcome.LOST),
        (case(), waited("HTTP 503", "no worker is ready yet"), Outcome.LOST),
        (case(), failed("HTTP 503", "something else", retry_after=True), Outcome.LOST),
        (case(), failed(ERROR_EVENT, DIED), Outcome.CRASH_REPORTED),
        (case(), failed(ERROR_EVENT, "no worker is ready yet"), Outcome.LOST),
        (case(), failed(CUT, "ended without its last line"), Outcome.LOST),
        (case("stream-plain"), failed(CUT), Outcome.CRASH_CUT),
        (case("token-stream"), failed(CUT), Outcome.CRASH_CUT),
        (case("openai"), failed(CUT), Outcome.LOST),
        (case("stream-plain", may_expire=True), failed(CUT), Outcome.EXPIRED),
        (case(may_expire=True), failed("HTTP 504", EXPIRED), Outcome.EXPIRED),
        (case(), failed("HTTP 504", EXPIRED), Outcome.LOST),
        (case(fails=True), failed("HTTP 500", FAILURE), Outcome.FAILED),
        (case(fails=True), failed(ERROR_EVENT, FAILURE), Outcome.FAILED),
        (case(), failed("HTTP 500", FAILURE), Outcome.SHARED),
        (case(), failed("HTTP 500", "an internal error"), Outcome.LOST),
        (case(), failed(WRONG, "'x' came where 'p' was due"), Outcome.LOST),
        (case(), failed(TIMEOUT), Outcome.LOST),
        (case(), failed(CONNECTION, "closed before an answer"), Outcome.LOST),
    ],
)
def test_what_is_neither_an_answer_nor_a_clear_error_is_lost(
    case: Case, record: Record, outcome: Outcome
) -> None:
    assert judge(case, record).outcome is outcome


def test_a_whole_answer_of_a_request_that_asked_for_a_failure_is_lost() -> None:
    whole = Record(0, 6, begun=1.0, counts=True, state=State.COMPLETED)
    assert judge(case(), whole).outcome is Outcome.COMPLETED
    assert judge(case(fails=True), whole).outcome is Outcome.LOST
    assert judge(case(crashes=True), whole).outcome is Outcome.LOST

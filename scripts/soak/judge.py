"""Outcomes of requests. A request must end with its answer, or with an error that is clear and has
a cause. A request with any other outcome is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scripts.load.errors import CUT, ERROR_EVENT, StreamFailure, status_kind
from scripts.load.record import Record, State
from scripts.soak.cases import WITHOUT_ERRORS, Case
from server.generation.submission import EXPIRED
from workers.pool.handle import DIED

AT_ONCE_S = 5.0
"""A server without a worker refuses within this time. After it, the request had waited."""
NOT_READY = "no worker is ready"
FULL = "every slot is taken"
FAILURE = "the prompt asked for a failure"


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    """Its client disconnected, as planned."""
    REFUSED = "refused"
    """A malformed request was refused, as it must be."""
    FULL = "queue full"
    NOT_READY = "not ready"
    """No worker was ready."""
    CRASH_REPORTED = "crash: error"
    """Its worker crashed, and the client got an error."""
    CRASH_CUT = "crash: cut"
    """Its worker crashed, and the stream was cut, in a dialect that cannot report an error."""
    EXPIRED = "timed out"
    FAILED = "failed"
    """The engine failed, as the prompt asked for."""
    SHARED = "shared failure"
    """The engine failed because of another request in the same step."""
    LOST = "LOST"


BY_OTHERS = (
    Outcome.CRASH_REPORTED,
    Outcome.CRASH_CUT,
    Outcome.NOT_READY,
    Outcome.SHARED,
)
"""Outcomes that need a cause other than the request."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a request, and why it is lost if it is."""

    outcome: Outcome
    why: str = ""


def judge(case: Case, record: Record) -> Verdict:
    """The outcome of a request. `crashes.unexplained` says whether a crash explains it."""
    if record.state is State.CANCELLED:
        return Verdict(Outcome.CANCELLED)
    if record.state is State.COMPLETED:
        return _judge_completed(case, record)
    if record.failure is None:
        return Verdict(Outcome.LOST, "closed by this client")
    return _judge_failed(case, record, record.failure)


def _judge_completed(case: Case, record: Record) -> Verdict:
    if case.fails or case.crashes:
        return Verdict(Outcome.LOST, "it asked for a failure, but looks finished")
    usage = record.usage
    if case.prompt_tokens is not None and usage is not None and usage.prompt is not None:
        if usage.prompt != case.prompt_tokens:
            why = f"usage says {usage.prompt} prompt tokens instead of {case.prompt_tokens}"
            return Verdict(Outcome.LOST, why)
        if usage.cached is not None and not 0 <= usage.cached <= usage.prompt:
            return Verdict(Outcome.LOST, f"{usage.cached} of {usage.prompt} tokens were cached")
    return Verdict(Outcome.COMPLETED)


def _judge_failed(case: Case, record: Record, failure: StreamFailure) -> Verdict:
    kind, detail = failure.kind, failure.detail
    lost = Verdict(Outcome.LOST, f"{kind}: {detail}")
    is_busy = kind in (status_kind(429), status_kind(503))
    if is_busy and not record.has_retry_after:
        return Verdict(Outcome.LOST, f"{kind} without Retry-After: {detail}")
    if is_busy or kind == ERROR_EVENT:
        reported = _reported(detail)
        if reported is Outcome.NOT_READY and record.ended - record.begun > AT_ONCE_S:
            return Verdict(Outcome.LOST, f"it waited, and was refused: {detail}")
        if reported is not None and (is_busy or reported is Outcome.CRASH_REPORTED):
            return Verdict(reported)
    if kind in (ERROR_EVENT, status_kind(504)) and EXPIRED in detail:
        return Verdict(Outcome.EXPIRED) if case.may_expire else lost
    if kind in (ERROR_EVENT, status_kind(500)) and FAILURE in detail:
        return Verdict(Outcome.FAILED if case.fails else Outcome.SHARED)
    if kind == CUT and case.dialect in WITHOUT_ERRORS:
        if case.fails:
            return Verdict(Outcome.FAILED)
        return Verdict(Outcome.EXPIRED if case.may_expire else Outcome.CRASH_CUT)
    return lost


def _reported(message: str) -> Outcome | None:
    """The outcome that an error message reports."""
    if DIED in message:
        return Outcome.CRASH_REPORTED
    if FULL in message:
        return Outcome.FULL
    if NOT_READY in message:
        return Outcome.NOT_READY
    return None

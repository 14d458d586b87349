"""What may become of a request: its answer, or a clear error that has a reason. All else is lost.

A death explains what ends between the blow and the moment when all workers are ready again. Only
requests that a worker had may end so: of one death no more than its slots. One that waits for a
slot is served by another worker, or by the replacement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scripts.load.client import Record, State
from scripts.load.errors import CUT, ERROR_EVENT, status_kind
from scripts.soak.cases import WITHOUT_WORDS, Case
from server.generation.submission import EXPIRED

AT_ONCE_S = 5.0
"""A server without a worker says so within this time: later the request had waited."""
LATE_S = 1.5
"""A client may see it so much later than the death is over."""
DIED = "worker of this request has died"
NOT_READY = "no worker is ready"
FULL = "every slot is taken"
FAILURE = "the prompt asked for a failure"


class Outcome(StrEnum):
    """What became of a request."""

    WHOLE = "whole"
    LEFT = "left"
    """Its client, as planned."""
    REJECTED = "refused"
    """Nonsense, as it must be."""
    FULL = "queue full"
    NOT_READY = "not ready"
    """No worker was."""
    DIED = "died: told"
    """Its worker; the client was told."""
    CUT = "died: cut"
    """The same, in a format that can only be cut, and visibly was."""
    EXPIRED = "time over"
    FAILED = "failed"
    """As it asked for."""
    SHARED = "shared"
    """Another's failure was in the step of the engine that carried both."""
    LOST = "LOST"


BY_OTHERS = (Outcome.DIED, Outcome.CUT, Outcome.NOT_READY, Outcome.SHARED)
"""These must have a reason that is not the request's own."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome, and for what is lost the reason."""

    outcome: Outcome
    why: str = ""


def judge(case: Case, record: Record) -> Verdict:
    """What became of it; whether deaths explain it is `unexplained`'s to say."""
    if record.state is State.LEFT:
        return Verdict(Outcome.LEFT)
    if record.state is State.WHOLE:
        return _judge_whole(case, record)
    failure = record.failure
    if failure is None:
        return Verdict(Outcome.LOST, "closed by this client")
    lost = Verdict(Outcome.LOST, f"{failure.kind}: {failure.detail}")
    busy = failure.kind in (status_kind(429), status_kind(503))
    if busy and not record.says_retry_after:
        return Verdict(Outcome.LOST, f"{failure.kind} without Retry-After: {failure.detail}")
    if busy or failure.kind == ERROR_EVENT:
        told = _told(failure.detail)
        if told is Outcome.NOT_READY and record.ended - record.begun > AT_ONCE_S:
            return Verdict(Outcome.LOST, f"it waited, and was refused: {failure.detail}")
        if told is not None and (failure.kind != ERROR_EVENT or told is Outcome.DIED):
            return Verdict(told)
    if failure.kind in (ERROR_EVENT, status_kind(504)) and EXPIRED in failure.detail:
        return Verdict(Outcome.EXPIRED) if case.may_expire else lost
    if failure.kind in (ERROR_EVENT, status_kind(500)) and FAILURE in failure.detail:
        return Verdict(Outcome.FAILED if case.fails else Outcome.SHARED)
    if failure.kind == CUT and case.format in WITHOUT_WORDS:
        if case.fails:
            return Verdict(Outcome.FAILED)
        return Verdict(Outcome.EXPIRED if case.may_expire else Outcome.CUT)
    return lost


def _judge_whole(case: Case, record: Record) -> Verdict:
    if case.fails or case.crashes:
        return Verdict(Outcome.LOST, "it asked for a failure, and looks finished")
    usage = record.usage
    if case.prompt_tokens is not None and usage is not None and usage.prompt is not None:
        if usage.prompt != case.prompt_tokens:
            why = f"usage says {usage.prompt} prompt tokens instead of {case.prompt_tokens}"
            return Verdict(Outcome.LOST, why)
        if usage.cached is not None and not 0 <= usage.cached <= usage.prompt:
            return Verdict(Outcome.LOST, f"{usage.cached} of {usage.prompt} tokens were cached")
    return Verdict(Outcome.WHOLE)


def _told(message: str) -> Outcome | None:
    if DIED in message:
        return Outcome.DIED
    if FULL in message:
        return Outcome.FULL
    if NOT_READY in message:
        return Outcome.NOT_READY
    return None


# ---------------------------------------------------------------- deaths


@dataclass(slots=True)
class Death:
    """A worker's, as we caused it. Times are of time.monotonic, in seconds."""

    how: str
    begun: float
    ended: float | None = None
    """When all workers were ready again; None: not yet."""

    def explains(self, moment: float) -> bool:
        return self.begun <= moment and (self.ended is None or moment <= self.ended + LATE_S)


@dataclass(frozen=True, slots=True)
class Broken:
    """A request that something else has ended, by its own account."""

    case: Case
    outcome: Outcome
    begun: float
    ended: float


def unexplained(
    broken: Sequence[Broken],
    deaths: Sequence[Death],
    failures: Sequence[tuple[float, float]],
    slots: int,
) -> list[str]:
    """Those that nothing explains, and deaths that ended more than a worker's `slots` requests.

    `failures`: from when to when there was a request that made a step of the engine fail.
    """
    found = []
    of_death: Counter[int] = Counter()
    for one in broken:
        if one.outcome in (Outcome.SHARED, Outcome.CUT):
            if any(begun <= one.ended <= ended + LATE_S for begun, ended in failures):
                continue
            if one.outcome is Outcome.SHARED:
                found.append(f"{one.case.kind}, {one.case.format}: it failed, and nobody asked")
                continue
        places = [place for place, death in enumerate(deaths) if death.explains(one.ended)]
        if not places:
            case = one.case
            found.append(f"{case.kind}, {case.format}: {one.outcome}, but no worker died then")
        elif one.case.holds_slot and one.outcome is not Outcome.NOT_READY:
            of_death[places[-1]] += 1
    for place, ended in sorted(of_death.items()):
        death = deaths[place]
        together = sum(_overlap(death, other) for other in deaths)
        if ended > slots * together:
            found.append(
                f"{death.how} ended {ended} requests, but {slots * together} had a slot:"
                " some were waiting, and are lost"
            )
    return found


def _overlap(death: Death, other: Death) -> bool:
    """Itself included."""
    starts_before = death.ended is None or other.begun <= death.ended + LATE_S
    return starts_before and (other.ended is None or death.begun <= other.ended + LATE_S)

"""Gives requests to a scheduler as the worker does, but without its threads."""

from __future__ import annotations

from shared.messages import Embed, Failed, Generate, Message
from workers.child.prepared import PreparedEmbed, PreparedGenerate
from workers.child.preparer import Preparer
from workers.child.scheduler import Scheduler


def submit(scheduler: Scheduler, preparer: Preparer, request: Generate | Embed) -> list[Message]:
    """Prepare the request and give it to the scheduler; return its end if it is refused."""
    outcome = preparer.prepare(request)
    if isinstance(outcome, Failed):
        return [outcome]
    assert isinstance(outcome, PreparedGenerate | PreparedEmbed)
    scheduler.submit(outcome)
    return []

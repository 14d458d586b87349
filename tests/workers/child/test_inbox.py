"""The queue of the worker's loop."""

from __future__ import annotations

import threading

import pytest

from shared.messages import Cancel, Shutdown
from tests.helpers.support import TIMEOUT_S
from workers.child.inbox import Arrival, Inbox


def test_an_error_comes_after_what_was_put_before_and_after_it() -> None:
    """The reader may fail while other threads still put prepared requests in."""
    inbox = Inbox()
    inbox.put(Cancel(1))
    inbox.fail(EOFError("as told"))
    inbox.put(Cancel(2))
    assert inbox.take(TIMEOUT_S) == [Cancel(1), Cancel(2)]
    for _ in range(2):
        with pytest.raises(EOFError, match="as told"):
            inbox.take(TIMEOUT_S)


def test_of_several_errors_the_first_is_raised() -> None:
    inbox = Inbox()
    inbox.fail(EOFError("first"))
    inbox.fail(MemoryError("second"))
    with pytest.raises(EOFError, match="first"):
        inbox.take(0)


def test_an_error_ends_a_wait() -> None:
    inbox = Inbox()
    raised = threading.Event()

    def wait() -> None:
        with pytest.raises(EOFError):
            inbox.take(2 * TIMEOUT_S)
        raised.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    inbox.fail(EOFError())
    assert raised.wait(TIMEOUT_S)
    waiting.join()


def test_what_several_threads_put_arrives_once_and_in_the_order_of_each() -> None:
    inbox = Inbox()

    def put(first: int) -> None:
        for number in range(first, first + 1000):
            inbox.put(Cancel(number))

    threads = [threading.Thread(target=put, args=(first,)) for first in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    taken: list[Arrival] = []
    while len(taken) < 3000:
        taken += inbox.take(TIMEOUT_S)
    for thread in threads:
        thread.join()
    numbers = [message.id for message in taken if isinstance(message, Cancel)]
    for first in (0, 1000, 2000):
        of_one = [number for number in numbers if first <= number < first + 1000]
        assert of_one == list(range(first, first + 1000))
    inbox.put(Shutdown())
    assert inbox.take(0) == [Shutdown()]

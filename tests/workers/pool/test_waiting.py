"""The queue for a slot: clients are served in turn, each client's requests in order."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shared.messages import Finished, Generate
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.values import Timings, Usage
from workers.pool.estimates import LONGEST_WAIT_S, Pace
from workers.pool.stream import RequestStream
from workers.pool.waiting import WaitingLine

IDS = itertools.count(1)


def stream(client: str, text: str = "x") -> RequestStream:
    return RequestStream(Generate(next(IDS), Prompt(text), SamplingParams()), client)


def filled(clients: str) -> tuple[WaitingLine, list[RequestStream]]:
    line, streams = WaitingLine(), [stream(client) for client in clients]
    for waiting in streams:
        line.add(waiting)
    return line, streams


def test_one_client_is_served_in_its_order() -> None:
    line, streams = filled("aaaa")
    assert line.take_all() == streams


def test_clients_are_served_in_turn() -> None:
    line, _ = filled("aaaabbc")
    assert "".join(taken.client for taken in line.take_all()) == "abcabaa"


def test_who_comes_late_waits_for_one_of_each_at_most() -> None:
    line, _ = filled("aaaaaa")
    line.take()
    late = stream("b")
    line.add(late)
    line.take()
    assert line.take() is late


def test_who_leaves_is_gone_and_only_once() -> None:
    line, (first, second) = filled("aa")
    assert line.remove(first)
    assert not line.remove(first)
    assert not line.remove(stream("b"))
    assert line.take_all() == [second]
    assert len(line) == 0


def test_the_characters_of_all_that_wait_are_known() -> None:
    line = WaitingLine()
    short, long = stream("a", "12345"), stream("b", "1" * 100)
    line.add(short)
    line.add(long)
    assert line.characters == 105
    line.remove(long)
    assert line.characters == 5
    line.take()
    assert line.characters == 0


@given(st.lists(st.sampled_from(["take", "remove", *"abc"]), max_size=60))
def test_whatever_happens_nobody_is_lost_or_overtaken_by_its_own_client(steps: list[str]) -> None:
    line = WaitingLine()
    waiting: list[RequestStream] = []
    for step in steps:
        if step == "take" and waiting:
            taken = line.take()
            assert taken is next(one for one in waiting if one.client == taken.client)
            waiting.remove(taken)
        elif step == "remove" and waiting:
            assert line.remove(waiting.pop())
        elif step in "abc":
            waiting.append(stream(step))
            line.add(waiting[-1])
        assert len(line) == len(waiting)
    # Of those left, no client is a whole turn ahead of another that still waits.
    served: Counter[str] = Counter()
    left = Counter(one.client for one in waiting)
    for taken in line.take_all():
        served[taken.client] += 1
        for client, count in left.items():
            assert served[taken.client] <= min(served[client], count) + 1 or served[client] == count


def over(prompt_tokens: int, seconds: float) -> Finished:
    return Finished(1, "stop", Usage(prompt_tokens, 0, 5), Timings(seconds, 0.0))


def test_before_anything_is_known_a_wait_is_a_second() -> None:
    assert Pace().wait_s(100, 1) == 1


def test_a_wait_is_what_requests_took_divided_by_the_slots() -> None:
    pace = Pace()
    pace.learn(100, over(50, 4.0))
    assert pace.wait_s(10, 4) == 10
    assert pace.wait_s(1, 4) == 1
    assert pace.wait_s(10**6, 1) == LONGEST_WAIT_S


def test_tokens_are_estimated_from_the_prompts_that_came() -> None:
    pace = Pace()
    before = pace.tokens(1000)
    for _ in range(100):
        pace.learn(1000, over(900, 1.0))
    assert before < 500
    assert 890 <= pace.tokens(1000) <= 900


def test_a_request_that_never_ran_teaches_nothing() -> None:
    pace = Pace()
    pace.learn(1000, over(0, 0.0))
    assert pace.tokens(1000) == Pace().tokens(1000)

"""Plans: the same seed gives the same requests, cancellations and arrivals."""

from __future__ import annotations

import itertools

from scripts.loadtest.lengths import Uniform
from scripts.loadtest.plan import Plan, arrivals
from scripts.loadtest.prompts import RandomWords
from scripts.report.stats import percentile


def plan(seed: str = "1", cancelled: float = 0.0, shared: int = 0) -> Plan:
    return Plan(RandomWords(Uniform(5, 50), Uniform(1, 100), shared), seed, cancelled)


def test_a_seed_decides_every_request_in_whatever_order_they_are_drawn() -> None:
    forwards = [plan(cancelled=0.5).request(index) for index in range(-5, 20)]
    backwards = [plan(cancelled=0.5).request(index) for index in reversed(range(-5, 20))]
    assert forwards == backwards[::-1]
    assert len({request.prompt for request in forwards}) == 25
    assert plan("2").request(0) != plan("1").request(0)


def test_the_share_that_cancels_is_as_asked_and_nobody_cancels_after_the_end() -> None:
    requests = [plan(cancelled=0.25).request(index) for index in range(2000)]
    cancelled = [request for request in requests if request.cancel_after_tokens is not None]
    assert 0.22 < len(cancelled) / len(requests) < 0.28
    assert all(0 <= (request.cancel_after_tokens or 0) < request.tokens for request in cancelled)
    uncancelled = [plan().request(index) for index in range(2000)]
    assert [each.prompt for each in requests] == [each.prompt for each in uncancelled]


def test_shared_words_are_the_same_and_the_others_are_not() -> None:
    prompts = [plan(shared=30).request(index).prompt.split() for index in range(10)]
    assert len({tuple(words[:30]) for words in prompts}) == 1
    assert len({tuple(words[30:]) for words in prompts}) == 10


def test_arrivals_are_random_but_the_same_for_a_seed_and_as_many_as_the_rate_says() -> None:
    def first(seconds: float, ramp_s: float, seed: str = "1") -> list[float]:
        return list(itertools.takewhile(lambda t: t < seconds, arrivals(20, ramp_s, seed)))

    assert first(50, 0) == first(50, 0) != first(50, 0, "2")
    assert 900 < len(first(50, 0)) < 1100
    assert 400 < len(first(50, 50)) < 600, "the rate grows from 0"
    assert len(first(10, 50)) < len(first(50, 50)) / 10
    gaps = [b - a for a, b in itertools.pairwise(first(50, 0))]
    assert max(gaps) > 5 * percentile(gaps, 50), "they come in crowds and with pauses"

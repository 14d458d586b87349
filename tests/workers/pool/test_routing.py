"""Which worker gets a request: the value of a cached prefix against the cost of load."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.messages import Finished
from shared.values import Timings, Usage
from workers.pool.estimates import LEARNING_RATE, Average
from workers.pool.routing import (
    MOST_CHARACTERS,
    MOST_PROMPTS,
    SLOWER,
    RecentPrompts,
    Router,
)

WORTH = 32
"""Prefix characters that outweigh one request more, for the `learned` router."""


def finished(
    prompt: int, cached: int, completion: int, prefill_s: float, decode_s: float
) -> Finished:
    return Finished(1, "stop", Usage(prompt, cached, completion), Timings(prefill_s, decode_s))


def learned(router: Router[str] | None = None) -> Router[str]:
    """A router to which a character costs 1/32 s, and one more stream costs 1 s."""
    router = router or Router()
    router.learn("x" * 64, finished(20, 0, 5, prefill_s=2.0, decode_s=1 / SLOWER))
    return router


def router_with(sent: Mapping[str, str]) -> Router[str]:
    """A `learned` router that has sent each worker its text."""
    router = learned()
    for worker, text in sent.items():
        router.sent(worker, text)
    return router


def seconds_of_a_character(router: Router[str], decode_s: float = 1 / SLOWER) -> float:
    """The router's seconds per character, inferred from its choices within 0.1 %."""
    known = "k" * 100_000
    router.sent("known", known)
    least, most = 0, len(known)
    while most - least > 1:
        middle = (least + most) // 2
        goes_there = router.choose({"known": 64, "other": 0}, known[:middle]) == "known"
        least, most = (least, middle) if goes_there else (middle, most)
    return 64 * SLOWER * decode_s / most


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize("more", [1, 2, 4])
@pytest.mark.parametrize(("difference", "worker"), [(-1, "b"), (0, "b"), (1, "a")])
def test_a_known_beginning_is_gone_to_where_it_is_worth_more_than_the_requests_that_run_there(
    more: int, difference: int, worker: str
) -> None:
    known = "k" * (more * WORTH + difference)
    router = router_with({"a": known + "one", "b": "other"})
    assert router.choose({"b": 0, "a": more}, known + "two") == worker
    assert router.choose({"a": more, "b": 0}, known + "two") == worker


@pytest.mark.parametrize(("difference", "worker"), [(-1, "b"), (1, "a")])
def test_only_the_requests_that_one_has_more_than_the_other_cost(
    difference: int, worker: str
) -> None:
    known = "k" * (3 * WORTH + difference)
    router = router_with({"a": known, "b": "other"})
    assert router.choose({"a": 20, "b": 17}, known) == worker


def test_only_the_difference_of_what_both_know_counts() -> None:
    known = "k" * 100
    router = router_with({"a": known + "l" * 31, "b": known})
    assert router.choose({"a": 1, "b": 0}, known + "l" * 50) == "b"
    router.sent("a", known + "l" * 33)
    assert router.choose({"a": 1, "b": 0}, known + "l" * 50) == "a"


def test_of_equally_busy_workers_the_one_that_knows_most_is_chosen() -> None:
    router = router_with({"a": "kk", "b": "kkk", "c": "k", "d": "l" * 50})
    assert router.choose(dict.fromkeys("abcd", 4), "kkkkk") == "b"


def test_of_equal_ones_the_least_busy_is_chosen() -> None:
    router = router_with({"a": "k" * 2 * WORTH, "b": "k" * WORTH})
    assert router.choose({"a": 2, "b": 1, "c": 0, "d": 3}, "k" * 500) == "c"
    assert router.choose({"a": 2, "b": 1, "d": 3}, "k" * 500) == "b"


def test_a_router_that_has_learned_nothing_takes_the_least_busy() -> None:
    router: Router[str] = Router()
    router.sent("a", "k" * 1000)
    assert router.choose({"a": 1, "b": 0, "c": 2}, "k" * 1000) == "b"


def test_a_text_that_nobody_knows_goes_to_the_least_busy() -> None:
    router = router_with({"a": "k" * 1000})
    assert router.choose({"a": 2, "b": 1, "c": 3}, "other") == "b"
    assert router.choose({"a": 2, "b": 1, "c": 3}, "") == "b"


def test_the_only_candidate_is_taken_whatever_else_is_known() -> None:
    router = router_with({"a": "k" * 1000})
    assert router.choose({"b": 100}, "k" * 1000) == "b"
    assert Router[str]().choose({"b": 100}, "k" * 1000) == "b"


class UnreadText(str):
    """A text that must not be compared with another: comparing raises."""

    __slots__ = ()

    def __len__(self) -> int:
        raise AssertionError


def test_for_the_only_candidate_no_text_is_compared() -> None:
    router = router_with({"a": "k" * 1000})
    assert router.choose({"a": 5}, UnreadText("k")) == "a"
    with pytest.raises(AssertionError):
        router.choose({"a": 5, "b": 5}, UnreadText("k"))


def test_only_candidates_are_chosen() -> None:
    router = router_with({"a": "k" * 1000, "b": "k" * 10})
    assert router.choose({"b": 1, "c": 1}, "k" * 1000) == "b"


def test_to_choose_a_worker_is_not_to_send_it_the_text() -> None:
    router = learned()
    assert router.choose({"a": 0, "b": 1}, "k" * 1000) == "a"
    assert router.choose({"a": 1, "b": 0}, "k" * 1000) == "b"


def test_a_worker_need_only_be_hashable() -> None:
    router: Router[tuple[int, ...]] = Router()
    router.sent((1,), "k")
    assert router.choose({(1,): 1, (2,): 0}, "k") == (2,)


REQUESTS = st.sampled_from([0, 1, 2, 4])  # of which the costs are exact
KNOWN = st.text(st.sampled_from("ab"), max_size=4).map(lambda text: text * 40)


@given(
    st.dictionaries(st.integers(0, 5), st.tuples(REQUESTS, KNOWN), min_size=1),
    KNOWN,
)
def test_of_any_workers_one_with_the_smallest_balance_is_chosen(
    workers: dict[int, tuple[int, str]], text: str
) -> None:
    router = router_with({str(worker): known for worker, (_, known) in workers.items()})

    def balance(worker: int) -> tuple[float, int]:
        requests, known = workers[worker]
        common = max(n for n in range(len(text) + 1) if known.startswith(text[:n]))
        return requests - common / WORTH, requests

    busy = {str(worker): requests for worker, (requests, _) in workers.items()}
    assert balance(int(router.choose(busy, text))) == min(map(balance, workers))


# ---------------------------------------------------------------- workers that are gone


def test_a_worker_that_is_gone_is_forgotten_and_the_others_are_not() -> None:
    router = router_with({"a": "k" * 1000, "b": "k" * 500})
    router.keep_only(worker for worker in ("b", "c"))
    assert router.choose({"a": 1, "c": 0}, "k" * 1000) == "c"
    assert router.choose({"b": 1, "c": 0}, "k" * 1000) == "b"


def test_a_worker_that_is_back_is_remembered_from_then_on() -> None:
    router = router_with({"a": "k" * 1000})
    router.keep_only([])
    router.sent("a", "l" * 1000)
    assert router.choose({"a": 1, "c": 0}, "k" * 1000) == "c"
    assert router.choose({"a": 1, "c": 0}, "l" * 1000) == "a"


# ---------------------------------------------------------------- what is learned


def test_the_first_value_is_taken_as_it_is_and_later_ones_count_little_by_little() -> None:
    average = Average()
    assert average.value == 0
    average.add(10)
    assert average.value == 10
    average.add(20)
    assert average.value == pytest.approx(10 + 10 * LEARNING_RATE)
    average.add(0)
    assert average.value == pytest.approx((10 + 10 * LEARNING_RATE) * (1 - LEARNING_RATE))


def test_it_follows_values_that_have_changed() -> None:
    average = Average()
    average.add(1000)
    for _ in range(100):
        average.add(3)
    assert average.value == pytest.approx(3, rel=0.05)


def test_what_a_character_takes_is_learned() -> None:
    assert seconds_of_a_character(learned()) == pytest.approx(1 / 32, rel=0.01)


def test_only_what_was_processed_has_taken_time() -> None:
    """Half of the tokens were cached, so prefill took its second for half of the characters."""
    router: Router[str] = Router()
    router.learn("x" * 1000, finished(50, 25, 5, prefill_s=1.0, decode_s=1 / SLOWER))
    assert seconds_of_a_character(router) == pytest.approx(1 / 500, rel=0.01)


def test_what_streams_take_is_learned() -> None:
    router: Router[str] = Router()
    router.learn("x" * 100, finished(50, 0, 5, prefill_s=1.0, decode_s=3.0))
    assert seconds_of_a_character(router, decode_s=3.0) == pytest.approx(1 / 100, rel=0.02)


def test_later_requests_count_too() -> None:
    router = learned()
    router.learn("x" * 64, finished(20, 0, 5, prefill_s=4.0, decode_s=1 / SLOWER))
    expected = (1 + LEARNING_RATE) / 32
    assert seconds_of_a_character(router) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    "useless",
    [
        finished(20, 20, 5, prefill_s=100.0, decode_s=1000.0),
        finished(0, 0, 5, prefill_s=100.0, decode_s=1000.0),
        finished(20, 0, 0, prefill_s=100.0, decode_s=1000.0),
        finished(0, 0, 0, prefill_s=0.0, decode_s=0.0),
    ],
    ids=["all was cached", "no prompt", "no answer", "nothing"],
)
def test_a_request_that_processed_nothing_or_made_nothing_teaches_nothing(
    useless: Finished,
) -> None:
    router = learned()
    router.learn("x" * 64, useless)
    assert seconds_of_a_character(router) == pytest.approx(1 / 32, rel=0.01)
    before: Router[str] = Router()
    before.learn("x" * 64, useless)
    assert seconds_of_a_character(learned(before)) == pytest.approx(1 / 32, rel=0.01)


@pytest.mark.parametrize(("text", "cached"), [("", 0), ("x", 9)])
def test_a_text_of_hardly_any_characters_counts_as_one(text: str, cached: int) -> None:
    """A prompt may have no characters of its own, or only a few that were not cached."""
    router: Router[str] = Router()
    router.learn(text, finished(10, cached, 5, prefill_s=0.125, decode_s=1 / SLOWER))
    assert seconds_of_a_character(router) == pytest.approx(0.125, rel=0.01)


# ---------------------------------------------------------------- what is remembered


def test_without_texts_nothing_is_known() -> None:
    assert RecentPrompts().known("text") == 0


@given(st.lists(st.text(st.sampled_from("ab"), max_size=6)), st.text(st.sampled_from("ab")))
def test_the_longest_beginning_of_any_text_is_known(texts: list[str], text: str) -> None:
    prompts = RecentPrompts()
    for other in texts:
        prompts.add(other)
    beginnings = (text[:size] for size in range(len(text) + 1))
    found = [known for known in beginnings if any(other.startswith(known) for other in texts)]
    assert prompts.known(text) == max(map(len, found), default=0)


def test_as_many_texts_as_may_be_are_remembered_and_the_first_is_forgotten_first() -> None:
    prompts = RecentPrompts()
    texts = [chr(0x4E00 + number) for number in range(MOST_PROMPTS + 1)]
    for text in texts[:-1]:
        prompts.add(text)
    assert [prompts.known(text) for text in texts] == [1] * MOST_PROMPTS + [0]
    prompts.add(texts[-1])
    assert [prompts.known(text) for text in texts] == [0] + [1] * MOST_PROMPTS


def test_as_many_characters_as_may_be_are_remembered() -> None:
    prompts = RecentPrompts()
    quarter = MOST_CHARACTERS // 4
    prompts.add("a" * quarter)
    prompts.add("b" * quarter)
    prompts.add("語" * (MOST_CHARACTERS - 2 * quarter))
    assert [prompts.known(letter) for letter in "ab語"] == [1, 1, 1]
    prompts.add("d")
    assert [prompts.known(letter) for letter in "ab語d"] == [0, 1, 1, 1]


def test_a_text_that_is_longer_than_may_be_is_not_remembered() -> None:
    prompts = RecentPrompts()
    prompts.add("a")
    prompts.add("b" * (MOST_CHARACTERS + 1))
    assert prompts.known("b") == 0
    prompts.add("c" * MOST_CHARACTERS)  # so all room is free again
    assert prompts.known("c" * MOST_CHARACTERS) == MOST_CHARACTERS


def test_what_is_forgotten_makes_room_for_as_much() -> None:
    prompts = RecentPrompts()
    for _ in range(3 * MOST_PROMPTS):
        prompts.add("a" * (MOST_CHARACTERS // 4))
    for letter in "bcde":
        prompts.add(letter * (MOST_CHARACTERS // 4))
    assert [prompts.known(letter) for letter in "abcde"] == [0, 1, 1, 1, 1]


def test_each_worker_is_remembered_by_itself() -> None:
    router = router_with({"a": "k" * 1000})
    for number in range(MOST_PROMPTS):
        router.sent("b", f"{number}")
    assert router.choose({"a": 1, "b": 0}, "k" * 1000) == "a"

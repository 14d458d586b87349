"""The scheduler on an engine without a model and a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import EngineFailed
from shared.messages import Failed, Finished, Generate, Message, ModelInfo, Tokens
from shared.sampling import SamplingParams
from workers.engine import Feed
from workers.scheduler import Scheduler

END = 0
ALL = SamplingParams(num_predict=1000)


class Clock:
    """Tells the time that the engine has used up, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class CountingEngine:
    """Continues a prompt of n letters with n, n + 1, … as letters, ends after "z"."""

    max_batch = 16

    def __init__(self, clock: Clock, slots: int = 2, context: int = 64, batch: int = 4) -> None:
        self.info = ModelInfo("counting", "counting", context, 128, slots, batch)
        self.steps: list[list[Feed]] = []
        self.fails_on: int | None = None
        self._clock = clock
        self._lengths = dict.fromkeys(range(slots), 0)
        self._logits: set[int] = set()

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode("ascii"))

    def piece(self, token: int) -> bytes:
        return bytes((token,))

    def is_end(self, token: int) -> bool:
        return token == END

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> list[int]:
        return [ord("a") + len(prompt)]

    def decode(self, feeds: Sequence[Feed]) -> None:
        assert len({feed.slot for feed in feeds}) == len(feeds)
        assert all(feed.tokens for feed in feeds)
        self.steps.append([replace(feed, tokens=list(feed.tokens)) for feed in feeds])
        self._clock.now += 0.010
        self._logits = {feed.slot for feed in feeds if feed.wants_logits}
        for feed in feeds:
            assert feed.position == self._lengths[feed.slot], "a position was skipped"
            self._lengths[feed.slot] += len(feed.tokens)
        if self.fails_on in [feed.slot for feed in feeds]:
            raise EngineFailed("as told")

    def sample(self, slot: int, sampler: list[int]) -> int:
        assert slot in self._logits, "no logits were asked for"
        token = sampler[0]
        sampler[0] += 1
        return token if token <= ord("z") else END

    def forget(self, slot: int) -> None:
        self._lengths[slot] = 0


class Bench:
    """A scheduler with its engine, and what came out of it."""

    def __init__(self, **options: int) -> None:
        self.clock = Clock()
        self.engine = CountingEngine(self.clock, **options)
        self.scheduler = Scheduler(self.engine, self.clock)
        self.events: list[Message] = []

    def submit(self, request_id: int, prompt: str, params: SamplingParams = ALL) -> None:
        self.scheduler.submit(Generate(request_id, prompt, params))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.events += self.scheduler.step()

    def run(self) -> None:
        while not self.scheduler.is_idle:
            self.step()

    def text(self, request_id: int) -> str:
        return "".join(
            token.text
            for event in self.events
            if isinstance(event, Tokens)
            for token in event.tokens
            if token.request == request_id
        )

    def end(self, request_id: int) -> Finished | Failed:
        (end,) = (
            event
            for event in self.events
            if isinstance(event, Finished | Failed) and event.id == request_id
        )
        return end


def test_a_request_gets_its_text_and_its_counts() -> None:
    bench = Bench()
    bench.submit(7, "aaaaa")
    bench.run()
    assert bench.text(7) == "fghijklmnopqrstuvwxyz"
    end = bench.end(7)
    assert isinstance(end, Finished)
    assert end.reason == "stop"
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (5, 21)


def test_a_prompt_is_fed_in_chunks_of_the_engines_batch() -> None:
    bench = Bench(batch=4)
    bench.submit(1, "a" * 10, replace(ALL, num_predict=1))
    bench.run()
    assert [len(feeds[0].tokens) for feeds in bench.engine.steps] == [4, 4, 2]
    assert [feeds[0].wants_logits for feeds in bench.engine.steps] == [False, False, True]


@pytest.mark.parametrize(("n_batch", "sizes"), [(1, [1] * 6), (5, [5, 1]), (6, [6]), (99, [6])])
def test_n_batch_decides_the_chunk(n_batch: int, sizes: list[int]) -> None:
    bench = Bench(batch=4)
    bench.submit(1, "a" * 6, replace(ALL, num_predict=1, n_batch=n_batch))
    bench.run()
    assert [len(feeds[0].tokens) for feeds in bench.engine.steps] == sizes


def test_n_batch_is_bounded_by_what_the_engine_can_take() -> None:
    bench = Bench()
    bench.submit(1, "a" * 20, replace(ALL, num_predict=1, n_batch=1000))
    bench.run()
    assert [len(feeds[0].tokens) for feeds in bench.engine.steps] == [16, 4]


def test_a_prompt_shares_its_steps_with_a_running_stream() -> None:
    """The running stream gets a token in each step of the other's prompt."""
    bench = Bench()
    bench.submit(1, "a")
    bench.step(2)
    bench.submit(2, "b" * 20)
    before = len(bench.text(1))
    bench.step(5)
    assert len(bench.text(1)) == before + 5
    assert len(bench.text(2)) == 1


def test_requests_run_first_come_first_served_when_slots_are_few() -> None:
    bench = Bench(slots=1)
    for request_id in (3, 1, 2):
        bench.submit(request_id, "a", replace(ALL, num_predict=2))
    bench.run()
    assert [e.id for e in bench.events if isinstance(e, Finished)] == [3, 1, 2]


def test_all_tokens_of_a_step_are_in_one_message() -> None:
    bench = Bench(slots=3)
    for request_id in (1, 2, 3):
        bench.submit(request_id, "a")
    (message,) = bench.scheduler.step()
    assert isinstance(message, Tokens)
    assert {token.request for token in message.tokens} == {1, 2, 3}


def test_the_length_asked_for_ends_a_generation() -> None:
    bench = Bench()
    bench.submit(1, "a", replace(ALL, num_predict=3))
    bench.run()
    assert bench.text(1) == "bcd"
    assert bench.end(1).reason == "length"  # type: ignore[union-attr]


def test_the_last_token_is_not_fed_again() -> None:
    bench = Bench()
    bench.submit(1, "a", replace(ALL, num_predict=3))
    bench.run()
    assert len(bench.engine.steps) == 3


def test_a_full_context_ends_a_generation() -> None:
    bench = Bench(context=8)
    bench.submit(1, "aaaaa")
    bench.run()
    assert bench.text(1) == "fgh"
    assert bench.end(1).reason == "length"  # type: ignore[union-attr]


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    bench = Bench(context=8)
    bench.submit(1, "a" * 8)
    bench.submit(2, "a" * 7)
    bench.run()
    end = bench.end(1)
    assert isinstance(end, Failed)
    assert end.code == "context_length"
    assert "8 tokens" in end.message
    assert bench.text(2) == "h"


def test_a_stop_string_ends_a_generation_and_is_not_sent() -> None:
    bench = Bench()
    bench.submit(1, "a", replace(ALL, stop=("efg",)))
    bench.run()
    assert bench.text(1) == "bcd"
    assert bench.end(1).reason == "stop"  # type: ignore[union-attr]


def test_a_cancelled_request_ends_at_once_and_its_slot_is_used_again() -> None:
    bench = Bench(slots=1)
    bench.submit(1, "a")
    bench.submit(2, "a", replace(ALL, num_predict=1))
    bench.step(3)
    (end,) = bench.scheduler.cancel(1)
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("cancelled", 3)
    bench.events.clear()
    bench.run()
    assert bench.text(1) == ""
    assert bench.text(2) == "b"


def test_a_cancel_in_the_middle_of_a_prompt_takes_effect_at_the_next_step() -> None:
    bench = Bench()
    bench.submit(1, "a" * 40)
    bench.step(2)
    bench.scheduler.cancel(1)
    assert bench.scheduler.is_idle
    assert bench.scheduler.step() == []
    assert len(bench.engine.steps) == 2


def test_a_request_cancelled_while_it_waits_is_never_run() -> None:
    bench = Bench(slots=1)
    bench.submit(1, "a", replace(ALL, num_predict=2))
    bench.submit(2, "b")
    bench.step()
    (end,) = bench.scheduler.cancel(2)
    assert isinstance(end, Finished)
    bench.run()
    assert bench.text(2) == ""


def test_cancelling_what_has_ended_is_no_news() -> None:
    bench = Bench()
    bench.submit(1, "a")
    bench.run()
    assert bench.scheduler.cancel(1) == []
    assert bench.scheduler.cancel(99) == []


def test_an_engine_that_fails_a_step_fails_its_sequences_and_frees_their_slots() -> None:
    bench = Bench(slots=2)
    bench.submit(1, "a")
    bench.submit(2, "b")
    bench.engine.fails_on = 0
    bench.step()
    assert {bench.end(1).id, bench.end(2).id} == {1, 2}
    bench.engine.fails_on = None
    bench.submit(3, "c", replace(ALL, num_predict=1))
    bench.run()
    assert bench.text(3) == "b"


def test_times_are_counted_from_the_slot() -> None:
    bench = Bench(slots=1, batch=4)
    bench.submit(1, "a" * 8, replace(ALL, num_predict=4))
    bench.submit(2, "a" * 4, replace(ALL, num_predict=1))
    bench.run()
    first, second = bench.end(1), bench.end(2)
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert first.timings.prefill_s == pytest.approx(0.020)
    assert first.timings.decode_s == pytest.approx(0.030)
    assert second.timings.prefill_s == pytest.approx(0.010)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 40)), max_size=12),
    st.integers(1, 4),
    st.integers(1, 8),
)
def test_whatever_joins_and_leaves_every_text_is_right(
    requests: list[tuple[int, int, int]], slots: int, batch: int
) -> None:
    """(prompt length, tokens wanted, step at which it arrives); a third of them are cancelled."""
    bench = Bench(slots=slots, batch=batch)
    arrivals = sorted(enumerate(requests), key=lambda item: item[1][2])
    for request_id, (length, wanted, arrives) in arrivals:
        while len(bench.engine.steps) < arrives and not bench.scheduler.is_idle:
            bench.step()
        bench.submit(request_id, "a" * length, replace(ALL, num_predict=wanted))
        if request_id % 3 == 2:
            bench.step()
            bench.events += bench.scheduler.cancel(request_id)
    bench.run()
    for request_id, (length, wanted, _) in enumerate(requests):
        first = ord("a") + length
        expected = "".join(map(chr, range(first, min(first + wanted, ord("z") + 1))))
        if request_id % 3 == 2:
            assert expected.startswith(bench.text(request_id))
        else:
            assert bench.text(request_id) == expected
        assert isinstance(bench.end(request_id), Finished)

"""The scheduler on an engine without a model and a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import EngineFailed
from shared.messages import Failed, Finished, Generate, Message, Tokens
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.values import Candidate, Logprobs, ModelInfo
from tests.workers.child.submission import submit
from workers.child.padding import BatchPadding
from workers.child.preparer import Preparer
from workers.child.scheduler import LONGEST_STEP_S, MOST_INTERRUPTIONS, Scheduler
from workers.child.step_cost import Curve, StepCost, decode_cost
from workers.engines.base import Feed, Interrupted

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

    max_batch = 32
    state_format = "counting"

    def __init__(self, clock: Clock, slots: int = 2, context: int = 64, batch: int = 4) -> None:
        self.info = ModelInfo("counting", "counting", context, 128, slots, batch, ())
        self.steps: list[list[Feed]] = []
        self.may_be_interrupted: list[bool] = []
        self.widths: list[int] = []
        self.fails_on: int | None = None
        self.interrupts = 0
        self.step_s: Callable[[int], float] = lambda tokens: 0.010
        self.during_decode: Callable[[], None] = lambda: None
        self._clock = clock
        self.memory: list[list[int]] = [[] for _ in range(slots)]
        self.saves = self.loads = 0
        self._logits: set[int] = set()

    def tokenize(self, text: str, *, is_start: bool = True, continues: bool = False) -> list[int]:
        return list(text.encode("ascii"))

    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        return bytes((token,))

    def is_end(self, token: int) -> bool:
        return token == END

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> list[int]:
        return [ord("a") + len(prompt)]

    def decode(self, feeds: Sequence[Feed], *, interruptible: bool = False, width: int = 0) -> None:
        assert len({feed.slot for feed in feeds}) == len(feeds)
        assert all(feed.tokens for feed in feeds)
        assert sum(len(feed.tokens) for feed in feeds) <= self.max_batch
        self.steps.append([feed._replace(tokens=list(feed.tokens)) for feed in feeds])
        self.may_be_interrupted.append(interruptible)
        self.widths.append(width)
        self.during_decode()
        self._clock.now += self.step_s(sum(len(feed.tokens) for feed in feeds))
        if self.interrupts:
            self.interrupts -= 1
            raise Interrupted
        self._logits = {feed.slot for feed in feeds if feed.wants_logits}
        for feed in feeds:
            assert feed.position == len(self.memory[feed.slot]), "a position was skipped"
            self.memory[feed.slot] += feed.tokens
        if self.fails_on in [feed.slot for feed in feeds]:
            raise EngineFailed("as told")

    def sample(self, slot: int, sampler: list[int]) -> int:
        assert slot in self._logits, "no logits were asked for"
        token = sampler[0]
        sampler[0] += 1
        return token if token <= ord("z") else END

    def logprobs(self, slot: int, token: int, top: int) -> Logprobs:
        return Logprobs(-1.0, (Candidate(token, b"x", -1.0),) * top)

    def truncate(self, slot: int, length: int) -> int:
        del self.memory[slot][length:]
        return len(self.memory[slot])

    def usable_prefix(self, held: int, length: int) -> int:
        return min(held, length)

    def save(self, slot: int) -> bytearray:
        self.saves += 1
        return bytearray(self.memory[slot])

    def load(self, slot: int, state: bytearray) -> None:
        self.loads += 1
        self.memory[slot] = list(state)

    def interrupt(self) -> None:
        raise AssertionError("the scheduler runs in one thread, and interrupts nothing")

    def resume(self) -> None:
        raise AssertionError("what interrupts also resumes")


class Bench:
    """A scheduler with its engine, and what came out of it."""

    def __init__(
        self, cost: StepCost | None = None, max_stall_s: float = 1, **options: int
    ) -> None:
        self.clock = Clock()
        self.engine = CountingEngine(self.clock, **options)
        self.scheduler = Scheduler(self.engine, self.clock, cost, max_stall_s)
        self.preparer = Preparer(self.engine)
        self.events: list[Message] = []

    def submit(self, request_id: int, prompt: str, params: SamplingParams = ALL) -> None:
        request = Generate(request_id, Prompt(prompt), params)
        self.events += submit(self.scheduler, self.preparer, request)

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
    bench.submit(1, "a" * 40, replace(ALL, num_predict=1, n_batch=1000))
    bench.run()
    assert [len(feeds[0].tokens) for feeds in bench.engine.steps] == [32, 8]


def test_a_prompt_takes_turns_with_a_running_stream() -> None:
    """The running stream gets a token between any two chunks of the other's prompt."""
    bench = Bench()
    bench.submit(1, "a")
    bench.step(2)
    bench.submit(2, "b" * 20)
    before = len(bench.text(1))
    bench.step(10)
    assert len(bench.text(1)) == before + 5
    assert [len(feeds[0].tokens) for feeds in bench.engine.steps[-10:]] == [4, 1] * 5
    assert len(bench.text(2)) == 2


def test_streams_that_decode_share_every_step() -> None:
    bench = Bench(slots=3)
    for request_id in (1, 2, 3):
        bench.submit(request_id, "a")
    bench.step(3)
    assert [[feed.slot for feed in feeds] for feeds in bench.engine.steps] == [[0, 1, 2]] * 3


def test_the_lowest_free_slot_is_taken() -> None:
    """llama.cpp computes neighbours together."""
    bench = Bench(slots=3)
    for request_id, length in ((1, 3), (2, 9), (3, 9), (4, 9)):
        bench.submit(request_id, "a", replace(ALL, num_predict=length))
    bench.step(5)
    assert sorted(feed.slot for feed in bench.engine.steps[-1]) == [0, 1, 2]


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


def test_cancelling_a_finished_request_returns_nothing() -> None:
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


# ---------------------------------------------------------------- long prompts beside streams


def sizes(bench: Bench, request_slot: int, since: int = 0) -> list[int]:
    """Tokens that a slot was fed in each step that fed it."""
    return [
        len(feed.tokens)
        for feeds in bench.engine.steps[since:]
        for feed in feeds
        if feed.slot == request_slot
    ]


def linear(seconds_a_token: float) -> StepCost:
    measured = {size: size * seconds_a_token for size in (1, 2, 4, 8, 16, 32)}
    return StepCost(decode=Curve(measured), prefill=Curve(measured))


def timed(seconds_a_token: float = 0.1, **options: float) -> Bench:
    """A bench whose engine takes `seconds_a_token` for each token, as its scheduler expects."""
    bench = Bench(linear(seconds_a_token), **options)  # type: ignore[arg-type]
    bench.engine.step_s = lambda tokens: tokens * seconds_a_token
    return bench


def test_a_prompt_gets_what_a_running_stream_leaves_of_the_stall_limit() -> None:
    bench = timed(max_stall_s=2.05, batch=32)
    bench.submit(1, "a")
    bench.step(2)
    bench.submit(2, "b" * 39)
    bench.step(5)
    assert sizes(bench, 1, since=2) == [19, 19, 1]  # with the stream's own token 20, within 2.05 s
    assert sizes(bench, 0, since=2) == [1, 1]


def test_a_prompt_goes_on_even_if_the_limit_is_too_short_for_a_chunk() -> None:
    bench = timed(max_stall_s=0.001, batch=32)
    bench.submit(1, "a")
    bench.step(2)
    bench.submit(2, "b" * 35)
    bench.step(5)
    assert sizes(bench, 1, since=2) == [16, 16, 3]
    assert isinstance(bench.end(2), Finished)  # so far into the alphabet, its text is empty


def test_a_prompt_alone_is_fed_as_much_as_is_fastest() -> None:
    bench = timed(0.001, max_stall_s=0.002, batch=32)
    bench.submit(1, "a" * 40, replace(ALL, num_predict=1))
    bench.run()
    assert sizes(bench, 0) == [32, 8]


def test_no_step_takes_long_even_if_no_stream_runs() -> None:
    bench = timed(LONGEST_STEP_S / 20, batch=32)
    bench.submit(1, "a" * 42, replace(ALL, num_predict=1))
    bench.run()
    assert sizes(bench, 0) == [20, 20, 2]


def test_prompts_are_processed_first_come_first_served() -> None:
    """The second gets as much as the first, if the step has room."""
    bench = timed(0.1, max_stall_s=2.15, batch=32, slots=3)
    bench.submit(1, "a")
    bench.step(2)
    bench.submit(2, "b" * 24)
    bench.submit(3, "c" * 24)
    bench.step(5)
    assert sizes(bench, 1, since=2) == [20, 4, 1]
    assert sizes(bench, 2, since=2) == [4, 19]


def test_prompts_share_a_step_in_chunks_of_one_length() -> None:
    """Those of other lengths would need the weights to be read once more."""
    bench = Bench(slots=4, batch=16)
    for request_id, length in enumerate((6, 9, 3, 6)):
        bench.submit(request_id, "a" * length)
    bench.step()
    assert [(feed.slot, len(feed.tokens)) for feed in bench.engine.steps[0]] == [
        (0, 6), (1, 6), (3, 6),
    ]  # fmt: skip


def test_the_more_streams_run_the_less_is_left_for_a_prompt() -> None:
    bench = timed(0.1, max_stall_s=2.35, batch=32, slots=4)
    for request_id in (1, 2, 3):
        bench.submit(request_id, "a")
    bench.step(2)
    bench.submit(4, "b" * 40)
    bench.step(2)
    assert sizes(bench, 3) == [20]


def test_n_batch_caps_the_chunk_beside_a_stream_too() -> None:
    bench = timed(max_stall_s=1.25, batch=16)
    bench.submit(1, "a")
    bench.step(2)
    bench.submit(2, "b" * 7, replace(ALL, n_batch=3))
    bench.step(5)
    assert sizes(bench, 1, since=2) == [3, 3, 1]


def test_the_chunk_follows_what_steps_really_take() -> None:
    """The engine has become three times as slow as it was measured."""
    bench = timed(0.1, max_stall_s=6.15, batch=32, context=2000)
    bench.engine.step_s = lambda tokens: tokens * 0.3
    bench.submit(1, "a")
    bench.step(4)
    bench.submit(2, "b" * 800)
    bench.step(40)
    assert sizes(bench, 1)[-1] in (19, 20)  # tokens of 0.3 s, and one is the stream's


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 30)), min_size=1, max_size=8),
    st.sampled_from([0.2, 0.3, 0.7]),
)
def test_no_stream_ever_waits_longer_than_the_limit_while_prompts_come(
    prompts: list[tuple[int, int]], max_stall_s: float
) -> None:
    bench = timed(0.01, max_stall_s=max_stall_s, slots=4, context=2000, batch=32)
    bench.submit(0, "a")
    bench.step()
    arrivals = sorted(enumerate(prompts, start=1), key=lambda item: item[1][1])
    for request_id, (length, arrives) in arrivals:
        while len(bench.engine.steps) < arrives and not bench.scheduler.is_idle:
            bench.step()
        bench.submit(request_id, "b" * length, replace(ALL, num_predict=5))
    last, seen = bench.clock.now, len(bench.text(0))
    while not bench.scheduler.is_idle:
        bench.step()
        if len(bench.text(0)) > seen:
            assert bench.clock.now - last <= max_stall_s + 1e-9
            last, seen = bench.clock.now, len(bench.text(0))


# ---------------------------------------------------------------- interrupts


def test_an_interrupted_step_is_done_again_and_nothing_is_lost() -> None:
    bench = Bench(batch=4)
    bench.engine.interrupts = 2
    real_decode = bench.engine.decode

    def decode(feeds: Sequence[Feed], **options: Any) -> None:
        before = [list(tokens) for tokens in bench.engine.memory]
        try:
            real_decode(feeds, **options)
        except Interrupted:
            bench.engine.memory = before
            raise

    bench.engine.decode = decode  # type: ignore[method-assign]
    bench.submit(1, "a" * 10, replace(ALL, num_predict=3))
    bench.run()
    assert bench.text(1) == "klm"
    assert sizes(bench, 0) == [4, 4, 4, 4, 2, 1, 1]


def test_not_all_steps_in_a_row_may_be_interrupted() -> None:
    """Clients that leave one after the other would starve all prompts."""
    bench = Bench(batch=4)
    bench.engine.interrupts = MOST_INTERRUPTIONS
    bench.submit(1, "a" * 9)
    bench.step(MOST_INTERRUPTIONS + 2)
    assert bench.engine.may_be_interrupted == [*[True] * MOST_INTERRUPTIONS, False, True]


def test_a_small_n_batch_does_not_slow_down_the_prompts_behind_it() -> None:
    bench = Bench(batch=32, slots=2)
    bench.submit(1, "a" * 40, replace(ALL, n_batch=1))
    bench.submit(2, "b" * 40)
    bench.step(3)
    assert sizes(bench, 0) == [1, 1, 1]
    assert sizes(bench, 1) == [16, 16, 8]


def test_only_steps_of_prompts_may_be_interrupted() -> None:
    bench = Bench(slots=3, batch=4)
    bench.submit(1, "a" * 4)
    bench.submit(2, "a" * 9)
    bench.step(4)
    assert [len(feeds) for feeds in bench.engine.steps] == [2, 1, 1, 1]
    assert bench.engine.may_be_interrupted == [True, False, True, False]


def test_a_decode_step_has_the_fastest_batch_size() -> None:
    measured = {1: 0.04, 2: 0.06, 3: 0.09, 4: 0.07}
    curve = decode_cost(measured)
    bench = Bench(StepCost(curve, curve, BatchPadding(measured)), slots=4)
    for request_id in (1, 2, 3):
        bench.submit(request_id, "a")
    bench.step(3)
    bench.scheduler.cancel(3)
    bench.step()
    assert bench.engine.widths == [0, 4, 4, 2]


def test_a_batch_size_that_turns_out_slower_is_not_used_any_more() -> None:
    measured = {1: 0.2, 4: 0.06}
    bench = Bench(StepCost(Curve(measured), Curve(measured), BatchPadding(measured)), slots=4)
    bench.engine.step_s = lambda _: 0.06 if bench.engine.widths[-1] == 4 else 0.04
    bench.submit(1, "a")
    bench.step(15)
    assert bench.engine.widths == [0, *[4] * 8, *[1] * 6]


def test_decoding_has_the_streams_that_have_begun() -> None:
    bench = Bench(slots=2, batch=4)
    bench.submit(1, "a" * 4, replace(ALL, num_predict=2))
    bench.submit(2, "a" * 9)
    seen: list[set[int]] = []
    bench.engine.during_decode = lambda: seen.append(set(bench.scheduler.decoding))
    bench.step(5)
    assert seen == [set(), {1}, set(), set(), {2}]
    bench.scheduler.cancel(2)
    assert bench.scheduler.decoding == set()


# ---------------------------------------------------------------- log probabilities


def test_tokens_have_log_probabilities_where_they_are_asked_for() -> None:
    bench = Bench()
    bench.submit(1, "a", replace(ALL, num_predict=2, logprobs=1))
    bench.submit(2, "a", replace(ALL, num_predict=2))
    bench.run()
    tokens = [t for e in bench.events if isinstance(e, Tokens) for t in e.tokens]
    assert len(tokens) == 4
    for token in tokens:
        expected = Logprobs(-1.0, (Candidate(token.id, b"x", -1.0),))
        assert token.logprobs == (expected if token.request == 1 else None)

"""Prompts that become vectors, beside streams and between their steps."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest

from shared.errors import EngineFailed
from shared.messages import (
    Embed,
    Embedded,
    Failed,
    Finished,
    Generate,
    Message,
    Tokens,
)
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from tests.workers.child.submission import submit
from workers.child.preparer import Preparer
from workers.child.scheduler import LONGEST_STEP_S, SMALLEST_CHUNK, Scheduler
from workers.child.step_cost import Curve, StepCost
from workers.engines.base import Feed
from workers.engines.echo import EMBEDDING, EchoEngine, EchoOptions

FULL = SamplingParams(num_predict=1000)
TOKEN_S = 0.01


class Recorder(EchoEngine):
    """Records its steps. Each token of a prompt takes TOKEN_S, and so does a decode step."""

    max_batch = 64

    def __init__(self, slots: int = 2, context: int = 2000) -> None:
        super().__init__(EchoOptions(slots=slots), context, 64)
        self.max_batch = 64
        self.now = 0.0
        self.steps: list[tuple[str, int]] = []
        self.fails = False

    def decode(self, feeds: Sequence[Feed], *, interruptible: bool = False, width: int = 0) -> None:
        is_decode = all(len(feed.tokens) == 1 for feed in feeds)
        count = sum(len(feed.tokens) for feed in feeds)
        self.steps.append(("decode" if is_decode else "prefill", count))
        self.now += TOKEN_S * count
        super().decode(feeds, interruptible=interruptible, width=width)

    def embed(self, tokens: Sequence[int], position: int, *, is_last: bool) -> bytes:
        self.steps.append(("embed", len(tokens)))
        self.now += 2 * TOKEN_S * len(tokens)
        if self.fails:
            raise EngineFailed("as told")
        return super().embed(tokens, position, is_last=is_last)


class Bench:
    def __init__(self, max_stall_s: float = 1.0, slots: int = 2, context: int = 2000) -> None:
        self.engine = Recorder(slots, context)
        curve = {size: TOKEN_S * size for size in (1, 2, 4, 8, 16, 32, 64)}
        cost = StepCost(Curve({1: TOKEN_S, 2: 2 * TOKEN_S}), Curve(curve))
        self.scheduler = Scheduler(self.engine, lambda: self.engine.now, cost, max_stall_s)
        self.preparer = Preparer(self.engine)
        self.events: list[Message] = []

    def embed(self, request_id: int, text: str) -> None:
        self.events += submit(self.scheduler, self.preparer, Embed(request_id, Prompt(text)))

    def generate(self, request_id: int, text: str, params: SamplingParams = FULL) -> None:
        request = Generate(request_id, Prompt(text), params)
        self.events += submit(self.scheduler, self.preparer, request)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.events += self.scheduler.step()

    def run(self) -> None:
        while not self.scheduler.is_idle:
            self.step()

    def of(self, request_id: int) -> list[Message]:
        kinds = Embedded | Finished | Failed
        return [e for e in self.events if isinstance(e, kinds) and e.id == request_id]


def test_a_prompt_becomes_a_vector_and_ends_with_its_counts() -> None:
    bench = Bench()
    bench.embed(5, "abba")
    bench.run()
    embedded, end = bench.of(5)
    assert isinstance(embedded, Embedded)
    assert isinstance(end, Finished)
    vector = struct.unpack(f"<{EMBEDDING}f", embedded.vector)
    assert vector[ord("a") % EMBEDDING] == pytest.approx(math.sqrt(0.5))
    assert (end.reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("stop", 4, 0)
    assert end.timings.prefill_s > 0


def test_several_come_one_after_the_other_and_need_no_slot() -> None:
    bench = Bench(slots=1)
    bench.generate(1, "a" * 50)
    bench.step(3)
    for request_id in (2, 3):
        bench.embed(request_id, "b" * request_id)
    bench.run()
    ends = [event.id for event in bench.events if isinstance(event, Finished)]
    assert ends == [2, 3, 1]


def test_a_stream_goes_on_between_the_chunks() -> None:
    bench = Bench(max_stall_s=0.5)
    bench.generate(1, "ab" * 100)
    bench.step(6)
    before = len(bench.engine.steps)
    bench.embed(2, "c" * 400)
    bench.run()
    steps = bench.engine.steps[before:]
    until = max(place for place, (kind, _) in enumerate(steps) if kind == "embed")
    kinds = [kind for kind, _ in steps[: until + 1]]
    assert all({one, other} == {"decode", "embed"} for one, other in itertools.pairwise(kinds))


def test_its_chunks_keep_within_the_stall_limit_once_their_cost_is_known() -> None:
    bench = Bench(max_stall_s=0.8)
    bench.generate(1, "ab" * 200)
    bench.step(12)
    bench.embed(2, "c" * 1500)
    bench.step(40)
    last = [count for kind, count in bench.engine.steps if kind == "embed"][-1]
    assert last >= SMALLEST_CHUNK
    assert 2 * TOKEN_S * last + TOKEN_S <= 0.8 * 1.1


def test_alone_it_is_fed_the_engines_largest_chunks() -> None:
    bench = Bench()
    bench.embed(1, "c" * 200)
    bench.run()
    assert bench.engine.steps == [("embed", 64)] * 3 + [("embed", 8)]
    assert 2 * TOKEN_S * 64 < LONGEST_STEP_S


def test_it_takes_turns_with_prompts() -> None:
    bench = Bench(max_stall_s=0.2)
    bench.embed(1, "c" * 256)
    bench.generate(2, "d" * 256, replace(FULL, num_predict=1))
    bench.run()
    kinds = [kind for kind, count in bench.engine.steps]
    assert kinds[:8] in (["prefill", "embed"] * 4, ["embed", "prefill"] * 4)


def test_a_waiting_prompt_is_cancelled_without_being_processed() -> None:
    bench = Bench()
    bench.embed(1, "a" * 300)
    bench.embed(2, "b")
    bench.step()
    bench.events += bench.scheduler.cancel(2)
    bench.run()
    (end,) = bench.of(2)
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.prompt_tokens) == ("cancelled", 0)
    assert len(bench.of(1)) == 2


def test_a_prompt_being_embedded_is_cancelled_between_two_chunks() -> None:
    bench = Bench()
    bench.embed(1, "a" * 300)
    bench.step(2)
    bench.events += bench.scheduler.cancel(1)
    assert bench.scheduler.is_idle
    bench.embed(2, "bbb")
    bench.run()
    (end,) = bench.of(1)
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"
    embedded, _ = bench.of(2)
    assert isinstance(embedded, Embedded)
    assert struct.unpack(f"<{EMBEDDING}f", embedded.vector)[ord("b") % EMBEDDING] == 1
    assert bench.scheduler.cancel(1) == []


def test_a_prompt_that_does_not_fit_is_refused_and_the_next_one_is_embedded() -> None:
    bench = Bench(context=100)
    bench.embed(1, "a" * 101)
    bench.embed(2, "a" * 100)
    bench.embed(3, "")
    bench.run()
    (failed,) = bench.of(1)
    assert failed == Failed(1, "context_length", "the prompt has 101 tokens; the context holds 100")
    assert len(bench.of(2)) == 2
    (empty,) = bench.of(3)
    assert isinstance(empty, Failed)
    assert empty.code == "invalid_request"


def test_an_engine_that_fails_costs_only_that_prompt() -> None:
    bench = Bench()
    bench.generate(1, "ab")
    bench.embed(2, "c")
    bench.engine.fails = True
    bench.run()
    (failed,) = bench.of(2)
    assert failed == Failed(2, "engine_failed", "as told")
    text = "".join(t.text for e in bench.events if isinstance(e, Tokens) for t in e.tokens)
    assert text == "ab"


def test_the_restored_prompt_is_not_part_of_a_vector() -> None:
    engine = Recorder()
    scheduler = Scheduler(engine, lambda: engine.now, None, 1.0)
    preparer = Preparer(engine, engine.tokenize("root"))
    assert submit(scheduler, preparer, Embed(1, Prompt("aa"))) == []
    embedded, end = scheduler.step()
    assert isinstance(embedded, Embedded)
    assert isinstance(end, Finished)
    assert end.usage.prompt_tokens == 2

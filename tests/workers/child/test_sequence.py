"""One generation on the echo engine: what is fed, what is sent, and how it ends."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.messages import Finished, Generate, Token
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.values import Timings, Usage
from workers.child.sequence import Sequence
from workers.engines.base import Feed
from workers.engines.echo import END, EchoEngine, EchoOptions

SLOT = 2
PROMPTS = st.text(st.sampled_from("ab é語🙂\n"), min_size=1, max_size=15)


@dataclass
class Run:
    """Runs a generation without a scheduler. A step takes a second of its clock."""

    prompt: str
    params: SamplingParams
    engine: EchoEngine
    now: float = 100.0
    feeds: list[Feed] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    sent: list[list[Token]] = field(default_factory=list)
    """The tokens that could be sent after each sample."""

    def __post_init__(self) -> None:
        tokens = self.engine.tokenize(self.prompt)
        self.sampler = self.engine.sampler(self.params, tokens)
        request = Generate(5, Prompt(self.prompt), self.params)
        self.sequence = Sequence(request, SLOT, tokens, self.sampler, self.now)

    def step(self) -> None:
        if self.sampled:
            feed = self.sequence.next_token()
        else:
            feed = self.sequence.next_chunk(self.engine.max_batch, self.engine.info.batch)
        self.feeds.append(feed)
        self.engine.decode([feed])
        self.now += 1
        self.sequence.fed(feed)
        if feed.wants_logits:
            token = self.engine.sample(SLOT, self.sampler)
            self.sampled.append(token)
            self.sent.append(self.sequence.sampled(token, self.engine, self.now))

    def to_its_end(self) -> Run:
        while self.sequence.finish_reason is None:
            self.step()
        return self

    @property
    def tokens(self) -> list[Token]:
        return list(itertools.chain(*self.sent))

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    def finished(self) -> Finished:
        assert self.sequence.finish_reason is not None
        return self.sequence.finished(self.sequence.finish_reason, self.now)


def started(
    prompt: str, *, context: int = 256, batch: int = 64, max_batch: int = 4096, **params: Any
) -> Run:
    engine = EchoEngine(EchoOptions(slots=SLOT + 1), context, batch)
    engine.max_batch = max_batch
    return Run(prompt, SamplingParams(**{"num_predict": 200, **params}), engine)


def generated(prompt: str, **options: Any) -> Run:
    return started(prompt, **options).to_its_end()


# ---------------------------------------------------------------- what is fed


def test_a_prompt_is_fed_in_chunks_and_only_the_last_wants_logits() -> None:
    run = generated("abcdefgh", n_batch=3)

    assert run.feeds[:3] == [
        Feed(SLOT, list(b"abc"), 0, wants_logits=False),
        Feed(SLOT, list(b"def"), 3, wants_logits=False),
        Feed(SLOT, list(b"gh"), 6, wants_logits=True),
    ]


def test_a_prompt_of_whole_chunks_has_no_empty_one_after_them() -> None:
    run = generated("abcdef", n_batch=3)

    assert run.feeds[1] == Feed(SLOT, list(b"def"), 3, wants_logits=True)
    assert run.feeds[2].tokens == list(b"a")


def test_afterwards_each_feed_is_the_last_token_at_the_next_position() -> None:
    run = generated("abc", n_batch=8)

    assert run.feeds == [
        Feed(SLOT, list(b"abc"), 0, wants_logits=True),
        Feed(SLOT, list(b"a"), 3, wants_logits=True),
        Feed(SLOT, list(b"b"), 4, wants_logits=True),
        Feed(SLOT, list(b"c"), 5, wants_logits=True),
    ]


@pytest.mark.parametrize(
    ("sizes", "chunk"),
    [
        ({"batch": 5}, 5),
        ({"batch": 5, "n_batch": 2}, 2),
        ({"batch": 5, "n_batch": 9}, 9),
        ({"batch": 5, "n_batch": 9, "max_batch": 4}, 4),
        ({"batch": 5, "max_batch": 4}, 4),
        ({"batch": 5, "n_batch": 1}, 1),
    ],
)
def test_a_chunk_is_as_the_request_says_or_else_the_engine_but_never_over_its_limit(
    sizes: dict[str, int], chunk: int
) -> None:
    run = started("x" * 12, **sizes)

    run.step()

    assert len(run.feeds[0].tokens) == chunk


@given(PROMPTS, st.integers(1, 20), st.integers(1, 12))
@settings(max_examples=60)
def test_everything_is_fed_once_and_in_its_place_whatever_the_chunks(
    prompt: str, n_batch: int, num_predict: int
) -> None:
    run = generated(prompt, n_batch=n_batch, num_predict=num_predict)

    prompt_tokens = list(prompt.encode())
    places = [
        (feed.position + offset, token)
        for feed in run.feeds
        for offset, token in enumerate(feed.tokens)
    ]
    assert places == list(enumerate(prompt_tokens + run.sampled[:-1]))
    assert all(feed.slot == SLOT for feed in run.feeds)


@given(PROMPTS, st.integers(1, 20))
@settings(max_examples=40)
def test_the_size_of_the_chunks_does_not_change_what_is_sent(prompt: str, n_batch: int) -> None:
    assert generated(prompt, n_batch=n_batch).sent == generated(prompt).sent


# ---------------------------------------------------------------- what is sent


@given(PROMPTS)
@settings(max_examples=40)
def test_the_text_is_whole_and_its_tokens_are_numbered(prompt: str) -> None:
    run = generated(prompt)

    assert run.text == prompt
    assert [(token.request, token.position) for token in run.tokens] == [
        (5, position) for position in range(len(prompt.encode()))
    ]
    assert [token.id for token in run.tokens] == list(prompt.encode())


def test_each_token_is_sent_when_it_is_sampled_with_the_characters_that_it_completes() -> None:
    run = generated("aé")

    first, second = "é".encode()
    assert run.sent == [
        [Token(5, ord("a"), 0, "a")],
        [Token(5, first, 1, "")],
        [Token(5, second, 2, "é")],
        [],
    ]


def test_what_may_begin_a_stop_string_is_sent_when_it_does_not_and_numbers_have_no_gap() -> None:
    run = generated("xENGy", stop=("END",))

    assert [[token.text for token in sent] for sent in run.sent] == [
        ["x"], [], [], ["E", "N", "G"], ["y"], [],
    ]  # fmt: skip
    assert [token.position for token in run.tokens] == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- how it ends


def test_the_end_token_ends_it_and_is_neither_sent_nor_counted() -> None:
    run = generated("abc")

    assert run.sampled[-1] == END
    assert run.text == "abc"
    assert run.finished().reason == "stop"
    assert run.finished().usage == Usage(3, 0, 3)


def test_at_the_end_token_what_was_held_back_is_sent() -> None:
    run = generated("abE", stop=("END",))

    assert run.sent[-1] == [Token(5, ord("E"), 2, "E")]
    assert run.finished().reason == "stop"
    assert run.text == "abE"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_ends_after_num_predict_tokens(count: int) -> None:
    run = generated("abcdefgh", num_predict=count)

    assert run.text == "abcdefgh"[:count]
    assert len(run.sampled) == count
    assert run.finished().reason == "length"
    assert run.finished().usage == Usage(8, 0, count)


def test_its_reason_is_length_also_if_the_next_token_would_be_the_end() -> None:
    run = generated("abc", num_predict=3)

    assert (run.text, run.finished().reason) == ("abc", "length")


def test_at_its_length_what_was_held_back_is_sent_after_what_was_certain() -> None:
    run = generated("abEEND", stop=("END",), num_predict=4)

    assert run.finished().reason == "length"
    assert [(token.position, token.text) for token in run.sent[-1]] == [(2, "E"), (3, "E")]
    assert run.text == "abEE"


@pytest.mark.parametrize(("context", "count"), [(9, 1), (10, 2), (16, 8)])
def test_it_ends_when_prompt_and_answer_fill_the_context(context: int, count: int) -> None:
    run = generated("abcdefgh", context=context, ignore_eos=True)

    assert run.finished().reason == "length"
    assert run.finished().usage == Usage(8, 0, count)
    assert max(feed.position + len(feed.tokens) for feed in run.feeds) < context


def test_a_stop_string_ends_it_and_is_not_sent() -> None:
    run = generated("one END two", stop=("END",))

    assert run.text == "one "
    assert run.finished().reason == "stop"
    assert len(run.sampled) == len("one END")
    assert run.finished().usage == Usage(11, 0, 7)


def test_a_stop_string_in_the_last_token_is_a_stop_and_not_a_length() -> None:
    run = generated("oEND", stop=("END",), num_predict=4)

    assert (run.text, run.finished().reason) == ("o", "stop")


def test_half_a_character_at_the_end_is_a_token_without_text() -> None:
    run = generated("a🙂", num_predict=3)

    assert [token.text for token in run.tokens] == ["a", "", ""]
    assert run.finished().usage.completion_tokens == 3


@given(
    PROMPTS,
    st.integers(1, 30),
    st.lists(st.text(st.sampled_from("ab é"), min_size=1, max_size=3), max_size=2),
)
@settings(max_examples=80)
def test_however_it_ends_the_text_is_the_beginning_of_the_whole_and_the_counts_are_true(
    prompt: str, num_predict: int, stop: list[str]
) -> None:
    run = generated(prompt, num_predict=num_predict, stop=tuple(stop))
    finished = run.finished()

    counted = [token for token in run.sampled if token != END]
    assert prompt.startswith(run.text)
    assert finished.usage == Usage(len(prompt.encode()), 0, len(counted))
    assert [token.position for token in run.tokens] == list(range(len(run.tokens)))
    assert not any(string in run.text for string in stop)
    if finished.reason == "length":
        assert len(counted) == num_predict
        assert len(run.tokens) == num_predict


# ---------------------------------------------------------------- times


def test_times_run_from_the_start_to_the_first_token_and_from_there_to_the_end() -> None:
    run = generated("abcdefgh", n_batch=4, num_predict=3)

    assert run.finished() == Finished(
        id=5, reason="length", usage=Usage(8, 0, 3), timings=Timings(prefill_s=2.0, decode_s=2.0)
    )


def test_the_end_token_as_the_first_one_has_a_time_too() -> None:
    run = started("abc")
    run.sampler.position = 3  # the echo is over before it begins

    run.to_its_end()

    assert run.tokens == []
    assert run.finished() == Finished(5, "stop", Usage(3, 0, 0), Timings(1.0, 0.0))


def test_a_request_cancelled_during_its_prompt_has_no_decode_time() -> None:
    run = started("abcdefgh", n_batch=4)
    run.step()

    finished = run.sequence.finished("cancelled", run.now + 0.5)

    assert finished == Finished(5, "cancelled", Usage(8, 0, 0), Timings(1.5, 0.0))


def test_a_request_cancelled_later_reports_its_usage_until_then() -> None:
    run = started("abcdefgh")
    for _ in range(3):
        run.step()

    finished = run.sequence.finished("cancelled", run.now + 0.5)

    assert finished == Finished(5, "cancelled", Usage(8, 0, 3), Timings(1.0, 2.5))

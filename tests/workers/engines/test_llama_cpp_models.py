"""The llama.cpp engine on small models of other architectures than llama, and other tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shared.messages import Finished, Token
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from tests.helpers import models
from tests.helpers.support import collect, end_of, model_settings, pool_settings, text_of, with_pool
from workers.engines.base import Engine, Feed
from workers.engines.table import load_engine
from workers.pool.pool import WorkerPool

GREEDY = SamplingParams(temp=0.0, repeat_penalty=1.0, ignore_eos=True)
PROMPT = "Once upon a time, é語🙂 said the Wolf."
OTHER = "a shorter one"
COUNT = 20
TIE = 0.03
"""The log ratio of the two likeliest tokens below which other rounding may swap them."""


@dataclass(frozen=True)
class Family:
    """A builder of models, their architecture, and the name of their end token."""

    build: Callable[..., Path]
    architecture: str
    end: str


FAMILIES = [
    Family(models.build_phi3_gguf, "phi3", "<|end|>"),
    Family(models.build_qwen2_gguf, "qwen2", "<|im_end|>"),
    Family(models.build_qwen3_gguf, "qwen3", "<|im_end|>"),
    Family(models.build_gemma3_gguf, "gemma3", "<end_of_turn>"),
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.architecture)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def path(family: Family, model_folder: Path) -> Path:
    return family.build(model_folder / f"{family.architecture}.gguf")


@pytest.fixture(scope="module")
def engine(path: Path) -> Engine:
    return load_engine(model_settings("llama_cpp", path), threads=1)


class Run:
    """A greedy sequence in a slot, with a prompt in chunks of `chunk` tokens."""

    def __init__(self, engine: Engine, slot: int, text: str, chunk: int = 64) -> None:
        self.engine, self.slot, self.chunk = engine, slot, chunk
        self.unfed = engine.tokenize(text)
        self.sampler = engine.sampler(GREEDY, self.unfed)
        self.position = 0
        self.tokens: list[int] = []
        self.gaps: list[float] = []
        """The log ratio of each token to the second likeliest."""

    def feed(self) -> Feed:
        tokens = self.unfed[: self.chunk]
        return Feed(self.slot, tokens, self.position, len(tokens) == len(self.unfed))

    def fed(self, feed: Feed) -> None:
        self.unfed = self.unfed[len(feed.tokens) :]
        self.position += len(feed.tokens)
        if feed.wants_logits:
            self.unfed = [self.engine.sample(self.slot, self.sampler)]
            self.tokens += self.unfed
            first, second = self.engine.logprobs(self.slot, self.tokens[-1], 2).top
            self.gaps.append(first.logprob - second.logprob)


def finish(engine: Engine, runs: Sequence[Run]) -> None:
    """Run them together to COUNT tokens each, and empty their slots."""
    while unfinished := [run for run in runs if len(run.tokens) < COUNT]:
        feeds = [run.feed() for run in unfinished]
        engine.decode(feeds)
        for run, feed in zip(unfinished, feeds, strict=True):
            run.fed(feed)
    for run in runs:
        engine.truncate(run.slot, 0)


def finished(engine: Engine, text: str, chunk: int = 64) -> Run:
    run = Run(engine, 0, text, chunk)
    finish(engine, [run])
    return run


def generate(engine: Engine, text: str, chunk: int = 64) -> list[int]:
    return finished(engine, text, chunk).tokens


def assert_same(run: Run, alone: Run) -> None:
    """Assert equal tokens, except after a tie that is not among the first tokens.

    With other cells of the KV cache, or in other batches, sums are rounded differently.
    """
    pairs = zip(run.tokens, alone.tokens, strict=True)
    differs = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    assert differs is None or (differs > 5 and alone.gaps[differs] < TIE)


def test_the_info_has_the_architecture(engine: Engine, family: Family) -> None:
    assert engine.info.architecture == family.architecture
    assert engine.info.vocabulary == 512
    assert engine.info.context == 256


def test_a_text_survives_tokens_and_pieces(engine: Engine) -> None:
    tokens = engine.tokenize(PROMPT)
    assert b"".join(map(engine.piece, tokens)).decode().strip() == PROMPT
    assert len(tokens) < len(PROMPT.encode())  # some have several bytes


def test_every_byte_has_a_token(engine: Engine) -> None:
    pieces = {engine.piece(token) for token in range(engine.info.vocabulary)}
    assert pieces >= {bytes([byte]) for byte in range(256)}


def test_the_text_is_varied(engine: Engine) -> None:
    """A precondition of the other tests."""
    assert len(set(generate(engine, PROMPT))) > 5
    assert generate(engine, PROMPT) != generate(engine, OTHER)


def test_the_chunk_size_never_changes_the_text(engine: Engine) -> None:
    assert generate(engine, PROMPT, chunk=3) == generate(engine, PROMPT, chunk=64)


@pytest.mark.parametrize("chunk", [3, 64])
def test_sequences_decoded_together_have_the_text_that_each_has_alone(
    engine: Engine, chunk: int
) -> None:
    alone = [finished(engine, text) for text in (PROMPT, OTHER)]
    together = [Run(engine, slot, text, chunk) for slot, text in enumerate((PROMPT, OTHER))]
    finish(engine, together)
    for run, single in zip(together, alone, strict=True):
        assert_same(run, single)


def test_a_removed_sequence_leaves_no_trace(engine: Engine) -> None:
    expected = generate(engine, PROMPT)
    engine.decode([Feed(0, engine.tokenize(OTHER * 4), 0, False)])
    engine.truncate(0, 0)
    assert generate(engine, PROMPT) == expected


def test_removing_a_sequence_does_not_change_another(engine: Engine) -> None:
    alone = finished(engine, PROMPT)
    run = Run(engine, 1, PROMPT, chunk=3)
    feed = run.feed()
    engine.decode([Feed(0, engine.tokenize(OTHER), 0, False), feed])
    run.fed(feed)
    engine.truncate(0, 0)
    finish(engine, [run])
    assert_same(run, alone)


def test_the_end_tokens_name_in_a_prompt_is_a_control_token(engine: Engine, family: Family) -> None:
    (*before, end) = engine.tokenize(f"The Wolf.{family.end}")
    assert engine.is_end(end)
    assert engine.piece(end) == b""
    assert before == engine.tokenize("The Wolf.")
    assert not any(map(engine.is_end, before))


def test_no_token_has_the_end_tokens_name_as_text(engine: Engine, family: Family) -> None:
    pieces = [engine.piece(token) for token in range(engine.info.vocabulary)]
    assert not any(family.end.encode() in piece for piece in pieces)
    ends = [token for token in range(engine.info.vocabulary) if engine.is_end(token)]
    assert ends
    assert {pieces[token] for token in ends} == {b""}


@pytest.mark.parametrize("original", [None, 4096, 256])
def test_the_number_of_slots_never_changes_the_text(original: int | None, tmp_path: Path) -> None:
    path = models.build_phi3_gguf(tmp_path / "phi3.gguf", original_context=original)

    def text(slots: int) -> list[int]:
        given = model_settings("llama_cpp", path, slots=slots)
        return generate(load_engine(given, threads=1), PROMPT)

    assert text(4) == text(1)


# ---------------------------------------------------------------- through a pool


def test_a_request_streams_its_tokens_and_finishes_at_its_length(path: Path) -> None:
    params = replace(GREEDY, num_predict=10)

    async def step(pool: WorkerPool) -> None:
        events = await collect(pool, pool.submit(Prompt(PROMPT), params))
        assert sum(isinstance(event, Token) for event in events) == 10
        assert text_of(events)
        end = end_of(events)
        assert isinstance(end, Finished)
        assert (end.reason, end.usage.completion_tokens) == ("length", 10)

    with_pool(pool_settings(model_settings("llama_cpp", path)), step)


def test_a_model_that_ends_at_once_stops_without_text(family: Family, tmp_path: Path) -> None:
    path = family.build(tmp_path / "ends.gguf", end=100.0)

    async def step(pool: WorkerPool) -> None:
        params = replace(GREEDY, num_predict=10, ignore_eos=False)
        events = await collect(pool, pool.submit(Prompt(PROMPT), params))
        end = end_of(events)
        assert isinstance(end, Finished)
        assert end.reason == "stop"
        assert text_of(events) == ""

    with_pool(pool_settings(model_settings("llama_cpp", path)), step)

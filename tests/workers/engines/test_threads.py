"""Prompts are tokenized and samplers are made in other threads while the engine decodes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.sampling import LogitBias, SamplingParams
from shared.settings import ModelSettings
from tests.helpers.paths import BUNDLED
from tests.helpers.support import model_settings
from workers.engines.base import Engine, Feed
from workers.engines.ctransformers import CtransformersEngine
from workers.engines.table import load_engine

GREEDY = SamplingParams(temp=0.0, repeat_penalty=1.1, ignore_eos=True)
PROMPT = "Once upon a time there was a fox, é語🙂 said the Wolf."
TEXTS = ["The Wolf", "é語🙂 " * 12, "a" * 200, "1830 torrents;   fell\n\n" * 9, "<s>The end.</s>"]
SCHEMA = '{"type":"object","properties":{"name":{"type":"string","pattern":"^[a-z]{1,20}$"}}}'
ROUNDS = 6


@pytest.fixture(scope="module", params=["echo", "bundled", "llama-gguf", "llama-ggjt", "gpt2-ggml"])
def settings(
    request: pytest.FixtureRequest, small_models: dict[str, ModelSettings]
) -> ModelSettings:
    return {**small_models, "bundled": model_settings("llama_cpp", BUNDLED)}[request.param]


@pytest.fixture(scope="module")
def engine(settings: ModelSettings) -> Engine:
    return load_engine(settings, threads=1)


@contextmanager
def repeated(work: Callable[[], None], threads: int = 2) -> Iterator[list[int]]:
    """Repeat `work` in other threads meanwhile. Yields the number of repetitions by thread.

    Each thread does the work at least once. Raises the first error of the work.
    """
    stop = threading.Event()
    started = threading.Barrier(threads + 1)
    counts = [0] * threads
    errors: list[BaseException] = []

    def loop(index: int) -> None:
        started.wait()
        try:
            while not stop.is_set() or not counts[index]:
                work()
                counts[index] += 1
        except BaseException as error:  # raised below
            errors.append(error)

    running = [threading.Thread(target=loop, args=[index]) for index in range(threads)]
    for thread in running:
        thread.start()
    started.wait()
    try:
        yield counts
    finally:
        stop.set()
        for thread in running:
            thread.join()
    if errors:
        raise errors[0]


def generate(engine: Engine, sampler: Any, prompt: list[int], count: int = 40) -> list[int]:
    engine.decode([Feed(0, prompt, 0, True)])
    tokens: list[int] = []
    while len(tokens) < count:
        tokens.append(engine.sample(0, sampler))
        engine.decode([Feed(0, tokens[-1:], len(prompt) + len(tokens) - 1, True)])
    engine.truncate(0, 0)
    return tokens


def tokenized(engine: Engine) -> list[list[int]]:
    whole = [engine.tokenize(text) for text in TEXTS]
    rest = [engine.tokenize(text, is_start=False, continues=True) for text in TEXTS]
    return whole + rest


def test_tokenizing_while_another_thread_decodes_changes_neither(engine: Engine) -> None:
    prompt = engine.tokenize(PROMPT)
    expected_tokens = tokenized(engine)
    expected_pieces = [engine.piece(token, shows_control=True) for token in range(256)]
    expected_text = generate(engine, engine.sampler(GREEDY, prompt), prompt)

    def tokenize() -> None:
        assert tokenized(engine) == expected_tokens
        assert [engine.piece(t, shows_control=True) for t in range(256)] == expected_pieces
        assert not engine.is_end(expected_tokens[0][-1])

    with repeated(tokenize) as counts:
        for _ in range(ROUNDS):
            assert generate(engine, engine.sampler(GREEDY, prompt), prompt) == expected_text
    assert all(counts)


def test_a_sampler_made_in_another_thread_while_one_decodes_chooses_the_same(
    engine: Engine,
) -> None:
    prompt = engine.tokenize(PROMPT)
    kinds = [GREEDY, replace(GREEDY, temp=1.0, seed=7, ignore_eos=False)]
    if "json_schema" in engine.info.sampling:
        kinds += [
            replace(GREEDY, json_schema=SCHEMA),
            replace(GREEDY, grammar='root ::= ("fox " | "wolf ")+'),
            replace(GREEDY, dry_multiplier=0.8, logit_bias=(LogitBias(300, 2.0),)),
        ]
    count = 12
    expected = [generate(engine, engine.sampler(kind, prompt), prompt, count) for kind in kinds]
    made: list[Any] = []

    def make() -> None:
        made[:] = [engine.sampler(kind, prompt) for kind in kinds]

    with repeated(make):
        for _ in range(2):
            texts = [generate(engine, engine.sampler(k, prompt), prompt, count) for k in kinds]
            assert texts == expected
    assert [generate(engine, sampler, prompt, count) for sampler in made] == expected


def test_the_library_never_tokenizes_in_two_threads_at_once(
    llama_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The falcon tokenizer of ctransformers inserts into tables that all calls share."""
    engine = load_engine(model_settings("ctransformers", llama_gguf), threads=1)
    assert isinstance(engine, CtransformersEngine)
    native = engine._lib.ctransformers_llm_tokenize
    both = threading.Barrier(2)
    met: list[int] = []

    def tokenize(*arguments: Any) -> int:
        with suppress(threading.BrokenBarrierError):
            met.append(both.wait(timeout=0.3))
        return native(*arguments)

    monkeypatch.setattr(engine._lib, "ctransformers_llm_tokenize", tokenize)
    threads = [threading.Thread(target=engine.tokenize, args=["The Wolf"]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not met

"""Reuse on real models: random edits of random chats have the texts that they have without it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.messages import Finished, Generate, Token, Tokens
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from tests.helpers import models
from tests.helpers.support import model_settings
from tests.workers.child.submission import submit
from workers.child.preparer import Preparer
from workers.child.scheduler import Scheduler
from workers.engines.base import Engine
from workers.engines.table import load_engine
from workers.prompts.cache import PromptCache, SavedPrompt

TIE = 0.03
"""A gap between the two likeliest tokens, as log, that other rounding may turn round."""
SYSTEM = "The old woman told this tale to the children at the fire: "
TURNS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["and then ", "the fox said ", "é語🙂 ", SYSTEM, ""]),
        st.integers(0, 120),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=8,
)
"""(chat, text to add, characters of the chat to keep, prompt id)."""


@dataclass(frozen=True)
class Answer:
    tokens: tuple[int, ...]
    text: str
    gaps: tuple[float, ...]
    """How much likelier each token was than the second likeliest, as log; none: not asked."""


class Worker:
    """A scheduler on the engine, whose slots and memory are empty. As one that was started anew."""

    def __init__(self, engine: Engine, memory: int) -> None:
        for slot in range(engine.info.slots):
            engine.truncate(slot, 0)
        self.scheduler = Scheduler(engine, lambda: 0.0, None, 1.0, PromptCache(memory))
        self._preparer = Preparer(engine)
        has_logprobs = "logprobs" in engine.info.sampling
        self._params = SamplingParams(
            num_predict=6, temp=0.0, repeat_penalty=1.0, ignore_eos=True,
            logprobs=2 if has_logprobs else None,
        )  # fmt: skip
        self._ids = itertools.count(1)

    def ask(self, prompt: str, prompt_id: int = 0) -> tuple[Answer, Finished]:
        request = Generate(next(self._ids), Prompt(prompt), self._params, prompt_id)
        assert submit(self.scheduler, self._preparer, request) == []
        tokens: list[Token] = []
        end = None
        while not self.scheduler.is_idle:
            for event in self.scheduler.step():
                tokens += event.tokens if isinstance(event, Tokens) else ()
                end = event if isinstance(event, Finished) else end
        assert end is not None
        tops = [token.logprobs.top for token in tokens if token.logprobs]
        return Answer(
            tuple(token.id for token in tokens),
            "".join(token.text for token in tokens),
            tuple(first.logprob - second.logprob for first, second in tops),
        ), end


def build_gemma(folder: Path) -> Path:
    return models.build_gemma3_gguf(folder / "reuse-gemma3.gguf")


def build_llama(folder: Path) -> Path:
    return models.build_llama_gguf(folder / "reuse-llama.gguf")


@pytest.fixture(
    scope="module",
    params=[("llama_cpp", build_llama), ("llama_cpp", build_gemma), ("ctransformers", build_llama)],
    ids=["llama.cpp, llama", "llama.cpp, gemma with a sliding window", "ctransformers, llama"],
)
def engine(request: pytest.FixtureRequest, model_folder: Path) -> Engine:
    name, build = request.param
    slots = 2 if name == "llama_cpp" else None
    return load_engine(
        model_settings(name, build(model_folder), context=512, slots=slots), threads=1
    )


@given(TURNS, st.sampled_from([0, 10**7]), st.integers(0, 8))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_greedy_texts_are_those_of_a_worker_that_has_seen_nothing(
    engine: Engine, turns: list[tuple[int, str, int, int]], memory: int, dies_before: int
) -> None:
    chats = [SYSTEM, SYSTEM, "Hello. "]
    asked: list[tuple[str, Answer]] = []
    files: dict[int, SavedPrompt] = {}
    worker = Worker(engine, memory)
    for turn, (chat, words, kept, prompt_id) in enumerate(turns):
        if turn == dies_before:
            worker = Worker(engine, memory)
        chats[chat] = (chats[chat][:kept] if kept < 100 else chats[chat]) + words or "x"
        if prompt_id in files:
            worker.scheduler.remember(files[prompt_id])
        answer, end = worker.ask(chats[chat], prompt_id)
        assert end.usage.cached_tokens < end.usage.prompt_tokens
        files |= {saved.id: saved for saved in worker.scheduler.take_saved() if saved.state}
        asked.append((chats[chat], answer))
        chats[chat] += answer.text

    @cache
    def alone(prompt: str) -> Answer:
        return Worker(engine, 0).ask(prompt)[0]

    for prompt, answer in asked:
        assert_same(answer, alone(prompt))


def assert_same(answer: Answer, alone: Answer) -> None:
    """The same tokens; after a tie others may follow: chunks of other lengths round differently."""
    pairs = zip(answer.tokens, alone.tokens, strict=True)
    differs = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    assert differs is None or (bool(alone.gaps) and alone.gaps[differs] < TIE)


def test_reuse_happens(engine: Engine) -> None:
    """Else the test above would show nothing."""
    worker = Worker(engine, 10**7)
    worker.ask(SYSTEM * 3)
    _, end = worker.ask(SYSTEM * 3 + "Go on.")
    assert end.usage.cached_tokens > 20

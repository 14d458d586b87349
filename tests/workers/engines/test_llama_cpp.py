"""Features of the llama.cpp engine: sequences that share steps, samplers, log probabilities."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.config.options import BUNDLED_MODEL
from shared.errors import ConfigurationError, ContextTooShort, EngineFailed, InvalidRequest
from shared.messages import Finished
from shared.prompt import Prompt
from shared.sampling import LogitBias, SamplingParams
from tests.helpers.support import collect, end_of, model_settings, pool_settings, text_of, with_pool
from workers.engines.base import Engine, Feed, Interrupted
from workers.engines.llama_cpp import sampling as llama_cpp_sampling
from workers.engines.llama_cpp.engine import LlamaCppEngine
from workers.engines.memory_plan import MOST_SLOTS
from workers.engines.table import load_engine
from workers.model_files.gguf_header import read_gguf_header
from workers.pool.pool import WorkerPool

GREEDY = SamplingParams(temp=0.0, repeat_penalty=1.0, ignore_eos=True)
SAMPLED = SamplingParams(temp=1.0, repeat_penalty=1.0, top_k=0, top_p=1.0, seed=4, ignore_eos=True)
PROMPT = "Once upon a time"
PROMPTS = [f"{'The fox ran. ' * n}Tale {n} is of" for n in range(9)]


@pytest.fixture(scope="module")
def engine(llama_gguf: Path) -> Engine:
    return load_engine(model_settings("llama_cpp", llama_gguf), threads=1)


@pytest.fixture(scope="module")
def tales() -> Engine:
    return load_engine(model_settings("llama_cpp", BUNDLED_MODEL, context=512), threads=1)


class Run:
    """A sequence in a slot, fed by the test."""

    def __init__(self, engine: Engine, slot: int, text: str, params: SamplingParams) -> None:
        self.engine, self.slot = engine, slot
        self.unfed = engine.tokenize(text)
        self.sampler = engine.sampler(params, self.unfed)
        self.position = 0
        self.tokens: list[int] = []

    def feed(self, size: int = 512) -> Feed:
        chunk = self.unfed[:size]
        return Feed(self.slot, chunk, self.position, len(chunk) == len(self.unfed))

    def fed(self, feed: Feed) -> None:
        self.unfed = self.unfed[len(feed.tokens) :]
        self.position += len(feed.tokens)
        if feed.wants_logits:
            self.unfed = [self.engine.sample(self.slot, self.sampler)]
            self.tokens += self.unfed


def step(engine: Engine, runs: Sequence[Run], size: int = 512) -> None:
    feeds = [run.feed(size) for run in runs]
    engine.decode(feeds)
    for run, feed in zip(runs, feeds, strict=True):
        run.fed(feed)


def generate(
    engine: Engine, params: SamplingParams, count: int = 24, text: str = PROMPT
) -> list[int]:
    run = Run(engine, 0, text, params)
    while len(run.tokens) < count:
        step(engine, [run])
    engine.truncate(0, 0)
    return run.tokens


# ---------------------------------------------------------------- many sequences


def test_sequences_that_share_their_steps_have_the_text_that_each_has_alone(
    tales: Engine,
) -> None:
    """Sequences join one after another, so prompts and single tokens are in one batch.

    Arithmetic in other shapes rounds differently: where the two likeliest tokens are as good as
    equally likely, the other may come. Nothing else may.
    """
    alone = [Run(tales, 0, prompt, GREEDY) for prompt in PROMPTS]
    gaps = [run_to(tales, run, 40) for run in alone]
    runs: list[Run] = []
    for slot, prompt in enumerate(PROMPTS):
        runs.append(Run(tales, slot, prompt, GREEDY))
        step(tales, runs, size=7)
    while min(len(run.tokens) for run in runs) < 40:
        step(tales, runs, size=7)
    for run in runs:
        tales.truncate(run.slot, 0)
    same = 0
    for single, shared, gap in zip(alone, runs, gaps, strict=True):
        pairs = list(zip(single.tokens, shared.tokens, strict=False))
        differs = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        same += differs is None
        assert differs is None or gap[differs] < 0.1
    assert same >= 6


def run_to(engine: Engine, run: Run, count: int) -> list[float]:
    """Generate `count` tokens alone. Returns the log ratio of the likeliest to the second token."""
    gaps = []
    while len(run.tokens) < count:
        before = len(run.tokens)
        step(engine, [run])
        if len(run.tokens) > before:
            first, second = engine.logprobs(run.slot, run.tokens[-1], 2).top
            gaps.append(first.logprob - second.logprob)
    engine.truncate(run.slot, 0)
    return gaps


def test_a_step_may_contain_max_batch_tokens(llama_gguf: Path) -> None:
    engine = load_engine(model_settings("llama_cpp", llama_gguf, context=600), threads=1)
    tokens = (engine.tokenize(PROMPT) * 200)[: engine.max_batch]
    engine.decode([Feed(0, tokens, 0, True)])
    assert engine.sample(0, engine.sampler(GREEDY, tokens)) >= 0


def test_every_slot_can_fill_its_whole_context(llama_gguf: Path) -> None:
    engine = load_engine(model_settings("llama_cpp", llama_gguf, context=200, slots=3), threads=1)
    tokens = (engine.tokenize(PROMPT) * 200)[:200]
    engine.decode([Feed(slot, tokens[:150], 0, False) for slot in range(3)])
    engine.decode([Feed(slot, tokens[150:], 150, True) for slot in range(3)])
    samplers = [engine.sampler(GREEDY, tokens) for _ in range(3)]
    assert len({engine.sample(slot, samplers[slot]) for slot in range(3)}) == 1


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("repack", [True, False])
def test_keys_values_and_weights_may_be_of_several_types(kv_type: str, repack: bool) -> None:
    given = replace(model_settings("llama_cpp", BUNDLED_MODEL, kv_type=kv_type), repack=repack)
    engine = load_engine(given, threads=1)
    text = b"".join(map(engine.piece, generate(engine, GREEDY, 10))).decode()
    assert text.startswith(" there was a")


def test_weights_can_be_locked_into_memory(llama_gguf: Path) -> None:
    given = replace(model_settings("llama_cpp", llama_gguf), mlock=True)
    assert len(generate(load_engine(given, threads=1), GREEDY)) == 24


def test_slots_follow_from_the_memory_for_keys_and_values(llama_gguf: Path) -> None:
    def slots(memory: int | None) -> int:
        given = replace(model_settings("llama_cpp", llama_gguf), kv_memory=memory)
        return load_engine(given, threads=1).info.slots

    per_token = read_gguf_header(llama_gguf).kv_bytes_per_token(2.0)
    assert per_token is not None
    one = per_token * 256
    assert slots(None) == slots(1000 * one) == MOST_SLOTS
    assert [slots(one // 2), slots(one), slots(5 * one + 1)] == [1, 1, 5]


# ---------------------------------------------------------------- interrupts


@pytest.mark.parametrize("count", [1, 4])
def test_a_running_decode_can_be_interrupted_and_leaves_no_trace(
    count: int, llama_gguf: Path
) -> None:
    """Interrupts are repeated until one arrives during the decode. Sequences of different lengths
    are computed in several parts, and no part may remain."""
    engine = load_engine(model_settings("llama_cpp", llama_gguf, context=512), threads=1)
    text = "The fox ran. " * 30
    expected = generate(engine, GREEDY, text=text)
    runs = [Run(engine, slot, text[slot * len("The fox ran. ") :], GREEDY) for slot in range(count)]
    stop = threading.Event()

    def interrupt() -> None:
        while not stop.is_set():
            engine.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    interrupted = 0
    try:
        for _ in range(60):
            engine.resume()
            try:
                engine.decode([run.feed(512 // count) for run in runs], interruptible=True)
            except Interrupted:
                interrupted += 1
            else:
                for run in runs:
                    engine.truncate(run.slot, 0)
    finally:
        stop.set()
        thread.join()
    engine.resume()
    assert interrupted
    while len(runs[0].tokens) < len(expected):
        step(engine, runs, size=512 // count)
    assert runs[0].tokens == expected


def test_an_interrupt_applies_to_later_decodes_until_it_is_revoked(engine: Engine) -> None:
    run = Run(engine, 0, PROMPT, GREEDY)
    engine.interrupt()
    for _ in range(2):
        with pytest.raises(Interrupted):
            engine.decode([run.feed()], interruptible=True)
    engine.resume()
    engine.decode([run.feed()], interruptible=True)
    engine.truncate(0, 0)


def test_a_decode_that_is_not_interruptible_runs_to_its_end(engine: Engine) -> None:
    engine.interrupt()
    assert len(generate(engine, GREEDY, 3)) == 3
    engine.resume()


# ---------------------------------------------------------------- saved states


def test_a_state_of_another_context_or_garbage_is_refused_and_leaves_an_empty_slot(
    engine: Engine, llama_gguf: Path
) -> None:
    given = model_settings("llama_cpp", llama_gguf, kv_type="f32")
    other = load_engine(given, threads=1)
    other.decode([Feed(0, other.tokenize(PROMPT), 0, False)])
    expected = generate(engine, GREEDY)
    for state in (other.save(0), bytearray(b"rubbish"), bytearray(2000), bytearray()):
        engine.decode([Feed(0, engine.tokenize(PROMPT), 0, False)])
        with pytest.raises(EngineFailed, match="could not load"):
            engine.load(0, state)
        assert engine.truncate(0, 10) == 0
        assert generate(engine, GREEDY) == expected


def test_a_truncated_state_is_refused(engine: Engine) -> None:
    engine.decode([Feed(0, engine.tokenize(PROMPT), 0, False)])
    state = engine.save(0)
    engine.truncate(0, 0)
    with pytest.raises(EngineFailed, match="could not load"):
        engine.load(0, state[: len(state) // 2])
    assert engine.truncate(0, 10) == 0


def test_a_failed_decode_leaves_no_trace(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp itself removes only the part of a step that failed."""
    expected = generate(engine, GREEDY)
    real_decode = llama_cpp.llama_decode

    def decode(*arguments: Any) -> int:
        real_decode(*arguments)
        return -3

    monkeypatch.setattr(llama_cpp, "llama_decode", decode)
    with pytest.raises(EngineFailed, match="status -3"):
        engine.decode([Feed(0, engine.tokenize(PROMPT), 0, True)])
    monkeypatch.undo()
    assert engine.truncate(0, 0) == 0
    assert generate(engine, GREEDY) == expected


# ---------------------------------------------------------------- gaps between slots


@pytest.mark.parametrize("slots", [(0, 2), (1, 3, 4, 9), (0, 15), (2, 5, 6, 7, 11)])
def test_slots_with_gaps_between_them_have_the_text_of_slots_without(
    engine: Engine, slots: tuple[int, ...]
) -> None:
    """Idle slots between decoding slots are computed along. One of them holds a part of a prompt,
    which must not change."""
    expected = generate(engine, GREEDY)
    half_fed = Run(engine, 8, PROMPT, GREEDY)
    half_fed.unfed, rest = half_fed.unfed[:2], half_fed.unfed[2:]
    engine.decode([Feed(8, half_fed.unfed, 0, False)])
    half_fed.unfed, half_fed.position = rest, 2
    runs = [Run(engine, slot, PROMPT, GREEDY) for slot in slots]
    while len(runs[0].tokens) < len(expected):
        step(engine, runs)
    while len(half_fed.tokens) < len(expected):
        step(engine, [half_fed])
    for run in (*runs, half_fed):
        engine.truncate(run.slot, 0)
        assert run.tokens == expected


@pytest.mark.parametrize("slots", [(0,), (15,), (3, 5), (0, 1, 2)])
def test_idle_slots_that_widen_a_step_leave_no_trace(
    engine: Engine, slots: tuple[int, ...]
) -> None:
    expected = generate(engine, GREEDY)
    runs = [Run(engine, slot, PROMPT, GREEDY) for slot in slots]
    engine.decode([run.feed() for run in runs])
    while True:
        for run in runs:
            run.fed(run.feed())
        if len(runs[0].tokens) == len(expected):
            break
        engine.decode([run.feed() for run in runs], width=16)
    for run in runs:
        engine.truncate(run.slot, 0)
        assert run.tokens == expected
    assert generate(engine, GREEDY) == expected


def test_a_full_slot_in_a_gap_is_left_alone(llama_gguf: Path) -> None:
    engine = load_engine(model_settings("llama_cpp", llama_gguf, slots=3), threads=1)
    expected = generate(engine, GREEDY)
    full = (engine.tokenize(PROMPT) * 200)[:256]
    engine.decode([Feed(1, full, 0, False)])
    runs = [Run(engine, slot, PROMPT, GREEDY) for slot in (0, 2)]
    while len(runs[0].tokens) < len(expected):
        step(engine, runs)
    assert [run.tokens for run in runs] == [expected] * 2


# ---------------------------------------------------------------- tokens


def test_control_tokens_in_a_prompt_are_control_tokens(engine: Engine) -> None:
    (bos, *rest) = engine.tokenize("</s>")
    assert engine.is_end(rest[-1])
    assert engine.piece(bos) == engine.piece(rest[-1]) == b""


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(engine: Engine) -> None:
    with pytest.raises(ContextTooShort, match=r"the prompt has \d{4,} tokens; .* holds 256"):
        engine.tokenize("語" * 1000)


# ---------------------------------------------------------------- log probabilities


def test_log_probabilities_are_those_of_the_whole_vocabulary(engine: Engine) -> None:
    run = Run(engine, 0, PROMPT, SAMPLED)
    step(engine, [run])
    everything = engine.logprobs(0, run.tokens[0], engine.info.vocabulary)
    engine.truncate(0, 0)
    assert sum(math.exp(c.logprob) for c in everything.top) == pytest.approx(1.0, abs=1e-6)
    values = [candidate.logprob for candidate in everything.top]
    assert values == sorted(values, reverse=True)
    assert {c.id: c.logprob for c in everything.top}[run.tokens[0]] == everything.logprob


def test_the_likeliest_token_is_the_greedy_one(engine: Engine) -> None:
    run = Run(engine, 0, PROMPT, GREEDY)
    step(engine, [run])
    (best,) = engine.logprobs(0, run.tokens[0], 1).top
    none = engine.logprobs(0, run.tokens[0], 0)
    engine.truncate(0, 0)
    assert (best.id, best.piece) == (run.tokens[0], engine.piece(run.tokens[0]))
    assert none.top == ()
    assert none.logprob == best.logprob


# ---------------------------------------------------------------- samplers


def greedy(engine: Engine) -> list[int]:
    return generate(engine, GREEDY)


@pytest.mark.parametrize(
    "field",
    [
        {"min_p": 1.0},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"top_n_sigma": 1e-3},
        {"temp": 1e-4},
        {"mirostat": 2, "mirostat_tau": 1e-3, "mirostat_eta": 1e-6},
    ],
    ids=str,
)
def test_the_sharpest_setting_of_a_sampler_is_greedy(engine: Engine, field: dict[str, Any]) -> None:
    assert generate(engine, replace(SAMPLED, **field)) == greedy(engine)


@pytest.mark.parametrize(
    "field",
    [
        {"min_p": 0.5},
        {"typical_p": 0.2},
        {"top_n_sigma": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"mirostat": 1},
        {"mirostat": 2},
        {"top_k": 5},
        {"top_p": 0.3},
    ],
    ids=str,
)
def test_a_sampler_changes_the_text_and_the_seed_decides_it(
    engine: Engine, field: dict[str, Any]
) -> None:
    params = replace(SAMPLED, **field)
    text = generate(engine, params, 60)
    assert text == generate(engine, params, 60)
    assert text != generate(engine, replace(params, seed=5), 60)
    assert text != generate(engine, SAMPLED, 60)


def test_seeds_that_differ_only_in_their_high_bits_differ(engine: Engine) -> None:
    low, high = replace(SAMPLED, seed=1), replace(SAMPLED, seed=1 + 2**40)
    assert generate(engine, low) != generate(engine, high)


@pytest.mark.parametrize("field", ["frequency_penalty", "presence_penalty"])
def test_a_penalty_makes_the_text_repeat_itself_less(engine: Engine, field: str) -> None:
    hot = replace(GREEDY, repeat_last_n=200)

    def repeats(value: float) -> int:
        return max(Counter(generate(engine, replace(hot, **{field: value}), 100)).values())

    assert repeats(2.0) < repeats(0.0)


def test_dry_breaks_a_loop(engine: Engine) -> None:
    def distinct(multiplier: float) -> int:
        params = replace(GREEDY, dry_multiplier=multiplier, dry_base=3.0)
        tokens = generate(engine, params, 150)
        return len({tuple(tokens[i : i + 4]) for i in range(len(tokens))})

    assert distinct(5.0) > distinct(0.0)


def test_a_logit_bias_forbids_and_forces(engine: Engine) -> None:
    favourite = greedy(engine)[0]
    never = replace(GREEDY, logit_bias=(LogitBias(favourite, -math.inf),))
    assert favourite not in generate(engine, never)
    always = replace(SAMPLED, logit_bias=(LogitBias(300, 100.0),))
    assert set(generate(engine, always)) == {300}


def test_a_bias_of_a_token_that_does_not_exist_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"logit_bias: token 512 .* ends at 511"):
        engine.sampler(replace(GREEDY, logit_bias=(LogitBias(512, 1.0),)), [1])


def test_a_penalty_window_above_the_context_takes_no_memory(engine: Engine) -> None:
    params = replace(GREEDY, repeat_penalty=1.1, repeat_last_n=2**31 - 1, dry_multiplier=1.0)
    before = psutil.Process().memory_info().rss
    sampler = engine.sampler(params, engine.tokenize(PROMPT))
    assert sampler
    assert psutil.Process().memory_info().rss - before < 16 * 2**20


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    top_k=st.integers(1, 50),
    repeat_last_n=st.integers(1, 40),
    repeat_penalty=st.sampled_from([1.0, 1.1, 1.5, 10.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5, 2.0]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    dry_multiplier=st.sampled_from([0.0, 0.8]),
    temp=st.sampled_from([0.0, 0.7, 2.0]),
    seed=st.integers(0, 2**64 - 1),
)
def test_cutting_before_the_penalties_never_changes_the_text(engine: Engine, **fields: Any) -> None:
    params = replace(SAMPLED, **fields)
    cut = generate(engine, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp_sampling, "_first_cut", lambda *_: 0)
        assert generate(engine, params) == cut


def test_the_first_cut_is_made_where_it_saves_work() -> None:
    params = SamplingParams()
    first_cut = llama_cpp_sampling._first_cut
    assert first_cut(params, 2048) == 40 + 64
    assert first_cut(replace(params, temp=0), 2048) == 1 + 64
    assert first_cut(replace(params, repeat_penalty=1.0), 2048) == 0  # top_k itself comes first
    for sees_all in ({"top_k": 0}, {"top_n_sigma": 1.0}, {"mirostat": 2}):
        assert first_cut(replace(params, **sees_all), 2048) == 0
    for raises in ({"repeat_penalty": 0.9}, {"presence_penalty": -1.0}):
        assert first_cut(replace(params, **raises), 2048) == 0


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("share", [0.001, 0.1, 0.6, 0.95])
def test_a_truncated_file_is_refused(llama_gguf: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.gguf"
    whole = llama_gguf.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ConfigurationError, match=r"llama\.cpp cannot load .*cut\.gguf: \w+"):
        load_engine(model_settings("llama_cpp", path), threads=1)


def test_a_context_that_is_too_large_for_llama_cpp_is_refused(llama_gguf: Path) -> None:
    given = model_settings("llama_cpp", llama_gguf, context=2**31 - 1, slots=4)
    with pytest.raises(ConfigurationError, match=r"4 slots × 2147483647 tokens .* at most"):
        load_engine(given, threads=1)


def test_a_context_that_does_not_fit_into_the_memory_is_refused(llama_gguf: Path) -> None:
    given = model_settings("llama_cpp", llama_gguf, context=100_000, slots=4)
    with pytest.raises(ConfigurationError, match=r"4 slots × 100000 .*: 2 MiB are left"):
        load_engine(replace(given, kv_memory=2**20), threads=1)


# ---------------------------------------------------------------- through the pool


def test_ten_thousand_short_requests_leave_memory_flat(llama_gguf: Path) -> None:
    """All 16 slots are used. The first quarter is a warm-up, in which buffers grow."""

    async def load(pool: WorkerPool) -> tuple[int, int]:
        worker = next(iter(psutil.Process().children()))
        sizes = []
        params = replace(SAMPLED, num_predict=3, repeat_penalty=1.2, top_k=10, logprobs=1)
        for round_ in range(4):
            for batch in range(2500 // 50):
                streams = [pool.submit(Prompt(f"{round_} {batch} {i}"), params) for i in range(50)]
                for stream in streams:
                    end = end_of(await collect(pool, stream))
                    assert isinstance(end, Finished)
                    assert end.usage.completion_tokens == 3
            sizes.append(worker.memory_info().rss)
        return sizes[0], sizes[-1]

    settings = pool_settings(model_settings("llama_cpp", llama_gguf), queue=50)
    first, last = with_pool(settings, load)
    assert last - first < 4 * 2**20


def test_the_smallest_context_is_served(llama_gguf: Path) -> None:
    async def step(pool: WorkerPool) -> Finished:
        end = end_of(await collect(pool, pool.submit(Prompt("a"), GREEDY)))
        assert isinstance(end, Finished)
        return end

    given = model_settings("llama_cpp", llama_gguf, context=8)
    end = with_pool(pool_settings(given), step)
    assert end.reason == "length"
    assert end.usage.prompt_tokens + end.usage.completion_tokens == 8


def test_streams_that_arrive_together_all_get_their_texts(llama_gguf: Path) -> None:
    params = replace(GREEDY, num_predict=40)

    async def texts(pool: WorkerPool) -> list[str]:
        streams = [pool.submit(Prompt(prompt), params) for prompt in PROMPTS * 3]
        return [text_of(await collect(pool, stream)) for stream in streams]

    together = with_pool(
        pool_settings(model_settings("llama_cpp", llama_gguf, slots=4), queue=30), texts
    )
    assert all(together)


def test_the_engine_supports_all_sampling_parameters(engine: Engine) -> None:
    assert isinstance(engine, LlamaCppEngine)
    assert set(engine.info.sampling) == set(SamplingParams.__dataclass_fields__)

"""Prompts that begin behind what was processed before: the same texts, with less work."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import EngineFailed
from shared.messages import Finished, Generate, Message, PromptDropped, PromptSaved, Tokens
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.values import Logprobs, ModelInfo
from tests.workers.child.submission import submit
from workers.child.preparer import Preparer
from workers.child.scheduler import Scheduler
from workers.child.slots import WORTH
from workers.engines.base import Feed
from workers.prompts.cache import PromptCache, SavedPrompt

ALL = SamplingParams(num_predict=8)
SYSTEM = "You are a helpful assistant who tells tales. "


class HashEngine:
    """Its next letter is a hash of all that its slot holds, so any error in a slot shows."""

    max_batch = 64

    def __init__(self, slots: int = 4, *, saves: bool = True, context: int = 4096) -> None:
        self.info = ModelInfo("hash", "hash", context, 256, slots, 64, ())
        self.state_format = "hash" if saves else ""
        self.memory: list[list[int]] = [[] for _ in range(slots)]
        self.prefilled = 0
        """Prompt tokens that were processed in prefill steps."""
        self.saves = self.loads = 0
        self.refuses_to_load = False

    def tokenize(self, text: str, *, is_start: bool = True, continues: bool = False) -> list[int]:
        return [1] * is_start + list(text.encode())

    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        return bytes((token,))

    def is_end(self, token: int) -> bool:
        return False

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        return None

    def decode(self, feeds: Sequence[Feed], *, interruptible: bool = False, width: int = 0) -> None:
        for feed in feeds:
            assert feed.position == len(self.memory[feed.slot]), "a position was skipped"
            self.memory[feed.slot] += feed.tokens
            self.prefilled += interruptible * len(feed.tokens)

    def sample(self, slot: int, sampler: None) -> int:
        return next_token(self.memory[slot])

    def logprobs(self, slot: int, token: int, top: int) -> Logprobs:
        raise AssertionError("no test asks for log probabilities")

    def truncate(self, slot: int, length: int) -> int:
        del self.memory[slot][length:]
        return len(self.memory[slot])

    def usable_prefix(self, held: int, length: int) -> int:
        return min(held, length)

    def save(self, slot: int) -> bytearray:
        assert self.state_format
        self.saves += 1
        return bytearray(self.memory[slot])

    def load(self, slot: int, state: bytearray) -> None:
        assert self.state_format
        self.memory[slot] = []
        if self.refuses_to_load:
            raise EngineFailed("as told")
        self.loads += 1
        self.memory[slot] = list(state)

    def interrupt(self) -> None:
        raise AssertionError

    def resume(self) -> None:
        raise AssertionError


def next_token(memory: list[int]) -> int:
    return ord("a") + hashlib.blake2b(bytes(memory), digest_size=1).digest()[0] % 26


def true_answer(prompt: str, count: int = ALL.num_predict) -> str:
    """Return the answer of the engine without any reuse."""
    memory = [1, *prompt.encode()]
    start = len(memory)
    for _ in range(count):
        memory.append(next_token(memory))
    return bytes(memory[start:]).decode()


@dataclass
class Answer:
    text: str
    cached: int
    prompt: int


class Bench:
    """A scheduler on a HashEngine, and its events."""

    def __init__(
        self,
        slots: int = 4,
        memory: int = 10**6,
        *,
        saves: bool = True,
        root: SavedPrompt | None = None,
    ) -> None:
        self.engine = HashEngine(slots, saves=saves)
        cache = PromptCache(memory, root)
        self.scheduler = Scheduler(self.engine, lambda: 0.0, None, 1.0, cache)
        self.preparer = Preparer(self.engine, root.tokens if root else ())
        self.events: list[Message] = []
        self._ids = itertools.count(1)

    def submit(self, prompt: str, cache: int = 0, params: SamplingParams = ALL) -> int:
        request_id = next(self._ids)
        request = Generate(request_id, Prompt(prompt), params, cache)
        assert submit(self.scheduler, self.preparer, request) == []
        return request_id

    def run(self) -> None:
        while not self.scheduler.is_idle:
            self.events += self.scheduler.step()

    def answer(self, request_id: int) -> Answer:
        (end,) = (e for e in self.events if isinstance(e, Finished) and e.id == request_id)
        return Answer(self.text(request_id), end.usage.cached_tokens, end.usage.prompt_tokens)

    def text(self, request_id: int) -> str:
        return "".join(
            token.text
            for event in self.events
            if isinstance(event, Tokens)
            for token in event.tokens
            if token.request == request_id
        )

    def ask(self, prompt: str, cache: int = 0) -> Answer:
        """Run one request to its end, and check its text."""
        request_id = self.submit(prompt, cache)
        self.run()
        answer = self.answer(request_id)
        assert answer.text == true_answer(prompt)
        return answer

    def news(self) -> Iterator[Message]:
        return (e for e in self.events if isinstance(e, PromptSaved | PromptDropped))


# ---------------------------------------------------------------- slots


def test_of_a_repeated_prompt_only_the_last_token_is_processed() -> None:
    bench = Bench()
    bench.ask(SYSTEM)
    assert bench.ask(SYSTEM).cached == len(SYSTEM)  # of one more, with the start token
    assert bench.engine.prefilled == len(SYSTEM) + 2


def test_a_chat_that_goes_on_processes_only_what_is_new() -> None:
    bench = Bench()
    text = SYSTEM
    for turn in range(10):
        answer = bench.ask(text)
        if turn:
            # The last token of an answer was sampled, but never fed.
            assert answer.prompt - answer.cached == len(f" Turn {turn}.") + 1
        text += f"{answer.text} Turn {turn + 1}."


def test_a_beginning_is_taken_from_a_stream_that_still_runs() -> None:
    bench = Bench()
    first = bench.submit(SYSTEM + "One", params=replace(ALL, num_predict=200))
    for _ in range(5):
        bench.events += bench.scheduler.step()
    second = bench.submit(SYSTEM + "Two")
    bench.run()
    assert bench.answer(second).cached == len(SYSTEM) + 1
    assert bench.answer(second).text == true_answer(SYSTEM + "Two")
    assert bench.answer(first).text == true_answer(SYSTEM + "One", 200)


def test_prompts_that_arrive_together_process_what_they_share_once() -> None:
    bench = Bench(slots=4)
    long = SYSTEM * 10
    requests = {bench.submit(f"{long}{i} and more of it"): i for i in range(4)}
    bench.run()
    for request_id, i in requests.items():
        assert bench.answer(request_id).text == true_answer(f"{long}{i} and more of it")
    rest = len("0 and more of it")
    # The last few tokens that they share are not worth the waiting.
    assert bench.engine.prefilled <= 1 + len(long) + 4 * rest + 3 * WORTH


def test_a_prompt_that_waits_for_another_begins_when_that_is_cancelled() -> None:
    bench = Bench(slots=2)
    first = bench.submit(SYSTEM * 10)
    second = bench.submit(SYSTEM * 10 + "Two")
    bench.events += bench.scheduler.step()
    bench.events += bench.scheduler.cancel(first)
    bench.run()
    assert bench.answer(second).text == true_answer(SYSTEM * 10 + "Two")
    assert bench.answer(second).cached == bench.engine.max_batch  # what the first had got


def test_prompts_that_share_little_do_not_wait_for_each_other() -> None:
    bench = Bench(slots=2)
    bench.submit("a" * (WORTH - 2) + "b" * 10)
    bench.submit("a" * (WORTH - 2) + "c" * 10)
    bench.events += bench.scheduler.step()
    assert [len(memory) > 0 for memory in bench.engine.memory] == [True, True]
    bench.run()


def test_a_state_that_a_slot_evicts_is_found_again_in_the_cache() -> None:
    bench = Bench(slots=1)
    for i in range(5):
        bench.ask(f"{i} begins here, and so it goes on.")
    for i in range(5):
        prompt = f"{i} begins here, and so it goes on. And on"
        assert bench.ask(prompt).cached == len(f"{i} begins here, and so it goes on.") + 1


def test_without_memory_for_it_nothing_is_saved() -> None:
    bench = Bench(slots=1, memory=0)
    bench.ask("a first prompt, which is long enough")
    assert bench.ask("some other prompt, which is long enough").cached == 1
    assert bench.engine.saves == 0


def test_prompts_that_share_nothing_cost_no_copies_while_there_are_empty_slots() -> None:
    bench = Bench(slots=4)
    for i in range(4):
        bench.ask(f"{i} is how this prompt begins, and it is not alike")
    assert bench.engine.saves == bench.engine.loads == 0


def test_a_slot_that_holds_much_more_is_copied_and_not_truncated() -> None:
    bench = Bench(slots=2)
    chat = SYSTEM + "A long chat. " * 20
    bench.ask(chat)
    assert bench.ask(SYSTEM + "Now another").cached == len(SYSTEM) + 1
    assert bench.ask(chat + "Go on").cached >= len(chat)


def test_a_state_that_cannot_be_loaded_costs_only_time() -> None:
    bench = Bench(slots=1)
    bench.ask(SYSTEM + "first")
    bench.ask("x" * 60)
    bench.engine.refuses_to_load = True
    assert bench.ask(SYSTEM + "first").cached == 0


def test_a_sequence_that_failed_leaves_nothing_to_begin_from() -> None:
    bench = Bench(slots=1)
    real_decode, calls = bench.engine.decode, itertools.count()

    def decode(feeds: Sequence[Feed], **options: bool) -> None:
        real_decode(feeds, **options)  # type: ignore[arg-type]
        if next(calls) == 2:
            raise EngineFailed("as told")

    bench.engine.decode = decode  # type: ignore[method-assign]
    bench.submit(SYSTEM)
    bench.run()
    assert bench.ask(SYSTEM).cached == 0


def test_an_engine_that_saves_no_states_goes_on_in_its_slot() -> None:
    bench = Bench(slots=1, saves=False)
    bench.ask(SYSTEM)
    assert bench.ask(SYSTEM + "More").cached == len(SYSTEM) + 1
    assert bench.ask("quite another prompt, with nothing in common").cached == 1


def test_a_state_that_cannot_be_saved_or_loaded_costs_no_other_stream() -> None:
    bench = Bench(slots=2)
    first = bench.submit(SYSTEM + "One", params=replace(ALL, num_predict=50))
    for _ in range(3):
        bench.events += bench.scheduler.step()

    def save(slot: int) -> bytearray:
        raise EngineFailed("no memory")

    bench.engine.save = save  # type: ignore[method-assign]
    second = bench.submit(SYSTEM + "Two", cache=7)
    bench.run()
    assert bench.answer(first).text == true_answer(SYSTEM + "One", 50)
    assert bench.answer(second).text == true_answer(SYSTEM + "Two")
    assert bench.answer(second).cached == 0
    assert bench.scheduler.take_saved() == []


def test_a_state_that_failed_to_load_is_not_tried_again() -> None:
    bench = Bench(slots=1)
    bench.ask(SYSTEM + "first")
    bench.ask("x" * 60)
    bench.engine.refuses_to_load = True
    bench.ask(SYSTEM + "first")
    bench.ask("y" * 60)
    bench.engine.refuses_to_load = False
    assert bench.ask("x" * 60).cached > 50  # this one was not tried
    assert bench.engine.loads == 1


class StiffEngine(HashEngine):
    """Cannot take tokens back, as models with a recurrent state."""

    def usable_prefix(self, held: int, length: int) -> int:
        return held if length >= held else 0

    def truncate(self, slot: int, length: int) -> int:
        if length < len(self.memory[slot]):
            self.memory[slot].clear()
        return len(self.memory[slot])


def test_a_state_that_cannot_be_continued_is_neither_copied_nor_waited_for() -> None:
    bench = Bench(slots=2)
    bench.scheduler = Scheduler(
        engine := StiffEngine(2), lambda: 0.0, None, 1.0, PromptCache(10**6)
    )
    bench.engine = engine
    requests = {bench.submit(f"{SYSTEM}{i}"): i for i in range(4)}
    bench.run()
    for request_id, i in requests.items():
        assert bench.answer(request_id).text == true_answer(f"{SYSTEM}{i}")
    assert engine.loads == 0
    text = f"{SYSTEM}3"
    text += f"{true_answer(text)} Go on"
    assert bench.ask(text).cached > len(SYSTEM)  # from the very end of what was there


# ---------------------------------------------------------------- ids


def test_a_prompt_with_an_id_is_saved_when_it_is_processed() -> None:
    bench = Bench()
    bench.ask(SYSTEM, cache=7)
    (saved,) = bench.scheduler.take_saved()
    assert (saved.id, saved.tokens) == (7, [1, *SYSTEM.encode()])
    assert bench.scheduler.take_saved() == []
    assert list(bench.news()) == [PromptSaved(7, len(saved.tokens), saved.size)]


def test_the_same_prompt_under_its_id_is_not_saved_again_and_a_longer_one_is() -> None:
    bench = Bench()
    bench.ask(SYSTEM, cache=7)
    bench.ask(SYSTEM, cache=7)
    assert len(bench.scheduler.take_saved()) == 1
    bench.ask(SYSTEM + "More", cache=7)
    assert [len(saved.tokens) for saved in bench.scheduler.take_saved()] == [len(SYSTEM) + 5]


def test_a_prompt_from_a_file_is_continued() -> None:
    first, second = Bench(), Bench()
    first.ask(SYSTEM, cache=7)
    (saved,) = first.scheduler.take_saved()
    second.scheduler.remember(saved)
    assert second.ask(SYSTEM + "More", cache=7).cached == len(SYSTEM) + 1


def test_a_dropped_prompt_is_removed_and_reported() -> None:
    bench = Bench(slots=1)
    bench.ask(SYSTEM, cache=7)
    bench.scheduler.drop(7)
    bench.scheduler.drop(8)
    bench.events += bench.scheduler.step()
    assert list(bench.news())[-1] == PromptDropped(7)
    assert len(list(bench.news())) == 2


def test_a_prompt_that_is_too_large_is_not_saved_and_evicts_nothing() -> None:
    bench = Bench(memory=400)
    bench.ask("x" * 30, cache=8)
    bench.ask(SYSTEM * 3, cache=7)
    assert [saved.id for saved in bench.scheduler.take_saved()] == [8]
    assert [event.prompt_id for event in bench.news()] == [8]  # type: ignore[union-attr]


def test_an_id_that_is_evicted_for_others_is_reported() -> None:
    bench = Bench(memory=500)
    bench.ask(SYSTEM, cache=7)
    bench.ask("x" * 60, cache=8)
    assert list(bench.news())[-1] == PromptDropped(7)


def test_a_cancelled_prompt_is_not_saved() -> None:
    bench = Bench()
    request_id = bench.submit(SYSTEM * 10, cache=7)
    bench.events += bench.scheduler.step()
    bench.events += bench.scheduler.cancel(request_id)
    bench.run()
    assert bench.scheduler.take_saved() == []


# ---------------------------------------------------------------- a root


def test_every_prompt_continues_from_the_root() -> None:
    tokens = [1, *SYSTEM.encode()]
    bench = Bench(root=SavedPrompt(tokens, bytearray(tokens)))
    for prompt in ("One", "Two", "One more"):
        request_id = bench.submit(prompt)
        bench.run()
        answer = bench.answer(request_id)
        assert answer.text == true_answer(SYSTEM + prompt)
        assert answer.cached >= len(SYSTEM) + 1
        assert answer.prompt == len(SYSTEM) + 1 + len(prompt)


# ---------------------------------------------------------------- whatever happens

WORDS = st.sampled_from(["and then ", "the fox ", "said nothing. ", "ran on, ", SYSTEM])
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(0, 3), WORDS),
        st.tuples(st.just("cut"), st.integers(0, 3), st.integers(0, 200)),
        st.tuples(st.just("copy"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("save"), st.integers(0, 3), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 3), st.integers(0, 6)),
        st.tuples(st.just("die"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@given(EDITS, st.integers(1, 4), st.sampled_from([0, 300, 3000, 10**6]), st.booleans())
@settings(max_examples=150)
def test_random_edits_of_random_chats_have_the_texts_that_they_have_without_reuse(
    edits: list[tuple[str, int, object]], slots: int, memory: int, saves: bool
) -> None:
    """Four chats at once; each edit is one request. Workers die between turns, and files of what
    was saved come back into the next one."""
    bench = Bench(slots, memory, saves=saves)
    chats = [SYSTEM, SYSTEM, "Hello. ", "x"]
    expected: dict[int, str] = {}
    files: dict[int, SavedPrompt] = {}

    def finish() -> None:
        bench.run()
        for request_id, text in expected.items():
            assert bench.answer(request_id).text == text
        expected.clear()
        files.update({saved.id: saved for saved in bench.scheduler.take_saved()})

    for action, chat, value in edits:
        cache = 0
        if action == "die":
            finish()
            bench = Bench(slots, memory, saves=saves)
            continue
        if action == "say":
            chats[chat] += str(value)
        elif action == "cut":
            chats[chat] = chats[chat][: int(str(value))] or "x"
        elif action == "copy":
            chats[chat] = chats[int(str(value))] + "-"
        elif action == "save":
            cache = int(str(value))
            if cache in files:
                bench.scheduler.remember(files[cache])
        request_id = bench.submit(chats[chat], cache)
        if action == "cancel":
            for _ in range(int(str(value))):
                bench.events += bench.scheduler.step()
            bench.events += bench.scheduler.cancel(request_id)
            assert true_answer(chats[chat]).startswith(bench.text(request_id))
            continue
        expected[request_id] = true_answer(chats[chat])
        bench.events += bench.scheduler.step()
        if chat == 0:  # the others go on beside each other
            finish()
            chats[chat] += true_answer(chats[chat])
    finish()


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_eight_chats_that_share_a_system_prompt_process_each_token_once(slots: int) -> None:
    bench = Bench(slots)
    system = SYSTEM * 12
    chats = [f"{system}Chat {i}. " for i in range(8)]
    for turn in range(5):
        requests = [bench.submit(chat) for chat in chats]
        bench.run()
        for i, request_id in enumerate(requests):
            answer = bench.answer(request_id)
            assert answer.text == true_answer(chats[i])
            chats[i] += f"{answer.text} Turn {turn}. "
    new = len("Chat 0. ") + 4 * len(" Turn 0. ")
    # The last token of each answer was never fed; one token of each prompt is fed for its logits.
    once = 1 + len(system) + 8 * (new + 4 * 1) + 8
    # With fewer slots than chats they take turns, and a few tokens are not worth being saved.
    assert bench.engine.prefilled <= once + (5 * 8 * WORTH if slots < 8 else 0)

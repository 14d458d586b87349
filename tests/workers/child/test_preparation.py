"""Requests are prepared beside the loop: streams go on, and cancels work."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import EngineFailed
from shared.messages import (
    Cancel,
    Embed,
    Failed,
    Finished,
    Generate,
    Shutdown,
    Tokenize,
    Tokenized,
)
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.values import Timings, Usage
from tests.helpers.paths import ROOT
from tests.helpers.support import TIMEOUT_S
from tests.workers.child.serving import serving
from workers.child.endings import UNEXPECTED
from workers.child.inbox import Arrival, Inbox
from workers.child.lane import Lane, LaneLimits
from workers.child.preparation import LONG, SHORT, Preparation, PreparationStuck
from workers.child.preparer import GRAMMAR_WEIGHT, SHORT_CHARACTERS, Preparer, Request
from workers.engines.echo import EchoEngine, EchoOptions
from workers.prompts.files import Identity, path_of
from workers.prompts.store import PromptStore

FULL = SamplingParams(num_predict=40)
SLOW = "slow "
"""A text that begins so is not tokenized before `may_go_on` is set."""
LONG_TEXT = SLOW + "x" * SHORT_CHARACTERS
SOON_S = 5.0


class SlowEngine(EchoEngine):
    """Tokenizes and checks slow requests only when `may_go_on` is set."""

    def __init__(self, slots: int = 4) -> None:
        super().__init__(EchoOptions(slots=slots, step_s=0.001), 2**20, 4096)
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.interrupts = 0
        self.tokenized: list[str] = []

    def tokenize(self, text: str, *, is_start: bool = True, continues: bool = False) -> list[int]:
        self._wait(text)
        self.tokenized.append(text)
        return super().tokenize(text, is_start=is_start, continues=continues)

    def sampler(self, params: SamplingParams, prompt: Sequence[int]):
        self._wait(params.grammar)
        return super().sampler(params, prompt)

    def interrupt(self) -> None:
        self.interrupts += 1
        super().interrupt()

    def _wait(self, text: str) -> None:
        if text.startswith(SLOW):
            self.begun.set()
            assert self.may_go_on.wait(TIMEOUT_S)


@pytest.fixture
def engine() -> Iterator[SlowEngine]:
    engine = SlowEngine()
    yield engine
    engine.may_go_on.set()


def generate(request_id: int, text: str, **params: object) -> Generate:
    return Generate(request_id, Prompt(text), replace(FULL, **params))  # type: ignore[arg-type]


def tokenize(request_id: int, text: str) -> Tokenize:
    return Tokenize(request_id, Prompt(text), is_start=True)


SLOW_REQUESTS = {
    "a prompt": generate(2, SLOW),
    "a long prompt": generate(2, LONG_TEXT),
    "a grammar": generate(2, "x", grammar=SLOW),
    "an embedding": Embed(2, Prompt(SLOW)),
    "a question": tokenize(2, SLOW),
    "a long question": tokenize(2, LONG_TEXT),
}
"""Requests that take long to prepare."""
each_slow_request = pytest.mark.parametrize(
    "request_", SLOW_REQUESTS.values(), ids=SLOW_REQUESTS.keys()
)


# ---------------------------------------------------------------- streams go on


@each_slow_request
def test_streams_go_on_while_a_request_is_prepared(engine: SlowEngine, request_: Request) -> None:
    """Tokenizing and grammar checks ran in the loop: 1 MiB of text stopped every stream for a
    second."""
    with serving(engine) as served:
        served.stream(1)
        served.send(request_)
        assert engine.begun.wait(TIMEOUT_S)
        served.flows(1, tokens=50)
        assert served.ends(2) == []
        engine.may_go_on.set()
        assert isinstance(served.end(2), Finished | Tokenized)


def test_an_idle_loop_sends_heartbeats_while_a_request_is_prepared(engine: SlowEngine) -> None:
    """The preparation has another time limit: see Preparation.check."""
    with serving(engine) as served:
        served.send(generate(1, SLOW))
        served.beats()
        engine.may_go_on.set()
        assert isinstance(served.end(1), Finished)


def test_a_cancel_does_not_wait_for_a_saved_prompts_file(
    tmp_path: Path, engine: SlowEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that receives messages read and hashed the file, and gigabytes take seconds. Here
    the file is a pipe that has no writer yet."""
    path = path_of(tmp_path, 7)
    os.mkfifo(path)
    store = PromptStore(tmp_path, 10**9, Identity("a model", "an engine"))
    with serving(engine, store) as served:
        served.stream(1)
        served.send(Generate(2, Prompt("with a saved prompt"), FULL, prompt_id=7))
        served.send(Cancel(1))
        end = served.end(1)
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
        assert served.ends(2) == []
        path.open("wb").close()  # not a saved prompt, so the prompt is processed
        assert isinstance(served.end(2), Finished)
    assert "prompt 7 is processed again" in caplog.text


# ---------------------------------------------------------------- cancels


@each_slow_request
def test_a_request_that_is_cancelled_while_it_is_prepared_ends_once_and_is_never_run(
    engine: SlowEngine, request_: Request
) -> None:
    with serving(engine) as served:
        served.send(request_)
        assert engine.begun.wait(TIMEOUT_S)
        served.send(Cancel(2))
        assert served.end(2) == Finished(2, "cancelled", Usage(0, 0, 0), Timings(0.0, 0.0))
        engine.may_go_on.set()
        served.send(generate(3, LONG_TEXT), tokenize(4, "after it"))
        assert isinstance(served.end(3), Finished)
        assert isinstance(served.end(4), Tokenized)
        assert len(served.ends(2)) == 1
        assert served.count(2) == 0


def test_a_request_that_is_cancelled_while_it_waits_is_not_prepared(
    engine: SlowEngine,
) -> None:
    with serving(engine) as served:
        served.send(generate(1, LONG_TEXT), generate(2, LONG_TEXT + "2"), generate(3, "x" * 20_000))
        assert engine.begun.wait(TIMEOUT_S)
        served.send(Cancel(2))
        assert isinstance(served.end(2), Finished)
        engine.may_go_on.set()
        assert isinstance(served.end(3), Finished)
        assert engine.tokenized == [LONG_TEXT, "x" * 20_000]


def test_a_cancel_of_a_request_that_is_prepared_interrupts_no_step(engine: SlowEngine) -> None:
    """Its prompt is not in the step, so only others would be interrupted."""
    with serving(engine) as served:
        served.send(tokenize(1, SLOW))
        assert engine.begun.wait(TIMEOUT_S)
        served.send(Cancel(1))
        served.end(1)
        assert engine.interrupts == 0
        served.send(Cancel(99))
        served.beats()
        assert engine.interrupts == 1


def test_an_outcome_in_the_inbox_is_not_accepted_after_a_cancel(engine: SlowEngine) -> None:
    """Both may be in the inbox; the loop takes the Cancel first, or its result would be lost."""
    inbox = Inbox()
    preparation = Preparation(Preparer(engine), inbox)
    preparation.submit(generate(1, "x"))
    (prepared,) = inbox.take(TIMEOUT_S)
    assert not preparation.is_preparing(1)
    assert preparation.cancel(1)
    assert not preparation.accept(1)
    assert not preparation.cancel(1)
    assert prepared.id == 1  # type: ignore[union-attr]
    preparation.close()


# ---------------------------------------------------------------- order


def test_a_short_request_does_not_wait_for_a_long_one(engine: SlowEngine) -> None:
    with serving(engine) as served:
        served.send(generate(1, LONG_TEXT), tokenize(2, LONG_TEXT))
        assert engine.begun.wait(TIMEOUT_S)
        served.send(generate(3, "short"), Embed(4, Prompt("short")), tokenize(5, "short"))
        assert isinstance(served.end(3), Finished)
        assert isinstance(served.end(4), Finished)
        assert isinstance(served.end(5), Tokenized)
        assert served.ends(1) == served.ends(2) == []


@pytest.mark.parametrize("size", [1, SHORT_CHARACTERS + 1])
def test_requests_of_one_lane_are_prepared_in_order(size: int) -> None:
    engine = SlowEngine(slots=1)
    with serving(engine) as served:
        requests = [Prompt(str(i % 10) * size) for i in range(10)]
        one_token = replace(FULL, num_predict=1)
        served.send(*(Generate(i, prompt, one_token) for i, prompt in enumerate(requests)))
        served.until(lambda: len(served.order()) == 10)
        assert served.order() == list(range(10))


@pytest.mark.parametrize("size", [1, SHORT_CHARACTERS])
def test_questions_are_answered_after_the_requests_that_wait(engine: SlowEngine, size: int) -> None:
    """A flood of them would delay every stream's start."""
    inbox = Inbox()
    preparation = Preparation(Preparer(engine), inbox)
    preparation.submit(generate(1, SLOW * size))
    assert engine.begun.wait(TIMEOUT_S)
    for request in (
        tokenize(2, "q" * 5 * size), tokenize(3, "q" * 5 * size), generate(4, "g" * 5 * size)
    ):  # fmt: skip
        preparation.submit(request)
    engine.may_go_on.set()
    arrived: list[Arrival] = []
    while len(arrived) < 4:
        arrived += inbox.take(TIMEOUT_S)
    assert [arrival.id for arrival in arrived] == [1, 4, 2, 3]  # type: ignore[union-attr]
    preparation.close()


def test_which_requests_are_short(tmp_path: Path, engine: SlowEngine) -> None:
    store = PromptStore(tmp_path, 10**9, Identity("a model", "an engine"))
    preparer = Preparer(engine, (), store)
    most = SHORT_CHARACTERS
    assert preparer.is_short(generate(1, "x" * most))
    assert not preparer.is_short(generate(1, "x" * (most + 1)))
    assert preparer.is_short(Embed(1, Prompt(tokens=(1,) * most)))
    assert not preparer.is_short(Embed(1, Prompt(tokens=(1,) * (most + 1))))
    assert preparer.is_short(generate(1, "", grammar="x" * (most // GRAMMAR_WEIGHT)))
    assert not preparer.is_short(generate(1, "x", json_schema="x" * (most // GRAMMAR_WEIGHT)))
    assert not preparer.is_short(Generate(1, Prompt("x"), FULL, prompt_id=7))
    store.in_memory.add(7)
    assert preparer.is_short(Generate(1, Prompt("x"), FULL, prompt_id=7))
    store.close(TIMEOUT_S)


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize(("limits", "size"), [(SHORT, 5), (LONG, SHORT_CHARACTERS + 1)])
def test_the_questions_that_may_wait_are_bounded(
    engine: SlowEngine, limits: LaneLimits, size: int
) -> None:
    """They were not bounded, and each may have 1 MiB."""
    inbox = Inbox()
    preparation = Preparation(Preparer(engine), inbox)
    text = SLOW * (size // len(SLOW) + 1)
    preparation.submit(tokenize(0, text))
    assert engine.begun.wait(TIMEOUT_S)  # it does not wait any more
    for number in range(1, limits.questions + 1):
        preparation.submit(tokenize(number, text))
    assert inbox.take(0) == []
    preparation.submit(tokenize(9999, text))
    (refused,) = inbox.take(TIMEOUT_S)
    assert isinstance(refused, Failed)
    assert (refused.id, refused.code) == (9999, "queue_full")
    assert preparation.accept(9999)
    preparation.submit(generate(10_000, text))  # requests are bounded by the slots
    engine.may_go_on.set()
    arrived: list[Arrival] = []
    while len(arrived) < limits.questions + 2:
        arrived += inbox.take(TIMEOUT_S)
    assert not any(isinstance(arrival, Failed) for arrival in arrived)
    preparation.close()


def test_a_preparation_that_does_not_end_ends_the_worker(
    engine: SlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop keeps sending heartbeats, so the front would see progress forever."""
    monkeypatch.setattr("workers.child.preparation.STUCK_S", 0.3)
    with pytest.raises(PreparationStuck), serving(engine) as served:
        served.stream(1)
        served.send(generate(2, SLOW))
        served.until(served.running.done)
        assert served.ends(1) == []


def test_many_preparations_that_end_are_not_taken_for_one_that_does_not(
    engine: SlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.child.preparation.STUCK_S", 0.3)
    with serving(engine) as served:
        began_at, number = time.monotonic(), 0
        while time.monotonic() < began_at + 0.6:
            number += 1
            served.send(tokenize(number, "x" * 5000))
            served.end(number)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_an_idle_lane_gives_its_stack_back_and_works_again() -> None:
    prepared: list[int] = []
    lane = Lane("lane", LaneLimits(1, 2**20, idle_s=0.05), lambda r: prepared.append(r.id))
    for number in range(3):
        lane.put(generate(number, "x"))
        wait_until(lambda count=number + 1: len(prepared) == count)  # type: ignore[misc]
        wait_until(lambda: "lane" not in thread_names())
    assert prepared == [0, 1, 2]


def test_a_closed_lane_drops_what_waits_and_its_thread_ends() -> None:
    begun, may_go_on, prepared = threading.Event(), threading.Event(), list[int]()

    def prepare(request: Request) -> None:
        prepared.append(request.id)
        begun.set()
        assert may_go_on.wait(TIMEOUT_S)

    lane = Lane("lane", LaneLimits(1, 2**20), prepare)
    lane.put(generate(1, "x"))
    assert begun.wait(TIMEOUT_S)
    lane.put(generate(2, "x"))
    lane.close()
    may_go_on.set()
    wait_until(lambda: "lane" not in thread_names())
    assert prepared == [1]
    assert lane.busy_s() == 0


# ---------------------------------------------------------------- errors


class FaultyEngine(SlowEngine):
    """Fails once in the given method, with an error that no engine should raise."""

    def __init__(self, method: str, error: type[Exception]) -> None:
        super().__init__()
        self._method, self._error = method, error
        self.is_faulty = False

    def _fail_in(self, method: str) -> None:
        if self.is_faulty and method == self._method:
            self.is_faulty = False
            raise self._error("as told")

    def tokenize(self, text: str, *, is_start: bool = True, continues: bool = False) -> list[int]:
        self._fail_in("tokenize")
        return super().tokenize(text, is_start=is_start, continues=continues)

    def sampler(self, params: SamplingParams, prompt: Sequence[int]):
        self._fail_in("sampler")
        return super().sampler(params, prompt)

    def usable_prefix(self, held: int, length: int) -> int:
        self._fail_in("begin")
        return super().usable_prefix(held, length)

    def sample(self, slot: int, sampler) -> int:
        if sampler.prompt == "faulty":
            self._fail_in("sample")
        return super().sample(slot, sampler)

    def embed(self, tokens: Sequence[int], position: int, *, is_last: bool) -> bytes:
        self._fail_in("embed")
        return super().embed(tokens, position, is_last=is_last)


each_place = pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("tokenize", generate(2, "faulty")),
        ("tokenize", Embed(2, Prompt("faulty"))),
        ("tokenize", tokenize(2, "faulty")),
        ("sampler", generate(2, "faulty")),
        ("begin", generate(2, "faulty")),
        ("sample", generate(2, "faulty")),
        ("embed", Embed(2, Prompt("faulty"))),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
@each_place
def test_an_unexpected_error_fails_its_request_alone(
    method: str, request_: Request, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """It ended the worker, and all its streams."""
    engine = FaultyEngine(method, error)
    with serving(engine) as served:
        served.stream(1)
        engine.is_faulty = True
        served.send(request_)
        assert served.end(2) == Failed(2, "internal_error", UNEXPECTED)
        assert not engine.is_faulty
        served.flows(1)
        served.send(generate(3, "another"))
        assert isinstance(served.end(3), Finished)
        assert served.count(3) == len("another")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "request 2 failed unexpectedly" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is error


@each_place
def test_a_worker_that_is_out_of_memory_ends(method: str, request_: Request) -> None:
    """Only its end gives the memory back, and other requests would fail the same way."""
    engine = FaultyEngine(method, MemoryError)
    with pytest.raises(MemoryError), serving(engine) as served:
        served.stream(1)
        engine.is_faulty = True
        served.send(request_)
        served.until(served.running.done)


def test_an_error_that_was_foreseen_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    engine = FaultyEngine("sample", EngineFailed)
    with serving(engine) as served:
        engine.is_faulty = True
        served.send(generate(2, "faulty"))
        assert served.end(2) == Failed(2, "engine_failed", "as told")
    assert caplog.records == []


# ---------------------------------------------------------------- the end


def test_shutdown_does_not_wait_for_a_preparation(engine: SlowEngine) -> None:
    with serving(engine) as served:
        served.send(generate(1, SLOW), tokenize(2, LONG_TEXT))
        assert engine.begun.wait(TIMEOUT_S)
        served.send(Shutdown())
        served.running.result(SOON_S)


def ended(code: str, *arguments: str, within_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run Python code, with the repository's modules, to its end."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, check=False, timeout=within_s, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("stuck_s", [0.3, 300.0], ids=["stuck", "shut down"])
def test_the_process_ends_while_native_code_tokenizes(stuck_s: float) -> None:
    """With status 1 if it is stuck, with status 0 if the front has sent Shutdown."""
    code = """if True:
        import ctypes, os, sys
        from multiprocessing import Pipe
        from shared.messages import Generate, Shutdown
        from shared.prompt import Prompt
        from shared.sampling import SamplingParams
        from shared.settings import ModelSettings, WorkerSettings
        from shared.wire import encode_frame
        from workers.child import preparation, process
        from workers.engines.echo import EchoEngine

        def tokenize(self, text, **_):
            if os.environ["STUCK_S"] == "300.0":
                os.write(requests_in.fileno(), encode_frame([Shutdown()]))
            ctypes.CDLL(None).sleep(1000)

        EchoEngine.tokenize = tokenize
        preparation.STUCK_S = float(os.environ["STUCK_S"])
        requests_out, requests_in = Pipe(duplex=False)
        tokens_out, tokens_in = Pipe(duplex=False)
        request = Generate(1, Prompt("x"), SamplingParams())
        os.write(requests_in.fileno(), encode_frame([request]))
        model = ModelSettings(None, "echo", None, 256, None, "f16")
        process.run(WorkerSettings(0, (), model, "warning"), requests_out, tokens_in)
    """
    environment = f"import os; os.environ['STUCK_S'] = '{stuck_s}'\n"
    began_at = time.monotonic()
    process = ended(environment + code)
    assert time.monotonic() - began_at < 20
    if stuck_s < 1:
        assert process.returncode == 1, process.stderr
        assert "worker 0 is stuck: a request has been prepared for" in process.stderr
        assert "Traceback" not in process.stderr
    else:
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""


def test_a_long_word_does_not_overflow_the_stack(tmp_path: Path) -> None:
    """llama.cpp's std::regex recurses for each letter: 400,000 take 140 MiB of stack."""
    code = """if True:
        import sys
        from pathlib import Path
        from gguf import GGUFWriter
        from shared.messages import Failed, Tokenize
        from shared.prompt import Prompt
        from shared.settings import ModelSettings
        from tests.helpers.models import build_qwen2_gguf
        from workers.child.inbox import Inbox
        from workers.child.preparation import Preparation
        from workers.child.preparer import Preparer
        from workers.engines.table import load_engine

        add = GGUFWriter.add_tokenizer_pre
        GGUFWriter.add_tokenizer_pre = lambda writer, _: add(writer, "deepseek-llm")
        path = build_qwen2_gguf(Path(sys.argv[1]))
        settings = ModelSettings(path, "llama_cpp", None, 256, None, "f16", slots=1)
        inbox = Inbox()
        preparation = Preparation(Preparer(load_engine(settings, 1)), inbox)
        for text in ("a" * 400_000, "a" * 16_000):
            preparation.submit(Tokenize(1, Prompt(text), is_start=True))
            (refused,) = inbox.take(100)
            assert isinstance(refused, Failed), refused
            print(refused.message)
    """
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    process = ended(code, str(tmp_path / "model.gguf"), within_s=100.0)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        f"the prompt has {count} tokens; the context holds 256" for count in (400_000, 16_000)
    ]


def test_a_lane_whose_large_stack_is_refused_works_with_the_default_one() -> None:
    """A limit of address space would otherwise refuse all long prompts."""
    code = """if True:
        import resource
        from shared.messages import Tokenize
        from shared.prompt import Prompt
        from workers.child.lane import Lane
        from workers.child.preparation import LONG

        resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
        lane = Lane("lane", LONG, lambda request: print("prepared", request.id, flush=True))
        lane.put(Tokenize(7, Prompt("x"), is_start=True))
        while lane._has_thread:
            pass
    """
    process = ended(code)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "prepared 7\n"
    assert "a stack of 512 MiB was refused" in process.stderr


def test_a_worker_that_gets_no_thread_at_all_is_out_of_memory(
    engine: SlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.raises(MemoryError), serving(engine) as served:
        served.stream(1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            served.send(tokenize(2, "x" * (SHORT_CHARACTERS + 1)))
            served.until(served.running.done)

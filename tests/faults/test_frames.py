"""Frames that no sound worker sends, written into the real queue of a real worker.

Writes of less than a page are whole, so they come between the worker's own frames.
"""

from __future__ import annotations

import random
import re
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from shared.messages import Failed, Finished, Token, Tokens
from shared.values import Timings, Usage
from shared.wire import encode_frame
from tests.helpers.running import RunningServer, text_of
from tests.helpers.streams import ENDLESS, Followed, fresh, pids, rss, the_cut_one, until_replaced
from tests.helpers.support import echo_options
from tests.helpers.token_queue import token_queue_of, write_all

FLAT = 16 * 2**20
"""Bytes by which the memory of a process may differ without a reason."""
UNKNOWN = 999_999
"""A request's id that the server has not come to."""


@pytest.fixture(scope="module")
def pair(both_cores: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers, 20 ms a token."""
    path = echo_options(tmp_path_factory.mktemp("pair"), step_s=0.02)
    flags = ("--engine", "echo", "-m", str(path), "--workers", "2", "--num-threads", "2")
    patient = ("--restart-wait", "0.1", "--max-deaths", "1000", "--log-level", "debug")
    with RunningServer(*flags, "-n", "2000000", *patient) as running:
        yield running


@pytest.fixture
def server(pair: RunningServer) -> RunningServer:
    pair.until(lambda state: state["workers"] == 2 and state["active"] == 0)
    return pair


@contextmanager
def two_streams(server: RunningServer) -> Iterator[tuple[Followed, Followed]]:
    """One on each worker."""
    with (
        Followed(server, prompt=fresh(), **ENDLESS) as one,
        Followed(server, prompt=fresh(), **ENDLESS) as two,
    ):
        one.until_tokens()
        two.until_tokens()
        yield one, two


def a_token(request: int) -> Tokens:
    return Tokens((Token(request, 0, 0, "NOT OURS"),))


def test_fault_15_half_a_frame_of_a_worker_that_dies_is_dropped(server: RunningServer) -> None:
    before = pids(server)
    with two_streams(server) as streams:
        worker = server.workers()[0]
        ids = range(1, 100)  # whichever the streams have
        frame = encode_frame([a_token(number) for number in ids])
        with token_queue_of(worker) as queue:
            worker.send_signal(signal.SIGSTOP)  # it would finish a frame of its own behind ours
            write_all(queue, frame[:-1])
            worker.kill()
        killed_at = time.monotonic()
        cut, other = the_cut_one(streams)
        assert cut.times[-1] - killed_at < 1.0
        assert cut.lines[-1]["error"]["code"] == "worker_died"
        other.until_tokens(10)
        assert "NOT OURS" not in cut.text + other.text
        server.wait_for_log("was ended by SIGKILL")
        until_replaced(server, before)


def check_that_the_worker_is_ended(server: RunningServer, data: bytes, *, more: bytes) -> None:
    """It sends `data`, and `more` until it can no more. The front's memory stays as it was."""
    before, memory = pids(server), rss(server.process.pid)
    with two_streams(server) as streams:
        sent, sent_at = 0, time.monotonic()
        with token_queue_of(server.workers()[0]) as queue, pytest.raises(BrokenPipeError):
            write_all(queue, data)
            while True:
                write_all(queue, more)
                sent += len(more)
                assert time.monotonic() - sent_at < 20
        cut, other = the_cut_one(streams)
        assert cut.times[-1] - sent_at < 1.0
        assert cut.lines[-1]["error"]["code"] == "worker_died"
        other.until_tokens(10)
        server.wait_for_log(r"worker \d sent a bad frame: ")
        until_replaced(server, before)
    assert rss(server.process.pid) - memory < FLAT
    assert sent < FLAT
    assert text_of(server.post(prompt="fine").text) == "fine"


def test_fault_16_a_frame_of_four_gibibytes_ends_its_worker_and_takes_no_memory(
    server: RunningServer,
) -> None:
    check_that_the_worker_is_ended(server, struct.pack(">I", 2**32 - 1), more=bytes(4096))


@pytest.mark.parametrize("seed", range(3))
def test_fault_17_a_frame_of_random_bytes_ends_its_worker(server: RunningServer, seed: int) -> None:
    rubbish = random.Random(seed).randbytes(4000)
    data = struct.pack(">I", len(rubbish)) + rubbish
    check_that_the_worker_is_ended(server, data, more=data)


def test_fault_18_messages_of_unknown_requests_are_dropped_and_counted(
    server: RunningServer,
) -> None:
    before = pids(server)
    end = Finished(UNKNOWN, "stop", Usage(1, 1, 0), Timings(0.0, 0.0))
    with two_streams(server) as streams:
        with token_queue_of(server.workers()[0]) as queue:
            write_all(queue, encode_frame([a_token(UNKNOWN), end]))
            write_all(queue, encode_frame([Failed(UNKNOWN, "internal", "not ours")]))
        line = server.wait_for_log(r"dropped message \d+ that nobody waits for, a Finished")
        second = int(re.findall(r"message (\d+)", line)[0])
        server.log_has(f"dropped message {second - 1} that nobody waits for, a Token")
        server.wait_for_log(f"dropped message {second + 1} that nobody waits for, a Failed")
        for stream in streams:
            stream.until_tokens(10)
            assert "NOT OURS" not in stream.text
    assert pids(server) == before


def test_fault_18_tokens_that_come_after_a_cancel_are_dropped_and_counted() -> None:
    """The client leaves in the middle of a long step: its token comes when nobody waits."""
    flags = ("--engine", "echo", "--workers", "1", "--log-level", "debug")
    with RunningServer(*flags) as server:
        (worker,) = server.workers()
        with server.stream(prompt="ab[[sleep 3]]", num_predict=100) as stream:
            lines = stream.iter_lines()
            assert [next(lines), next(lines)] == ["a", "b"]
            until_it_waits(worker)  # on one core the client may run before the step begins
        server.wait_for_log("dropped message [0-9]+ that nobody waits for, a Token")
        server.until_idle()
        assert text_of(server.post(prompt="fine").text) == "fine"


def test_fault_19_a_worker_waits_for_a_front_that_is_stopped_and_no_token_is_lost() -> None:
    """Longer than the progress deadline: the worker is not to blame."""
    flags = ("--engine", "echo", "--workers", "1", "-n", "2000000", "--progress-timeout", "1")
    count = 100_000
    with RunningServer(*flags) as server:
        (worker,) = server.workers()
        with Followed(server, prompt="x" * 10, num_predict=count, ignore_eos=True) as stream:
            stream.until_tokens(1000)
            memory = worker.memory_info().rss
            server.process.send_signal(signal.SIGSTOP)
            try:
                until_it_waits(worker)
                time.sleep(2.5)  # the deadline, and what the front allows for its own delays
                assert worker.memory_info().rss - memory < FLAT
            finally:
                server.process.send_signal(signal.SIGCONT)
            assert len(stream.lines) < count
            stream.until_over()
        *tokens, last = stream.lines
        assert [line["index"] for line in tokens] == list(range(count))
        assert last["usage"]["completion_tokens"] == count
        assert server.workers() == [worker]


def until_it_waits(worker: psutil.Process) -> None:
    """Until it takes no more time of any core: its queue is full, or its step sleeps."""
    deadline, spent = time.monotonic() + 20, -1.0
    while (now := sum(worker.cpu_times()[:2])) != spent:
        assert time.monotonic() < deadline
        spent = now
        time.sleep(0.3)  # a clock tick is 10 ms

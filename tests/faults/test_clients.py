"""Clients that leave, half close, do not read or vanish."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from server.config.options import BUNDLED_MODEL
from server.http.listener import KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S
from tests.helpers import namespaces
from tests.helpers.options import read_options
from tests.helpers.running import RunningServer, address_of, open_request, send_request, text_of
from tests.helpers.streams import ENDLESS, Followed, fresh, rss
from tests.helpers.support import echo_options

STEP_S = 0.4
SEND_S = 2
LATE_S = 0.6
"""What a busy machine may take longer than a step."""
LONG_TALE = "Once upon a time there was a fox who lived at the edge of a dark wood. "


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, whose steps take long."""
    path = echo_options(tmp_path_factory.mktemp("slow"), slots=1, step_s=STEP_S)
    with RunningServer("--engine", "echo", "-m", str(path), "-n", "2000000") as running:
        yield running


@pytest.fixture(scope="module")
def quick() -> Iterator[RunningServer]:
    """Steps that take no time, and a short deadline for sending."""
    flags = ("--engine", "echo", "--workers", "1", "-n", "2000000")
    with RunningServer(*flags, "--send-timeout", str(SEND_S)) as running:
        yield running


def seconds_until_idle(server: RunningServer) -> float:
    started = time.monotonic()
    server.until_idle()
    return time.monotonic() - started


# ---------------------------------------------------------------- leaving


def test_fault_20_a_client_that_leaves_in_mid_stream_ends_it_within_one_step(
    slow: RunningServer,
) -> None:
    with Followed(slow, prompt=fresh(), **ENDLESS) as stream:
        stream.until_tokens()
    assert seconds_until_idle(slow) < STEP_S + LATE_S
    assert text_of(slow.post(prompt="next").text) == "next"


def test_fault_20_a_model_stops_for_a_client_that_leaves() -> None:
    with RunningServer("-m", str(BUNDLED_MODEL), "--workers", "1", "-n", "4096") as server:
        with Followed(server, prompt="Once", num_predict=4000, ignore_eos=True) as stream:
            stream.until_tokens()
        assert seconds_until_idle(server) < LATE_S
        assert len(stream.lines) < 2000


def test_fault_21_a_request_whose_client_leaves_while_it_waits_never_reaches_a_worker(
    slow: RunningServer,
) -> None:
    """The poison would kill the worker that sees it."""
    (worker,) = slow.workers()
    with Followed(slow, prompt=fresh(), **ENDLESS) as running:
        running.until_tokens()
        leaver = open_request(slow.url, prompt="[[prefill abort]]")
        slow.until(lambda state: state["waiting"] == 1)
        leaver.close()
        slow.until(lambda state: state["waiting"] == 0)
    slow.until_idle()
    assert text_of(slow.post(prompt="next").text) == "next"
    assert slow.workers() == [worker]


def test_fault_22_a_client_that_leaves_during_its_prompt_ends_it_within_one_chunk(
    slow: RunningServer,
) -> None:
    """A thousand chunks."""
    leaver = open_request(slow.url, prompt=fresh("x" * 1000), n_batch=1)
    slow.until(lambda state: state["active"] == 1)
    leaver.close()
    assert seconds_until_idle(slow) < STEP_S + LATE_S


def test_fault_22_a_model_stops_in_a_long_prompt_for_a_client_that_leaves() -> None:
    """Within its chunk, which it interrupts: in a fraction of what the whole prompt takes."""
    with RunningServer("-m", str(BUNDLED_MODEL), "--workers", "1", "-n", "8000") as server:
        started = time.monotonic()
        whole = server.post(prompt="A. " + LONG_TALE * 250, num_predict=1)
        assert whole.status_code == 200, whole.text
        whole_s = time.monotonic() - started
        leaver = open_request(server.url, prompt="B. " + LONG_TALE * 250, num_predict=1)
        server.until(lambda state: state["active"] == 1)
        leaver.close()
        assert seconds_until_idle(server) < max(whole_s / 3, LATE_S)


def test_fault_23_the_text_of_a_neighbour_stays_what_it_is_alone() -> None:
    flags = ("-m", str(BUNDLED_MODEL), "--workers", "1", "-n", "512", "--cache-limit", "0")
    tale: dict[str, Any] = {"prompt": "There was once a king", "temp": 0, "num_predict": 120}
    with RunningServer(*flags) as server:
        alone = text_of(server.post(**tale).text)
        with Followed(server, prompt="The wolf", num_predict=400, ignore_eos=True) as cancelled:
            cancelled.until_tokens()
            with Followed(server, **tale) as neighbour:
                neighbour.until_tokens(10)
                cancelled.leave()
                neighbour.until_over()
        assert neighbour.text == alone


# ---------------------------------------------------------------- half closed


@pytest.mark.parametrize("state", ["streaming", "waiting", "in its prompt"])
def test_fault_24_a_client_that_closes_its_sending_half_counts_as_one_that_has_left(
    slow: RunningServer, state: str
) -> None:
    with ExitStack() as stack:
        if state == "waiting":
            running = stack.enter_context(Followed(slow, prompt=fresh(), **ENDLESS))
            running.until_tokens()
        prompt = fresh("[[prefill sleep 60]]" if state == "in its prompt" else "x")
        half = stack.enter_context(open_request(slow.url, prompt=prompt, **ENDLESS))
        if state == "streaming":
            assert half.recv(1) == b"H"
        slow.until(lambda now: now["waiting" if state == "waiting" else "active"] == 1)
        half.shutdown(socket.SHUT_WR)
        while half.recv(65536):
            pass
        slow.until(lambda now: now["waiting"] == 0)
    assert seconds_until_idle(slow) < 2 * STEP_S + LATE_S


# ---------------------------------------------------------------- not reading


def unread_request(url: str, room: int = 2048, **body: Any) -> socket.socket:
    """A request of a client with next to no room for the answer: so many bytes."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.connect(address_of(url))
    send_request(connection, **body)
    return connection


def rest_of(connection: socket.socket) -> bytes:
    """What still comes, until the connection is closed or reset."""
    rest = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            rest += part
    return rest


def until_disconnected(server: RunningServer) -> None:
    server.until(lambda state: state["active"] == 1)
    server.until_idle()


@pytest.mark.usefixtures("both_cores")
def test_fault_25_a_client_that_does_not_read_is_disconnected_and_its_slot_free(
    quick: RunningServer,
) -> None:
    memory, started = rss(quick.process.pid), time.monotonic()
    with unread_request(quick.url, prompt=fresh(), **ENDLESS) as reader:
        until_disconnected(quick)
        quick.wait_for_log("disconnected a client that read too little for 2 s")
        assert time.monotonic() - started < 15  # the buffers on the way are filled first
        assert rss(quick.process.pid) - memory < 100 * 2**20
        assert not rest_of(reader).endswith(b"0\r\n\r\n")
    assert text_of(quick.post(prompt="next").text) == "next"


def test_fault_25_the_memory_for_clients_that_do_not_read_does_not_grow(
    quick: RunningServer,
) -> None:
    """What the first ones took is free for the next."""
    sizes = []
    for _ in range(3):
        with unread_request(quick.url, prompt=fresh(), **ENDLESS):
            until_disconnected(quick)
        sizes.append(rss(quick.process.pid))
    assert sizes[-1] - sizes[0] < 32 * 2**20


@pytest.mark.usefixtures("both_cores")
def test_fault_25_a_client_that_takes_next_to_nothing_is_disconnected(
    quick: RunningServer,
) -> None:
    """Ten kilobytes a second of an answer that has megabytes."""
    with unread_request(quick.url, room=8192, prompt=fresh(), **ENDLESS) as reader:
        quick.until(lambda state: state["active"] == 1)
        while quick.client.get("/ready").json()["active"] == 1:
            assert reader.recv(500)
            time.sleep(0.05)  # the fault: a client of 10 kB a second
        quick.wait_for_log("disconnected a client that read too little for 2 s")
    quick.until_idle()


def test_fault_25_a_client_that_reads_slowly_is_served(quick: RunningServer) -> None:
    """Some hundred kilobytes a second, for twice the deadline."""
    with unread_request(quick.url, room=65536, prompt=fresh(), **ENDLESS) as reader:
        reader.settimeout(10)
        until = time.monotonic() + 2 * SEND_S
        while time.monotonic() < until:
            assert reader.recv(16384)
            time.sleep(0.05)  # the fault: a slow client
        assert quick.client.get("/ready").json()["active"] == 1
    quick.until_idle()


# ---------------------------------------------------------------- vanished


def test_fault_26_the_requests_of_a_client_that_vanishes_are_cancelled(
    tmp_path: Path,
) -> None:
    """One that streams, whose data nobody acknowledges, and one that waits, whose connection is
    idle. The next test says what the default deadline makes of this."""
    if reason := namespaces.why_not():
        pytest.skip(reason)
    path = echo_options(tmp_path, step_s=0.05)
    flags = ("--engine", "echo", "-m", str(path), "--workers", "1", "-n", "2000000")
    with (
        namespaces.wire() as wire,
        namespaces.inside(wire.server),
        RunningServer(
            *flags, *("--host", namespaces.SERVER, "--insecure", "--send-timeout", str(SEND_S))
        ) as server,
        ExitStack() as stack,
    ):
        with namespaces.inside(wire.client):
            for prompt in ("x", "x[[prefill sleep 300]]"):
                stack.enter_context(open_request(server.url, prompt=fresh(prompt), **ENDLESS))
        server.until(lambda state: state["active"] == 2)
        wire.vanish()
        vanished_at = time.monotonic()
        server.until(lambda state: state["active"] == 0)
        assert time.monotonic() - vanished_at < vanished_for_s(SEND_S)
        assert text_of(server.post(prompt="next").text) == "next"


def vanished_for_s(send_timeout_s: float) -> float:
    """The longest time, in seconds, after which a vanished client's requests are cancelled.

    The kernel probes an idle connection after KEEPALIVE_IDLE_S and gives up KEEPALIVE_INTERVAL_S
    after the send timeout; it looks at the end of an interval. A second is for the server.
    """
    gives_up = send_timeout_s + KEEPALIVE_INTERVAL_S
    return max(gives_up, KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S) + KEEPALIVE_INTERVAL_S + 1


def test_fault_26_by_default_a_vanished_client_is_cancelled_within_30_seconds() -> None:
    default_s = read_options([], {}).send_timeout
    assert vanished_for_s(default_s) < 30

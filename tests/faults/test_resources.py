"""What runs out, and what might be lost a little at a time."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass

import psutil
import pytest

from tests.helpers.running import RunningServer, address_of, text_of

FEW = 64
"""File descriptors."""
MOST_LINES = 40
"""Of the log, while there are no descriptors."""
DEATHS = 200
REQUESTS = 10_000
CLIENTS = 8
MORE = 16 * 2**20
"""Bytes by which memory may differ: allocators keep some."""


def test_fault_37_without_file_descriptors_the_server_waits_and_recovers() -> None:
    """Also if a worker dies meanwhile. That none can be started is not held against its place."""
    flags = ("--engine", "echo", "--workers", "1", "--restart-wait", "0.5", "--max-deaths", "2")
    with RunningServer(*flags) as server:
        front = psutil.Process(server.process.pid)
        front.rlimit(resource.RLIMIT_NOFILE, (FEW, FEW))
        (worker,) = server.workers()
        lines = len(server.log)
        with ExitStack() as stack:
            for _ in range(2 * FEW):
                stack.enter_context(socket.create_connection(address_of(server.url), timeout=10))
            deadline = time.monotonic() + 10
            while front.num_fds() < FEW - 1:
                assert time.monotonic() < deadline, front.num_fds()
                time.sleep(0.01)
            worker.kill()
            for _ in range(3):
                server.wait_for_log("worker 0 cannot be started: .*Too many open files")
            spent = sum(front.cpu_times()[:2])
            time.sleep(2)  # the fault lasts
            assert sum(front.cpu_times()[:2]) - spent < 1.0  # no busy loop
        server.until_ready()
        assert text_of(server.post(prompt="back").text) == "back"
        assert len(server.log) - lines < MOST_LINES, server.log[lines:]


# ---------------------------------------------------------------- leaks


@dataclass(frozen=True, slots=True)
class Held:
    """What processes hold of what can leak."""

    descriptors: int
    threads: int
    memory: int
    shared: frozenset[str]


def held(process: psutil.Process) -> Held:
    return Held(
        process.num_fds(),
        process.num_threads(),
        process.memory_info().rss,
        frozenset(os.listdir("/dev/shm")),
    )


def check_that_nothing_leaked(before: Held, after: Held) -> None:
    assert after.descriptors <= before.descriptors
    assert after.threads <= before.threads
    assert after.memory - before.memory < MORE
    assert after.shared <= before.shared


def settled(process: psutil.Process) -> Held:
    """Once the connections of its clients are closed on its side, too."""
    deadline = time.monotonic() + 10
    while (now := held(process)).descriptors != held(process).descriptors or len(
        [c for c in process.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
    ) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return now


@pytest.mark.usefixtures("both_cores")
def test_fault_38_killing_and_replacing_workers_leaks_nothing() -> None:
    flags = ("--engine", "echo", "--workers", "2", "--num-threads", "2")
    patient = ("--restart-wait", "0", "--max-deaths", "1000")
    with RunningServer(*flags, *patient) as server:

        def kill_both() -> None:
            server.until(lambda state: state["workers"] == 2)
            server.kill_workers()

        front = psutil.Process(server.process.pid)
        for _ in range(5):
            kill_both()
        server.until(lambda state: state["workers"] == 2)
        before = settled(front)
        for _ in range(DEATHS // 2):
            kill_both()
        server.until(lambda state: state["workers"] == 2)
        check_that_nothing_leaked(before, settled(front))
        assert len(server.workers()) == 2
        assert text_of(server.post(prompt="still there", num_predict=99).text) == "still there"


def ask(url: str, count: int) -> None:
    """So many requests over one connection."""
    body = b'{"prompt":"a few words","num_predict":4}'
    request = (
        b"POST /stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    with socket.create_connection(address_of(url), timeout=30) as connection:
        for _ in range(count):
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                part = connection.recv(65536)
                assert part
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")


def test_fault_38_ten_thousand_requests_leak_nothing() -> None:
    flags = ("--engine", "echo", "--workers", "1")
    with RunningServer(*flags) as server:

        def ask_much(count: int) -> None:
            clients = [
                threading.Thread(target=ask, args=(server.url, count // CLIENTS))
                for _ in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()

        front, (worker,) = psutil.Process(server.process.pid), server.workers()
        ask_much(2000)  # caches fill up
        before = settled(front), held(worker)
        ask_much(REQUESTS)
        after = settled(front), held(worker)
        for one, other in zip(before, after, strict=True):
            check_that_nothing_leaked(one, other)
        server.until_idle()

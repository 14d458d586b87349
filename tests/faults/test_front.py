"""The end of the front: told to, told twice, killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from tests.helpers.running import RunningServer
from tests.helpers.streams import ENDLESS, Followed
from tests.helpers.support import echo_options


def gone_within(processes: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def slow_echo(folder: Path) -> tuple[str, ...]:
    path = echo_options(folder, step_s=0.02)
    return ("--engine", "echo", "-m", str(path), "-n", "2000000")


@pytest.mark.parametrize("busy", ["idle", "decoding", "stuck with the GIL"])
def test_fault_14_when_the_front_is_killed_no_worker_is_left_after_two_seconds(
    llama_gguf: Path, busy: str
) -> None:
    before = shared_memory()
    decoding = ("-m", str(llama_gguf), "-n", "4096")
    with RunningServer(*(decoding if busy == "decoding" else ("--engine", "echo"))) as running:
        workers = running.workers()
        if busy != "idle":
            prompt = "once[[hang-gil]]" if busy.startswith("stuck") else "once"
            with (
                pytest.raises(httpx.TransportError),
                running.stream(prompt=prompt, num_predict=4000, ignore_eos=True) as response,
            ):
                lines = response.iter_lines()
                next(lines)
                running.process.kill()
                for _ in lines:
                    pass
        else:
            running.process.kill()
        assert gone_within(workers, 2)
    assert shared_memory() <= before


def test_fault_35_sigterm_lets_streams_end_and_exits_with_0(tmp_path: Path) -> None:
    with RunningServer(*slow_echo(tmp_path)) as running:
        workers = running.workers()
        with running.stream(prompt="to the very end", num_predict=99) as response:
            lines = response.iter_lines()
            first = next(lines)
            running.process.send_signal(signal.SIGTERM)
            running.wait_for_log("SIGTERM")
            assert running.client.get("/ready").status_code == 503
            assert running.client.get("/health").status_code == 200
            refused = running.post(prompt="x")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert first + "".join(lines) == "to the very end"
        assert running.process.wait(timeout=10) == 0
        assert gone_within(workers, 1)


def test_fault_35_the_drain_deadline_cuts_streams_and_still_exits_with_0(tmp_path: Path) -> None:
    with RunningServer(*slow_echo(tmp_path), "--drain-timeout", "0.3") as running:
        with Followed(running, prompt="x", **ENDLESS) as stream:
            stream.until_tokens()
            running.process.send_signal(signal.SIGTERM)
            stream.until_over()
        assert stream.lines[-1]["error"]["message"] == "the server is shutting down"
        assert running.process.wait(timeout=10) == 0


def test_fault_36_a_second_sigterm_ends_everything_at_once(tmp_path: Path) -> None:
    with RunningServer(*slow_echo(tmp_path)) as running:
        workers = running.workers()
        with (
            pytest.raises(httpx.TransportError),
            running.stream(prompt="x", **ENDLESS) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            running.process.send_signal(signal.SIGTERM)
            running.wait_for_log("SIGTERM")
            running.process.send_signal(signal.SIGTERM)
            for _ in lines:
                pass
        assert running.process.wait(timeout=2) == 5
        assert gone_within(workers, 2)

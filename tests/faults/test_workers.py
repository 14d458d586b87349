"""Workers that die, hang, loop or run out of memory, and what the others' clients see of it."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.helpers import cgroups
from tests.helpers.running import RunningServer, run_to_its_end, text_of
from tests.helpers.streams import ENDLESS, Followed, fresh, pids, the_cut_one, until_replaced
from tests.helpers.support import echo_options

STEP_S = 0.02
PROGRESS_S = 2.0
CUT_S = 1.0
"""From a worker's end to the end of its streams."""
NOTICED_S = 1.0
"""A pause of a stream that its reader would notice; a step takes a fiftieth of it."""
PATIENT = ("--restart-wait", "0.1", "--max-deaths", "1000")


@pytest.fixture(scope="module")
def pair(both_cores: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers, 20 ms a token."""
    path = echo_options(tmp_path_factory.mktemp("pair"), step_s=STEP_S)
    flags = ("--engine", "echo", "-m", str(path), "--workers", "2", "--num-threads", "2")
    limits = ("-n", "2000000", "--progress-timeout", str(PROGRESS_S))
    with RunningServer(*flags, *limits, *PATIENT) as running:
        running.until(lambda state: state["workers"] == 2)
        yield running


@pytest.fixture
def server(pair: RunningServer) -> RunningServer:
    pair.until(lambda state: state["workers"] == 2 and state["active"] == 0)
    return pair


def check_that_nobody_else_noticed(neighbour: Followed) -> None:
    """It goes on behind the fault, and never paused."""
    neighbour.until_tokens(20)
    assert not neighbour.is_over
    assert [line["index"] for line in neighbour.lines] == list(range(len(neighbour.lines)))
    assert neighbour.longest_gap_s < NOTICED_S


def directive_cuts_only_its_own(server: RunningServer, directive: str, cause: str) -> float:
    """Seconds from the victim's last token to its cut."""
    before = pids(server)
    with (
        Followed(server, prompt=fresh(), **ENDLESS) as neighbour,
        Followed(server, prompt=fresh(f"abc[[{directive}]]"), num_predict=99) as victim,
    ):
        neighbour.until_tokens()
        victim.until_over()
        assert victim.is_cut
        assert "abc" in victim.text
        assert victim.lines[-1]["error"]["code"] == "worker_died"
        check_that_nobody_else_noticed(neighbour)
        server.wait_for_log(rf"worker \d {cause}")
        until_replaced(server, before)
    return victim.times[-1] - victim.times[-2]


# ---------------------------------------------------------------- death


def test_fault_01_kill_9_cuts_the_streams_of_one_worker_within_a_second(
    server: RunningServer,
) -> None:
    before = pids(server)
    with (
        Followed(server, prompt=fresh(), **ENDLESS) as one,
        Followed(server, prompt=fresh(), **ENDLESS) as two,
    ):
        one.until_tokens()
        two.until_tokens()
        os.kill(min(before), signal.SIGKILL)
        killed_at = time.monotonic()
        cut, other = the_cut_one((one, two))
        assert cut.times[-1] - killed_at < CUT_S
        assert cut.lines[-1]["error"]["code"] == "worker_died"
        check_that_nobody_else_noticed(other)
        until_replaced(server, before)
    server.wait_for_log("was ended by SIGKILL")


def test_fault_01_kill_9_ends_plain_text_without_its_closing_chunk(server: RunningServer) -> None:
    before = pids(server)
    with server.stream(prompt="x", **ENDLESS) as response:
        lines = response.iter_lines()
        next(lines)
        server.kill_workers()
        killed_at = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            for _ in lines:
                pass
        assert time.monotonic() - killed_at < CUT_S
    until_replaced(server, before, dead=2)
    assert text_of(server.post(prompt="served again", num_predict=99).text) == "served again"


@pytest.mark.usefixtures("both_cores")
def test_fault_02_a_request_in_its_prompt_gets_a_503_and_one_that_waits_another_worker(
    tmp_path: Path,
) -> None:
    options = echo_options(tmp_path, slots=1)
    flags = ("--engine", "echo", "-m", str(options), "--workers", "2", "--num-threads", "2")
    with RunningServer(*flags) as server:
        server.until(lambda state: state["workers"] == 2)
        with ExitStack() as stack:
            prompts = ["a[[prefill sleep 3]]", "b[[prefill sleep 3]]"]
            begun = [stack.enter_context(Followed(server, prompt=p)) for p in prompts]
            server.until(lambda state: state["active"] == 2)
            waiting = stack.enter_context(Followed(server, prompt="waited", num_predict=6))
            server.until(lambda state: state["waiting"] == 1)
            os.kill(min(pids(server)), signal.SIGKILL)
            for stream in (*begun, waiting):
                stream.until_over()
        died, lived = sorted(begun, key=lambda stream: -stream.status)
        assert died.status == 503
        assert died.lines[-1]["error"]["code"] == "worker_died"
        assert int(died.headers["retry-after"]) >= 1
        assert lived.status == 200
        assert (waiting.status, waiting.text) == (200, "waited")


def test_fault_03_a_segmentation_fault_cuts_the_streams_of_one_worker(
    server: RunningServer,
) -> None:
    assert directive_cuts_only_its_own(server, "segfault", "was ended by SIGSEGV") < CUT_S


def test_fault_04_an_abort_cuts_the_streams_of_one_worker(server: RunningServer) -> None:
    assert directive_cuts_only_its_own(server, "abort", "was ended by SIGABRT") < CUT_S


BIG = {"prompt": "x" * 900_000, "num_predict": 1, "n_batch": 4096}
"""A request that takes some 10 MB: the prompt, its tokens, and more."""
LITTLE = 4 * 2**20
"""Bytes that are not enough for it."""


def test_fault_05_a_limit_of_address_space_costs_one_worker_and_the_log_says_memory(
    server: RunningServer,
) -> None:
    before = pids(server)
    with Followed(server, prompt=fresh(), **ENDLESS) as neighbour:
        neighbour.until_tokens()
        for worker in server.workers():
            limit = worker.memory_info().vms + LITTLE
            worker.rlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        answer = server.post(**BIG)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "worker_died"
        server.wait_for_log(r"worker \d is out of memory")
        server.wait_for_log(r"worker \d exited with status 1")
        check_that_nobody_else_noticed(neighbour)
        until_replaced(server, before)
    for worker in server.workers():
        worker.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert server.post(**BIG).status_code == 200


@cgroups.needed
def test_fault_05_the_kernels_out_of_memory_killer_costs_one_worker_and_the_log_says_memory(
    server: RunningServer,
) -> None:
    before = pids(server)
    with cgroups.limited_memory(LITTLE) as group:
        for pid in before:
            group.add(pid)
        answer = server.post(**BIG)
        assert answer.status_code == 503
        server.wait_for_log("was ended by SIGKILL, as by the kernel's out-of-memory killer")
        until_replaced(server, before)
        assert group.kills() == 1
    until_replaced(server, before, dead=2)
    assert server.client.get("/health").status_code == 200


# ---------------------------------------------------------------- no progress


def check_that_the_deadline_passed(silence_s: float) -> None:
    """A heartbeat every half second lets the deadline begin a little before the fault."""
    assert PROGRESS_S - 0.6 < silence_s < PROGRESS_S + CUT_S


def test_fault_06_a_stopped_worker_is_ended_at_its_deadline(server: RunningServer) -> None:
    before = pids(server)
    with (
        Followed(server, prompt=fresh(), **ENDLESS) as one,
        Followed(server, prompt=fresh(), **ENDLESS) as two,
    ):
        one.until_tokens()
        two.until_tokens()
        os.kill(min(before), signal.SIGSTOP)
        cut, other = the_cut_one((one, two))
        check_that_the_deadline_passed(cut.times[-1] - cut.times[-2])
        check_that_nobody_else_noticed(other)
        server.wait_for_log("made no progress for 2 s, and was killed")
        until_replaced(server, before)


def test_fault_07_a_hang_that_holds_the_gil_is_ended_at_its_deadline(
    server: RunningServer,
) -> None:
    silence_s = directive_cuts_only_its_own(server, "hang-gil", "made no progress for 2 s")
    check_that_the_deadline_passed(silence_s)


def test_fault_08_a_hang_without_the_gil_is_ended_at_its_deadline(server: RunningServer) -> None:
    silence_s = directive_cuts_only_its_own(server, "hang", "made no progress for 2 s")
    check_that_the_deadline_passed(silence_s)


# ---------------------------------------------------------------- again and again


def test_fault_09_a_crash_loop_backs_off_and_ends_with_the_place_given_up(tmp_path: Path) -> None:
    """By default: at once, then after 0.5, 1 and 2 s; after the fifth death it is given up."""
    options = echo_options(tmp_path, dies_after_s=0.05)
    flags = ("--engine", "echo", "-m", str(options), "--workers", "1")
    with RunningServer(*flags, wait_ready=False) as server:
        deaths = []
        for _ in range(5):
            server.wait_for_log("worker 0 exited with status 1")
            deaths.append(time.monotonic())
        gaps = [after - before for before, after in itertools.pairwise(deaths)]
        for gap, least in zip(gaps, (0, 0.5, 1, 2), strict=True):
            assert gap > least - 0.05
        server.wait_for_log(
            "worker 0 is given up: 5 processes died in a row without completing a request"
        )
        ready = server.client.get("/ready")
        assert ready.status_code == 503
        assert "no worker is left; the server's log says why" in ready.json()["error"]["message"]
        refused = server.post(prompt="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        assert server.client.get("/health").status_code == 200
        assert server.workers() == []


def test_fault_12_a_poison_prompt_kills_one_worker_only(server: RunningServer) -> None:
    before = pids(server)
    answer = server.post(prompt="x[[prefill abort]]")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_died")
    server.wait_for_log("was ended by SIGABRT")
    until_replaced(server, before)
    # One answer more, so that a second death would be in the log by now.
    assert text_of(server.post(prompt="fine", num_predict=9).text) == "fine"
    until_replaced(server, before)


@pytest.mark.usefixtures("both_cores")
def test_fault_13_when_all_workers_die_requests_get_503s_until_there_are_new_ones(
    tmp_path: Path,
) -> None:
    options = echo_options(tmp_path, load_s=1.0)
    flags = ("--engine", "echo", "-m", str(options), "--workers", "2", "--num-threads", "2")
    with RunningServer(*flags) as server:
        server.until(lambda state: state["workers"] == 2)
        before = pids(server)
        server.kill_workers()
        refused = server.post(prompt="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        assert server.client.get("/ready").status_code == 503
        assert server.client.get("/health").json() == {"status": "ok"}
        server.until_ready()
        assert text_of(server.post(prompt="back").text) == "back"
        until_replaced(server, before, dead=2)


# ---------------------------------------------------------------- models that cannot be had


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "cannot be read: no such file or directory"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("no model\n" * 50), "is neither a GGUF nor a GGML file"),
    ],
    ids=["missing", "directory", "empty", "text"],
)
def test_fault_10_a_model_path_that_cannot_work_is_exit_status_3_and_a_sentence(
    make: object, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    make(path)  # type: ignore[operator]
    ended = run_to_its_end("-m", str(path))
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tokenflume: ")
    assert str(path) in line
    assert sentence in line

"""The server's background tasks, in real servers whose code is made to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.notify_socket import notify_socket
from tests.helpers.paths import ROOT
from tests.helpers.running import RunningServer
from tests.helpers.support import echo_options

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from server.cli import run
from server.generation.models import Models
from server.service.announce import Announcer

async def fail_when_a_request_runs(announcer, *_):
    while not any(pool.status().active for _, pool in announcer._catalog.loaded()):
        await announcer._catalog.until_change()
    raise RuntimeError("a defect")

async def fail(*_):
    raise RuntimeError("a defect")

if __name__ == "__main__":
    {sabotage}
    sys.exit(run(sys.argv[1:]))
"""


def sabotaged(folder: Path, sabotage: str) -> tuple[str]:
    path = folder / "program.py"
    path.write_text(PROGRAM.format(root=str(ROOT), sabotage=sabotage))
    return (str(path),)


@pytest.mark.parametrize(("method", "name"), [("feed", "watchdog feed"), ("watch", "announcer")])
def test_an_announcer_that_fails_ends_the_server_after_its_streams_and_with_status_1(
    method: str, name: str, tmp_path: Path
) -> None:
    """It died unseen: the server went on until the manager's watchdog killed it, and cut all."""
    program = sabotaged(tmp_path, f"Announcer.{method} = fail_when_a_request_runs")
    flags = ("--engine", "echo", "-m", str(echo_options(tmp_path, step_s=0.03)))
    with notify_socket(f"{tmp_path}/notify") as manager:
        watched = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000"}
        with RunningServer(*flags, program=program, **watched) as running:
            with running.stream(prompt="x" * 60, num_predict=99) as response:
                lines = list(response.iter_lines())
            assert len(lines) == 60
            assert running.process.wait(timeout=20) == 1
            log = "\n".join(running.log)
            assert f"the {name} failed\nTraceback" in log
            assert f"tokenflume: the {name} failed: RuntimeError('a defect')" in log
        stopping = manager.until(lambda message: "STOPPING" in message)
        assert stopping["STATUS"].startswith(f"the {name} failed")


def test_start_messages_that_fail_are_in_the_log_and_the_server_goes_on(tmp_path: Path) -> None:
    """Their task died unseen."""
    program = sabotaged(tmp_path, "Models.introduce = fail")
    with RunningServer("--engine", "echo", program=program) as running:
        running.wait_for_log("the start messages failed")
        running.wait_for_log("RuntimeError: a defect")
        assert running.post(prompt="still here").status_code == 200

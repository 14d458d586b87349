"""Standard input, output and error that are closed, full, or read by nobody."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.reader import free_port

SERVE = f"{sys.executable} -m server --engine echo --workers 1 -P 0"
PRINTING = ("--print-config", "--help", "--version", "--plan")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_fault_47_a_server_with_closed_descriptors_serves_and_ends_with_0(
    closed: str,
) -> None:
    """It ended with status 1 at start, or by SIGABRT at SIGTERM: a socket had the number of a
    standard descriptor."""
    port = free_port()
    command = SERVE.replace("-P 0", f"-P {port}")
    server = subprocess.Popen(["bash", "-c", f"exec {command} {closed}"], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        asked = shell(
            f"curl -s --retry 60 --retry-all-errors --retry-delay 1 -f {url}/ready >/dev/null"
            f' && curl -s {url}/stream -d \'{{"prompt": "abc"}}\''
        )
        assert "".join(asked.stdout.split("\n")) == "abc", asked
        links = [str(Path(f"/proc/{server.pid}/fd/{number}").readlink()) for number in range(3)]
        assert not any(link.startswith("socket") for link in links)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("flag", ["--print-config", "--version", "--plan"])
def test_fault_47_output_that_cannot_be_written_is_a_sentence(flag: str) -> None:
    ended = shell(f"{SERVE} {flag} >/dev/full")
    lines = [line for line in ended.stderr.splitlines() if not re.match(r"\d{4}-", line)]
    assert lines == ["tokenflume: standard output cannot be written: No space left on device"], (
        ended.stderr
    )
    assert ended.returncode == 1


@pytest.mark.parametrize("flag", PRINTING)
def test_fault_47_a_reader_that_leaves_is_no_traceback(flag: str) -> None:
    """`tokenflume --print-config | head -1` ended with a traceback."""
    ended = shell(f"{SERVE} {flag} | true; exit ${{PIPESTATUS[0]}}")
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize("flag", PRINTING)
def test_fault_47_commands_end_with_closed_descriptors(flag: str) -> None:
    assert shell(f"{SERVE} {flag} <&- >&- 2>&-").returncode == 0

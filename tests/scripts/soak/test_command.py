"""Soaks as they are run, of servers that are good and bad."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.soak.monitor import QUANTITIES
from tests.helpers.paths import ROOT


def soaked(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.soak", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_server_whose_workers_die_every_two_seconds_loses_nothing(tmp_path: Path) -> None:
    page = tmp_path / "soak.html"
    found = soaked("--minutes", "0.2", "--kill-every", "2", "--hang-up-every", "4",
                   "--report", str(page))  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert "CLEAN: every request got an answer or a clear error" in found.stdout
    assert re.search(r"\d workers ended by: \d × SIG", found.stdout)
    assert "front, RSS, MiB" in found.stdout
    assert page.read_text().count("<svg") == len(QUANTITIES)
    assert "http" not in page.read_text().replace("http.", "")


STAND_IN = """
import itertools
import os
import sys
sys.path.insert(0, {root!r})
import server.dialects.newline as newline
import server.dialects.base as base
import server.generation.relay as relay
from server.cli import run

def sabotage():
{sabotage}

if __name__ == "__main__":
    sabotage()
    sys.exit(run(sys.argv[1:]))
"""
SABOTAGE = {
    "drops the ends of streams": (
        "    newline.NdjsonRenderer.finished = lambda *_: b''",
        "ended without its last line",
    ),
    "loses the last token of each step, and looks finished": (
        "    take = newline.PlainTextRenderer.tokens\n"
        "    newline.PlainTextRenderer.tokens = lambda self, i, t: take(self, i, t[:-1])",
        "stream-plain: wrong content",
    ),
    "leaks memory": (
        "    held, submitted = [], relay.submitted\n"
        "    relay.submitted = lambda *a: held.append(b'x' * 2**20) or submitted(*a)",
        "grows: front, RSS",
    ),
    "leaves files open": (
        "    submitted = relay.submitted\n"
        "    relay.submitted = lambda *a: os.dup(0) and submitted(*a)",
        "front, open files",
    ),
    "says no Retry-After": (
        "    from shared.errors import QueueFull\n"
        "    plain = base.error_response\n"
        "    def response(error, body):\n"
        "        error.retry_after_s = None\n"
        "        return plain(error, body)\n"
        "    base.error_response = response",
        "without Retry-After",
    ),
    "dies": (
        "    submitted, numbers = relay.submitted, itertools.count()\n"
        "    relay.submitted = lambda *a: submitted(*a) if next(numbers) < 15 else os._exit(7)",
        "the front ended with status 7",
    ),
}


GROWING = ("leaks memory", "leaves files open")
"""It takes some samples to see these."""
REFUSING = "says no Retry-After"
"""Only a server with more clients than slots and queue refuses."""


def soaked_with(name: str, program: Path) -> subprocess.CompletedProcess[str]:
    program.write_text(STAND_IN.format(root=str(ROOT), sabotage=SABOTAGE[name][0]))
    minutes = "0.12" if name in GROWING else "0.05"
    clients = "40" if name == REFUSING else "12"
    return soaked("--minutes", minutes, "--kill-every", "0", "--clients", clients,
                  "--command", f"{sys.executable} {program}")  # fmt: skip


def test_servers_that_misbehave_are_found_out(tmp_path: Path) -> None:
    """One test, since the soaks mostly wait: so they run side by side."""
    with ThreadPoolExecutor(max_workers=3) as pool:
        misbehaving = {
            name: pool.submit(soaked_with, name, tmp_path / f"{number}.py")
            for number, name in enumerate(SABOTAGE)
        }
    for name, running in misbehaving.items():
        found = running.result()
        assert found.returncode == 1, f"{name}: {found.stdout}{found.stderr}"
        assert "NOT CLEAN" in found.stdout, name
        assert SABOTAGE[name][1] in found.stdout, name


@pytest.mark.usefixtures("both_cores")
def test_several_models_are_asked() -> None:
    """Each needs a core of its own."""
    found = soaked("--minutes", "0.08", "--kill-every", "0", "--models", "2", "--clients", "12")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "no worker was ended" in found.stdout


def test_ctrl_c_prints_the_results_until_then() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.soak", "--minutes", "5"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stderr is not None
        assert "requests" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "(interrupted: these are the results until then)" in output
    assert "front, RSS, MiB" in output


def test_a_server_that_does_not_start_is_reported() -> None:
    found = soaked("--minutes", "0.1", "--", "--slots", "0")
    assert found.returncode == 3
    assert "--slots" in found.stderr

"""Starting the server in a terminal: what it shows, the line to copy, failures in a sentence."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.running import START_S
from tests.helpers.support import echo_options

ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
END = "Ctrl-C stops the server"


class Terminal:
    """A server whose standard error is a terminal of 80 columns."""

    def __init__(self, *flags: str, columns: int = 80, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        variables = {"TERM": "xterm", "COLUMNS": str(columns), **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", "-P", "0", *flags],
            cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **variables},
        )  # fmt: skip
        os.close(theirs)
        self.raw = ""

    def read_until(self, text: str) -> str:
        """All that was shown until now, without escapes. Fails when `text` does not come."""
        deadline = time.monotonic() + START_S
        while text not in self.raw:
            readable, _, _ = select.select([self._ours], [], [], deadline - time.monotonic())
            assert readable, self.raw
            if not self._read():
                break
        assert text in self.raw, self.raw
        return self.shown

    def read_to_its_end(self) -> str:
        while self._read():
            pass
        return self.shown

    @property
    def shown(self) -> str:
        return ESCAPE.sub("", self.raw).replace("\r\n", "\n")

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 4096)
        except OSError:  # what Linux says when nobody has the other end any more
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(*flags: str, columns: int = 80, **environment: str) -> Iterator[Terminal]:
    made = Terminal(*flags, columns=columns, **environment)
    try:
        yield made
    finally:
        made.close()


def copied(shown: str) -> list[str]:
    """The words of the line to copy."""
    (line,) = re.findall(r"^  (curl .+)$", shown, re.MULTILINE)
    return shlex.split(line)


def answer_of(words: list[str]) -> httpx.Response:
    """What the line gets, also where there is no curl."""
    assert words[:2] == ["curl", "-N"]
    headers = {}
    if "-H" in words:
        name, _, value = words[words.index("-H") + 1].partition(": ")
        headers[name] = value
    body = words[words.index("-d") + 1]
    return httpx.post(words[2], content=body, headers=headers, timeout=START_S, trust_env=False)


def test_a_terminal_shows_the_model_the_cores_the_address_and_a_line_that_works() -> None:
    with terminal() as started:
        shown = started.read_until(END)
        assert "model     fairy-tales, 7.5 MB" in shown
        assert re.search(r"cores     \d+ workers? of \d+ threads?, on CPUs? ", shown)
        assert re.search(r"loaded    llama, \S+ parameters, Q8_0, on llama_cpp", shown)
        assert "2,048 tokens" in shown
        assert "trained on at most 512" in shown
        assert "chats     " in shown
        assert "loading   " in shown
        assert " INFO " not in shown
        assert " WARNING " not in shown
        words = copied(shown)
        assert 0 < answer_of(words).text.count("\n") <= 32
        if shutil.which("curl"):
            ended = subprocess.run(words, capture_output=True, text=True, timeout=START_S)
            assert 0 < ended.stdout.count("\n") <= 32
        started.process.send_signal(signal.SIGINT)
        assert started.process.wait(timeout=20) == 0
        assert "SIGINT: no new requests" in started.read_to_its_end()


def test_no_line_is_wider_than_the_terminal_but_the_one_to_copy() -> None:
    with terminal("--engine", "echo", columns=60) as started:
        shown = started.read_until(END)
    last = [line.rpartition("\r")[2] for line in shown.splitlines()]
    assert [line for line in last if len(line) > 60 and "curl" not in line] == []


@pytest.mark.parametrize(
    ("environment", "has_colours"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_are_left_out_where_nobody_wants_them(
    environment: dict[str, str], has_colours: bool
) -> None:
    with terminal("--engine", "echo", **environment) as started:
        started.read_until(END)
        assert ("\x1b[1m" in started.raw) is has_colours


def test_the_line_names_a_model_of_a_folder_and_asks_for_a_key(
    llama_gguf: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "it's.gguf").symlink_to(llama_gguf)
    keys = tmp_path / "keys"
    keys.write_text("me " + "k" * 40)
    keys.chmod(0o600)
    flags = ("--models-dir", str(models), "--api-key-file", str(keys), "-n", "128")
    with terminal(*flags) as started:
        words = copied(started.read_until(END))
        assert json.loads(words[-1])["model"] == "it's"
        assert answer_of(words).status_code == 401
        own = [word.replace("YOUR-KEY", "k" * 40) for word in words]
        assert answer_of(own).status_code == 200


@pytest.mark.usefixtures("both_cores")
def test_several_models_are_named(llama_gguf: Path) -> None:
    with terminal("-m", f"one={llama_gguf}", "-m", f"two={llama_gguf}", "-n", "64") as started:
        shown = started.read_until(END)
    assert "loaded    one: llama" in shown
    assert "loaded    two: llama" in shown
    assert ", for two" in shown


@pytest.mark.parametrize("flags", [("--log-level", "debug"), ("--log-format", "json")])
def test_who_asks_for_the_log_gets_it_in_a_terminal_too(flags: tuple[str, ...]) -> None:
    with terminal("--engine", "echo", *flags) as started:
        assert "curl" not in started.read_until("loaded echo")


def test_an_echo_of_options_is_shown_too(tmp_path: Path) -> None:
    with terminal("--engine", "echo", "-m", str(echo_options(tmp_path, load_s=0.5))) as started:
        assert "model     echo" in started.read_until(END)


def test_a_model_that_does_not_load_is_one_sentence_and_status_3(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(200))
    with terminal("-m", str(path)) as started:
        shown = started.read_to_its_end()
        assert started.process.wait(timeout=20) == 3
    *_, last = [line.rpartition("\r")[2] for line in shown.splitlines()]
    assert last.startswith("tokenflume: llama.cpp cannot load")
    for word in ("Traceback", "WARNING", "ERROR", "curl"):
        assert word not in shown

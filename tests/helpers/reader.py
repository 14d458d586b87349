"""Somebody who reads a page of the documentation and does all that it says.

Commands are run by a shell as they stand there, but for the port, since this machine may have
another server, and for what is in ADAPTED: what would take too long, or the network.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import httpx

from server.config.options import BUNDLED_MODEL
from tests.helpers.documentation import Block
from tests.helpers.models import build_gpt2_ggml
from tests.helpers.paths import ROOT

WITHIN_S = 90.0
"""For a command to end, and for a server to be ready."""
END_S = 20.0
"""For a command that is told to end."""
MODELS = ("model.gguf", "mistral.gguf", "qwen.gguf", "models/tales.gguf")
"""Files that the pages speak of as the reader's own."""
TALE = "Once upon a time there was a fox who lived at the edge of a wood.\n"
OPEN_PAGE = f"""#!{sys.executable}
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.helpers.browser import chromium, opened
with chromium() as browser, opened(browser, "") as page:
    page.goto(Path(sys.argv[1]).absolute().as_uri())
    assert page.locator("svg").count() > 3, page.content()
    print(page.title())
"""

ADAPTED = {
    r"--host 0\.0\.0\.0": "--host 127.0.0.1",  # tests are not for other machines to see
    r"(scripts/serve tune .*)": r"\1 --seconds 4",
    r"(scripts\.loadtest .*)": r"\1 --duration 0.3 --warm-up 0 --rounds 1 --tokens 8",
    r"--minutes (10|60)\b": "--minutes 0.05 --clients 8",
    r"(scripts\.bench .*)": r"\1 --quick",
    # Building llama-server takes 20 minutes; tests/scripts/bench/test_comparison.py has a stand-in.
    r'--llama-server "\$\(.*\)"': "",
    r"127\.0\.0\.1:8081": "127.0.0.1:8080",
    # The largest takes gigabytes.
    r"--shape tinyllama-1\.1b": "--shape small-24m",
    # Tests do without the network. That there is such an extra can be seen.
    r"\.venv/bin/pip install -e '\.\[(\w+)\]'": (
        "python -c 'from importlib.metadata import metadata;"
        r""" assert "\1" in metadata("tokenflume").get_all("Provides-Extra")'"""
    ),
}
NOT_RUN = {
    r"^\$\(.*build_llama_server": "see above",
    r"scripts/test": "it runs this",
    r"scripts/check": "the next step of .ci/run",
    r"\.ci/run": "it runs this",
    r"train_demo_model": "PyTorch takes gigabytes, which no other test needs",
}


def adapted(text: str) -> str:
    for pattern, replacement in ADAPTED.items():
        text = re.sub(pattern, replacement, text)
    return text


def is_run(command: str) -> bool:
    return not any(re.search(pattern, command) for pattern in NOT_RUN)


class Reader:
    """A context, in a folder of its own; a server that was started ends with it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._port = free_port()
        self._server: Server | None = None
        self._printed = ""
        lay_out(folder)
        programs = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TOKENFLUME_")},
            "PATH": os.pathsep.join(programs),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "HOME": str(folder),  # with a .curlrc, in which an HTTP error is one
            "LLM_USER_PATH": str(folder),
            "TOKENFLUME_PORT": str(self._port),
            "TOKENFLUME_NUM_CTX_TOKENS": "512",  # chats go on until that is full
            "TOKENFLUME_TEMP": "0",  # or the model may end its answer at once, now and then
            **environment,
        }

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._end_server()

    def read(self, block: Block) -> None:
        """Do what it says. AssertionError: that does not do what it says."""
        text = self._at_port(block.text)
        match block.language:
            case "sh":
                self._printed = "\n".join(
                    self._run(self._at_port(adapted(command)))
                    for command in filter(is_run, block.commands)
                )
            case "python":
                self._ensure_server()
                program = self._folder / "program.py"
                program.write_text(text)
                assert self._run_to_its_end(f"python {program}").strip()
            case "toml" | "yaml":
                name = text.splitlines()[0].removeprefix("# ")
                (self._folder / name).write_text(text)
            case "json":
                assert masked(self._printed) == masked(text)

    def _at_port(self, text: str) -> str:
        return text.replace("127.0.0.1:8080", f"127.0.0.1:{self._port}")

    def _run(self, command: str) -> str:
        if command.startswith("scripts/serve"):
            self._end_server()
            server = Server(command, self._folder, self._environment, self._port)
            self._server = server if server.is_serving else None
            return server.output
        if "127.0.0.1" in command or command.startswith("llm"):
            self._ensure_server()
        return self._run_to_its_end(command)

    def _run_to_its_end(self, command: str) -> str:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate("y\n", WITHIN_S)  # to whatever it asks
        except subprocess.TimeoutExpired:
            end_group(process)
            raise
        assert process.returncode == 0, f"{command}: {process.returncode}\n{stdout}{stderr}"
        return stdout

    def _ensure_server(self) -> None:
        if self._server is None:
            self._run("scripts/serve")

    def _end_server(self) -> None:
        if self._server is not None:
            self._server.end()
            self._server = None


class Server:
    """`scripts/serve …`, until it is ready or has ended by itself, which must be well.

    `is_serving`: it is ready. `output`: what it wrote to standard output until then.
    """

    def __init__(self, command: str, folder: Path, environment: dict[str, str], port: int) -> None:
        self._command = command
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self.is_serving = self._until_ready(f"http://127.0.0.1:{port}/ready")
        except BaseException:
            self._process.kill()
            self._close()
            raise
        if not self.is_serving:
            self._close()
            assert self._process.returncode == 0, f"{command}: {self.output}"

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(WITHIN_S)
        finally:
            self._process.kill()
            self._close()
        assert self._process.returncode == 0, f"{self._command}: {self.output}"

    def _until_ready(self, url: str) -> bool:
        """False: it has ended."""
        deadline = time.monotonic() + WITHIN_S
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"{self._command}: {self.output}"
            try:
                answer = httpx.get(url, trust_env=False)
            except httpx.TransportError:
                time.sleep(0.02)
                continue
            # 401: it wants a key, which it read before.
            if answer.status_code in (200, 401):
                return True
        return False

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line

    def _close(self) -> None:
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def end_group(process: subprocess.Popen[str]) -> None:
    """End a command that takes too long, and what it has started."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def lay_out(folder: Path) -> None:
    """This project's files, as links, and the reader's own."""
    for path in ROOT.iterdir():
        if path.name != ".venv":
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\nmax-time = 60\n")
    (folder / "models").mkdir()
    for name in MODELS:
        (folder / name).symlink_to(BUNDLED_MODEL)
    build_gpt2_ggml(folder / "ggml-model.bin")
    (folder / "tale.txt").write_text(TALE)
    (folder / "bin").mkdir()
    opener = folder / "bin" / "xdg-open"
    opener.write_text(OPEN_PAGE)
    opener.chmod(0o755)


def masked(lines: str) -> list[str]:
    """Without the times, which are other ones each time."""
    times = r'("(?:\w+_ms|\w+_duration|created_at)":)("[^"]*"|[\d.]+)'
    return [re.sub(times, r"\1…", line) for line in lines.splitlines() if line]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port

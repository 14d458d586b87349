"""A stand-in for llama-server, with its completions. It imports little, to start fast.

python -m tests.helpers.llama_stand_in ANY OPTIONS
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PACE_S = 0.005
"""Time between two tokens."""
PROMPT_S = 0.04
"""Time for a prompt of more than a few words."""


def event(text: str, tokens: int | None = None) -> bytes:
    """An event of llama-server. The last one has counts instead of a text."""
    value: dict[str, Any] = {"choices": [{"text": text, "finish_reason": tokens and "length"}]}
    if tokens is not None:
        value["usage"] = {"prompt_tokens": 120, "completion_tokens": tokens}
        value["timings"] = {"cache_n": 20, "prompt_n": 100}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class StandIn(BaseHTTPRequestHandler):
    """Sends each token after some time. Like llama-server, it sends the head at once."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self._answer(asked["max_tokens"], is_long=len(asked["prompt"].split()) > 20)
        self.close_connection = True

    def _answer(self, tokens: int, *, is_long: bool) -> None:
        time.sleep(PROMPT_S * is_long)
        for _ in range(tokens):
            time.sleep(PACE_S)
            self._chunk(event("x"))
        self._chunk(event("", tokens))
        self._chunk(b": a comment\n\ndata: [DONE]\n\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, *_: Any) -> None:
        pass


class StandInServer(ThreadingHTTPServer):
    request_queue_size = 64

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"


@contextlib.contextmanager
def stand_in() -> Iterator[str]:
    """The URL of a stand-in in this process."""
    with StandInServer((HOST, 0), StandIn) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def write_program(path: Path) -> None:
    """Write a stand-in as an executable file, which accepts any options."""
    path.write_text(
        f"#!/bin/sh\nexec env PYTHONPATH='{Path(__file__).parents[2]}'"
        f" '{sys.executable}' -m {__name__}\n"
    )
    path.chmod(0o755)


if __name__ == "__main__":
    with StandInServer((HOST, 0), StandIn) as server:
        sys.stderr.write(f"listening on {server.url}\n")
        server.serve_forever()

"""Answers to a page that are exact to the byte, and to the moment.

A page's requests are led to a small HTTP server, whose next answer is a list of byte strings, each
written as a chunk of its own, and of events that it waits for in between.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 20.0
CUT = object()
"""In an answer: end the connection without its closing chunk."""


@dataclass(frozen=True, slots=True)
class Request:
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Script:
    """What is to be answered, and what was asked."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._answers: queue.Queue[tuple[int, dict[str, str], Sequence[Any]]] = queue.Queue()
        self.requests: queue.Queue[Request] = queue.Queue()
        self.left = threading.Event()
        """A client left in the middle of an answer."""

    def answer(self, *chunks: Any, status: int = 200, **headers: str) -> None:
        """The next answer."""
        self._answers.put((status, {k.replace("_", "-"): v for k, v in headers.items()}, chunks))

    def refuse(self, status: int, message: str, param: str | None = None, **headers: str) -> None:
        """The next answer is an error in the shape of OpenAI's."""
        error = {"message": message, "type": "x", "param": param, "code": None}
        self.answer(json.dumps({"error": error}).encode(), status=status, **headers)

    def next_answer(self) -> tuple[int, dict[str, str], Sequence[Any]]:
        return self._answers.get(timeout=WAIT_S)

    def request(self) -> Request:
        """The next request that arrived."""
        return self.requests.get(timeout=WAIT_S)

    def take(self, page: Any, path: str) -> None:
        """Lead the page's requests for this path here."""
        url = f"http://127.0.0.1:{self._port}{path}"
        page.route(f"**{path}", lambda route: route.continue_(url=url))


@contextmanager
def scripted() -> Iterator[Script]:
    """A server that answers as its script says."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.requests.put(Request(headers, self.rfile.read(length).decode()))
            self.close_connection = True
            with suppress(BrokenPipeError, ConnectionResetError):
                self._answer(*script.next_answer())
                return
            script.left.set()

        def _answer(self, status: int, headers: dict[str, str], chunks: Sequence[Any]) -> None:
            self.send_response(status)
            for name, value in {"transfer-encoding": "chunked", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for chunk in chunks:
                if chunk is CUT:
                    return
                if isinstance(chunk, threading.Event):
                    self._wait(chunk)
                else:
                    self._write(chunk)
            self._write(b"")

        def _wait(self, event: threading.Event) -> None:
            """Until the event, or until the client has left."""
            self.connection.settimeout(0.02)
            while not event.is_set():
                with suppress(TimeoutError):
                    if not self.connection.recv(1):
                        raise BrokenPipeError
            self.connection.settimeout(WAIT_S)

        def _write(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script = Script(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()


def event(value: Any) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def delta(content: str) -> bytes:
    """A chunk of a chat's answer."""
    return event(_chunk([{"index": 0, "delta": {"content": content}, "finish_reason": None}]))


def ending(reason: str = "stop", prompt_tokens: int = 7, tokens: int = 3) -> bytes:
    """The last chunks of a chat's answer."""
    last = _chunk([{"index": 0, "delta": {}, "finish_reason": reason}])
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
    usage["total_tokens"] = prompt_tokens + tokens
    return event(last) + event({**_chunk([]), "usage": usage}) + b"data: [DONE]\n\n"


def chat(*pieces: str, **end: Any) -> list[bytes]:
    """A whole answer, an event a chunk."""
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    return [event(_chunk([role])), *map(delta, pieces), ending(**end)]


def _chunk(choices: list[Any]) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": choices, "usage": None}

"""Clients whose line iterators split at more than \\n read whole streams."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import ollama
import pytest
import requests

from shared.json_text import LINE_ENDS
from tests.helpers.running import RunningServer, unescape

PROMPT = "one" + "x".join(LINE_ENDS) + "end\r\nlast"
CHAT = [{"role": "user", "content": PROMPT}]
STREAMS = [
    ("/stream", {"prompt": PROMPT}),
    ("/v1/completions", {"prompt": PROMPT, "stream": True, "max_tokens": 200}),
    ("/v1/chat/completions", {"messages": CHAT, "stream": True, "max_tokens": 200}),
    ("/api/generate", {"model": "echo", "prompt": PROMPT}),
    ("/api/chat", {"model": "echo", "messages": CHAT}),
]
ACCEPT = {"accept": "application/x-ndjson"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--engine", "echo", "-n", "4096") as running:
        yield running


def text_in(lines: list[str]) -> str:
    """All strings in the JSON of the lines; each line must be an object of its own."""
    texts: list[str] = []
    for line in lines:
        data = line.removeprefix("data: ")
        if data and data != "[DONE]":
            json.loads(data, object_hook=lambda found: texts.extend(strings(found)) or found)
    return "".join(texts)


def strings(found: dict[str, object]) -> list[str]:
    names = ("token", "text", "content", "response")
    return [text for name in names if isinstance(text := found.get(name), str)]


@pytest.mark.parametrize(("path", "body"), STREAMS, ids=[path for path, _ in STREAMS])
def test_httpx_and_requests_read_each_line_whole(
    server: RunningServer, path: str, body: dict[str, object]
) -> None:
    """Reported: httpx's `iter_lines`, which the ollama client uses, and that of requests with
    `decode_unicode` split lines at U+0085, U+2028 and U+2029, and JSON broke there."""
    with server.client.stream("POST", path, json=body, headers=ACCEPT) as answer:
        assert answer.status_code == 200
        by_httpx = list(answer.iter_lines())
    assert PROMPT in text_in(by_httpx)

    with requests.post(
        server.url + path, json=body, headers=ACCEPT, stream=True, timeout=40
    ) as streamed:
        streamed.encoding = "utf-8"
        by_requests = list(streamed.iter_lines(decode_unicode=True))
    assert PROMPT in text_in(by_requests)


def test_the_ollama_client_reads_each_line_whole(server: RunningServer) -> None:
    """Reported: `json.decoder.JSONDecodeError` in the ollama client when a model writes U+2028."""
    with ollama.Client(host=server.url, timeout=40, trust_env=False) as client:
        parts = client.generate("echo", PROMPT, stream=True)
        assert PROMPT in "".join(part.response for part in parts)
        replies = client.chat("echo", CHAT, stream=True)
        assert PROMPT in "".join(reply.message.content or "" for reply in replies)


def test_a_line_of_plain_text_is_a_token_for_every_reader(server: RunningServer) -> None:
    """Reported: U+2028 in a token made two lines of one for httpx and requests."""
    with server.stream(prompt=PROMPT) as answer:
        lines = list(answer.iter_lines())
    assert len(lines) == len(PROMPT.encode())  # a token of echo is a byte
    assert "".join(map(unescape, lines)) == PROMPT


def test_an_error_that_quotes_the_request_is_one_line(server: RunningServer) -> None:
    """Siblings of the report: errors and lists quote what clients sent."""
    for path in ("/stream", "/v1/completions", "/api/generate"):
        answer = httpx.post(
            server.url + path, json={"model": f"a{LINE_ENDS}b", "prompt": "x"}, trust_env=False
        )
        assert answer.status_code == 404
        assert len(answer.text.splitlines()) == 1
    tokens = server.client.post("/tokenize", json={"content": LINE_ENDS, "with_pieces": True})
    assert len(tokens.text.splitlines()) == 1

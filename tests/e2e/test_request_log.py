"""The real server's log: a line a request, as text and as JSON, and no word of what was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.running import RunningServer

SECRET = "xyzzy-plugh"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Its log is JSON, and Alice has a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("alice 0123456789abcdef\n")
    flags = ("--log-format", "json", "--api-key-file", str(keys), "-n", "300000")
    with RunningServer("--engine", "echo", *flags, wait_ready=False) as running:
        running.client.headers["authorization"] = "Bearer 0123456789abcdef"
        running.until_ready()
        yield running


def line_of(server: RunningServer, request_id: str) -> dict[str, Any]:
    """The only line of the log that has the request's id."""
    line = json.loads(server.wait_for_log(f'"{request_id}"'))
    assert sum(request_id in other for other in server.log) == 1
    assert isinstance(line, dict)
    return line


def ask(server: RunningServer, request_id: str, **body: Any) -> int:
    headers = {"x-request-id": request_id}
    return server.client.post("/stream", json=body, headers=headers).status_code


def test_a_request_has_one_line_with_all_of_its_figures(server: RunningServer) -> None:
    ask(server, "all-figures", prompt=SECRET, num_predict=6, ignore_eos=True)
    line = line_of(server, "all-figures")
    wanted = {
        "request_id": "all-figures",
        "level": "info",
        "logger": "tokenflume.request",
        "client": "127.0.0.1",
        "key_owner": "alice",
        "path": "/stream",
        "model": "echo",
        "workers": [0],
        "outcome": "finished",
        "reason": "length",
        "prompt_tokens": len(SECRET),
        "completion_tokens": 6,
    }
    assert {name: line[name] for name in wanted} == wanted
    assert 0 <= line["cached_tokens"] < len(SECRET)
    assert 0 <= line["queued_s"] <= line["first_token_s"] <= line["total_s"]
    assert line["tokens_per_s"] > 0
    assert (
        "all-figures of alice at 127.0.0.1: /stream on echo, worker 0: finished (length)"
        in (line["message"])
    )


def test_a_request_without_an_id_has_the_one_that_its_answer_says(server: RunningServer) -> None:
    response = server.post(prompt="x")
    assert line_of(server, response.headers["x-request-id"])["outcome"] == "finished"


def test_refused_and_failed_requests_have_a_line_too(server: RunningServer) -> None:
    assert ask(server, "bad-1", prompt="") == 400
    line = line_of(server, "bad-1")
    assert (line["outcome"], line["reason"]) == ("refused", "invalid_request")
    assert (line["model"], line["workers"], line["prompt_tokens"]) == (None, [], None)

    assert ask(server, "bad-2", prompt=f"{SECRET}[[prefill fail]]") == 500
    assert line_of(server, "bad-2")["outcome"] == "failed"

    headers = {"x-request-id": "bad-3", "authorization": "Bearer nobody"}
    assert server.client.post("/stream", json={"prompt": "x"}, headers=headers).status_code == 401
    line = line_of(server, "bad-3")
    assert (line["reason"], line["key_owner"]) == ("unauthorized", None)


def test_a_client_that_leaves_has_a_line_with_the_tokens_that_it_got(server: RunningServer) -> None:
    body = {"prompt": "abc", "num_predict": 10**6, "ignore_eos": True}
    with server.client.stream(
        "POST", "/stream", json=body, headers={"x-request-id": "left"}
    ) as response:
        next(response.iter_lines())
    line = line_of(server, "left")
    assert (line["outcome"], line["reason"]) == ("cancelled", "client_left")
    assert line["completion_tokens"] > 0
    assert line["first_token_s"] > 0


def test_every_line_is_a_json_object_the_workers_own_too(llama_gguf: Path) -> None:
    flags = ("--log-format", "json", "--log-level", "debug")
    with RunningServer("-m", str(llama_gguf), *flags) as server:
        server.post(prompt=SECRET, num_predict=3)
        server.wait_for_log("tokenflume.request")
    lines = [json.loads(line) for line in server.log]
    assert "tokenflume.worker" in {line["logger"] for line in lines}
    assert len({line["pid"] for line in lines}) == 2
    assert all(line["message"] and line["time"] and line["level"] for line in lines)
    assert SECRET not in "".join(server.log)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_prompts_are_in_the_log_only_where_that_was_asked_for(log_format: str) -> None:
    with RunningServer("--engine", "echo", "--log-prompts", "--log-format", log_format) as server:
        messages = [{"role": "user", "content": f"{SECRET}\n"}]
        server.client.post("/v1/chat/completions", json={"messages": messages})
        line = server.wait_for_log("/v1/chat/completions")
        assert SECRET in line
        if log_format == "json":
            (prompt,) = json.loads(line)["prompts"]
            assert f"{SECRET}\n" in prompt


def test_as_text_the_log_has_the_same_on_one_line_and_no_prompt() -> None:
    with RunningServer("--engine", "echo", "--log-level", "debug") as server:
        server.post(prompt=SECRET, num_predict=4)
        line = server.wait_for_log("tokenflume.request")
        for words in (
            "of 127.0.0.1: /stream on echo, worker 0: finished (length)",
            f"{len(SECRET)} prompt tokens, 0 cached, 4 tokens, queued 0.0",
            "first token after",
            "tokens/s",
            "s in all",
        ):
            assert words in line
    assert SECRET not in "".join(server.log)

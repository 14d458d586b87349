"""POST /stream on the real server with the echo engine: both bodies, errors, clients that leave."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.running import RunningServer, address_of, text_of
from tests.helpers.support import echo_options

TEXT = "Grüße aus 世界 🙂,\nback\\slash \\n, return\r\nend"


@pytest.fixture(scope="module")
def server(echo_server: RunningServer) -> RunningServer:
    return echo_server


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, 20 ms a step, a queue of one."""
    path = echo_options(tmp_path_factory.mktemp("slow"), slots=1, step_s=0.02)
    with RunningServer("--engine", "echo", "-m", str(path), "--queue", "1") as running:
        yield running


def test_plain_text_has_a_token_a_line_and_gives_back_the_exact_text(server: RunningServer) -> None:
    response = server.post(prompt=TEXT, num_predict=500)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text.count("\n") == len(TEXT.encode())
    assert text_of(response.text) == TEXT


def test_ndjson_has_every_token_and_ends_with_the_counts(server: RunningServer) -> None:
    *tokens, last = server.ndjson(prompt=TEXT, num_predict=500)
    assert "".join(token["token"] for token in tokens) == TEXT
    assert [token["index"] for token in tokens] == list(range(len(TEXT.encode())))
    assert bytes(token["id"] for token in tokens) == TEXT.encode()
    assert last["done"] is True
    assert last["finish_reason"] == "stop"
    size = len(TEXT.encode())
    cached = last["usage"].pop("cached_tokens")
    assert 0 <= cached < size  # of a prompt that began alike
    assert last["usage"] == {"prompt_tokens": size, "completion_tokens": size}
    assert set(last["timings"]) == {"queued_ms", "prefill_ms", "decode_ms"}


def test_num_predict_bounds_the_answer_and_says_so(server: RunningServer) -> None:
    *tokens, last = server.ndjson(prompt="abcdef", num_predict=3)
    assert [token["token"] for token in tokens] == ["a", "b", "c"]
    assert last["finish_reason"] == "length"


def test_a_stop_string_ends_the_answer_before_it(server: RunningServer) -> None:
    *tokens, last = server.ndjson(prompt="one two three", num_predict=99, stop=["two", "three"])
    assert "".join(token["token"] for token in tokens) == "one "
    assert last["finish_reason"] == "stop"


def test_tokens_arrive_while_the_rest_is_still_to_come(slow: RunningServer) -> None:
    """The prompt asks for a pause of a minute after its first half."""
    with slow.stream(prompt="first[[sleep 60]]", num_predict=99) as response:
        lines = response.iter_lines()
        assert [next(lines) for _ in range(5)] == list("first")
    slow.kill_workers()
    slow.until_ready()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b'{"prompt": "x"', "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "object"),
        (b"[" * 100_000, "nested"),
        (b'{"prompt": "x", "num_predict": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"prompt": "x", "temp": NaN}', "NaN"),
        (b'{"prompt": "x", "temp": 1e999}', "temp must be a number ≥ 0"),
        (b'{"prompt": "x", "top_k": true}', "top_k must be an integer"),
        (b'{"prompt": "x", "prompt": "y"}', "twice"),
        (b'{"prompt": ""}', "prompt must be a string that is not empty"),
        (b'{"prompt": "a\\u0000b"}', "U+0000"),
        (b'{"prompt": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": "x", "top_p": 0}', "top_p must be a number > 0 and ≤ 1"),
        (b'{"prompt": "x", "num_predict": 0}', "num_predict must be an integer from 1"),
        (b'{"prompt": "x", "seed": 18446744073709551616}', "seed must be an integer"),
        (b'{"prompt": "x", "temprature": 1}', "unknown field: 'temprature'"),
        (b'{"prompt": "x", "cache": -7}', "cache must be an integer from 0"),
        (b'{"num_predict": 1}', "prompt is missing"),
    ],
)
def test_a_bad_body_is_a_400_with_a_sentence_that_names_the_field(
    server: RunningServer, body: bytes, words: str
) -> None:
    response = server.client.post("/stream", content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "invalid_request"
    assert words in error["message"]


def test_a_prompt_that_does_not_fit_is_a_400_with_both_numbers(slow: RunningServer) -> None:
    response = slow.post(prompt="x" * 5000)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length"
    assert re.search(r"5000 tokens.* 2048", response.json()["error"]["message"])


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_a_mebibyte_is_a_413(server: RunningServer, chunked: bool) -> None:
    body = b'{"prompt": "' + b"x" * 2_000_000 + b'"}'
    content: Any = iter([body[:1_000_000], body[1_000_000:]]) if chunked else body
    response = server.client.post("/stream", content=content)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_unknown_paths_and_methods_are_told_as_json(server: RunningServer) -> None:
    missing = server.client.get("/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = server.client.get("/stream")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_an_engine_that_fails_before_the_first_token_is_a_500(server: RunningServer) -> None:
    response = server.post(prompt="x[[prefill fail]]")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_failed"


def test_a_client_that_says_nothing_more_and_leaves_costs_nothing(server: RunningServer) -> None:
    with socket.create_connection(address_of(server.url)) as half:
        half.sendall(b"POST /stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert text_of(server.post(prompt="fine").text) == "fine"


def test_two_streams_of_one_worker_do_not_mix(server: RunningServer) -> None:
    texts = [f"stream number {n}: " + chr(97 + n) * 500 for n in range(8)]
    with ThreadPoolExecutor(len(texts)) as threads:
        answers = threads.map(lambda text: server.post(prompt=text, num_predict=999), texts)
        assert [text_of(answer.text) for answer in answers] == texts


def test_the_page_is_served_and_may_load_nothing_from_elsewhere(server: RunningServer) -> None:
    page = server.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
        assert path.startswith("/ui/"), path
        assert server.client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/..%2fapp.py"])
def test_the_page_is_no_way_to_other_files(server: RunningServer, path: str) -> None:
    with socket.create_connection(address_of(server.url)) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 404")


def test_the_workers_write_nothing_to_standard_output(tmp_path: Path) -> None:
    path = echo_options(tmp_path)
    with RunningServer("--engine", "echo", "-m", str(path)) as running:
        assert running.post(prompt="x[[print]]", num_predict=99).status_code == 200
        running.wait_for_log("printed by the engine")
    assert running.stdout == b""


# ---------------------------------------------------------------- deadlines


def test_a_request_that_is_not_answered_in_time_is_a_504(slow: RunningServer) -> None:
    answer = slow.post(prompt="x[[prefill sleep 30]]", timeout_s=0.3)
    assert answer.status_code == 504
    assert answer.json()["error"] == {
        "code": "deadline_exceeded",
        "message": "the request was not answered within its timeout_s",
    }
    slow.until_idle()  # the sleep was ended with it


def test_a_stream_that_is_not_over_in_time_ends_with_an_error(slow: RunningServer) -> None:
    lines = slow.ndjson(prompt="abc", num_predict=100_000, ignore_eos=True, timeout_s=0.5)
    assert lines[0]["token"] == "a"
    assert lines[-1]["error"]["code"] == "deadline_exceeded"
    slow.until_idle()


def test_a_request_that_waits_too_long_for_a_slot_never_gets_it(slow: RunningServer) -> None:
    with slow.stream(prompt="x", num_predict=100_000, ignore_eos=True) as held:
        lines = held.iter_lines()  # if nobody held it, the connection would be closed
        next(lines)
        assert slow.post(prompt="y", timeout_s=0.2).status_code == 504
        assert slow.client.get("/ready").json()["waiting"] == 0
    slow.until_idle()


@pytest.mark.parametrize("value", [0, -1, "1", True, 86_401])
def test_a_timeout_that_is_none_is_refused(server: RunningServer, value: Any) -> None:
    answer = server.post(prompt="x", timeout_s=value)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("timeout_s must be a number > 0")

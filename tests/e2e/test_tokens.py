"""POST /tokenize, /detokenize and /apply-template on the real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.paths import BUNDLED
from tests.helpers.running import RunningServer
from tests.helpers.support import echo_options

TALES = ("-m", f"tales={BUNDLED}", "-t", "1", "--workers", "1", "-n", "64", "--slots", "1")
TEXT = "Once upon a time, 世界 🙂"


@pytest.fixture(scope="module")
def tales() -> Iterator[RunningServer]:
    pytest.importorskip("llama_cpp")
    with RunningServer(*TALES) as server:
        yield server


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = echo_options(tmp_path_factory.mktemp("echo"), slots=1)
    with RunningServer("--engine", "echo", "-m", f"echo={path}") as server:
        yield server


def post(server: RunningServer, path: str, **fields: Any) -> dict[str, Any]:
    response = server.client.post(path, json=fields)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


@pytest.mark.parametrize("name", ["content", "text", "prompt"])
def test_a_text_has_the_tokens_that_the_model_reads(tales: RunningServer, name: str) -> None:
    tokens = post(tales, "/tokenize", **{name: TEXT}, model="tales")["tokens"]
    with_start = post(tales, "/tokenize", **{name: TEXT}, add_special=True)["tokens"]
    assert with_start == [1, *tokens]
    *_, last = tales.ndjson(prompt=TEXT, num_predict=1)
    assert last["usage"]["prompt_tokens"] == len(with_start)
    assert post(tales, "/detokenize", tokens=tokens)["content"].lstrip() == TEXT


def test_pieces_are_texts_or_bytes_where_a_character_is_split(tales: RunningServer) -> None:
    pairs = post(tales, "/tokenize", content="a 世", with_pieces=True)["tokens"]
    pieces = [pair["piece"] for pair in pairs]
    assert [pair["id"] for pair in pairs] == post(tales, "/tokenize", content="a 世")["tokens"]
    split = [piece for piece in pieces if isinstance(piece, list)]
    assert b"".join(map(bytes, split)).decode() == "世"
    assert "a" in "".join(piece for piece in pieces if isinstance(piece, str))


def test_control_tokens_have_their_names(tales: RunningServer) -> None:
    (start, *_) = post(tales, "/tokenize", content="x", add_special=True, with_pieces=True)[
        "tokens"
    ]
    assert start == {"id": 1, "piece": "<s>"}
    assert post(tales, "/detokenize", tokens=[1])["content"] == "<s>"


def test_nothing_has_no_tokens(echo: RunningServer) -> None:
    assert post(echo, "/tokenize", content="") == {"tokens": []}
    assert post(echo, "/detokenize", tokens=[]) == {"content": ""}


def test_bytes_that_are_no_text_are_replaced(echo: RunningServer) -> None:
    assert post(echo, "/detokenize", tokens=[65, 195])["content"] == "A\ufffd"


@settings(max_examples=30)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_any_text_comes_back_from_its_tokens(echo: RunningServer, text: str) -> None:
    tokens = post(echo, "/tokenize", content=text)["tokens"]
    assert tokens == list(text.encode())
    assert post(echo, "/detokenize", tokens=tokens)["content"] == text


def test_they_are_answered_while_every_slot_is_taken(echo: RunningServer) -> None:
    with echo.stream(prompt="a" * 50, num_predict=2000, ignore_eos=True) as response:
        assert next(response.iter_lines()) == "a"
        assert post(echo, "/tokenize", content="ab") == {"tokens": [97, 98]}
    echo.until_idle()


def test_a_chat_becomes_the_prompt_that_its_model_would_get(echo: RunningServer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    prompt = post(echo, "/apply-template", messages=messages)["prompt"]
    assert "Hi" in prompt
    closed = post(echo, "/apply-template", messages=messages, add_generation_prompt=False)
    assert prompt.startswith(closed["prompt"].rstrip())
    assert len(prompt) > len(closed["prompt"])
    tool = {"type": "function", "function": {"name": "weather"}}
    assert "weather" in post(echo, "/apply-template", messages=messages, tools=[tool])["prompt"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/tokenize", {}, 400, "one of content, text and prompt"),
        ("/tokenize", {"content": "a", "text": "a"}, 400, "one of content, text and prompt"),
        ("/tokenize", {"content": 3}, 400, "content must be a string"),
        ("/tokenize", {"content": "a\0"}, 400, "content must not contain the character U+0000"),
        ("/tokenize", {"content": "a", "with_pieces": 1}, 400, "with_pieces must be true or false"),
        ("/tokenize", {"content": "a", "model": "nope"}, 404, "there is no model 'nope'"),
        ("/tokenize", {"content": "a", "bogus": 1}, 400, "unknown field: 'bogus'"),
        ("/tokenize", {"content": "a" * 2**20}, 413, "bytes"),
        ("/detokenize", {}, 400, "tokens is missing"),
        ("/detokenize", {"tokens": [1, True]}, 400, "tokens[1] must be an integer from 0 to 257"),
        ("/detokenize", {"tokens": [258]}, 400, "tokens[0] must be an integer from 0 to 257"),
        ("/apply-template", {}, 400, "messages is missing"),
        ("/apply-template", {"messages": []}, 400, "messages must be a list that is not empty"),
        ("/apply-template", {"messages": [{"role": "x"}]}, 400, "messages[0].role"),
    ],
)
def test_what_is_wrong_is_named(
    echo: RunningServer, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    response = echo.client.post(path, json=body)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message"}
    assert words in response.json()["error"]["message"]


def test_a_body_that_is_no_json_object_is_refused(echo: RunningServer) -> None:
    for body in (b"", b"[]", b"{", b'{"content": NaN}', b'{"content": "a", "content": "b"}'):
        assert echo.client.post("/tokenize", content=body).status_code == 400


def test_without_a_worker_they_are_a_503(tmp_path: Path) -> None:
    path = echo_options(tmp_path, load_s=30.0)
    flags = ("--engine", "echo", "-m", str(path))
    with RunningServer(*flags, wait_ready=False) as server:
        for path_, body in (("/tokenize", {"content": "a"}), ("/detokenize", {"tokens": [1]})):
            assert server.client.post(path_, json=body).status_code == 503

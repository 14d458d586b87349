"""Ollama's own client against the real server."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ollama
import pytest

from tests.helpers import models
from tests.helpers.paths import BUNDLED
from tests.helpers.running import RunningServer
from tests.helpers.support import echo_options

TALES = ("-m", f"tales={BUNDLED}", "-t", "1", "--workers", "1", "-n", "512", "--slots", "2")
SEEDED = {"seed": 3, "num_predict": 12}
HELLO = [{"role": "user", "content": "Hello"}]


def client_of(server: RunningServer) -> ollama.Client:
    return ollama.Client(host=server.url, timeout=40, trust_env=False)


@pytest.fixture(scope="module")
def echo() -> Iterator[ollama.Client]:
    with RunningServer("--engine", "echo", "-n", "4096") as server, client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, 20 ms a step, a queue of one."""
    path = echo_options(tmp_path_factory.mktemp("slow"), slots=1, step_s=0.02)
    with RunningServer("--engine", "echo", "-m", f"slow={path}", "--queue", "1") as server:
        yield server


@pytest.fixture(scope="module")
def tales() -> Iterator[RunningServer]:
    pytest.importorskip("llama_cpp")
    with RunningServer(*TALES) as server:
        yield server


def test_a_prompt_is_continued_in_parts_or_at_once(echo: ollama.Client) -> None:
    text = "Grüße aus 世界 🙂"
    *parts, last = echo.generate("echo", text, raw=True, stream=True)
    assert "".join(part.response or "" for part in parts) == text
    assert not any(part.done for part in parts)
    assert (last.done, last.done_reason, last.response) == (True, "stop", "")
    assert last.eval_count == last.prompt_eval_count == len(text.encode())
    whole = echo.generate("echo", text, raw=True)
    assert (whole.response, whole.done) == (text, True)
    assert (whole.total_duration or 0) >= (whole.eval_duration or 0) > 0
    assert whole.context is None


def test_a_chat_is_answered_in_parts_or_at_once(echo: ollama.Client) -> None:
    whole = echo.chat("echo", HELLO)
    assert whole.message.role == "assistant"
    assert "Hello" in (whole.message.content or "")
    parts = list(echo.chat("echo", HELLO, stream=True))
    assert {part.message.role for part in parts} == {"assistant"}
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].done_reason == "stop"


def test_latest_is_nothing_new(echo: ollama.Client) -> None:
    assert echo.generate("echo:latest", "same", raw=True).response == "same"
    assert echo.show("echo:latest").details == echo.show("echo").details


def test_an_empty_prompt_loads_the_model(echo: ollama.Client) -> None:
    assert echo.generate("echo", keep_alive="5m").done_reason == "load"
    assert echo.chat("echo", [], keep_alive=-1).done_reason == "load"
    (line,) = echo.generate("echo", stream=True)
    assert (line.done, line.done_reason) == (True, "load")


def test_calls_come_as_objects(echo: ollama.Client) -> None:
    def weather(city: str) -> str:
        """The weather.

        Args:
          city: Where.
        """
        return city

    wanted = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
    chat = [{"role": "system", "content": wanted}, *HELLO]  # the echo ends before the user's
    called = {"name": "weather", "arguments": {"city": "Köln"}}
    whole = echo.chat("echo", chat, tools=[weather])
    assert called in [call.function.model_dump() for call in whole.message.tool_calls or []]
    parts = echo.chat("echo", chat, tools=[weather], stream=True)
    calls = [call for part in parts for call in part.message.tool_calls or []]
    assert called in [call.function.model_dump() for call in calls]
    result = {"role": "tool", "tool_name": "weather", "content": "rain"}
    assert echo.chat("echo", [*chat, whole.message, result], tools=[weather]).done


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "nope"}, 404, "there is no model 'nope'"),
        ({"suffix": "x"}, 400, "suffix is not supported"),
        ({"options": {"num_thread": 4}}, 400, "options.num_thread is not supported"),
        ({"options": {"num_ctx": 9999}}, 400, "options.num_ctx must be at most 4096"),
        ({"format": "json"}, 400, "json_schema"),
        ({"prompt": "x" * 5000}, 400, "4096"),
    ],
)
def test_what_cannot_be_is_said_with_its_status(
    echo: ollama.Client, fields: dict[str, object], status: int, words: str
) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as raised:
            answer = echo.generate(**{"model": "echo", "prompt": "x", "stream": stream} | fields)
            list(answer)
        assert raised.value.status_code == status
        assert words in raised.value.error


def test_a_failure_after_the_first_part_is_an_error_in_the_stream(echo: ollama.Client) -> None:
    stream = echo.generate("echo", "ab[[fail]]", raw=True, stream=True)
    assert next(stream).response == "a"
    with pytest.raises(ollama.ResponseError, match="asked for a failure"):
        list(stream)
    with pytest.raises(ollama.ResponseError) as raised:
        echo.generate("echo", "ab[[fail]]", raw=True)
    assert raised.value.status_code == 500


def test_other_paths_and_methods_answer_in_the_same_words(echo: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="there is nothing at /api/pull") as raised:
        echo.pull("llama3")
    assert raised.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="there is no model 'nope'"):
        echo.show("nope")


def test_the_probes_of_clients_are_answered(slow: RunningServer) -> None:
    assert slow.client.head("/").status_code == 200
    assert slow.client.get("/").status_code == 200
    assert set(slow.client.get("/api/version").json()) == {"version"}
    assert slow.client.get("/api/chat").json() == {"error": "/api/chat does not take GET"}
    assert slow.client.post("/api/show", content=b"{").status_code == 400


def test_a_client_that_leaves_frees_its_slot(slow: RunningServer) -> None:
    with client_of(slow) as client:
        stream = client.generate("slow", "a" * 1500, raw=True, stream=True)
        assert next(stream).response == "a"
        stream.close()
        slow.until_idle()
        assert client.generate("slow", "next", raw=True).response == "next"


def test_a_full_queue_is_a_503(slow: RunningServer) -> None:
    with client_of(slow) as client, ThreadPoolExecutor(1) as threads:
        running = client.generate("slow", "a[[sleep 60]]", raw=True, stream=True)
        assert next(running).response == "a"
        waiting = threads.submit(client.generate, "slow", "b", raw=True)
        slow.until(lambda state: bool(state["waiting"] == 1))
        with pytest.raises(ollama.ResponseError, match="the queue is full") as raised:
            client.generate("slow", "c", raw=True)
        assert raised.value.status_code == 503
        slow.kill_workers()
        with pytest.raises(ollama.ResponseError, match="has died"):
            list(running)
        assert waiting.result().response == "b"


def test_a_model_tells_what_its_file_says(tales: RunningServer) -> None:
    with client_of(tales) as client:
        (model,) = client.list().models
        assert (model.model, model.size) == ("tales", BUNDLED.stat().st_size)
        assert model.modified_at is not None
        assert model.modified_at.timestamp() == pytest.approx(BUNDLED.stat().st_mtime)
        assert model.details is not None
        assert (model.details.format, model.details.family) == ("gguf", "llama")
        assert model.details.quantization_level == "Q8_0"
        shown = client.show("tales")
        assert (shown.modelinfo or {})["general.architecture"] == "llama"
        assert (shown.modelinfo or {})["llama.context_length"] == 512
        assert shown.details == model.details
        assert "completion" in (shown.capabilities or [])
        (running,) = client.ps().models
        assert (running.model, running.context_length) == ("tales", 512)
        assert running.digest == model.digest
        assert len(running.digest or "") == 64


def test_a_model_writes_the_same_text_here_as_at_stream(tales: RunningServer) -> None:
    prompt = "Once upon a time"
    *tokens, _ = tales.ndjson(prompt=prompt, **SEEDED)
    with client_of(tales) as client:
        options = {**SEEDED, "repeat_last_n": 64}
        whole = client.generate("tales", prompt, raw=True, options=options)
        assert whole.response == "".join(token["token"] for token in tokens)
        assert (whole.eval_count, whole.done_reason) == (12, "length")
        parts = client.generate("tales", prompt, raw=True, options=options, stream=True)
        assert "".join(part.response or "" for part in parts) == whole.response


def test_an_answer_obeys_its_format(tales: RunningServer) -> None:
    schema = {
        "type": "object",
        "properties": {"wolf": {"enum": ["big", "bad"]}, "pigs": {"enum": [1, 2, 3]}},
        "required": ["wolf", "pigs"],
        "additionalProperties": False,
    }
    with client_of(tales) as client:
        made = client.generate("tales", "Tell of a wolf.", format=schema, options={"seed": 1})
        parts = client.chat("tales", HELLO, format=schema, options={"seed": 1}, stream=True)
        for text in (made.response, "".join(part.message.content or "" for part in parts)):
            told = json.loads(text or "")
            assert told["wolf"] in ("big", "bad")
            assert told["pigs"] in (1, 2, 3)
        options = {"seed": 1, "num_predict": 5}
        some = client.generate("tales", "A wolf", raw=True, format="json", options=options)
        assert (some.response or "").lstrip().startswith("{")


def test_log_probabilities_come_with_every_token(tales: RunningServer) -> None:
    with client_of(tales) as client:
        answer = client.generate(
            "tales", "Once", raw=True, logprobs=True, top_logprobs=2, options=SEEDED
        )
    assert len(answer.logprobs or []) == 12
    for one in answer.logprobs or []:
        assert one.logprob <= 0
        assert len(one.top_logprobs or []) == 2


def test_texts_become_vectors_of_length_one(tales: RunningServer) -> None:
    with client_of(tales) as client:
        both = client.embed("tales", ["A fox.", "A wolf."])
        assert [math.hypot(*vector) for vector in both.embeddings] == [pytest.approx(1)] * 2
        assert (both.prompt_eval_count or 0) > 2
        (first,) = client.embed("tales", "A fox.").embeddings
        assert first == pytest.approx(both.embeddings[0])
        (short,) = client.embed("tales", "A fox.", dimensions=8).embeddings
        assert (len(short), math.hypot(*short)) == (8, pytest.approx(1))
        assert client.embeddings("tales", "A fox.").embedding == pytest.approx(first)


def test_a_folders_models_are_listed_before_they_are_loaded(
    tmp_path: Path, llama_gguf: Path
) -> None:
    pytest.importorskip("llama_cpp")
    shutil.copy(BUNDLED, tmp_path / "tales.gguf")
    shutil.copy(llama_gguf, tmp_path / "random.gguf")
    flags = ("--models-dir", str(tmp_path), "--memory-limit", "1G", "-n", "64", "--slots", "1")
    with RunningServer(*flags) as server, client_of(server) as client:
        both = {model.model: model for model in client.list().models}
        assert set(both) == {"tales", "random"}
        assert both["random"].details == client.show("random").details
        assert client.ps().models == []
        nameless = server.client.post("/api/chat", json={})
        assert nameless.status_code == 400
        assert "model is missing" in nameless.json()["error"]
        loaded = client.generate("random:latest")
        assert loaded.done_reason == "load"
        assert (loaded.load_duration or 0) > 0
        (running,) = client.ps().models
        assert (running.model, running.context_length) == ("random", 64)
        assert running.digest == both["random"].digest != both["tales"].digest


def test_a_character_that_is_split_over_tokens_comes_whole(tmp_path: Path) -> None:
    """On the engine that is always there."""
    path = models.build_llama_gguf(tmp_path / "llama.gguf")
    flags = ("-m", str(path), "-t", "1", "--engine", "ctransformers", "-n", "128")
    with RunningServer(*flags) as server, client_of(server) as client:
        options = {"seed": 2, "num_predict": 60}
        whole = client.generate("llama", "x", raw=True, options=options).response or ""
        parts = client.generate("llama", "x", raw=True, options=options, stream=True)
        texts = [part.response or "" for part in parts]
    assert "".join(texts) == whole
    assert any(not text.isascii() for text in texts)
    assert "\ufffd" not in whole


@pytest.mark.usefixtures("both_cores")
def test_a_file_that_is_gone_does_not_hide_the_others(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    gone = tmp_path / "gone.gguf"
    shutil.copy(BUNDLED, gone)
    flags = ("-m", str(gone), "-m", f"tales={BUNDLED}", "-n", "64", "--slots", "1")
    with RunningServer(*flags) as server, client_of(server) as client:
        assert [model.model for model in client.list().models] == ["gone", "tales"]
        gone.unlink()
        assert [model.model for model in client.list().models] == ["tales"]
        with pytest.raises(ollama.ResponseError, match="the file of gone cannot be read") as raised:
            client.show("gone")
        assert raised.value.status_code == 500

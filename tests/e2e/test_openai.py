"""OpenAI's API with the client libraries that people use, against the real server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from server.config.options import BUNDLED_MODEL
from tests.helpers.running import RunningServer
from tests.helpers.support import echo_options

HELLO: Any = [{"role": "user", "content": "Grüße aus 世界 🙂"}]
ENDLESS = {"ignore_eos": True}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Verdict(BaseModel):
    """What a model with random weights can be made to say."""

    is_good: bool
    size: Literal["small", "large"]


@contextmanager
def client_of(server: RunningServer, retries: int = 0, **options: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=retries, **options
    ) as client:
        yield client


@pytest.fixture(scope="module")
def server(echo_server: RunningServer) -> RunningServer:
    return echo_server


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, 20 ms a step, a queue of none."""
    path = echo_options(tmp_path_factory.mktemp("slow"), slots=1, step_s=0.02)
    with RunningServer("--engine", "echo", "-m", str(path), "--queue", "0") as running:
        yield running


@pytest.fixture(scope="module")
def models(both_cores: None, llama_gguf: Path) -> Iterator[RunningServer]:
    """The bundled tales, and a model of random weights, on llama.cpp."""
    with RunningServer(
        *("-m", f"tales={BUNDLED_MODEL}", "-m", f"tiny={llama_gguf}"),
        *("-n", "1024", "--chat-template", "chatml", "--slots", "4"),
    ) as running:
        running.until(lambda state: all(model["is_loaded"] for model in state["models"]))
        yield running


@pytest.fixture(scope="module")
def llama(models: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(models) as client:
        yield client


# ---------------------------------------------------------------- openai: models and errors


def test_models_are_listed_and_described(llama: openai.OpenAI) -> None:
    listed = list(llama.models.list())
    assert [model.id for model in listed] == ["tales", "tiny"]
    one = llama.models.retrieve("tales")
    assert one == listed[0]
    assert one.object == "model"
    assert one.created > 0
    extras = one.model_extra
    assert extras is not None
    assert (extras["is_loaded"], extras["loaded"], extras["chat"]) == (True, 1.0, True)
    assert extras["meta"]["context"] == 1024
    assert extras["meta"]["parameters"] > 5_000_000


def test_a_model_that_is_not_loaded_is_listed_with_what_is_known(
    llama_gguf: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copy(llama_gguf, tmp_path / f"{name}.gguf")
    with RunningServer("--models-dir", str(tmp_path)) as server, client_of(server) as client:
        one = client.models.retrieve("one").model_extra or {}
        assert (one["is_loaded"], one["loaded"], one["chat"]) == (False, 0.0, None)
        assert one["meta"] == {"size": llama_gguf.stat().st_size}
        with pytest.raises(openai.BadRequestError) as unnamed:
            client.completions.create(model=NOT_SAID, prompt="x")
        assert unnamed.value.param == "model"
        client.completions.create(model="one", prompt="x", max_tokens=1)
        assert [(m.model_extra or {})["is_loaded"] for m in client.models.list()] == [True, False]


NOT_SAID: Any = None


def test_a_key_that_is_not_known_is_an_authentication_error(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice {KEY}\n")
    with (
        RunningServer("--engine", "echo", "--api-key-file", str(keys), wait_ready=False) as server,
        client_of(server) as stranger,
    ):
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.models.list()
        assert refused.value.code == "invalid_api_key"
        assert refused.value.request_id
        assert [model.id for model in stranger.with_options(api_key=KEY).models.list()] == ["echo"]


KEY = "a-long-key-of-hers-7"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI, server: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="echo", prompt="x", suffix="end")
    assert (bad.value.param, bad.value.type) == ("suffix", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="echo", prompt="x" * 300_001)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a cat")
    with pytest.raises(openai.InternalServerError) as failed:
        client.completions.create(model="echo", prompt="x[[prefill fail]]")
    assert failed.value.type == "server_error"


def test_errors_of_no_route_have_the_shape_of_their_path(server: RunningServer) -> None:
    wrong = server.client.get("/v1/completions")
    assert wrong.status_code == 405
    assert set(wrong.json()["error"]) == {"message", "type", "param", "code"}
    assert set(server.client.get("/nothing").json()["error"]) == {"message", "code"}


def test_every_answer_says_the_requests_id(client: openai.OpenAI, server: RunningServer) -> None:
    answer = client.completions.create(model="echo", prompt="x")
    assert answer._request_id
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="echo", prompt="x", n=0)
    assert caught.value.request_id not in (None, answer._request_id)
    for path in ("/", "/nothing", "/health", "/v1/models"):
        given = server.client.get(path, headers={"x-request-id": "mine-7"})
        assert given.headers["x-request-id"] == "mine-7"
        refused = server.client.get(path, headers={"x-request-id": "not mine"})
        assert refused.headers["x-request-id"] != "not mine"


# ---------------------------------------------------------------- openai: texts


def test_a_completion_is_the_same_at_once_and_streamed(client: openai.OpenAI) -> None:
    text = HELLO[0]["content"]
    whole = client.completions.create(model="echo", prompt=text, max_tokens=500)
    assert whole.choices[0].text == text
    assert whole.choices[0].finish_reason == "stop"
    with client.completions.create(
        model="echo", prompt=text, max_tokens=500, stream=True, stream_options=USAGE
    ) as stream:
        *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens == len(text.encode())


USAGE: Any = {"include_usage": True}


def test_prompts_and_choices_come_in_their_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="echo", prompt=["one", "two"], n=40, max_tokens=2, echo=True
    )
    assert [choice.text for choice in answer.choices] == ["oneon"] * 40 + ["twotw"] * 40
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 160)


def test_a_chat_is_the_same_at_once_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="echo", messages=HELLO, max_tokens=500)
    content = whole.choices[0].message.content
    assert content is not None
    assert HELLO[0]["content"] in content
    with client.chat.completions.stream(
        model="echo", messages=HELLO, max_tokens=500, n=2, stream_options=USAGE
    ) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [content, content]
    assert final.usage is not None
    assert final.usage.prompt_tokens_details is not None
    assert final.usage.model_extra is not None


def test_an_answer_that_was_begun_goes_on(llama: openai.OpenAI) -> None:
    begun: Any = [{"role": "user", "content": "A tale!"}, TALE]
    answers = [
        llama.chat.completions.create(model="tales", messages=begun, max_tokens=8, temperature=0)
        for _ in range(2)
    ]
    first, second = (answer.choices[0].message.content for answer in answers)
    assert first
    assert first == second
    usage = answers[1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens


TALE = {"role": "assistant", "content": "Once upon a time there was"}


def test_choices_differ_and_their_seed_gives_them_again(llama: openai.OpenAI) -> None:
    def texts() -> list[str]:
        answer = llama.completions.create(
            model="tales", prompt="Once upon a time", n=3, seed=5, max_tokens=12
        )
        return [choice.text for choice in answer.choices]

    first = texts()
    assert len(set(first)) == 3
    assert texts() == first


def test_best_of_returns_as_many_as_asked_for(llama: openai.OpenAI) -> None:
    answer = llama.completions.create(model="tales", prompt="The", best_of=3, max_tokens=4)
    assert len(answer.choices) == 1
    assert answer.choices[0].logprobs is None


def test_log_probabilities_have_the_texts_bytes(llama: openai.OpenAI) -> None:
    answer = llama.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=3, max_tokens=60, **BIAS
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    spelled = b"".join(bytes(entry.bytes or ()) for entry in content)
    assert spelled.decode() == choice.message.content
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in content)
    assert len(content) == 60


BIAS: Any = {"extra_body": {"ignore_eos": True, "repeat_penalty": 1.0}, "seed": 3}


def test_legacy_log_probabilities_say_where_tokens_are(llama: openai.OpenAI) -> None:
    answer = llama.completions.create(model="tales", prompt="The king", logprobs=2, max_tokens=9)
    text, logprobs = answer.choices[0].text, answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert text[offset:].startswith(token)
    assert all(len(top) <= 2 for top in logprobs.top_logprobs or ())


# ---------------------------------------------------------------- openai: schemas and functions


def test_a_schema_is_obeyed(llama: openai.OpenAI) -> None:
    answer = llama.chat.completions.parse(model="tiny", messages=HELLO, response_format=Verdict)
    assert isinstance(answer.choices[0].message.parsed, Verdict)


def test_a_grammar_is_obeyed(llama: openai.OpenAI) -> None:
    answer = llama.completions.create(
        model="tiny", prompt="x", extra_body={"grammar": 'root ::= "yes" | "no"'}
    )
    assert answer.choices[0].text in ("yes", "no")
    with pytest.raises(openai.BadRequestError) as refused:
        llama.completions.create(model="tiny", prompt="x", extra_body={"grammar": "root ::= ("})
    assert refused.value.param == "grammar"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_can_be_forced_and_answered(llama: openai.OpenAI, choice: Any) -> None:
    answer = llama.chat.completions.create(
        model="tiny", messages=HELLO, tools=[WEATHER], tool_choice=choice
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    again: Any = [*HELLO, message.model_dump(exclude_none=True), result]
    answer = llama.chat.completions.create(
        model="tiny", messages=again, tools=[WEATHER], max_tokens=4
    )
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_streamed_call_is_put_together_by_the_client(client: openai.OpenAI) -> None:
    """The echo engine writes what it reads: a call here, and then how to write one."""
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
    messages: Any = [{"role": "system", "content": call}, *HELLO]
    with client.chat.completions.stream(
        model="echo", messages=messages, tools=[WEATHER], parallel_tool_calls=False
    ) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls
    (made,) = final.choices[0].message.tool_calls
    assert (made.function.name, made.function.arguments) == ("weather", '{"city": "Paris"}')
    assert final.choices[0].finish_reason == "tool_calls"


# ---------------------------------------------------------------- openai: embeddings


def test_embeddings_are_the_same_packed_and_as_lists(llama: openai.OpenAI) -> None:
    texts = ["The fox ran.", "The hen sat.", "The fox ran."]
    packed = llama.embeddings.create(model="tales", input=texts)
    listed = llama.embeddings.create(model="tales", input=texts, encoding_format="float")
    vectors = [entry.embedding for entry in packed.data]
    assert [len(vector) for vector in vectors] == [256] * 3
    assert vectors[0] == pytest.approx(vectors[2])
    assert vectors[0] != pytest.approx(vectors[1])
    assert vectors[0] == pytest.approx(listed.data[0].embedding, abs=1e-6)
    assert packed.usage == listed.usage


def test_many_embeddings_are_one_request(llama: openai.OpenAI, models: RunningServer) -> None:
    """More than may wait at a time, and one short line in the log."""
    texts = [f"{number}" for number in range(100)]
    answer = llama.embeddings.create(model="tiny", input=texts)
    assert [entry.index for entry in answer.data] == list(range(100))
    models.wait_for_log(r"/v1/embeddings on tiny, .*: finished \(stop\), 390 prompt tokens")


# ---------------------------------------------------------------- openai: clients that leave


def test_a_closed_stream_frees_its_slot(slow: RunningServer) -> None:
    with client_of(slow) as client:
        with client.completions.create(
            model="echo", prompt="x", max_tokens=2000, stream=True, extra_body=ENDLESS
        ) as stream:
            next(iter(stream))
        slow.until_idle()


def test_a_cancelled_task_frees_its_slot(slow: RunningServer) -> None:
    async def go() -> None:
        async with openai.AsyncOpenAI(base_url=f"{slow.url}/v1", api_key="x") as client:
            task = asyncio.create_task(
                client.chat.completions.create(
                    model="echo", messages=HELLO, extra_body=ENDLESS, max_tokens=2000
                )
            )
            await asyncio.to_thread(slow.until, lambda state: state["active"] == 1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    asyncio.run(go())
    slow.until_idle()


def test_a_client_whose_time_is_over_frees_its_slot(slow: RunningServer) -> None:
    with client_of(slow, timeout=0.3) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(model="echo", prompt="x[[sleep 30]]", extra_body=ENDLESS)
    slow.kill_workers()
    slow.until_ready()


def test_a_refused_request_is_tried_again_by_the_client(slow: RunningServer) -> None:
    texts: list[str] = []

    def ask_patiently() -> None:
        with client_of(slow, retries=5) as patient:
            answer = patient.completions.create(model="echo", prompt="patience", max_tokens=99)
            texts.append(answer.choices[0].text)

    with client_of(slow) as client:
        with client.completions.create(
            model="echo", prompt="x", max_tokens=2000, stream=True, extra_body=ENDLESS
        ) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as refused:
                client.completions.create(model="echo", prompt="hasty")
            assert int(refused.value.response.headers["retry-after"]) >= 1
            thread = threading.Thread(target=ask_patiently)
            thread.start()
            slow.wait_for_log("queue_full")  # of the hasty one
            slow.wait_for_log("queue_full")
        thread.join(30)
    assert texts == ["patience"]


def test_a_worker_that_dies_in_mid_stream_is_an_error_of_the_client(
    client: openai.OpenAI, server: RunningServer
) -> None:
    stream = client.chat.completions.create(
        model="echo", messages=HELLO, stream=True, max_tokens=200_000, extra_body=ENDLESS
    )
    with stream, pytest.raises(openai.APIError, match="died"):
        next(iter(stream))
        server.kill_workers()
        for _ in stream:
            pass
    server.until_ready()


# ---------------------------------------------------------------- langchain-openai


def chain(server: RunningServer, model: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model=model, **options)


def test_langchain_chats_and_streams(server: RunningServer) -> None:
    chat = chain(server, "echo", stream_usage=True)
    messages = [HumanMessage("Hello, chain")]
    answer = chat.invoke(messages)
    assert "Hello, chain" in answer.content
    assert "Be brief." in chat.invoke([SystemMessage("Be brief."), *messages]).content
    assert answer.usage_metadata is not None
    pieces = list(chat.stream(messages))
    assert "".join(str(piece.content) for piece in pieces) == answer.content
    assert any(piece.usage_metadata for piece in pieces)


def test_langchain_completes(server: RunningServer) -> None:
    completion = OpenAI(base_url=f"{server.url}/v1", api_key="none", model="echo")
    assert completion.invoke("Hello, chain") == "Hello, chain"
    assert completion.batch(["one", "two"]) == ["one", "two"]


def test_langchain_gets_structures_and_calls(models: RunningServer) -> None:
    chat = chain(models, "tiny")
    for method in ("json_schema", "function_calling"):
        structured = chat.with_structured_output(Verdict, method=method)
        assert isinstance(structured.invoke("What do you think?"), Verdict)
    answer = chat.bind_tools([WEATHER], tool_choice="any").invoke("The weather?")
    assert answer.tool_calls[0]["name"] == "weather"


def test_langchain_embeds(models: RunningServer) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{models.url}/v1",
        api_key="none",
        model="tiny",
        check_embedding_ctx_length=False,  # else it sends the tokens of OpenAI's own models
    )
    vectors = embeddings.embed_documents(["The fox", "The hen"])
    assert [len(vector) for vector in vectors] == [64, 64]
    assert embeddings.embed_query("The fox") == pytest.approx(vectors[0], abs=1e-4)


# ---------------------------------------------------------------- llm


def run_llm(folder: Path, server: RunningServer, *words: str) -> str:
    """The command, with two models of its user's."""
    config = [
        {"model_id": "talk", "model_name": "echo", "api_base": f"{server.url}/v1"},
        {
            "model_id": "complete",
            "model_name": "echo",
            "api_base": f"{server.url}/v1",
            "completion": True,
        },
    ]
    (folder / "extra-openai-models.yaml").write_text(json.dumps(config))  # YAML, too
    result = subprocess.run(
        [sys.executable, "-m", "llm", *words],
        env={**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_llm_chats_and_goes_on(server: RunningServer, tmp_path: Path) -> None:
    assert "Hello, llm" in run_llm(tmp_path, server, "-m", "talk", "Hello, llm")
    again = run_llm(tmp_path, server, "-c", "And again", "--no-stream", "-o", "max_tokens", "99")
    assert again.count("Assistant:") == 2


def test_llm_completes(server: RunningServer, tmp_path: Path) -> None:
    text = run_llm(tmp_path, server, "-m", "complete", "Hello, llm", "-o", "max_tokens", "5")
    assert text.strip() == "Hello"

"""OpenAI's fields: what is taken, what is refused by name, what becomes of the others."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dialects.openai import DIALECT
from server.dialects.openai.answers import error_object
from server.generation.served_model import ServedModel
from server.generation.task import Embedding
from server.http.errors import Unauthorized
from shared.errors import ContextTooShort, InvalidRequest, QueueFull, ServingError, WorkerDied
from shared.prompt import Prompt
from shared.sampling import MAX_SEED, LogitBias, SamplingParams
from shared.validation import MAX_INTEGER
from tests.helpers.openai_calls import (
    ALL_SAMPLING,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HELLO,
    NEEDED,
    TOOL,
    answer,
    call,
    generations,
    model,
    sampling,
)
from tests.helpers.support import served


def refusal(path: str, **body: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        answer(path, **body)
    assert caught.value.status == 400
    return caught.value


# ---------------------------------------------------------------- any JSON

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *("prompt", "messages", "input", "model", "n", "best_of", "stop", "seed", "logprobs"),
        *("top_logprobs", "logit_bias", "echo", "suffix", "max_tokens", "max_completion_tokens"),
        *("stream", "stream_options", "response_format", "grammar", "json_schema", "tools"),
        *("tool_choice", "parallel_tool_calls", "user", "metadata", "store", "system", "cache"),
        *("chat_template_kwargs", "enable_thinking", "encoding_format", "dimensions", "timeout_s"),
        *ALL_SAMPLING,
    ]
)


@given(
    st.sampled_from(sorted(DIALECT.paths)),
    st.dictionaries(NAMES | st.text(max_size=8), JSON, max_size=3),
    st.booleans(),
)
def test_any_object_is_a_call_or_a_400_that_names_a_field(
    path: str, body: dict[str, Any], is_filled: bool
) -> None:
    if is_filled:
        body = NEEDED[path] | body
    try:
        answer = DIALECT.paths[path](json.dumps(body).encode(), {}).answer(model())
    except ServingError as error:
        assert error.status == 400
        assert error.field is not None
        assert error.field in body or error.field in NEEDED[path]
        json.dumps(error_object(error)).encode()
    else:
        assert answer.tasks


@given(st.binary(max_size=20), st.sampled_from(sorted(DIALECT.paths)))
def test_any_bytes_are_a_400(body: bytes, path: str) -> None:
    with pytest.raises(ServingError) as caught:
        DIALECT.paths[path](body, {})
    assert caught.value.status == 400


# ---------------------------------------------------------------- refusals

SYSTEM = [{"role": "developer", "content": "Be brief."}, *HELLO]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}}


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        (COMPLETIONS, "prompt", {"prompt": ""}),
        (COMPLETIONS, "prompt", {"prompt": None}),
        (COMPLETIONS, "prompt", {"prompt": []}),
        (COMPLETIONS, "prompt", {"prompt": [[]]}),
        (COMPLETIONS, "prompt", {"prompt": ["x", ""]}),
        (COMPLETIONS, "prompt", {"prompt": [1, True]}),
        (COMPLETIONS, "prompt", {"prompt": [-1]}),
        (COMPLETIONS, "prompt", {"prompt": [257]}),
        (COMPLETIONS, "max_tokens", {"max_tokens": 0}),
        (COMPLETIONS, "num_predict", {"max_tokens": 1, "num_predict": 1}),
        (COMPLETIONS, "n", {"n": 0}),
        (COMPLETIONS, "n", {"n": 129}),
        (COMPLETIONS, "n", {"n": 100, "prompt": ["x", "y"]}),
        (COMPLETIONS, "best_of", {"n": 2, "best_of": 1}),
        (COMPLETIONS, "best_of", {"best_of": 2, "stream": True}),
        (COMPLETIONS, "suffix", {"suffix": "end"}),
        (COMPLETIONS, "logprobs", {"logprobs": True}),
        (COMPLETIONS, "logprobs", {"logprobs": 1, "echo": True}),
        (COMPLETIONS, "echo", {"prompt": [1], "echo": True}),
        (COMPLETIONS, "cache", {"prompt": ["x", "y"], "cache": 7}),
        (COMPLETIONS, "stream_options", {"stream_options": {"include_usage": True}}),
        (COMPLETIONS, "stream_options", {"stream": True, "stream_options": {"x": 1}}),
        (COMPLETIONS, "stream_options", {"stream": True, "stream_options": {"include_usage": 1}}),
        (
            COMPLETIONS,
            "stream_options",
            {"stream": True, "stream_options": {"include_obfuscation": True}},
        ),
        (COMPLETIONS, "messages", {"messages": HELLO}),
        (COMPLETIONS, "temperature", {"temperature": -1}),
        (COMPLETIONS, "top_p", {"top_p": 0}),
        (COMPLETIONS, "logit_bias", {"logit_bias": {"x": 1}}),
        (COMPLETIONS, "temp", {"temperature": 1, "temp": 1}),
        (COMPLETIONS, "grammar", {"response_format": FORMAT, "grammar": 'root ::= "x"'}),
        (COMPLETIONS, "grammar", {"json_schema": {}, "grammar": 'root ::= "x"'}),
        (COMPLETIONS, "response_format", {"response_format": "json"}),
        (COMPLETIONS, "response_format", {"response_format": {"type": "xml"}}),
        (COMPLETIONS, "response_format", {"response_format": {"type": "text", "x": 1}}),
        (COMPLETIONS, "response_format", {"response_format": {"type": "json_schema"}}),
        (COMPLETIONS, "temprature", {"temprature": 1}),
        (CHAT, "messages", {"messages": []}),
        (CHAT, "messages", {"messages": [{"role": "robot", "content": "x"}]}),
        (CHAT, "messages", {"messages": IMAGE}),
        (CHAT, "max_completion_tokens", {"max_tokens": 1, "max_completion_tokens": 1}),
        (CHAT, "top_logprobs", {"top_logprobs": 2}),
        (CHAT, "logprobs", {"logprobs": 2}),
        (CHAT, "system", {"system": "Be brief.", "messages": SYSTEM}),
        (CHAT, "system", {"system": []}),
        (CHAT, "prompt", {"prompt": "x"}),
        (CHAT, "store", {"store": True}),
        (CHAT, "store", {"store": 0}),
        (CHAT, "modalities", {"modalities": ["text", "audio"]}),
        (CHAT, "audio", {"audio": {"voice": "x"}}),
        (CHAT, "service_tier", {"service_tier": "priority"}),
        (CHAT, "functions", {"functions": [{"name": "x"}]}),
        (CHAT, "metadata", {"metadata": {"a": 1}}),
        (CHAT, "user", {"user": 7}),
        (CHAT, "tools", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}),
        (CHAT, "tool_choice", {"tool_choice": "required"}),
        (CHAT, "tool_choice", {"tools": [TOOL], "tool_choice": "always"}),
        (
            CHAT,
            "tool_choice",
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        ),
        (
            CHAT,
            "response_format",
            {"tools": [TOOL], "tool_choice": "required", "response_format": FORMAT},
        ),
        (CHAT, "parallel_tool_calls", {"parallel_tool_calls": "no"}),
        (CHAT, "enable_thinking", {"enable_thinking": "yes"}),
        (CHAT, "chat_template_kwargs", {"chat_template_kwargs": 1}),
        (CHAT, "chat_template_kwargs", {"chat_template_kwargs": {"x": "a\0"}}),
        (CHAT, "best_of", {"best_of": 2}),
        (EMBEDDINGS, "input", {"input": []}),
        (EMBEDDINGS, "input", {"input": [999]}),
        (EMBEDDINGS, "encoding_format", {"encoding_format": "int8"}),
        (EMBEDDINGS, "encoding_format", {"encoding_format": ["float"]}),
        (EMBEDDINGS, "dimensions", {"dimensions": 3}),
        (EMBEDDINGS, "temperature", {"temperature": 1}),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused_by_its_name(
    path: str, param: str, body: dict[str, Any]
) -> None:
    error = refusal(path, **body)
    assert error.field == param
    assert param.split("_")[0] in error.message
    assert error_object(error)["error"]["param"] == param


@pytest.mark.parametrize(
    ("path", "param", "body", "engine"),
    [
        (COMPLETIONS, "logprobs", {"logprobs": 1}, "logprobs"),
        (CHAT, "logprobs", {"logprobs": True}, "logprobs"),
        (COMPLETIONS, "best_of", {"best_of": 2}, "logprobs"),
        (CHAT, "response_format", {"response_format": {"type": "json_object"}}, "json_schema"),
        (CHAT, "tool_choice", {"tools": [TOOL], "tool_choice": "required"}, "json_schema"),
        (CHAT, "top_k", {"top_k": 3}, "top_k"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_the_clients_name(
    path: str, param: str, body: dict[str, Any], engine: str
) -> None:
    others = [name for name in ALL_SAMPLING if name != engine]
    with pytest.raises(ServingError) as caught:
        answer(path, model(others), **body)
    assert (caught.value.status, caught.value.field) == (400, param)


def test_a_model_without_embeddings_says_so() -> None:
    with pytest.raises(ServingError) as caught:
        call(EMBEDDINGS).answer(served())
    assert (caught.value.code, caught.value.field) == ("unsupported", "model")


# ---------------------------------------------------------------- what asks for nothing


@pytest.mark.parametrize("name", ["stop", "n", "tools", "logprobs", "seed", "audio", "temperature"])
def test_null_is_as_not_given(name: str) -> None:
    assert generations(CHAT, **{name: None}) == generations(CHAT)


@pytest.mark.parametrize(
    "body",
    [
        {"n": 1},
        {"store": False},
        {"modalities": ["text"]},
        {"user": "alice"},
        {"metadata": {"run": "7"}},
        {"service_tier": "auto"},
        {"parallel_tool_calls": True},
        {"tools": []},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"stop": []},
        {"logprobs": False},
        {"frequency_penalty": 0, "presence_penalty": 0},
        {"verbosity": "medium"},
        {"function_call": "none"},
        {"chat_template_kwargs": {}},
        {"prompt_cache_key": "x", "safety_identifier": "y"},
        {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}},
    ],
)
def test_a_value_without_effect_is_accepted(body: dict[str, Any]) -> None:
    assert generations(CHAT, **body) == generations(CHAT)


# ---------------------------------------------------------------- sampling


def test_the_servers_defaults_hold_but_for_the_number_of_tokens() -> None:
    assert sampling(COMPLETIONS) == SamplingParams(num_predict=16)
    assert replace(sampling(CHAT), stop=()) == SamplingParams(num_predict=MAX_INTEGER)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "num_predict"])
def test_a_limit_has_three_names(name: str) -> None:
    assert sampling(CHAT, **{name: 5}).num_predict == 5


def test_openais_fields_and_ours_become_sampling() -> None:
    assert sampling(
        COMPLETIONS,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repeat_penalty=1,
        frequency_penalty=0.5,
        stop="\n",
        logit_bias={"5": -100},
        logprobs=3,
        seed=-1,
        grammar='root ::= "x"',
    ) == SamplingParams(
        num_predict=16,
        temp=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repeat_penalty=1.0,
        frequency_penalty=0.5,
        stop=("\n",),
        logit_bias=(LogitBias(5, -100.0),),
        logprobs=3,
        seed=MAX_SEED,
        grammar='root ::= "x"',
    )


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        (FORMAT, {"type": "string"}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}},
            {},
        ),
    ],
)
def test_a_response_format_is_a_schema(form: dict[str, Any], schema: dict[str, Any]) -> None:
    for path in (COMPLETIONS, CHAT):
        assert json.loads(sampling(path, response_format=form).json_schema) == schema


@pytest.mark.parametrize(
    ("body", "top"), [({}, 0), ({"top_logprobs": 0}, 0), ({"top_logprobs": 20}, 20)]
)
def test_a_chats_logprobs_are_a_switch_and_a_number(body: dict[str, int], top: int) -> None:
    assert sampling(CHAT, logprobs=True, **body).logprobs == top


def test_choices_have_seeds_of_their_own_and_the_first_saves_the_prompt() -> None:
    tasks = generations(CHAT, n=3, seed=MAX_SEED, cache=7)
    assert [task.sampling.seed for task in tasks] == [MAX_SEED, 0, 1]
    assert [task.prompt_id for task in tasks] == [7, 0, 0]
    assert len({task.prompt for task in tasks}) == 1
    assert [task.sampling.seed for task in generations(COMPLETIONS, n=2)] == [None, None]


def test_a_time_limit_goes_with_the_call() -> None:
    for path in DIALECT.paths:
        assert call(path, timeout_s=2.5).timeout_s == 2.5


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("x", [Prompt("x")]),
        (["x", "y"], [Prompt("x"), Prompt("y")]),
        ([1, 2], [Prompt(tokens=(1, 2))]),
        ([[1, 2], [3]], [Prompt(tokens=(1, 2)), Prompt(tokens=(3,))]),
        (["x", [3]], [Prompt("x"), Prompt(tokens=(3,))]),
    ],
)
def test_prompts_are_texts_tokens_and_lists_of_them(prompt: Any, prompts: list[Prompt]) -> None:
    assert [task.prompt for task in generations(COMPLETIONS, prompt=prompt)] == prompts
    assert answer(EMBEDDINGS, input=prompt).tasks == tuple(map(Embedding, prompts))


def test_each_prompt_has_its_choices_in_turn_with_the_same_seeds() -> None:
    tasks = generations(COMPLETIONS, prompt=["x", "y"], n=2, seed=5)
    assert [(task.prompt.text, task.sampling.seed) for task in tasks] == [
        ("x", 5),
        ("x", 6),
        ("y", 5),
        ("y", 6),
    ]


def chat_text(served_model: ServedModel | None = None, **body: Any) -> str:
    (task,) = generations(CHAT, served_model, **body)
    assert task.prompt.is_whole
    return task.prompt.text


def test_a_chat_is_written_by_the_models_template() -> None:
    assert chat_text() == "<user>Hello<assistant>"
    assert chat_text(messages=SYSTEM) == "<system>Be brief.<user>Hello<assistant>"


def test_an_answer_that_was_begun_is_continued() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hi, "}]
    assert chat_text(messages=messages) == "<user>Hello<assistant>Hi, "


def test_a_chat_without_a_system_prompt_gets_the_servers_or_the_requests() -> None:
    served_model = model(system="Be kind.")
    assert chat_text(served_model) == "<system>Be kind.<user>Hello<assistant>"
    assert chat_text(served_model, messages=SYSTEM) == chat_text(messages=SYSTEM)
    assert chat_text(served_model, system="") == "<user>Hello<assistant>"
    assert chat_text(system="Be brief.") == chat_text(messages=SYSTEM)
    assert chat_text(system="pirate").startswith("<system>Talk like a pirate.")


def test_variables_go_to_the_template() -> None:
    assert chat_text(enable_thinking=False).endswith("[False]")
    assert chat_text(chat_template_kwargs={"enable_thinking": True}).endswith("[True]")
    assert chat_text(reasoning_effort="low").endswith("[low]")


def test_variables_that_are_the_servers_are_refused() -> None:
    error = refusal(CHAT, chat_template_kwargs={"messages": []})
    assert error.field == "chat_template_kwargs"


# ---------------------------------------------------------------- functions


def test_functions_are_in_the_prompt_unless_none_may_be_called() -> None:
    assert "weather" in chat_text(tools=[TOOL])
    assert "weather" not in chat_text(tools=[TOOL], tool_choice="none")
    assert sampling(CHAT, tools=[TOOL]).json_schema == ""


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_is_forced_by_a_schema(choice: Any) -> None:
    schema = json.loads(sampling(CHAT, tools=[TOOL], tool_choice=choice).json_schema)
    assert schema["properties"]["name"] == {"const": "weather"}


# ---------------------------------------------------------------- errors


def test_a_workers_refusal_has_the_field_that_it_begins_with() -> None:
    for message, param in (
        ("grammar: llama.cpp cannot use it", "grammar"),
        ("prompt has no tokens", "prompt"),
        ("the context is too short", None),
    ):
        assert error_object(InvalidRequest(message))["error"]["param"] == param


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ContextTooShort("too long"), "exceed_context_size_error", "context_length_exceeded"),
        (Unauthorized("no key"), "authentication_error", "invalid_api_key"),
        (QueueFull("full"), "rate_limit_error", "queue_full"),
        (WorkerDied("dead"), "unavailable_error", "worker_died"),
        (ServingError("oh"), "server_error", "internal_error"),
    ],
)
def test_errors_have_openais_types(error: ServingError, kind: str, code: str) -> None:
    assert json.loads(DIALECT.error_body(error)) == {
        "error": {"message": error.message, "type": kind, "param": None, "code": code}
    }

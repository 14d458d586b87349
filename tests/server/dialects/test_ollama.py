"""Ollama's dialect as pure functions: bodies to calls, events to lines."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat.system_prompts import SystemPrompts
from server.dialects.ollama import DIALECT
from server.dialects.ollama.answers import shortened
from server.dialects.ollama.listing import shown_name
from server.dialects.ollama.requests import (
    CHAT,
    EMBED,
    EMBEDDINGS,
    GENERATE,
    parse_chat,
    parse_embed,
    parse_embeddings,
    parse_generate,
)
from server.generation.answer import Answer, Parse
from server.generation.task import Embedding, Generation
from server.http.fields import Form
from shared.errors import EngineFailed, InvalidRequest, QueueFull, ServingError
from shared.messages import Finished, Token
from shared.sampling import SamplingParams
from shared.validation import MAX_INTEGER
from shared.values import Candidate, Logprobs, ModelCard, Timings, Usage
from tests.helpers.support import served

PARSERS: dict[str, tuple[Parse, Form]] = {
    "generate": (parse_generate, GENERATE),
    "chat": (parse_chat, CHAT),
    "embed": (parse_embed, EMBED),
    "embeddings": (parse_embeddings, EMBEDDINGS),
}
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
FINISHED = Finished(1, "stop", Usage(7, 3, 2), Timings(0.25, 0.5))
HERMES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if tools %}{% for t in tools %}<tool_call>{{ t | tojson }}{% endfor %}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking %}<think>{% endif %}"
)
CARD = ModelCard(chat_template=HERMES, control=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
DEFAULTS = SamplingParams(temp=0.5)


def answer_of(
    parse: Parse, fields: Mapping[str, Any], system: SystemPrompts | None = None
) -> Answer:
    call = parse(json.dumps(fields).encode(), {})
    return call.answer(served(DEFAULTS, CARD, system or SystemPrompts()))


def generation(parse: Parse, **fields: Any) -> Generation:
    (task,) = answer_of(parse, fields).tasks
    assert isinstance(task, Generation)
    return task


def sampling(**options: Any) -> SamplingParams:
    return generation(parse_generate, prompt="x", raw=True, options=options).sampling


def refusal(parse: Parse, fields: Mapping[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as raised:
        answer_of(parse, fields)
    return raised.value.message


def token(text: str, position: int = 0, logprobs: Logprobs | None = None) -> Token:
    return Token(1, 65, position, text, logprobs)


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


def rendered(answer: Answer, *texts: str, end: Finished = FINISHED) -> list[dict[str, Any]]:
    """The lines of an answer with these tokens, one at a time."""
    renderer = answer.renderer
    body = renderer.begin()
    for place, text in enumerate(texts):
        body += renderer.tokens(0, [token(text, place)])
    return lines(body + renderer.finished(0, end, 0.0) + renderer.end())


def test_a_prompt_is_asked_in_the_models_chat_template() -> None:
    task = generation(parse_generate, model="tales", prompt="Hello", system="Be brief.")
    assert task.prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert task.prompt.is_whole


def test_a_raw_prompt_is_all_that_the_model_sees() -> None:
    task = generation(parse_generate, prompt="Once upon", raw=True)
    assert task.prompt.text == "Once upon"
    assert task.sampling == SamplingParams(temp=0.5, num_predict=MAX_INTEGER)


def test_the_servers_system_prompt_is_there_where_a_chat_has_none() -> None:
    system = SystemPrompts({"pirate": "Say arr."}, "Be kind.")

    def first(parse: Parse, **fields: Any) -> str:
        (task,) = answer_of(parse, fields, system).tasks
        return task.prompt.text.split("<|im_end|>")[0].removeprefix("<|im_start|>")

    assert first(parse_generate, prompt="x") == "system\nBe kind."
    assert first(parse_generate, prompt="x", system="pirate") == "system\nSay arr."
    assert first(parse_generate, prompt="x", system="") == "system\nBe kind."
    assert first(parse_chat, messages=HELLO) == "system\nBe kind."
    own = {"role": "system", "content": "My own."}
    assert first(parse_chat, messages=[own, *HELLO]) == "system\nMy own."


def test_options_have_the_names_of_ollama_and_the_servers_defaults() -> None:
    given_ = {
        "temperature": 0.25, "top_k": 5, "top_p": 0.5, "min_p": 0.125, "typical_p": 0.75,
        "repeat_penalty": 1.5, "repeat_last_n": 9, "frequency_penalty": 0.5,
        "presence_penalty": 1.5, "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.25,
        "seed": 7, "stop": ["a", "b"], "num_predict": 11, "num_batch": 12,
    }  # fmt: skip
    expected = {
        name: value
        for name, value in given_.items()
        if name not in ("temperature", "num_batch", "stop")
    }
    assert sampling(**given_) == SamplingParams(temp=0.25, n_batch=12, stop=("a", "b"), **expected)


@pytest.mark.parametrize("count", [-1, -2])
def test_without_a_count_an_answer_ends_with_the_context_at_the_latest(count: int) -> None:
    assert sampling(num_predict=count).num_predict == MAX_INTEGER


def test_minus_one_is_the_whole_context_or_a_random_seed_and_null_is_as_absent() -> None:
    assert sampling(repeat_last_n=-1).repeat_last_n == 256
    assert sampling(seed=-1).seed is None
    assert sampling(top_k=None, num_thread=None, num_ctx=256) == sampling()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_thread": 4}, "options.num_thread is not supported"),
        ({"num_gpu": 0}, "options.num_gpu is not supported"),
        ({"bogus": 1}, "options has an unknown field: 'bogus'"),
        ({"temp": 1}, "options has an unknown field: 'temp'"),
        ({"top_k": -1}, "options.top_k must be an integer from 0"),
        ({"temperature": "hot"}, "options.temperature must be a number"),
        ({"num_predict": 0}, "options.num_predict must be an integer from 1"),
        ({"num_predict": True}, "options.num_predict must be an integer from 1"),
        ({"repeat_last_n": -2}, "options.repeat_last_n must be an integer from 0"),
        ({"seed": -2}, "options.seed must be an integer from 0"),
        ({"num_batch": 0}, "options.num_batch must be an integer from 1"),
        ({"num_ctx": 257}, "options.num_ctx must be at most 256"),
        ({"num_ctx": "8"}, "options.num_ctx must be an integer from 1"),
        ({"stop": [""]}, "options.stop must be a string that is not empty"),
        ([], "options must be an object"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_named(options: Any, words: str) -> None:
    assert words in refusal(parse_generate, {"prompt": "x", "options": options})
    assert words in refusal(parse_chat, {"messages": HELLO, "options": options})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": 1}, "prompt must be a string"),
        ({"prompt": "a\0"}, "prompt must not contain the character U+0000"),
        ({"template": "{{ .Prompt }}"}, "template is not supported"),
        ({"suffix": "end"}, "suffix is not supported"),
        ({"images": ["aGk="]}, "images is not supported"),
        ({"context": [1, 2]}, "context is not supported"),
        ({"shift": True}, "shift is not supported"),
        ({"truncate": True}, "truncate is not supported"),
        ({"width": 3}, "unknown field: 'width'"),
        ({"bogus": None}, "unknown field: 'bogus'"),
        ({"raw": 1}, "raw must be true or false"),
        ({"raw": True, "system": "Be brief."}, "raw: system and think need the chat template"),
        ({"raw": True, "think": True}, "raw: system and think need the chat template"),
        ({"stream": "no"}, "stream must be true or false"),
        ({"format": "yaml"}, "format must be"),
        ({"format": {"title": "x" * 70_000}}, "format: a schema must have at most"),
        ({"think": "hard"}, "think must be true, false, or one of low, medium, high"),
        ({"keep_alive": "5 minutes"}, "keep_alive must be a number of seconds"),
        ({"keep_alive": True}, "keep_alive must be a number"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be an integer from 0 to 20"),
        ({"model": ""}, "model must be a string that is not empty"),
    ],
)
def test_a_field_of_generate_that_is_wrong_is_named(fields: dict[str, Any], words: str) -> None:
    assert words in refusal(parse_generate, {"prompt": "x", **fields})


def test_what_is_empty_asks_for_nothing() -> None:
    empty = {"template": "", "suffix": "", "images": [], "context": [], "format": "", "system": ""}
    empty |= {"truncate": False, "shift": False}
    task = generation(parse_generate, prompt="x", **empty, think=None, options={}, keep_alive=0)
    assert task == generation(parse_generate, prompt="x")


@pytest.mark.parametrize("value", [0, -1, 3.5, "0", "5m", "1h30m", "-1s", "1.5h", "300ms"])
def test_any_duration_may_be_said_for_keep_alive(value: Any) -> None:
    assert generation(parse_generate, prompt="x", keep_alive=value)


def test_a_format_is_a_schema_for_the_answer() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    task = generation(parse_generate, prompt="x", format=schema)
    assert json.loads(task.sampling.json_schema) == schema
    task = generation(parse_chat, messages=HELLO, format="json")
    assert json.loads(task.sampling.json_schema) == {"type": "object"}


def test_thinking_is_the_templates_matter() -> None:
    thinking = generation(parse_generate, prompt="x", think=True)
    assert thinking.prompt.text.endswith("<think>")
    assert generation(parse_chat, messages=HELLO, think="high").prompt.text.endswith("<think>")
    assert not generation(parse_chat, messages=HELLO, think=False).prompt.text.endswith("<think>")


def test_an_assistants_message_at_the_end_is_continued() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hi, I"}]
    assert generation(parse_chat, messages=messages).prompt.text.endswith("assistant\nHi, I")


def test_calls_and_their_results_go_to_the_template() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call], "thinking": "Hm."},
        {"role": "tool", "content": "sunny", "tool_name": "weather"},
    ]
    task = generation(parse_chat, messages=messages, tools=[WEATHER])
    assert '<think>Hm.</think>{"name": "weather", "arguments": {"city": "Paris"}}' in (
        task.prompt.text
    )
    assert "<|im_start|>tool\nsunny<|im_end|>" in task.prompt.text
    assert '<tool_call>{"type": "function", "function": {"name": "weather"' in task.prompt.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": ["hi"]}, "messages[0] must be an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role must be one of"),
        ({"messages": [{"role": "user", "mood": 1}]}, "messages[0] has an unknown field: 'mood'"),
        ({"messages": [{"role": "user", "images": ["a"]}]}, "messages[0].images is not supported"),
        ({"messages": HELLO, "tools": {}}, "tools must be a list"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools[0].function"),
        ({"messages": HELLO, "prompt": "x"}, "unknown field: 'prompt'"),
    ],
)
def test_a_field_of_chat_that_is_wrong_is_named(fields: dict[str, Any], words: str) -> None:
    assert words in refusal(parse_chat, fields)


def test_an_answer_is_a_line_a_token_unless_it_is_asked_for_at_once() -> None:
    first, second, last = rendered(answer_of(parse_generate, {"prompt": "x"}), "Hi", "", " you")
    assert (first["response"], first["done"]) == ("Hi", False)
    assert (second["response"], second["done"]) == (" you", False)
    assert (last["response"], last["done"], last["done_reason"]) == ("", True, "stop")
    assert first["model"] == last["model"] == "tales"
    assert first["created_at"].endswith("Z")
    (whole,) = rendered(answer_of(parse_generate, {"prompt": "x", "stream": False}), "Hi", " you")
    assert whole["response"] == "Hi you"
    assert whole["done"] is True


def test_the_last_line_has_counts_and_nanoseconds() -> None:
    (last,) = rendered(answer_of(parse_chat, {"messages": HELLO}))
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["prompt_eval_count"] == 7
    assert last["prompt_eval_duration"] == 250_000_000
    assert last["eval_count"] == 2
    assert last["eval_duration"] == 500_000_000
    assert last["total_duration"] >= last["load_duration"] >= 0


def test_media_types_are_those_that_clients_expect() -> None:
    stream = answer_of(parse_chat, {"messages": HELLO}).renderer
    assert (stream.media_type, stream.is_stream) == ("application/x-ndjson", True)
    whole = answer_of(parse_chat, {"messages": HELLO, "stream": False}).renderer
    assert (whole.media_type, whole.is_stream) == ("application/json", False)


@pytest.mark.parametrize(
    ("parse", "fields", "key"),
    [
        (parse_generate, {}, "response"),
        (parse_generate, {"prompt": ""}, "response"),
        (parse_chat, {"messages": []}, "message"),
        (parse_chat, {"stream": False}, "message"),
    ],
)
def test_an_empty_prompt_loads_the_model(parse: Parse, fields: dict[str, Any], key: str) -> None:
    answer = answer_of(parse, fields)
    assert answer.tasks == ()
    (line,) = lines(answer.renderer.begin() + answer.renderer.end())
    assert (line["done"], line["done_reason"]) == (True, "load")
    assert line[key] in ("", {"role": "assistant", "content": ""})


def test_a_call_leaves_whole_with_its_arguments_as_an_object() -> None:
    answer = answer_of(parse_chat, {"messages": HELLO, "tools": [WEATHER]})
    text = 'Let me see. <tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
    *parts, last = rendered(answer, *text)
    calls = [call for part in parts for call in part["message"].get("tool_calls", [])]
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": {"city": "Köln"}}
    ]
    assert "".join(part["message"]["content"] for part in parts).strip() == "Let me see."
    assert last["done_reason"] == "stop"


@pytest.mark.parametrize(
    "call",
    ['{"name": "weather", "arguments": {"city": "Kö', '{"name": "weather", "arguments": {x: 1}}'],
)
def test_a_call_that_is_cut_or_no_json_stays_a_text(call: str) -> None:
    fields = {"messages": HELLO, "tools": [WEATHER], "stream": False}
    (whole,) = rendered(answer_of(parse_chat, fields), *f"<tool_call>{call}")
    assert "tool_calls" not in whole["message"]
    assert whole["message"]["content"].startswith(call.removesuffix("}"))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_thoughts_are_told_from_the_answer(size: int) -> None:
    """This template begins the thoughts in the prompt, but the model may do it."""
    for begin in ("", "\n <think>"):
        fields = {"messages": HELLO, "think": True, "tools": [WEATHER], "stream": False}
        card = CARD if not begin else ModelCard(chat_template=HERMES.replace("<think>{% e", "{% e"))
        answer = parse_chat(json.dumps(fields).encode(), {}).answer(served(card=card))
        call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
        text = f"{begin}Is 1 < 2 </thin, I think?</think>\n\nYes.{call}"
        (whole,) = rendered(answer, *(text[i : i + size] for i in range(0, len(text), size)))
        assert whole["message"]["thinking"] == "Is 1 < 2 </thin, I think?"
        assert whole["message"]["content"] == "Yes."
        assert whole["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_an_answer_without_thoughts_or_with_nothing_else_is_whole() -> None:
    plain = ModelCard(chat_template=HERMES.replace("<think>{% e", "{% e"))

    def whole(*texts: str, card: ModelCard = plain) -> dict[str, Any]:
        body = json.dumps({"prompt": "x", "think": True, "stream": False}).encode()
        (line,) = rendered(parse_generate(body, {}).answer(served(card=card)), *texts)
        return {name: line[name] for name in ("response", "thinking") if name in line}

    assert whole(" ", "<th", "ree") == {"response": " <three"}
    assert whole(" ", "<thi") == {"response": " <thi"}
    assert whole("a ", "<think>b") == {"response": "a <think>b"}
    assert whole("Hm", "</thi", card=CARD) == {"response": "", "thinking": "Hm</thi"}
    body = json.dumps({"prompt": "x", "stream": False}).encode()
    (line,) = rendered(parse_generate(body, {}).answer(served(card=plain)), "<think>a</think>b")
    assert line["response"] == "<think>a</think>b"


def test_tools_show_control_tokens_where_calls_are_written_with_them() -> None:
    assert not generation(parse_chat, messages=HELLO, tools=[WEATHER], think=True).shows_control
    card = ModelCard(chat_template=HERMES, control=("<tool_call>", "<|im_end|>"))
    body = json.dumps({"messages": HELLO, "tools": [WEATHER]}).encode()
    (task,) = parse_chat(body, {}).answer(served(card=card)).tasks
    assert isinstance(task, Generation)
    assert task.shows_control


def test_thinking_shows_control_tokens_where_thoughts_are_between_them() -> None:
    card = ModelCard(chat_template=HERMES, control=("<think>", "</think>"))
    for think in (True, False):
        body = json.dumps({"messages": HELLO, "think": think}).encode()
        (task,) = parse_chat(body, {}).answer(served(card=card)).tasks
        assert isinstance(task, Generation)
        assert task.shows_control is think


def test_log_probabilities_are_numbers_with_their_candidates() -> None:
    fields = {"prompt": "x", "logprobs": True, "top_logprobs": 2}
    answer = answer_of(parse_generate, fields)
    (task,) = answer.tasks
    assert isinstance(task, Generation)
    assert task.sampling.logprobs == 2
    top = (Candidate(65, b"A", -0.5), Candidate(195, b"\xc3", float("-inf")))
    (line,) = lines(answer.renderer.tokens(0, [token("A", 0, Logprobs(-0.5, top))]))
    assert line["logprobs"] == [
        {
            "token": "A",
            "bytes": [65],
            "logprob": -0.5,
            "top_logprobs": [
                {"token": "A", "bytes": [65], "logprob": -0.5},
                {"token": "\ufffd", "bytes": [195], "logprob": -9999.0},
            ],
        }
    ]


def test_a_failure_is_an_error_line_in_a_stream() -> None:
    renderer = answer_of(parse_generate, {"prompt": "x"}).renderer
    failed = renderer.failed(EngineFailed("out of luck"))
    assert failed == b'{"error":"out of luck"}\n'
    assert DIALECT.error_body(QueueFull("full")) == b'{"error":"full"}\n'
    assert DIALECT.statuses == {429: 503}


def vector(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def test_embeddings_are_in_the_order_of_their_texts() -> None:
    answer = answer_of(parse_embed, {"input": ["one", "two"], "truncate": True})
    texts = [task.prompt.text for task in answer.tasks if isinstance(task, Embedding)]
    assert texts == ["one", "two"]
    renderer = answer.renderer
    assert not renderer.is_stream
    body = renderer.begin()
    for index, values in ((1, (0.0, 1.0)), (0, (1.0, 0.0))):
        body += renderer.embedded(index, vector(*values))
        body += renderer.finished(index, FINISHED, 0.0)
    (line,) = lines(body + renderer.end())
    assert line["embeddings"] == [[1.0, 0.0], [0.0, 1.0]]
    assert (line["model"], line["prompt_eval_count"]) == ("tales", 14)


def test_dimensions_shorten_a_vector_to_one_of_length_one() -> None:
    renderer = answer_of(parse_embed, {"input": "one", "dimensions": 2}).renderer
    renderer.embedded(0, vector(0.375, 0.5, 0.75))
    (line,) = lines(renderer.end())
    assert line["embeddings"] == [pytest.approx([0.6, 0.8])]
    assert shortened([0.0, 0.0, 1.0], 2) == [0.0, 0.0]
    assert shortened([0.6, 0.8], 2) == [0.6, 0.8]


def test_the_older_endpoint_gives_one_vector() -> None:
    renderer = answer_of(parse_embeddings, {"prompt": "one"}).renderer
    renderer.embedded(0, vector(0.5, 0.25))
    assert lines(renderer.end()) == [{"embedding": [0.5, 0.25]}]
    empty = answer_of(parse_embeddings, {})
    assert empty.tasks == ()
    assert lines(empty.renderer.end()) == [{"embedding": []}]


@pytest.mark.parametrize("value", ["", []])
def test_no_input_has_no_embeddings(value: Any) -> None:
    answer = answer_of(parse_embed, {"input": value})
    assert answer.tasks == ()
    assert lines(answer.renderer.end())[0]["embeddings"] == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": 3}, "input must be a string or a list of strings"),
        ({"input": ["a", ""]}, "input[1] must be a string that is not empty"),
        ({"input": "a", "dimensions": 0}, "dimensions must be an integer from 1"),
        ({"input": "a", "truncate": 1}, "truncate must be true or false"),
        ({"input": "a", "options": {"seed": 1}}, "options has an unknown field: 'seed'"),
        ({"input": "a", "options": {"num_ctx": 999}}, "options.num_ctx must be at most 256"),
        ({"input": "a", "prompt": "b"}, "unknown field: 'prompt'"),
    ],
)
def test_a_field_of_embed_that_is_wrong_is_named(fields: dict[str, Any], words: str) -> None:
    assert words in refusal(parse_embed, fields)


def test_show_takes_the_name_by_both_its_names() -> None:
    assert shown_name(b'{"model": "tales"}') == "tales"
    assert shown_name(b'{"name": "tales", "verbose": true}') == "tales"
    whole = b'{"model": "tales", "name": "", "system": "", "template": "", "options": null}'
    assert shown_name(whole) == "tales"
    wrong = ("{}", '{"model": 3}', '{"model": ""}', '{"model": "a", "options": {"b": 1}}')
    for body in (*wrong, '{"model": "a", "verbose": 1}', '{"x": 1}'):
        with pytest.raises(InvalidRequest):
            shown_name(body.encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
LIKELY = st.sampled_from(
    [HELLO, [WEATHER], "json", True, -1, 0.5, "x", ["x"], {"seed": 3}, {"num_ctx": 4}, "5m", [], ""]
)


@pytest.mark.parametrize("name", PARSERS)
def test_any_json_is_an_answer_or_an_error(name: str) -> None:
    parse, known = PARSERS[name]

    @given(st.dictionaries(st.sampled_from(sorted(known.checks)), LIKELY | JSON) | JSON)
    def check(body: Any) -> None:
        answer_or_error(lambda: parse(json.dumps(body).encode(), {}).answer(served(card=CARD)))

    check()


def answer_or_error(make: Callable[[], Answer]) -> None:
    try:
        answer = make()
    except ServingError as error:
        assert error.status == 400
        assert json.loads(DIALECT.error_body(error)) == {"error": error.message}
        return
    answer.renderer.begin()
    answer.renderer.tokens(0, [token("x")])
    answer.renderer.finished(0, FINISHED, 0.0)
    answer.renderer.end()

"""OpenAI's answers: the chunks of a stream in their order, the whole objects, and what counts."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.generation.answer import Answer
from shared.errors import WorkerDied
from shared.messages import Finished, Token
from shared.values import Candidate, FinishReason, Logprobs, Timings, Usage
from tests.helpers.openai_calls import CHAT, COMPLETIONS, EMBEDDINGS, TOOL, answer

Json = dict[str, Any]


def token(text: str, logprob: float | None = None, *top: tuple[bytes, float]) -> Token:
    candidates = tuple(Candidate(place, piece, value) for place, (piece, value) in enumerate(top))
    return Token(0, 1, 0, text, None if logprob is None else Logprobs(logprob, candidates))


def ended(
    reason: FinishReason = "stop", prompt: int = 5, cached: int = 0, completion: int = 2
) -> Finished:
    return Finished(0, reason, Usage(prompt, cached, completion), Timings(0.25, 1.5))


def rendered(given: Answer, *events: tuple[int, Token | Finished]) -> bytes:
    """The answer's bytes; each event has the place of its task.

    The beginning is asked for when there is something to send after it, as the relay does.
    """
    renderer = given.renderer
    body = b""
    for index, event in events:
        if isinstance(event, Finished):
            body += renderer.finished(index, event, 0.125)
        else:
            body += renderer.tokens(index, [event])
    return renderer.begin() + body + renderer.end()


def chunks(body: bytes) -> list[Json]:
    *events, done, rest = body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: {") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def choices(body: bytes) -> list[Json]:
    return [choice for chunk in chunks(body) for choice in chunk["choices"]]


HELLO = ((0, token("He")), (0, token("llo")), (0, ended()))
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 0},
}
TIMINGS = {"queued_ms": 125.0, "prefill_ms": 250.0, "decode_ms": 1500.0}

# ---------------------------------------------------------------- chats


def test_a_chats_chunks_have_openais_order() -> None:
    body = rendered(answer(CHAT, stream=True), *HELLO)
    assert [(choice["delta"], choice["finish_reason"]) for choice in choices(body)] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "He"}, None),
        ({"content": "llo"}, None),
        ({}, "stop"),
    ]
    (head,) = {(c["id"], c["created"], c["object"], c["model"]) for c in chunks(body)}
    assert head[0].startswith("chatcmpl-")
    assert head[2:] == ("chat.completion.chunk", "tales")
    assert all("usage" not in chunk for chunk in chunks(body))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_counts_come_in_a_chunk_of_their_own_and_are_null_before(path: str) -> None:
    given = answer(path, stream=True, stream_options={"include_usage": True})
    *others, last = chunks(rendered(given, *HELLO))
    assert all(chunk["usage"] is None for chunk in others)
    assert (last["choices"], last["usage"], last["timings"]) == ([], USAGE, TIMINGS)


def test_a_whole_chat_is_one_object() -> None:
    whole = json.loads(rendered(answer(CHAT), *HELLO))
    assert whole["object"] == "chat.completion"
    assert whole["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert (whole["usage"], whole["timings"]) == (USAGE, TIMINGS)


def test_indices_first_appear_in_their_order() -> None:
    for path in (CHAT, COMPLETIONS):
        events = (2, token("c")), (2, ended()), (1, token("b")), (1, ended()), (0, ended())
        body = rendered(answer(path, stream=True, n=3), *events)
        seen = dict.fromkeys(choice["index"] for choice in choices(body))
        assert list(seen) == [0, 1, 2]


def test_of_several_choices_the_prompt_counts_once() -> None:
    given = answer(COMPLETIONS, prompt=["x", "y"], n=2)
    ends = [(0, ended(cached=2)), (1, ended(cached=4)), (2, ended(prompt=7)), (3, ended(prompt=7))]
    assert json.loads(rendered(given, *ends))["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 8,
        "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_a_failure_in_mid_stream_is_an_event_with_an_error() -> None:
    body = answer(CHAT, stream=True).renderer.failed(WorkerDied("it died"))
    assert body is not None
    assert json.loads(body.removeprefix(b"data: "))["error"]["code"] == "worker_died"
    assert body.endswith(b"\n\n")


# ---------------------------------------------------------------- log probabilities

LIKELY = (
    (0, token(" a", -0.5, (b" a", -0.5), (b" the", -2.0))),
    (0, token("", -1.0, (b"\xc3", -1.0), (b"\xff", -math.inf))),
    (0, token("é", -1.5, (b"\xa9", -1.5))),
    (0, ended()),
)


def test_a_chats_log_probabilities_have_bytes_that_are_the_text() -> None:
    whole = json.loads(rendered(answer(CHAT, logprobs=True, top_logprobs=2), *LIKELY))
    content = whole["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == " aé"
    assert [entry["logprob"] for entry in content] == [-0.5, -1.0, -1.5]
    assert content[0]["top_logprobs"] == [
        {"token": " a", "logprob": -0.5, "bytes": [32, 97]},
        {"token": " the", "logprob": -2.0, "bytes": [32, 116, 104, 101]},
    ]
    assert content[1]["top_logprobs"][1] == {"token": "�", "logprob": -9999.0, "bytes": [255]}


def test_a_streams_log_probabilities_are_those_of_the_whole() -> None:
    fields = {"logprobs": True, "top_logprobs": 2}
    whole = json.loads(rendered(answer(CHAT, **fields), *LIKELY))["choices"][0]["logprobs"]
    pieces = choices(rendered(answer(CHAT, stream=True, **fields), *LIKELY))
    streamed = [c["logprobs"]["content"] for c in pieces if c["logprobs"] is not None]
    assert [entry for entries in streamed for entry in entries] == whole["content"]


def test_legacy_log_probabilities_are_lists_side_by_side() -> None:
    (choice,) = json.loads(rendered(answer(COMPLETIONS, logprobs=2), *LIKELY))["choices"]
    assert choice["logprobs"] == {
        "tokens": [" a", "", "é"],
        "token_logprobs": [-0.5, -1.0, -1.5],
        "top_logprobs": [{" a": -0.5, " the": -2.0}, {"�": -1.0}, {"�": -1.5}],
        "text_offset": [0, 2, 2],
    }
    pieces = choices(rendered(answer(COMPLETIONS, logprobs=2, stream=True), *LIKELY))
    lists = [choice["logprobs"] for choice in pieces if choice["logprobs"]]
    for name, values in choice["logprobs"].items():
        assert [value for each in lists for value in each[name]] == values


# ---------------------------------------------------------------- completions


def test_a_completions_chunks_and_whole_are_of_one_kind() -> None:
    body = rendered(answer(COMPLETIONS, stream=True), *HELLO)
    assert {chunk["object"] for chunk in chunks(body)} == {"text_completion"}
    assert [(c["text"], c["finish_reason"]) for c in choices(body)] == [
        ("", None),
        ("He", None),
        ("llo", None),
        ("", "stop"),
    ]
    whole = json.loads(rendered(answer(COMPLETIONS), *HELLO))
    assert whole["object"] == "text_completion"
    assert whole["choices"] == [
        {"text": "Hello", "index": 0, "logprobs": None, "finish_reason": "stop"}
    ]


def test_echo_puts_the_prompt_before_the_text() -> None:
    (choice,) = json.loads(rendered(answer(COMPLETIONS, prompt="Oh! ", echo=True), *HELLO))[
        "choices"
    ]
    assert choice["text"] == "Oh! Hello"
    streamed = choices(rendered(answer(COMPLETIONS, prompt="Oh! ", echo=True, stream=True), *HELLO))
    assert "".join(piece["text"] for piece in streamed) == "Oh! Hello"


def test_best_of_shows_the_likeliest_in_their_order() -> None:
    given = answer(COMPLETIONS, prompt=["x", "y"], best_of=3, n=2)
    likelihoods = [-3.0, -1.0, -2.0, -1.0, -2.0, -0.5]
    events = [
        (index, event)
        for index, value in enumerate(likelihoods)
        for event in (token(str(index), value), token(".", value), ended())
    ]
    shown = json.loads(rendered(given, *events))
    assert [(c["index"], c["text"], c["logprobs"]) for c in shown["choices"]] == [
        (0, "1.", None),
        (1, "2.", None),
        (2, "5.", None),
        (3, "3.", None),
    ]
    assert shown["usage"]["completion_tokens"] == 12


@given(st.lists(st.text(max_size=4), max_size=6), st.sampled_from([CHAT, COMPLETIONS]))
def test_any_texts_come_out_as_they_went_in(texts: list[str], path: str) -> None:
    texts = [text.encode(errors="replace").decode() for text in texts]
    events = [*((0, token(text)) for text in texts), (0, ended())]
    pieces = choices(rendered(answer(path, stream=True), *events))
    assert "".join(c.get("text") or c.get("delta", {}).get("content", "") for c in pieces) == (
        "".join(texts)
    )
    (choice,) = json.loads(rendered(answer(path), *events))["choices"]
    assert choice.get("text", choice.get("message", {}).get("content")) == "".join(texts)


# ---------------------------------------------------------------- functions

CALLS = (
    (0, token("Look: <tool_call>")),
    (0, token('{"name": "weather", "arguments": {"city": "Par')),
    (0, token('is"}}</tool_call><tool_call>{"name": "weather", "arguments": {}}')),
    (0, token("</tool_call>")),
    (0, ended()),
)


def test_calls_are_deltas_whose_arguments_come_in_pieces() -> None:
    pieces = choices(rendered(answer(CHAT, tools=[TOOL], stream=True), *CALLS))
    deltas = [call for piece in pieces for call in piece["delta"].get("tool_calls", ())]
    starts = [delta for delta in deltas if "id" in delta]
    assert [(s["index"], s["type"], s["function"]["name"]) for s in starts] == [
        (0, "function", "weather"),
        (1, "function", "weather"),
    ]
    first = [d["function"]["arguments"] for d in deltas if d["index"] == 0]
    assert "".join(first) == '{"city": "Paris"}'
    assert len(first) > 2
    assert pieces[-1]["finish_reason"] == "tool_calls"


def test_calls_of_a_whole_answer_are_in_its_message() -> None:
    (choice,) = json.loads(rendered(answer(CHAT, tools=[TOOL]), *CALLS))["choices"]
    calls = choice["message"]["tool_calls"]
    assert choice["message"]["content"] == "Look: "
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city": "Paris"}'},
        {"name": "weather", "arguments": "{}"},
    ]
    assert calls[0]["id"] != calls[1]["id"]
    assert choice["finish_reason"] == "tool_calls"


def test_without_parallel_calls_there_is_one() -> None:
    given = answer(CHAT, tools=[TOOL], parallel_tool_calls=False)
    (choice,) = json.loads(rendered(given, *CALLS))["choices"]
    assert len(choice["message"]["tool_calls"]) == 1


def test_a_forced_call_is_read_without_marks() -> None:
    given = answer(CHAT, tools=[TOOL], tool_choice="required")
    event = token('{"name": "weather", "parameters": {"city": "Rome"}}')
    (choice,) = json.loads(rendered(given, (0, event), (0, ended())))["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'


def test_a_call_that_is_cut_ends_with_length() -> None:
    events = (*CALLS[:2], (0, ended("length")))
    (choice,) = json.loads(rendered(answer(CHAT, tools=[TOOL]), *events))["choices"]
    assert choice["finish_reason"] == "length"


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_vectors_are_lists_or_packed_floats(form: str | None) -> None:
    renderer = answer(EMBEDDINGS, input=["x", "y"], encoding_format=form).renderer
    vectors = [struct.pack("<2f", 0.5, -1.25), struct.pack("<2f", 1.0, 0.0)]
    body = renderer.begin()
    for index in (1, 0):
        body += renderer.embedded(index, vectors[index])
        body += renderer.finished(index, ended(prompt=3), 0.0)
    result = json.loads(body + renderer.end())
    assert result["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert [entry["index"] for entry in result["data"]] == [0, 1]
    values = [entry["embedding"] for entry in result["data"]]
    if form == "base64":
        assert [base64.b64decode(value) for value in values] == vectors
    else:
        assert values == [[0.5, -1.25], [1.0, 0.0]]

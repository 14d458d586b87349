"""POST /stream: a token a line that can be undone, NDJSON, and every field's refusal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from server.dialects import DIALECTS
from server.dialects.newline import (
    DIALECT,
    NDJSON,
    NdjsonRenderer,
    PlainTextRenderer,
    escape,
    parse_stream,
    renderer_for,
)
from server.generation.answer import Renderer
from server.generation.task import Generation
from server.http.error_response import error_body
from shared.errors import EngineFailed, InvalidRequest, QueueFull
from shared.messages import Finished, Token
from shared.sampling import SamplingParams
from shared.values import Candidate, Logprobs, Timings, Usage
from tests.helpers.support import served

DEFAULTS = SamplingParams()

AWKWARD = st.text(st.sampled_from("\\\n\rnr é🙂\u2028\u2029\x85\v\f\x1c\x1d\x1e\0"), max_size=12)
TEXTS = st.text(max_size=12) | AWKWARD
TOKENS = st.lists(
    st.builds(
        Token,
        request=st.just(1),
        id=st.integers(0, 2**31),
        position=st.integers(0, 2**31),
        text=TEXTS,
        logprobs=st.none(),
    ),
    max_size=5,
)


def unescape(line: str) -> str:
    """What a client does with a line."""
    return re.sub(r"\\(u[0-9a-f]{4}|.)", lambda match: str(json.loads(f'"{match[0]}"')), line)


def lines_of(body: bytes) -> list[str]:
    """The lines, each of which must have its end."""
    *lines, rest = body.decode().split("\n")
    assert rest == ""
    return lines


class Made(NamedTuple):
    """What became of a body."""

    prompt: str
    sampling: SamplingParams
    cache: int
    renderer: Renderer
    model: str | None


def call(fields: Mapping[str, Any], defaults: SamplingParams = DEFAULTS, accept: str = "") -> Made:
    headers = Headers({"accept": accept} if accept else {})
    made = parse_stream(json.dumps(fields).encode(), headers)
    answer = made.answer(served(defaults))
    (task,) = answer.tasks
    assert isinstance(task, Generation)
    return Made(task.prompt.text, task.sampling, task.prompt_id, answer.renderer, made.model)


def call_or_error(fields: Mapping[str, Any]) -> Made | InvalidRequest:
    try:
        return call(fields)
    except InvalidRequest as error:
        return error


def refusal(body: bytes | Mapping[str, Any]) -> str:
    """The sentence with which the body is refused."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InvalidRequest) as caught:
        parse_stream(data, Headers({}))
    return caught.value.message


# ---------------------------------------------------------------- plain text


@given(TEXTS)
@settings(max_examples=200)
def test_any_text_stays_on_its_line_and_can_be_unescaped(text: str) -> None:
    line = escape(text)

    assert len(f"{line}.".splitlines()) == 1
    assert unescape(line) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" upon", " upon"),
        ("", ""),
        ("\n", "\\n"),
        ("\r\n", "\\r\\n"),
        ("\\", "\\\\"),
        ("\\n", "\\\\n"),
        ("a\\\nb", "a\\\\\\nb"),
        ("\t é🙂", "\t é🙂"),
        ("a\u2028b\x85\f", "a\\u2028b\\u0085\\u000c"),
        ("\\u2028", "\\\\u2028"),
    ],
)
def test_only_what_would_break_a_line_is_escaped(text: str, line: str) -> None:
    assert escape(text) == line


@given(TOKENS)
def test_plain_text_has_a_line_for_every_token_also_for_an_empty_one(tokens: list[Token]) -> None:
    lines = lines_of(PlainTextRenderer().tokens(0, tokens))

    assert [unescape(line) for line in lines] == [token.text for token in tokens]


def test_plain_text_says_nothing_at_the_end_and_can_only_be_cut() -> None:
    renderer = PlainTextRenderer()

    assert renderer.media_type == "text/plain; charset=utf-8"
    assert renderer.finished(0, finished(), 0.0) == b""
    assert renderer.failed(EngineFailed("no")) is None


# ---------------------------------------------------------------- NDJSON


def finished(reason: Any = "stop") -> Finished:
    return Finished(1, reason, Usage(7, 2, 3), Timings(0.25, 1.5))


@given(TOKENS)
def test_ndjson_has_an_object_a_line_for_every_token(tokens: list[Token]) -> None:
    lines = lines_of(NdjsonRenderer().tokens(0, tokens))

    assert [json.loads(line) for line in lines] == [
        {"token": token.text, "index": token.position, "id": token.id} for token in tokens
    ]


def test_a_token_looks_as_documented() -> None:
    body = NdjsonRenderer().tokens(0, [Token(9, 2501, 1, " upon"), Token(9, 5, 2, "é\n")])

    assert body.decode() == (
        '{"token":" upon","index":1,"id":2501}\n{"token":"é\\n","index":2,"id":5}\n'
    )


def test_a_token_with_log_probabilities_shows_them() -> None:
    top = (Candidate(7, b" a", -0.5), Candidate(8, b"\xc3", -math.inf))
    body = NdjsonRenderer().tokens(0, [Token(9, 7, 0, " a", Logprobs(-0.5, top))])
    assert json.loads(body) == {
        "token": " a",
        "index": 0,
        "id": 7,
        "logprob": -0.5,
        "top_logprobs": [
            {"id": 7, "token": " a", "bytes": [32, 97], "logprob": -0.5},
            {"id": 8, "token": "\ufffd", "bytes": [0xC3], "logprob": None},
        ],
    }


@given(
    st.floats(max_value=0),
    st.lists(st.builds(Candidate, st.integers(0, 2**31), st.binary(max_size=6), st.floats())),
)
def test_whatever_the_log_probabilities_the_line_is_json_and_has_every_candidates_bytes(
    logprob: float, top: list[Candidate]
) -> None:
    token = Token(9, 7, 0, " a", Logprobs(logprob, tuple(top)))

    (line,) = lines_of(NdjsonRenderer().tokens(0, [token]))

    made = json.loads(line, parse_constant=pytest.fail)  # Infinity and NaN are no JSON
    assert made["logprob"] == (logprob if math.isfinite(logprob) else None)
    assert [bytes(candidate["bytes"]) for candidate in made["top_logprobs"]] == [
        candidate.piece for candidate in top
    ]


def test_plain_text_cannot_show_log_probabilities_and_says_so() -> None:
    with pytest.raises(InvalidRequest, match=r"logprobs: .* `Accept: application/x-ndjson`"):
        call({"prompt": "x", "logprobs": 0})
    assert call({"prompt": "x", "logprobs": 0}, accept=NDJSON).sampling.logprobs == 0


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_the_last_line_says_how_it_ended_and_what_it_took(reason: str) -> None:
    (line,) = lines_of(NdjsonRenderer().finished(0, finished(reason), 0.0125))

    assert json.loads(line) == {
        "done": True,
        "finish_reason": reason,
        "usage": {"prompt_tokens": 7, "cached_tokens": 2, "completion_tokens": 3},
        "timings": {"queued_ms": 12.5, "prefill_ms": 250.0, "decode_ms": 1500.0},
    }


def test_a_failure_is_a_last_line_with_its_code_and_message() -> None:
    body = NdjsonRenderer().failed(EngineFailed("the model failed: \n «no»"))

    assert body is not None
    (line,) = lines_of(body)
    assert json.loads(line) == {
        "error": {"code": "engine_failed", "message": "the model failed: \n «no»"}
    }


def test_an_error_before_the_first_byte_has_the_same_shape() -> None:
    (line,) = lines_of(DIALECT.error_body(QueueFull("64 requests wait")))

    assert json.loads(line) == {"error": {"code": "queue_full", "message": "64 requests wait"}}


# ---------------------------------------------------------------- Accept


@pytest.mark.parametrize(
    "accept",
    [
        "application/x-ndjson",
        "Application/X-NDJSON",
        "application/x-ndjson; charset=utf-8",
        "text/html, application/x-ndjson;q=0.9, */*;q=0.1",
        "text/plain,application/x-ndjson",
        " application/x-ndjson ",
    ],
)
def test_a_client_that_names_ndjson_gets_it(accept: str) -> None:
    renderer = call({"prompt": "x"}, accept=accept).renderer

    assert type(renderer) is NdjsonRenderer
    assert renderer.media_type == "application/x-ndjson"


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain",
        "application/json",
        "application/*",
        "application/x-ndjsonx",
        ",;,",
        "x",
    ],
)
def test_every_other_client_gets_plain_text(accept: str) -> None:
    assert type(call({"prompt": "x"}, accept=accept).renderer) is PlainTextRenderer
    assert type(renderer_for(accept)) is PlainTextRenderer


# ---------------------------------------------------------------- fields


def test_only_the_prompt_is_required() -> None:
    made = call({"prompt": "Once upon"})

    assert (made.prompt, made.sampling) == ("Once upon", DEFAULTS)


def test_every_documented_field_is_taken_in_place_of_the_servers_default() -> None:
    defaults = SamplingParams(temp=0.1, top_k=3, repeat_last_n=5)

    made = call(
        {
            "prompt": "x",
            "num_predict": 5,
            "n_batch": 4,
            "top_k": 0,
            "top_p": 0.5,
            "repeat_penalty": 1.1,
            "temperature": 0,
            "cache": 0,
            "seed": 2**64 - 1,
            "stop": "end",
            "ignore_eos": True,
        },
        defaults,
    )

    assert made.sampling == SamplingParams(
        num_predict=5,
        n_batch=4,
        top_k=0,
        top_p=0.5,
        temp=0.0,
        repeat_penalty=1.1,
        repeat_last_n=5,
        seed=2**64 - 1,
        ignore_eos=True,
        stop=("end",),
    )


@pytest.mark.parametrize("fields", [{}, {"num_predict": 5}, {"Prompt": "x"}, {"query": "x"}])
def test_a_missing_prompt_is_said_to_be_missing(fields: dict[str, Any]) -> None:
    assert refusal(fields) == "prompt is missing"


@pytest.mark.parametrize(
    "prompt", ["", None, 5, True, ["x"], {}, "a\0b", "\ud800", "x\udfff🙂"], ids=ascii
)
def test_a_prompt_that_no_engine_could_take_is_refused(prompt: Any) -> None:
    assert refusal({"prompt": prompt}).startswith("prompt must ")


def test_the_prompt_arrives_as_it_is() -> None:
    assert call({"prompt": " é語🙂\n\\ \ufeff"}).prompt == " é語🙂\n\\ \ufeff"


@pytest.mark.parametrize(
    "name", ["max_tokens", "models", "temp ", "mirostat_mu", "\ud800"], ids=ascii
)
def test_an_unknown_field_is_refused_by_its_name(name: str) -> None:
    assert refusal({"prompt": "x", name: 1}) == f"unknown field: {name!r}"


@pytest.mark.parametrize(
    ("name", "low"),
    [
        ("num_predict", "1"),
        ("n_batch", "1"),
        ("top_k", "0"),
        ("top_p", "> 0"),
        ("temp", "≥ 0"),
        ("repeat_penalty", "> 0"),
        ("repeat_last_n", "0"),
        ("seed", "0"),
    ],
)
@pytest.mark.parametrize("value", ["true", "1e999", "-1", "-1e999", '"1"', "[1]", "1" + "0" * 99])
def test_a_bad_number_is_refused_by_its_fields_name_and_range(
    name: str, low: str, value: str
) -> None:
    sentence = refusal(f'{{"prompt": "x", "{name}": {value}}}'.encode())

    assert sentence.startswith(f"{name} must be ")
    assert low in sentence


def test_a_seed_of_65_bits_is_refused() -> None:
    assert str(2**64 - 1) in refusal({"prompt": "x", "seed": 2**64})


@pytest.mark.parametrize("value", [0, 1, 7, 2**63 - 1])
def test_a_cache_is_the_prompts_id(value: int) -> None:
    assert call({"prompt": "x", "cache": value}).cache == value
    assert call({"prompt": "x", "cache": value}).sampling == DEFAULTS


def test_without_a_cache_the_prompt_has_no_id() -> None:
    assert call({"prompt": "x"}).cache == 0


@pytest.mark.parametrize(
    "value", [-1, 2**63, 2**64, False, True, 0.0, 1.0, "0", "../../etc", None, [], {}], ids=repr
)
def test_what_is_no_id_is_refused_with_the_range(value: Any) -> None:
    assert refusal({"prompt": "x", "cache": value}) == (
        f"cache must be an integer from 0 to {2**63 - 1}"
    )


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"prompt": "x", "prompt": "y"}', b"{"])
def test_a_bad_body_is_an_invalid_request(body: bytes) -> None:
    assert refusal(body)


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "temp", "top_k", "stop", "seed", "cache", "n_batch", "x\ud800"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.sampled_from(["", "x", "\0", "\ud800", "🙂", [], ["x"], [""], {}, {"a": []}]),
    )
)
@settings(max_examples=150)
def test_whatever_the_fields_it_is_a_call_or_an_error_that_can_be_sent(
    fields: dict[str, Any],
) -> None:
    result = call_or_error(fields)

    if isinstance(result, Made):
        assert result.prompt == fields["prompt"]
    else:
        assert json.loads(error_body(result)) == {
            "error": {"code": "invalid_request", "message": result.message}
        }


def test_the_dialect_is_served_at_its_path() -> None:
    assert DIALECT in DIALECTS
    assert DIALECT.paths["/stream"] is parse_stream

"""Calls in a model's answer, whatever the pieces in which it comes."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat.calls.events import CallArguments, CallEnd, CallStart, Text
from server.chat.calls.parser import ToolCallParser
from server.chat.calls.tool_format import GENERIC, HERMES, LLAMA, MISTRAL, tool_format

NAMES = ("weather", "time")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
    for name in NAMES
]
FORMS = (HERMES, LLAMA, MISTRAL, GENERIC)


def events(form, pieces):
    parser = ToolCallParser(form, TOOLS)
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()


def read(form, *pieces):
    """The text, and the calls as names and arguments."""
    text, calls = "", []
    for event in events(form, pieces):
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, CallStart):
            assert event.index == len(calls)
            calls.append([event.name, "", None])
        elif isinstance(event, CallArguments):
            assert event.index == len(calls) - 1
            assert event.text
            calls[event.index][1] += event.text
        else:
            assert isinstance(event, CallEnd)
            calls[event.index][2] = event.is_complete
    return text, [tuple(call) for call in calls]


CALL = ("weather", '{"city": "Par\\"}is"}', True)
TIME = ("time", "{}", True)

ANSWERS = [
    (HERMES, '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>', "", [CALL]),
    (HERMES, '<tool_call>{"arguments": %s, "name": "weather"}</tool_call>', "", [CALL]),
    (HERMES, 'So: <tool_call>{"name":"weather","arguments":%s}</tool_call>.', "So: .", [CALL]),
    (
        HERMES,
        '\n<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>\n',
        "",
        [CALL, TIME],
    ),
    (HERMES, '<tool_call>{"name": "weather", "arguments": %s</tool_call>', "", [CALL]),
    (HERMES, '<tool_call>{"name": "weather", "arguments": %s}', "", [CALL]),
    (HERMES, '{"name": "weather", "arguments": {}}', '{"name": "weather", "arguments": {}}', []),
    (HERMES, "<tool_call>{1}</tool_call>", "<tool_call>{1}</tool_call>", []),
    (HERMES, '<tool_call>{"name": "a"}</tool_call>', '<tool_call>{"name": "a"}</tool_call>', []),
    (
        HERMES,
        "Hm.\n<tool_call>\n<function=weather>\n<parameter=city>\n12 <b>\n\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n<parameter=x>\nThe\n</parameter>\n</function>\n"
        "</tool_call>\n<tool_call>\n<function=time>\n</function>\n</tool_call>",
        "Hm.\n",
        [("weather", '{"city": "12 <b>\\n", "days": 3, "x": "The"}', True), TIME],
    ),
    (
        HERMES,
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
        "<tool_call>time</tool_call>.",
        ".",
        [("weather", '{"city": "1"}', True), TIME],
    ),
    (HERMES, '<tool_call>{"name": "time"}</tool_call>', "", [TIME]),
    (HERMES, '<tool_call>{"name": "time", "arguments": "{}"}</tool_call>', "", [TIME]),
    (GENERIC, "<tool_call><function=time></function></tool_call>", "", [TIME]),
    (HERMES, "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>", []),
    (HERMES, "a <tool_call> b, <c", "a <tool_call> b, <c", []),
    (LLAMA, '{"name": "weather", "parameters": %s}', "", [CALL]),
    (LLAMA, '<|python_tag|>{"name": "weather", "parameters": %s}', "", [CALL]),
    (LLAMA, '{"type": "function", "name": "weather", "parameters": %s}', "", [CALL]),
    (LLAMA, '{"type":"function","function":{"name":"weather","arguments":%s}}', "", [CALL]),
    (
        LLAMA,
        '{"name": "weather", "parameters": %s}; {"name": "time", "parameters": {}}',
        "",
        [CALL, TIME],
    ),
    (LLAMA, '{"name": "Ann", "parameters": {}}', '{"name": "Ann", "parameters": {}}', []),
    (LLAMA, '{"city": {"name": "Rome"}}', '{"city": {"name": "Rome"}}', []),
    (LLAMA, '<|python_tag|>f.call(a="b")', '<|python_tag|>f.call(a="b")', []),
    (MISTRAL, '[TOOL_CALLS][{"name": "weather", "arguments": %s}]', "", [CALL]),
    (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "weather", "arguments": %s, "id": "abc"}, '
        '{"name": "time", "arguments": {}}] done',
        " done",
        [CALL, TIME],
    ),
    (MISTRAL, "[TOOL_CALLS]weather[ARGS]%s", "", [CALL]),
    (
        MISTRAL,
        "Hm.[TOOL_CALLS]weather[CALL_ID]ab1[ARGS]%s[TOOL_CALLS]time[ARGS]{}",
        "Hm.",
        [CALL, TIME],
    ),
    (MISTRAL, "[TOOL_CALLS] are [nice]", "[TOOL_CALLS] are [nice]", []),
    (MISTRAL, "[1] {a}", "[1] {a}", []),
    (GENERIC, '[{"name": "weather", "arguments": %s}]', "", [CALL]),
    (
        GENERIC,
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": %s}]'
        "<|END_ACTION|>",
        "",
        [CALL],
    ),
    (GENERIC, "[1] a source; {} and so on", "[1] a source; {} and so on", []),
    (GENERIC, "  plain  ", "  plain  ", []),
    (GENERIC, " ", " ", []),
]


@pytest.mark.parametrize(("form", "answer", "text", "calls"), ANSWERS)
def test_an_answer_is_text_and_calls_in_any_pieces(form, answer, text, calls):
    answer = answer.replace("%s", CALL[1])
    assert read(form, answer) == (text, calls)
    assert read(form, *answer) == (text, calls)
    for size in (2, 3, 7):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert read(form, *pieces) == (text, calls)


def test_arguments_come_as_they_are_written():
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.feed('<tool_call>{"name": "weather", "argum') == []
    start, first = parser.feed('ents": {"city": "P')
    assert (start.index, start.name) == (0, "weather")
    assert first == CallArguments(0, '{"city": "P')
    assert parser.feed("aris\\") == [CallArguments(0, "aris\\")]
    assert parser.feed('"') == [CallArguments(0, '"')]
    assert parser.feed('"}') == [CallArguments(0, '"}')]
    assert parser.feed("}") == [CallEnd(0, is_complete=True)]


def test_a_call_that_is_cut_short_says_so():
    assert read(HERMES, '<tool_call>{"name": "weather", "arguments": {"ci') == (
        "",
        [("weather", '{"ci', False)],
    )
    half = '<tool_call>{"name": "wea'
    assert read(HERMES, half) == (half, [])


def test_text_is_not_held_back_without_need():
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.feed("Hello <") == [Text("Hello ")]
    assert parser.feed("b>") == [Text("<b>")]
    parser = ToolCallParser(LLAMA, TOOLS)
    assert parser.feed('{"city": ') == [Text("{"), Text('"city": ')]


def test_ids_are_nine_letters_and_digits_and_differ():
    answer = '<tool_call>{"name": "a", "arguments": {}}</tool_call>' * 20
    ids = [event.id for event in events(HERMES, [answer]) if isinstance(event, CallStart)]
    assert len(set(ids)) == 20
    assert all(len(name) == 9 and name.isascii() and name.isalnum() for name in ids)


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "{", "}", "[",
        "]", "<function=", "time", ">", "</function>", "<arg_key>",
        '"', "\\", ",", ":", ";", " ", "\n", "a", "name", '"name": ', '"weather"',
        '"arguments": ', '{"name": "weather", "arguments": ', "weather", "<", "tool",
    ]
)  # fmt: skip


@given(st.sampled_from(FORMS), st.lists(FRAGMENTS), st.integers(1, 5))
def test_the_pieces_never_matter(form, fragments, size):
    answer = "".join(fragments)
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    assert read(form, *pieces) == read(form, answer)


@given(st.sampled_from(FORMS), st.lists(FRAGMENTS))
def test_an_answer_without_calls_is_given_out_as_it_is(form, fragments):
    answer = "".join(fragments)
    text, calls = read(form, answer)
    if not calls:
        assert text == answer


def takes_apart(text, answer):
    """`text` is `answer` with pieces left out."""
    rest = iter(answer)
    return all(char in rest for char in text)


@given(st.sampled_from(FORMS), st.lists(FRAGMENTS))
def test_no_character_is_made_up_or_given_out_twice(form, fragments):
    answer = "".join(fragments)
    text, calls = read(form, answer)
    assert takes_apart(text, answer)
    for name, arguments, _ in calls:
        assert name in answer
        assert arguments in answer or json.loads(arguments) is not None


def copied_bytes(form, beginning, piece, count):
    """What `count` times `piece` after a beginning makes a parser allocate, call for call."""
    parser = ToolCallParser(form, TOOLS)
    parser.feed(beginning)
    total = 0
    tracemalloc.start()
    try:
        for _ in range(count):
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            parser.feed(piece)
            _, peak = tracemalloc.get_traced_memory()
            total += peak - before
    finally:
        tracemalloc.stop()
    return total


@pytest.mark.parametrize(
    ("form", "beginning", "piece"),
    [
        (HERMES, '<tool_call>{"arguments": {"city": "', "Bonn "),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "', "Bonn "),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {}, "id": "', "name "),
        (HERMES, '<tool_call>{"id": "', "name "),
        (HERMES, "<tool_call>", "     "),
        (HERMES, "<tool_call><function=weather><parameter=city>", "Bonn "),
        (HERMES, "<tool_call>weather<arg_key>city</arg_key><arg_value>", "Bonn "),
        (HERMES, '<tool_call>{"name": "time", "arguments": {}}', "     "),
        (MISTRAL, "[TOOL_CALLS]", "     "),
        (MISTRAL, '[TOOL_CALLS][{"name": "time", "arguments": {}},', "     "),
        (MISTRAL, '[TOOL_CALLS]time[ARGS]{"city": "', "Bonn "),
        (LLAMA, "", "     "),
        (GENERIC, '[{"name": "time", "arguments": {}},', "     "),
    ],
)
def test_four_times_the_text_is_four_times_the_work(form, beginning, piece):
    """What was held of a possible call was copied and read again with every token: 16 times."""
    count = 500
    once = copied_bytes(form, beginning, piece, count)
    assert copied_bytes(form, beginning, piece, 4 * count) < 7 * once


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    st.sampled_from((HERMES, MISTRAL, LLAMA)),
    st.lists(st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(), JSON)), min_size=1),
    st.integers(1, 9),
    st.booleans(),
)
def test_what_a_model_calls_is_what_is_read(form, calls, size, is_ascii):
    written = [
        json.dumps({"name": name, "arguments": arguments}, ensure_ascii=is_ascii)
        for name, arguments in calls
    ]
    answer = {
        "hermes": "".join(f"<tool_call>\n{call}\n</tool_call>\n" for call in written),
        "mistral": f"[TOOL_CALLS][{', '.join(written)}]",
        "llama": "; ".join(written),
    }[form.name]
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    text, found = read(form, *pieces)
    assert text == ""
    assert [(name, json.loads(arguments)) for name, arguments, _ in found] == calls
    assert all(is_complete for _, _, is_complete in found)


def test_the_format_is_the_one_whose_opener_the_template_contains():
    assert tool_format("… <tool_call>\n …", ()).name == "hermes"
    assert tool_format("… [TOOL_CALLS] …", ()).name == "mistral"
    assert tool_format("… <|python_tag|> …", ()).name == "llama"
    assert tool_format("…", ()).name == "generic"
    assert tool_format("<tool_call>", ("</tool_call>",)).shows_control
    assert tool_format("[TOOL_CALLS]", ("[ARGS]",)).shows_control
    assert not tool_format("<tool_call>", ("<|im_end|>",)).shows_control

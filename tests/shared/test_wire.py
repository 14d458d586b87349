"""Frames: what is sent arrives unchanged, in whatever pieces; anything else is a FrameError."""

from __future__ import annotations

import itertools
import math
import struct
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import messages
from shared.errors import FrameError
from shared.messages import (
    Cancel,
    DropPrompt,
    Embed,
    Embedded,
    Failed,
    Finished,
    Generate,
    Heartbeat,
    LoadFailed,
    Loading,
    Message,
    PromptDropped,
    PromptSaved,
    Ready,
    Shutdown,
    Steps,
    Token,
    Tokenize,
    Tokenized,
    Tokens,
)
from shared.prompt import Prompt
from shared.sampling import LogitBias, SamplingParams
from shared.values import Candidate, Counts, Logprobs, ModelCard, ModelInfo, Timings, Usage
from shared.wire import MAX_FRAME, MESSAGES, FrameParser, encode_frame

HEADER = 4
FLAT = 256 * 1024
"""Most bytes of memory for parsing a header, whatever length it claims."""

INTEGERS = st.integers(-(2**63), 2**64 - 1)
NUMBERS = st.floats(allow_nan=False)
TEXTS = st.text(max_size=20)
INTEGER_TUPLES = st.lists(INTEGERS, max_size=3).map(tuple)
BY_HINT = {
    "int": INTEGERS,
    "str": TEXTS,
    "int | None": st.none() | INTEGERS,
    "float": NUMBERS,
    "bool": st.booleans(),
    "tuple[str, ...]": st.lists(TEXTS, max_size=3).map(tuple),
    "tuple[LogitBias, ...]": st.lists(
        st.builds(LogitBias, token=INTEGERS, bias=NUMBERS), max_size=3
    ).map(tuple),
}
SAMPLING = st.builds(
    SamplingParams, **{field.name: BY_HINT[str(field.type)] for field in fields(SamplingParams)}
)
PROMPT = st.builds(
    Prompt,
    text=TEXTS,
    cuts=INTEGER_TUPLES,
    tokens=st.none() | INTEGER_TUPLES,
    is_whole=st.booleans(),
)
CARD_FIELDS = {field.name: BY_HINT[str(field.type)] for field in fields(ModelCard)}
INFO = st.builds(
    ModelInfo,
    engine=TEXTS,
    architecture=TEXTS,
    context=INTEGERS,
    vocabulary=INTEGERS,
    slots=INTEGERS,
    batch=INTEGERS,
    sampling=st.lists(TEXTS, max_size=3).map(tuple),
    card=st.builds(ModelCard, **CARD_FIELDS),
)
CANDIDATE = st.builds(Candidate, id=INTEGERS, piece=st.binary(max_size=8), logprob=NUMBERS)
LOGPROBS = st.builds(Logprobs, logprob=NUMBERS, top=st.lists(CANDIDATE, max_size=3).map(tuple))
TOKEN = st.builds(
    Token,
    request=INTEGERS,
    id=INTEGERS,
    position=INTEGERS,
    text=TEXTS,
    logprobs=st.none() | LOGPROBS,
)
COUNTS = st.builds(Counts, buckets=INTEGER_TUPLES, total=NUMBERS)
BY_KIND: dict[type, st.SearchStrategy[Any]] = {
    Generate: st.builds(
        Generate, id=INTEGERS, prompt=PROMPT, sampling=SAMPLING, prompt_id=INTEGERS
    ),
    Embed: st.builds(Embed, id=INTEGERS, prompt=PROMPT),
    Tokenize: st.builds(Tokenize, id=INTEGERS, prompt=PROMPT, is_start=st.booleans()),
    Cancel: st.builds(Cancel, id=INTEGERS),
    DropPrompt: st.builds(DropPrompt, prompt_id=INTEGERS),
    Shutdown: st.just(Shutdown()),
    Ready: st.builds(Ready, protocol=INTEGERS, info=INFO, load_s=NUMBERS),
    Loading: st.builds(Loading, progress=NUMBERS),
    LoadFailed: st.builds(LoadFailed, message=TEXTS),
    Embedded: st.builds(Embedded, id=INTEGERS, vector=st.binary(max_size=8)),
    Tokenized: st.builds(
        Tokenized,
        id=INTEGERS,
        tokens=INTEGER_TUPLES,
        pieces=st.lists(st.binary(max_size=4), max_size=3).map(tuple),
    ),
    Tokens: st.builds(Tokens, tokens=st.lists(TOKEN, max_size=4).map(tuple)),
    Finished: st.builds(
        Finished,
        id=INTEGERS,
        reason=st.sampled_from(get_args(messages.FinishReason)),
        usage=st.builds(
            Usage, prompt_tokens=INTEGERS, cached_tokens=INTEGERS, completion_tokens=INTEGERS
        ),
        timings=st.builds(Timings, prefill_s=NUMBERS, decode_s=NUMBERS),
    ),
    Failed: st.builds(Failed, id=INTEGERS, code=TEXTS, message=TEXTS),
    PromptSaved: st.builds(PromptSaved, prompt_id=INTEGERS, tokens=INTEGERS, size=INTEGERS),
    PromptDropped: st.builds(PromptDropped, prompt_id=INTEGERS),
    Steps: st.builds(
        Steps,
        kind=st.sampled_from(get_args(messages.StepKind)),
        seconds=COUNTS,
        tokens=COUNTS,
    ),
    Heartbeat: st.just(Heartbeat()),
}
MESSAGE = st.one_of(*BY_KIND.values())
BATCH = st.lists(MESSAGE, max_size=4)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | INTEGERS
    | st.floats()
    | TEXTS
    | st.binary(max_size=8)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)

ONE_LOGPROB = Logprobs(-0.5, (Candidate(9, b"\xc3", float("-inf")),))
CARD = ModelCard("tales", 10, 40, "Q8_0", 512, "{{ messages }}", "<s>", "</s>", ("<s>", "</s>"))
INFO_EXAMPLE = ModelInfo("echo", "echo", 256, 257, 4, 64, ("seed",), True, 8, CARD)
EXAMPLES: tuple[Message, ...] = (
    Generate(
        1,
        Prompt("Once upon", cuts=(4,)),
        SamplingParams(
            n_batch=8, seed=7, stop=("end",), logprobs=2, logit_bias=(LogitBias(5, -1.0),)
        ),
    ),
    Embed(4, Prompt(tokens=(1, 2))),
    Tokenize(5, Prompt("x", is_whole=True), is_start=False),
    Cancel(2),
    DropPrompt(7),
    Shutdown(),
    Ready(1, ModelInfo("echo", "echo", 256, 257, 4, 64, ("seed",)), 0.5),
    Loading(0.5),
    Ready(1, INFO_EXAMPLE, 0.5),
    LoadFailed("no such tensor"),
    Embedded(4, b"\0\0\x80?"),
    Tokenized(5, (1, 2), (b" upon", b"\xc3")),
    Tokens((Token(1, 257, 0, " upon"), Token(2, 9, 3, "", ONE_LOGPROB))),
    Finished(1, "stop", Usage(3, 0, 2), Timings(0.25, 0.5)),
    Failed(3, "engine_failed", "out of memory"),
    PromptSaved(7, 900, 20_000_000),
    PromptDropped(7),
    Steps("decode", Counts((0, 3), 0.25), Counts((2, 1), 5.0)),
    Heartbeat(),
)
PLACES = {field.name: place for place, field in enumerate(fields(SamplingParams))}
MAY_BE_NONE = {(0, 3, PLACES[name]) for name in ("n_batch", "seed", "logprobs")}
"""Tag, field, nested field: what may be None in a Generate's sampling."""
OF_ANY_LENGTH: dict[type, set[tuple[int, ...]]] = {
    Generate: {(2, 1), (2, 2)}
    | {(3, PLACES[name]) for name in ("stop", "dry_sequence_breakers", "logit_bias")},
    Embed: {(2, 1), (2, 2)},
    Tokenize: {(2, 1), (2, 2)},
    Ready: {(2, 6), (2, 9, 8)},
    Tokens: {(1,), (1, 1, 4, 1)},
    Tokenized: {(2,), (3,)},
    Steps: {(2, 0), (3, 0)},
}
"""Fields and nested fields that are lists of any length."""

Path = tuple[int, ...]


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def plain(message: Message) -> Any:
    """The message as it is on the wire."""
    (value,) = msgpack.unpackb(encode_frame([message])[HEADER:])
    return value


def feed_value(value: Any) -> list[Message]:
    return FrameParser().feed(frame(msgpack.packb(value)))


def paths(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every position in a nested list with its value, the outermost first."""
    yield path, value
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths(item, (*path, index))


def replaced(value: Any, path: Path, by: Any) -> Any:
    if not path:
        return by
    first, *rest = path
    return [
        replaced(item, tuple(rest), by) if index == first else item
        for index, item in enumerate(value)
    ]


def assert_refused_or_the_same(payload: bytes) -> None:
    """The payload raises FrameError, or is exactly what encoding its messages gives."""
    try:
        batch = FrameParser().feed(frame(payload))
    except FrameError:
        return
    again = msgpack.unpackb(encode_frame(batch)[HEADER:])
    assert repr(again) == repr(msgpack.unpackb(payload)), f"accepted as {batch}"


# ---------------------------------------------------------------- round trips


def test_the_set_of_messages_is_closed_and_all_of_it_is_tested() -> None:
    assert set(MESSAGES) == set(get_args(Message)) == set(BY_KIND) == {type(m) for m in EXAMPLES}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_arrives_as_it_was_sent(kind: type) -> None:
    @given(st.lists(BY_KIND[kind], min_size=1, max_size=3))
    @settings(max_examples=15)
    def check(batch: list[Message]) -> None:
        arrived = FrameParser().feed(encode_frame(batch))

        assert arrived == batch
        assert repr(arrived) == repr(batch)  # 1, 1.0 and True are equal, but are not the same

    check()


def test_what_is_never_chosen_arrives_as_minus_infinity() -> None:
    never = SamplingParams(logit_bias=(LogitBias(5, -math.inf),))
    impossible = Logprobs(-math.inf, (Candidate(9, b"\xc3", -math.inf),))
    batch: list[Message] = [
        Generate(1, Prompt("x"), never),
        Tokens((Token(1, 9, 0, "", impossible),)),
    ]

    assert FrameParser().feed(encode_frame(batch)) == batch


def test_a_number_that_is_not_a_number_arrives_too() -> None:
    (arrived,) = FrameParser().feed(encode_frame([Ready(1, INFO_EXAMPLE, math.nan)]))

    assert math.isnan(arrived.load_s)


@given(st.lists(BATCH, max_size=3), st.lists(st.integers(0, 2000), max_size=12))
@settings(max_examples=40)
def test_frames_arrive_whole_and_in_order_however_the_bytes_are_cut(
    batches: list[list[Message]], cuts: list[int]
) -> None:
    stream = b"".join(map(encode_frame, batches))
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parser = FrameParser()

    arrived = [parser.feed(stream[start:end]) for start, end in itertools.pairwise(edges)]

    assert list(itertools.chain(*arrived)) == list(itertools.chain(*batches))


def test_a_batch_comes_with_the_last_byte_of_its_frame_and_not_before() -> None:
    stream = encode_frame(EXAMPLES) + encode_frame([Cancel(9)])
    first_end = len(encode_frame(EXAMPLES))
    parser = FrameParser()

    arrived = {
        end: batch
        for end, byte in enumerate(stream, start=1)
        if (batch := parser.feed(bytes([byte])))
    }

    assert arrived == {first_end: list(EXAMPLES), len(stream): [Cancel(9)]}


# ---------------------------------------------------------------- lengths


def failure_of(payload_size: int) -> Failed:
    """A message whose payload has exactly this many bytes."""
    overhead = len(encode_frame([Failed(1, "c", "")])) - HEADER + 4  # a long text says its length
    return Failed(1, "c", "x" * (payload_size - overhead))


def test_a_frame_of_the_greatest_length_is_sent_and_read() -> None:
    message = failure_of(MAX_FRAME)

    stream = encode_frame([message])

    assert len(stream) == HEADER + MAX_FRAME
    assert FrameParser().feed(stream) == [message]


def test_a_longer_frame_is_not_sent() -> None:
    with pytest.raises(FrameError, match=str(MAX_FRAME + 1)):
        encode_frame([failure_of(MAX_FRAME + 1)])


@pytest.mark.parametrize("length", [MAX_FRAME + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("piece", [1, 4])
def test_the_header_of_a_longer_frame_is_refused_at_once_and_takes_no_memory(
    length: int, piece: int
) -> None:
    header = struct.pack(">I", length)
    parser = FrameParser()
    tracemalloc.start()
    try:
        for start in range(0, HEADER - piece, piece):
            assert parser.feed(header[start : start + piece]) == []
        with pytest.raises(FrameError, match=str(length)):
            parser.feed(header[-piece:])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < FLAT


def test_a_header_that_is_still_allowed_takes_no_memory_before_its_bytes_come() -> None:
    parser = FrameParser()
    tracemalloc.start()
    try:
        assert parser.feed(struct.pack(">I", MAX_FRAME)) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < FLAT


@pytest.mark.parametrize(
    "first", [b"\xdd", b"\xdf", b"\xdb", b"\xc9"], ids=["array", "map", "text", "extension"]
)
def test_a_length_within_the_payload_that_it_cannot_have_takes_no_memory(first: bytes) -> None:
    payload = first + b"\xff\xff\xff\xff\x05"
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            FrameParser().feed(frame(payload))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < FLAT


FLOODS = {
    "empty arrays": b"\x90",
    "arrays": b"\x91\xc0",
    "maps": b"\x80",
    "extensions": b"\xd4\x01\x01",
    "nothing": b"\xc0",
    "texts": b"\xa2ab",
    "numbers": b"\xcd\x7f\xff",
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_frame_full_of_small_things_is_refused_in_bounded_memory(what: str) -> None:
    count = (MAX_FRAME - 16) // len(FLOODS[what])
    a_message = b"\x91\x92\x09\xdd" + struct.pack(">I", count) + FLOODS[what] * count
    data = frame(a_message)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            FrameParser().feed(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 25 * MAX_FRAME


def test_the_largest_step_that_there_is_is_read() -> None:
    """The limit of arrays in a frame is far above what engines produce."""
    tops = Logprobs(-0.5, (Candidate(9, b"\xc3", -1.5),) * 100)
    batch: list[Message] = [Tokens(tuple(Token(7, 5, 0, "x", tops) for _ in range(256)))]
    assert FrameParser().feed(encode_frame(batch)) == batch
    smallest = Logprobs(-0.5, (Candidate(0, b"", -1.5),) * (MAX_FRAME // 13 - 100))
    batch = [Tokens((Token(7, 5, 0, "x", smallest),))]
    assert FrameParser().feed(encode_frame(batch)) == batch


def test_bytes_that_come_one_by_one_take_no_more_time_than_they_are() -> None:
    data = encode_frame([failure_of(400_000)]) * 2
    parser = FrameParser()
    started = time.process_time()
    batch = [
        message for place in range(len(data)) for message in parser.feed(data[place : place + 1])
    ]

    assert len(batch) == 2
    assert time.process_time() - started < 10


# ---------------------------------------------------------------- everything else


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    """Frames with a few bytes changed, duplicated or removed."""
    data = b"".join(map(encode_frame, draw(st.lists(BATCH, min_size=1, max_size=3))))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        data = (
            data[:start] + draw(st.binary(max_size=6) | st.just(data[start:end] * 2)) + data[end:]
        )
    return data


@given(damaged_frames() | st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=300)
def test_a_damaged_stream_is_messages_and_then_a_frame_error_however_it_is_cut(
    data: bytes, cuts: list[int]
) -> None:
    whole = fed(data, ())
    assert fed(data, cuts) == whole


def fed(data: bytes, cuts: Sequence[int]) -> str:
    """A parser's messages of the stream, and whether it raised FrameError.

    As a text, as no number is equal to itself that is none.
    """
    parser, batch, refusal = FrameParser(), [], ""
    places = [0, *sorted(cuts), len(data)]
    try:
        for start, end in itertools.pairwise(places):
            batch += parser.feed(data[start:end])
    except FrameError as error:
        refusal = str(error)
    return refusal or repr(batch)


@given(st.binary(max_size=40))
@settings(max_examples=200)
def test_garbage_is_a_frame_error_and_nothing_else(payload: bytes) -> None:
    assert_refused_or_the_same(payload)


@given(VALUES)
@settings(max_examples=100)
def test_any_msgpack_value_is_ours_or_a_frame_error(value: Any) -> None:
    assert_refused_or_the_same(msgpack.packb(value))


@given(st.data())
@settings(max_examples=100)
def test_a_message_with_a_foreign_part_is_ours_or_a_frame_error(data: st.DataObject) -> None:
    value = plain(data.draw(MESSAGE))
    path, _ = data.draw(st.sampled_from(list(paths(value))))

    assert_refused_or_the_same(msgpack.packb([replaced(value, path, data.draw(VALUES))]))


@given(st.lists(MESSAGE, min_size=1, max_size=3), st.data())
@settings(max_examples=40)
def test_a_payload_that_is_cut_short_is_a_frame_error(
    batch: list[Message], data: st.DataObject
) -> None:
    payload = encode_frame(batch)[HEADER:]

    with pytest.raises(FrameError):
        FrameParser().feed(frame(payload[: data.draw(st.integers(0, len(payload) - 1))]))


@given(BATCH, st.binary(min_size=1, max_size=8))
@settings(max_examples=40)
def test_bytes_after_the_payload_are_a_frame_error(batch: list[Message], rest: bytes) -> None:
    with pytest.raises(FrameError):
        FrameParser().feed(frame(encode_frame(batch)[HEADER:] + rest))


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, 8, -1, 1.5, "text", "", b"bytes", b"", {}, {"a": 1}],
    ids=repr,
)
def test_a_lone_value_is_no_batch(value: Any) -> None:
    with pytest.raises(FrameError):
        feed_value(value)


@pytest.mark.parametrize(
    "value",
    [None, True, 8, 1.5, "text", "", b"\x08", b"", b"\x01\x05", {}, {"a": 1}, []],
    ids=repr,
)
def test_a_lone_value_is_no_message(value: Any) -> None:
    with pytest.raises(FrameError):
        feed_value([value])


@pytest.mark.parametrize("extension", [msgpack.ExtType(5, b""), msgpack.Timestamp(1, 2)], ids=repr)
def test_an_extension_of_msgpack_is_no_message(extension: Any) -> None:
    with pytest.raises(FrameError):
        feed_value([extension])


@pytest.mark.parametrize(
    "tag", [len(MESSAGES), 255, 2**64 - 1, -1, -len(MESSAGES), 0.0, None, "0", [0]], ids=repr
)
@pytest.mark.parametrize("fields", [[], [5]], ids=["no-field", "one-field"])
def test_an_unknown_tag_is_a_frame_error(tag: Any, fields: list[Any]) -> None:
    with pytest.raises(FrameError):
        feed_value([[tag, *fields]])


def test_a_boolean_is_no_tag() -> None:
    with pytest.raises(FrameError):
        feed_value([[True, 5]])  # Cancel's tag is 1


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_value_of_another_type_is_a_frame_error_in_every_field(message: Message) -> None:
    value = plain(message)
    others = [None, True, 1, 1.0, "x", "", b"x", b"", [], {}, {"x": 1}, [[]]]
    accepted = []
    for path, old in paths(value):
        allowed = {type(old)} | ({type(None), int} if (value[0], *path) in MAY_BE_NONE else set())
        if type(message) is Tokens and path[2:] == (4,):
            allowed |= {type(None)}  # no log probabilities
        if isinstance(message, Generate | Embed | Tokenize) and path == (2, 2):
            allowed |= {type(None), list}  # tokens in the place of a text
        for other in others:
            if type(other) in allowed:
                continue
            try:
                feed_value([replaced(value, path, other)])
            except FrameError:
                continue
            accepted.append((path, old, other))

    assert not accepted


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_field_too_many_or_too_few_is_a_frame_error(message: Message) -> None:
    value = plain(message)
    records = [
        (path, old)
        for path, old in paths(value)
        if isinstance(old, list) and path not in OF_ANY_LENGTH.get(type(message), ())
    ]

    for path, old in records:
        for wrong in (old[:-1], [*old, 0], [*old, None]):
            with pytest.raises(FrameError):
                feed_value([replaced(value, path, wrong)])


@pytest.mark.parametrize("reason", ["", "Stop", "error"])
def test_an_unknown_finish_reason_is_a_frame_error(reason: str) -> None:
    (finished,) = (message for message in EXAMPLES if isinstance(message, Finished))
    value = plain(finished)

    with pytest.raises(FrameError):
        feed_value([replaced(value, (2,), reason)])


def test_text_that_is_not_utf_8_is_a_frame_error() -> None:
    payload = encode_frame([LoadFailed("abc")])[HEADER:].replace(b"abc", b"a\xffc")

    with pytest.raises(FrameError):
        FrameParser().feed(frame(payload))


@pytest.mark.parametrize("depth", [10, 500, 1000, 1020, 5000, 1_000_000])
@pytest.mark.parametrize(
    "before", [b"", b"\x91", b"\x91\x92\x01"], ids=["batch", "message", "field"]
)
def test_nesting_of_any_depth_is_a_frame_error(depth: int, before: bytes) -> None:
    """The error's message contained the value, and formatting it raised RecursionError."""
    with pytest.raises(FrameError):
        FrameParser().feed(frame(before + b"\x91" * depth + b"\xc0"))


def test_the_error_is_short_however_long_the_frame_is() -> None:
    with pytest.raises(FrameError) as caught:
        feed_value([[1, "x" * 1_000_000]])

    assert len(str(caught.value)) < 300

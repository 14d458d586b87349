"""Frames on the pipes between the front and its workers.

    frame   := length (4 bytes, big-endian) payload
    payload := msgpack array of messages
    message := [tag, field, field, …]     tag: index in MESSAGES; fields in their order

Nothing is ever unpickled. A frame over MAX_FRAME bytes, or one that does not decode to our
messages, raises FrameError: its sender is broken and must be ended.
"""

from __future__ import annotations

import struct
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import msgpack

from shared import messages
from shared.errors import FrameError
from shared.messages import Message, Token
from shared.values import Candidate, Logprobs

PROTOCOL = 5
"""Version of the messages. Ready carries it; a worker of another version is ended."""
MAX_FRAME = 8 * 1024 * 1024
"""Longest frame in bytes. A prompt has at most 1 MiB; a step of 256 sequences with 100 candidates
each is shorter."""
SMALL_FRAME = 64 * 1024
"""Frames up to this many bytes are decoded without counting their arrays."""
MAX_ARRAYS = MAX_FRAME // 13
"""Most arrays in a frame. The smallest array of which a frame has many is a candidate, of 13 bytes
or more. Without the limit a frame could have millions of empty arrays, whose decoding takes seconds
and 70 times the frame's size in memory."""

MESSAGES: tuple[type[Any], ...] = (
    messages.Generate,
    messages.Embed,
    messages.Tokenize,
    messages.Cancel,
    messages.DropPrompt,
    messages.Shutdown,
    messages.Loading,
    messages.Ready,
    messages.LoadFailed,
    messages.Tokens,
    messages.Embedded,
    messages.Tokenized,
    messages.Finished,
    messages.Failed,
    messages.PromptSaved,
    messages.PromptDropped,
    messages.Steps,
    messages.Heartbeat,
)

_HEADER = struct.Struct(">I")
_TAGS = {kind: tag for tag, kind in enumerate(MESSAGES)}


def encode_frame(batch: Sequence[Message]) -> bytes:
    """One frame with all messages of `batch`. Raises FrameError if it is too long."""
    payload: bytes = msgpack.packb([[_TAGS[type(m)], *_values(m)] for m in batch], default=_values)
    if len(payload) > MAX_FRAME:
        raise FrameError(f"a frame of {len(payload)} bytes is over the limit of {MAX_FRAME}")
    return _HEADER.pack(len(payload)) + payload


class FrameParser:
    """Decodes a stream of frames incrementally: pieces of any size come in, messages come out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises FrameError, and is then useless."""
        self._buffer += data
        result: list[Message] = []
        start, end = 0, len(self._buffer)
        while end - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, start)
            if length > MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
            stop = start + _HEADER.size + length
            if stop > end:
                break
            result += decode_payload(bytes(self._buffer[start + _HEADER.size : stop]))
            start = stop
        del self._buffer[:start]
        return result


def decode_payload(payload: bytes) -> list[Message]:
    """The messages of one frame's payload. Raises FrameError."""
    try:
        return [_message(value) for value in _array(_unpack(payload))]
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
        raise FrameError(f"not a frame of protocol {PROTOCOL}: {error}") from error


def _unpack(payload: bytes) -> Any:
    """Raises ValueError or msgpack's errors for a map, an extension or too many arrays."""
    count = None if len(payload) <= SMALL_FRAME else _array_counter()
    return msgpack.unpackb(payload, list_hook=count, object_hook=_refuse, ext_hook=_refuse)


def _array_counter() -> Callable[[list[Any]], list[Any]]:
    left = MAX_ARRAYS

    def count(array: list[Any]) -> list[Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it has more than {MAX_ARRAYS} arrays")
        return array

    return count


def _refuse(*_: Any) -> NoReturn:
    raise ValueError("it has a map or an extension")


# Encoders and decoders are derived from the dataclasses: a new message is only added to MESSAGES.

_Decoder = Callable[[Any], Any]


def _values(record: Any) -> list[Any]:
    """The values of a dataclass's fields. msgpack calls this for nested dataclasses."""
    return [getattr(record, field.name) for field in fields(record)]


def _message(value: Any) -> Message:
    tag, *values = _array(value)
    if type(tag) is not int or not 0 <= tag < len(MESSAGES):
        raise ValueError("there is no such message")
    message: Message = _DECODERS[tag](values)
    return message


def _array(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError(f"{type(value).__name__} in the place of an array")
    return value


def _decoder(hint: Any) -> _Decoder:
    """A function that checks and builds values of the type `hint`."""
    if hint is Token:
        return _token
    if is_dataclass(hint):
        return _dataclass_decoder(typing.cast("type[Any]", hint))
    if get_origin(hint) is tuple:
        return _tuple_decoder(_decoder(get_args(hint)[0]))
    if get_origin(hint) is Literal:
        words = get_args(hint)
        return _checked(lambda value: type(value) is str and value in words, str(hint))
    if get_origin(hint) is types.UnionType:
        return _union_decoder(get_args(hint), str(hint))
    return _checked(lambda value: type(value) is hint, str(hint))


def _checked(is_valid: Callable[[Any], bool], name: str) -> _Decoder:
    def decode(value: Any) -> Any:
        if not is_valid(value):
            raise TypeError(f"{type(value).__name__} in the place of {name}")
        return value

    return decode


def _union_decoder(kinds: tuple[Any, ...], name: str) -> _Decoder:
    """For a union of plain types, or of one other type and None."""
    plain = [kind for kind in kinds if isinstance(kind, type)]
    if len(plain) == len(kinds):
        return _checked(lambda value: type(value) in plain, name)
    (other,) = (_decoder(kind) for kind in kinds if kind is not types.NoneType)
    return lambda value: None if value is None else other(value)


def _tuple_decoder(item: _Decoder) -> _Decoder:
    return lambda values: tuple(map(item, _array(values)))


def _dataclass_decoder(kind: type[Any]) -> _Decoder:
    hints = get_type_hints(kind)
    decoders = [_decoder(hints[field.name]) for field in fields(kind)]

    def decode(values: Any) -> Any:
        return kind(
            *[decode(value) for decode, value in zip(decoders, _array(values), strict=True)]
        )

    return decode


def _token(value: Any) -> Token:
    request, token, position, text, logprobs = _array(value)
    if not (type(request) is type(token) is type(position) is int and type(text) is str):
        raise TypeError("a token with a field of another type")
    return Token(request, token, position, text, None if logprobs is None else _logprobs(logprobs))


def _logprobs(value: Any) -> Logprobs:
    logprob, top = _array(value)
    if type(logprob) is not float:
        raise TypeError("a log probability of another type")
    return Logprobs(logprob, tuple(map(_candidate, _array(top))))


def _candidate(value: Any) -> Candidate:
    token, piece, logprob = _array(value)
    if not (type(token) is int and type(piece) is bytes and type(logprob) is float):
        raise TypeError("a candidate with a field of another type")
    return Candidate(token, piece, logprob)


_DECODERS = [_dataclass_decoder(kind) for kind in MESSAGES]

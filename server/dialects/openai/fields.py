"""A body's fields, taken one by one: what is wrong with one is an error that names it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from server.dialects.base import ServedModel
from server.json_body import parse_object, timeout
from shared.errors import InvalidRequest, Unsupported
from shared.sampling import MAX_CACHE_ID, MAX_SEED, SamplingParams
from shared.validation import boolean, integer, text

MAX_CHOICES = 128
"""Of one request, over all its prompts."""

T = TypeVar("T")
D = TypeVar("D")
Check = Callable[[str, Any], T]
"""(name, value) to what it means; raises InvalidRequest."""


class Fields:
    """The fields of a body that are still to be taken. A field that is null is not there."""

    def __init__(self, body: bytes) -> None:
        given = parse_object(body)
        self._left = {name: value for name, value in given.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, check: Check[T], default: D) -> T | D:
        """The field's meaning; `default` where it is not there. Raises InvalidRequest."""
        if name not in self._left:
            return default
        with about(name):
            return check(name, self._left.pop(name))

    def need(self, name: str, check: Check[T]) -> T:
        """As `take`, of a field that must be there."""
        if name not in self._left:
            raise InvalidRequest(f"{name} is missing", field=name)
        with about(name):
            return check(name, self._left.pop(name))

    def exclude(self, chosen: str, *others: str) -> None:
        """Raises InvalidRequest if one of `others` is left, which cannot be beside `chosen`."""
        for other in others:
            if other in self._left:
                raise InvalidRequest(f"{chosen} and {other} exclude each other", field=other)

    def refuse_rest(self) -> None:
        """Raises InvalidRequest if anything is left."""
        for name in self._left:
            raise InvalidRequest(f"unknown field: {name!r:.80}", field=name)

    def rest(self) -> dict[str, Any]:
        """All that is left."""
        left, self._left = self._left, {}
        return left


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Within, what is wrong is wrong with the field `name`."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(error.message, field=error.field or name) from None


@dataclass(frozen=True, slots=True)
class Common:
    """What completions and chats have in common."""

    model: str | None
    timeout_s: float | None
    """Seconds in which the request is to be answered."""
    n: int
    """Choices of each prompt."""
    is_stream: bool
    has_usage: bool
    """A stream ends with its counts."""
    cache: int
    sampling: Mapping[str, Any]
    """Fields for SamplingParams.from_fields, which takes them."""
    names: dict[str, str]
    """Of those that the client calls otherwise: their names there."""

    def params(self, served: ServedModel, num_predict: int) -> SamplingParams:
        """`num_predict`: where the request does not say. Raises Unsupported."""
        defaults = served.defaults.from_fields({"num_predict": num_predict})
        params = defaults.from_fields(self.sampling)
        self.check_supported(params, served)
        return params

    def check_supported(self, params: SamplingParams, served: ServedModel, **names: str) -> None:
        """Raises Unsupported. `names`: the client's, of fields that follow from others."""
        if beyond := params.beyond(served.info.sampling):
            name = (self.names | names).get(beyond[0], beyond[0])
            raise Unsupported(
                f"{name}: the {served.info.engine} engine cannot honour it", field=name
            )


def take_common(fields: Fields, *limits: str, **known: tuple[str, Any]) -> Common:
    """All that is left in `fields`. Raises InvalidRequest.

    `limits`: names of the field that limits the tokens. `known`: sampling fields that are already
    taken, as a name for the client and a value.
    """
    model = fields.take("model", text, None)
    timeout_s = fields.take("timeout_s", seconds, None)
    n = fields.take("n", lambda name, value: integer(name, value, 1, MAX_CHOICES), 1)
    is_stream = fields.take("stream", boolean, False)
    has_usage = fields.take("stream_options", _include_usage, None)
    if has_usage is not None and not is_stream:
        raise InvalidRequest("stream_options is for streams only", field="stream_options")
    cache = fields.take(
        "cache", lambda name, value: integer(name, value, 0, MAX_CACHE_ID), default=0
    )
    for name, check in NEUTRAL.items():
        fields.take(name, check, None)
    known |= _limit(fields, (*limits, "num_predict"))
    if "seed" in fields:
        known["seed"] = "seed", fields.take("seed", _seed, None)
    if "response_format" in fields:
        schema = fields.take("response_format", _response_format, None)
        if schema is not None:
            fields.exclude("response_format", "grammar", "json_schema")
            known["json_schema"] = "response_format", schema
    for field, (name, value) in known.items():
        with about(name):
            SamplingParams().from_fields({field: value})
    sampling = _sampling(fields.rest())
    return Common(
        model,
        timeout_s,
        n,
        is_stream,
        bool(has_usage),
        cache,
        sampling | {name: value for name, (_, value) in known.items()},
        {name: client_name for name, (client_name, _) in known.items()},
    )


def _sampling(rest: dict[str, Any]) -> dict[str, Any]:
    """The fields, if they are those of our sampling. Raises InvalidRequest."""
    for name, value in rest.items():
        with about(name):
            SamplingParams().from_fields({name: value})
    with about("temp" if "temp" in rest and "temperature" in rest else "grammar"):
        SamplingParams().from_fields(rest)
    return rest


def _limit(fields: Fields, names: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """The one field of `names` that limits the tokens."""
    given = [name for name in names if name in fields]
    if len(given) > 1:
        raise InvalidRequest(
            f"{' and '.join(given)} are one field: send one of them", field=given[1]
        )
    if not given:
        return {}
    (name,) = given
    limit = fields.need(name, lambda name, value: integer(name, value, 1))
    return {"num_predict": (name, limit)}


def _seed(name: str, value: Any) -> int:
    """OpenAI's are signed."""
    return integer(name, value, -(2**63), MAX_SEED) % (MAX_SEED + 1)


def _include_usage(name: str, value: Any) -> bool:
    options = dict(json_object(name, value))
    has_usage = options.pop("include_usage", None)
    only(False)(f"{name}.include_obfuscation", options.pop("include_obfuscation", None) or False)
    refuse_others(name, options)
    return has_usage is not None and boolean(f"{name}.include_usage", has_usage)


def _response_format(name: str, value: Any) -> dict[str, Any] | None:
    """A JSON Schema; None: any text."""
    form = dict(json_object(name, value))
    kind = form.pop("type", None)
    match kind:
        case "text":
            schema = None
        case "json_object":
            schema = {"type": "object"}
        case "json_schema":
            wanted = dict(json_object(f"{name}.json_schema", form.pop("json_schema", None)))
            schema = dict(json_object(f"{name}.json_schema.schema", wanted.pop("schema", None)))
            wanted.pop("name", None)
            wanted.pop("description", None)
            if (strict := wanted.pop("strict", None)) is not None:
                boolean(f"{name}.json_schema.strict", strict)
            refuse_others(f"{name}.json_schema", wanted)
        case _:
            raise InvalidRequest(f"{name}.type must be text, json_object or json_schema")
    refuse_others(name, form)
    return schema


def seconds(name: str, value: Any) -> float | None:
    """As all endpoints have it: see server.json_body.timeout."""
    return timeout({name: value})


def json_object(name: str, value: Any) -> Mapping[str, Any]:
    """The value, if it is an object."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object")
    return value


def refuse_others(name: str, rest: Mapping[str, Any]) -> None:
    """`rest`: the fields of the object `name` that nobody knows."""
    for other, value in rest.items():
        if value is not None:
            raise InvalidRequest(f"{name}: unknown field: {other!r:.80}")


def only(*values: Any) -> Check[None]:
    """Of a field that we do not support: the values that ask for nothing."""

    def check(name: str, value: Any) -> None:
        if not any(type(value) is type(neutral) and value == neutral for neutral in values):
            neutral = " or ".join(map(json.dumps, values))
            raise InvalidRequest(f"{name} is not supported; it may be left out, null or {neutral}")

    return check


def label(name: str, value: Any) -> None:
    """For the client's own books."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string")


def _labels(name: str, value: Any) -> None:
    for key, one in json_object(name, value).items():
        label(f"{name}: {key!r:.80}", one)


NEUTRAL: Mapping[str, Check[None]] = {
    "user": label,
    "safety_identifier": label,
    "prompt_cache_key": label,
    "metadata": _labels,
    "store": only(False),
    "service_tier": only("auto", "default"),
    "prompt_cache_retention": only("in_memory", "in-memory"),
}
"""Fields that ask for nothing here, with the values that do so."""

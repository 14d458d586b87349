"""The common fields of completions and chats: their checks and their meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.generation.served_model import ServedModel
from server.http.fields import (
    CACHE,
    MODEL,
    SAMPLING,
    TIMEOUT,
    Form,
    about,
    json_object,
    one_of,
    sampling_of,
)
from shared.errors import InvalidRequest, Unsupported
from shared.sampling import MAX_SEED, SamplingParams
from shared.validation import BOOLEAN, TEXT, Check, integer, integers

MAX_CHOICES = 128
"""Maximum choices of one request, for all its prompts together."""


def exclude(given: Mapping[str, Any], chosen: str, *others: str) -> None:
    """Raises InvalidRequest if one of `others` is given, which exclude `chosen`."""
    for other in others:
        if other in given:
            raise InvalidRequest(f"{chosen} and {other} exclude each other", field=other)


@dataclass(frozen=True, slots=True)
class Common:
    """The values of the common fields."""

    model: str | None
    timeout_s: float | None
    """Seconds from the request's arrival to its deadline; None: no deadline."""
    n: int
    """Choices for each prompt."""
    is_stream: bool
    has_usage: bool
    """A stream ends with its token counts."""
    prompt_id: int
    sampling: Mapping[str, Any]
    """Fields for SamplingParams.from_fields."""
    names: dict[str, str]
    """The client's names of sampling fields, where they are not ours."""

    def params(self, served: ServedModel, num_predict: int) -> SamplingParams:
        """The sampling parameters. `num_predict`: the default. Raises Unsupported."""
        defaults = served.defaults.from_fields({"num_predict": num_predict})
        params = defaults.from_fields(self.sampling)
        self.check_supported(params, served)
        return params

    def check_supported(self, params: SamplingParams, served: ServedModel, **names: str) -> None:
        """Raises Unsupported if the engine cannot honour a parameter.

        `names`: the client's names of further fields.
        """
        if beyond := params.beyond(served.info.sampling):
            name = (self.names | names).get(beyond[0], beyond[0])
            raise Unsupported(
                f"{name}: the {served.info.engine} engine cannot honour it", field=name
            )


def take_common(given: dict[str, Any], *limits: str, **known: tuple[str, Any]) -> Common:
    """The common fields among a body's checked fields. Raises InvalidRequest.

    `limits`: names of the field that limits the tokens. `known`: sampling fields that follow from
    other fields, each with the client's name of that field and the value.
    """
    is_stream, has_usage = given.pop("stream", False), given.pop("stream_options", None)
    if has_usage is not None and not is_stream:
        raise InvalidRequest("stream_options requires stream", field="stream_options")
    known |= _limit(given, (*limits, "num_predict"))
    schema = given.pop("response_format", None)
    if schema is not None:
        exclude(given, "response_format", "grammar", "json_schema")
        known["json_schema"] = "response_format", schema
    for field, (name, value) in known.items():
        with about(name):
            SamplingParams().from_fields({field: value})
    return Common(
        given.get("model"),
        given.get("timeout_s"),
        given.get("n", 1),
        is_stream,
        bool(has_usage),
        given.get("cache", 0),
        sampling_of(given) | {name: value for name, (_, value) in known.items()},
        {name: client_name for name, (client_name, _) in known.items()},
    )


def _limit(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """The one field of `names` that limits the tokens."""
    limits = {name: given.pop(name) for name in names if name in given}
    if len(limits) > 1:
        raise InvalidRequest(
            f"{' and '.join(limits)} mean the same: send only one of them", field=[*limits][1]
        )
    return dict.fromkeys(("num_predict",), *limits.items()) if limits else {}


def _include_usage(name: str, value: Any) -> bool:
    return bool(STREAM_OPTIONS(name, value).get("include_usage", False))


def _response_format(name: str, value: Any) -> dict[str, Any] | None:
    """A JSON Schema; None: any text."""
    form = dict(json_object(name, value))
    match kind := form.get("type"):
        case "text" | "json_object":
            Form({"type": TEXT}).check()(name, form)
            return None if kind == "text" else {"type": "object"}
        case "json_schema":
            wanted = JSON_SCHEMA(name, form)["json_schema"]
            return dict(wanted["schema"])
        case _:
            raise InvalidRequest(f"{name}.type must be text, json_object or json_schema")


def only(*values: Any) -> Check[None]:
    """The check of an unsupported field, which accepts values that have no effect."""

    def check(name: str, value: Any) -> None:
        if not any(type(value) is type(neutral) and value == neutral for neutral in values):
            neutral = " or ".join(map(json.dumps, values))
            raise InvalidRequest(
                f"{name} is not supported; leave it out, or send null or {neutral}"
            )

    return Check({"enum": list(values)} if values else {"type": "null"}, check)


def _label(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string")


def _labels(name: str, value: Any) -> None:
    for key, one in json_object(name, value).items():
        _label(f"{name}: {key!r:.80}", one)


OBJECT: Check[Mapping[str, Any]] = Check({"type": "object"}, json_object)
ANY: Check[Any] = Check({}, lambda _, value: value)
LABEL: Check[None] = Check({"type": "string"}, _label).saying("Has no effect.")
JSON_SCHEMA = Form(
    {
        "type": one_of("json_schema"),
        "json_schema": Form(
            {"name": ANY, "description": ANY, "schema": OBJECT, "strict": BOOLEAN},
            needed=("schema",),
        ).check(),
    },
    needed=("type", "json_schema"),
).check()
RESPONSE_FORMAT = Check(
    {
        "anyOf": [
            Form({"type": one_of("text", "json_object")}, needed=("type",)).schema(),
            JSON_SCHEMA.schema,
        ]
    },
    _response_format,
)
STREAM_OPTIONS = Form({"include_usage": BOOLEAN, "include_obfuscation": only(False)}).check()
SEED: Check[int] = Check(
    {"type": "integer", "minimum": -(2**63), "maximum": MAX_SEED},
    lambda name, value: integer(name, value, -(2**63), MAX_SEED) % (MAX_SEED + 1),
).saying("Seed of the request's random generator.")  # OpenAI's are signed
COMMON: Mapping[str, Check[Any]] = {
    **SAMPLING,
    "seed": SEED,
    "model": MODEL,
    "timeout_s": TIMEOUT,
    "cache": CACHE,
    "n": integers(1, MAX_CHOICES).saying("Number of choices for each prompt."),
    "max_tokens": integers(1).saying("Same as num_predict."),
    "stream": BOOLEAN,
    "stream_options": Check(STREAM_OPTIONS.schema, _include_usage),
    "response_format": RESPONSE_FORMAT,
    "user": LABEL,
    "safety_identifier": LABEL,
    "prompt_cache_key": LABEL,
    "metadata": Check({"type": "object", "additionalProperties": {"type": "string"}}, _labels),
    "store": only(False),
    "service_tier": only("auto", "default"),
    "prompt_cache_retention": only("in_memory", "in-memory"),
}
"""The common fields. An unsupported field accepts values that have no effect."""

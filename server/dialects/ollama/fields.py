"""The fields of Ollama's requests, checked, in our own names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from server.dialects.base import ServedModel
from server.json_body import parse_object
from shared.errors import InvalidRequest
from shared.sampling import MAX_GRAMMAR, SamplingParams
from shared.validation import MAX_INTEGER, boolean, integer, number, text

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""What `"format": "json"` asks for."""
MAX_TOP_LOGPROBS = 20
THINKING = "enable_thinking"
"""The variable of chat templates."""
THINK_LEVELS = ("low", "medium", "high")
DURATION = re.compile(r"[-+]?(?:0|(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)", re.ASCII)
"""As Go writes them: 5m, 1h30m, -1s."""
SAME_OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
    "presence_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "stop",
)  # fmt: skip
"""Options that have our own fields' names and ranges."""
OTHER_OPTIONS = ("num_predict", "num_ctx", "num_batch", "repeat_last_n", "seed")
RUNTIME_OPTIONS = (
    "numa", "num_thread", "num_gpu", "main_gpu", "low_vram", "f16_kv", "use_mmap", "use_mlock",
    "vocab_only", "embedding_only", "logits_all",
)  # fmt: skip
"""What Ollama decides anew with each loading of a model."""
UNCUT = {
    "truncate": "messages that do not fit into the context are an error",
    "shift": "an answer ends with the context",
}
WHOLE_PROMPT = UNCUT | {
    "template": "a chat template is chosen when the server starts",
    "suffix": "no text is written between two others here",
    "context": "send the conversation to /api/chat",
    "images": "the models here read text only",
}
"""What may only be empty or false, and why."""


def known_fields(
    body: bytes, known: Collection[str], unsupported: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The body's fields that are not null. Raises InvalidRequest for one that is not `known`, and
    for one that is `unsupported` and asks for something."""
    fields = parse_object(body)
    for name in fields:
        if name not in known and name not in unsupported:
            raise InvalidRequest(f"unknown field: {name!r:.80}")
    for name, why in unsupported.items():
        if fields.pop(name, None):
            raise InvalidRequest(f"{name} is not supported: {why}")
    return {name: value for name, value in fields.items() if value is not None}


def plain_text(name: str, value: Any) -> str:
    """The value, if it is a text; it may be empty. Raises InvalidRequest."""
    return "" if value == "" else text(name, value)


@dataclass(frozen=True, slots=True)
class Options:
    """What `options`, `format` and their like ask of a generation."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SamplingParams."""
    num_ctx: int = 0
    """Tokens that the context must have at the least."""
    penalizes_all: bool = False
    """All tokens of the context count as recent."""

    def of(self, served: ServedModel) -> SamplingParams:
        """The model's sampling. Where nothing bounds an answer, the context does.

        Raises InvalidRequest for a context that the model has not.
        """
        self.check(served)
        defaults = replace(served.defaults, num_predict=MAX_INTEGER)
        if self.penalizes_all:
            defaults = replace(defaults, repeat_last_n=served.info.context)
        return defaults.from_fields(self.sampling)

    def check(self, served: ServedModel) -> None:
        """Raises InvalidRequest for a context that the model has not."""
        context = served.info.context
        if self.num_ctx > context:
            raise InvalidRequest(f"options.num_ctx must be at most {context}, the server's context")


def read_options(fields: Mapping[str, Any]) -> Options:
    """The options of a generation, by the body's fields. Raises InvalidRequest."""
    given = _options(fields, (*SAME_OPTIONS, *OTHER_OPTIONS))
    sampling = {name: given[name] for name in SAME_OPTIONS if name in given}
    if (count := _unless_unlimited("num_predict", given, 1, (-1, -2))) is not None:
        sampling["num_predict"] = count
    if (recent := _unless_unlimited("repeat_last_n", given, 0, (-1,))) is not None:
        sampling["repeat_last_n"] = recent
    if given.get("seed", -1) != -1:
        sampling["seed"] = given["seed"]
    if "num_batch" in given:
        sampling["n_batch"] = integer("options.num_batch", given["num_batch"], 1)
    try:
        SamplingParams().from_fields(sampling)
    except InvalidRequest as error:  # it begins with the option's name
        raise InvalidRequest(f"options.{error.message}") from None
    sampling |= _format(fields.get("format", "")) | _logprobs(fields)
    SamplingParams().from_fields(sampling)
    return Options(sampling, _num_ctx(given), given.get("repeat_last_n") == -1)


def read_embedding_options(fields: Mapping[str, Any]) -> Options:
    """The options of an embedding, which nothing else can change. Raises InvalidRequest."""
    return Options(num_ctx=_num_ctx(_options(fields, ("num_ctx",))))


def _options(fields: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Those that are not null."""
    options = fields.get("options", {})
    if not isinstance(options, dict):
        raise InvalidRequest("options must be an object")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name in RUNTIME_OPTIONS:
            raise InvalidRequest(
                f"options.{name} is not supported: it is decided when the server starts"
            )
        if name not in known:
            raise InvalidRequest(f"options has an unknown field: {name!r:.80}")
    return given


def _num_ctx(options: Mapping[str, Any]) -> int:
    """Tokens; 0 where it is not asked for."""
    return integer("options.num_ctx", options["num_ctx"], 1) if "num_ctx" in options else 0


def _unless_unlimited(
    name: str, options: Mapping[str, Any], low: int, unlimited: tuple[int, ...]
) -> int | None:
    """None where it is not given, or one of the numbers that stand for the whole context."""
    value = options.get(name)
    if value is None or (type(value) is int and value in unlimited):
        return None
    if type(value) is not int or not low <= value <= MAX_INTEGER:
        whole = " or ".join(map(str, unlimited))
        raise InvalidRequest(
            f"options.{name} must be an integer from {low} to {MAX_INTEGER}, or {whole}:"
            " the whole context"
        )
    return value


def _format(value: Any) -> dict[str, Any]:
    if value == "":
        return {}
    if value == "json":
        return {"json_schema": ANY_OBJECT}
    if not isinstance(value, dict):
        raise InvalidRequest('format must be "json" or a JSON schema, an object')
    try:
        SamplingParams().from_fields({"json_schema": value})
    except InvalidRequest:
        raise InvalidRequest(
            f"format: a schema must have at most {MAX_GRAMMAR} characters"
        ) from None
    return {"json_schema": value}


def _logprobs(fields: Mapping[str, Any]) -> dict[str, int]:
    top = integer("top_logprobs", fields.get("top_logprobs", 0), 0, MAX_TOP_LOGPROBS)
    if boolean("logprobs", fields.get("logprobs", False)):
        return {"logprobs": top}
    if top:
        raise InvalidRequest("top_logprobs needs logprobs to be true")
    return {}


def check_keep_alive(fields: Mapping[str, Any]) -> None:
    """Any duration is taken: how long a model stays is the server's rule. Raises InvalidRequest."""
    value = fields.get("keep_alive", 0)
    if not isinstance(value, str):
        number("keep_alive", value, low=-(2.0**63), high=2.0**63)
    elif not DURATION.fullmatch(value):
        raise InvalidRequest('keep_alive must be a number of seconds, or a duration such as "5m"')


def read_think(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template's variables for `think`: true, false or a level. Raises InvalidRequest."""
    think = fields.get("think")
    if think is None:
        return {}
    if isinstance(think, bool):
        return {THINKING: think}
    if isinstance(think, str) and think in THINK_LEVELS:
        return {THINKING: True, "reasoning_effort": think}
    raise InvalidRequest(f"think must be true, false, or one of {', '.join(THINK_LEVELS)}")

"""The fields of Ollama's requests: their checks, and their meaning in our own fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from server.generation.served_model import ServedModel
from server.http.fields import MODEL, SAMPLING, Form
from shared.errors import InvalidRequest
from shared.sampling import MAX_GRAMMAR, SamplingParams
from shared.validation import BOOLEAN, MAX_INTEGER, Check, Schema, integers, numbers

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of `"format": "json"`."""
MAX_TOP_LOGPROBS = 20
THINKING = "enable_thinking"
"""The variable of chat templates that turns thoughts on."""
THINK_LEVELS = ("low", "medium", "high")
DURATION = re.compile(r"[-+]?(?:0|(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)", re.ASCII)
"""Durations in Go's syntax: 5m, 1h30m, -1s."""
SAME_OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
    "presence_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "stop",
)  # fmt: skip
"""Options with the same names and ranges as our own fields."""
RUNTIME_OPTIONS = (
    "numa", "num_thread", "num_gpu", "main_gpu", "low_vram", "f16_kv", "use_mmap", "use_mlock",
    "vocab_only", "embedding_only", "logits_all",
)  # fmt: skip
"""Options that Ollama applies when it loads a model; here they are fixed at the server's start."""


def empty(why: str) -> Check[None]:
    """The check of an unsupported field that may be empty or false. `why`: the reason."""

    def check(name: str, value: Any) -> None:
        if value:
            raise InvalidRequest(f"{name} is not supported: {why}")

    return Check(
        {"enum": ["", False, 0, [], {}, None], "description": f"Not supported: {why}."}, check
    )


def _never(why: str) -> Check[None]:
    """The check of an unsupported field that may only be null. `why`: the reason."""

    def check(name: str, value: Any) -> None:
        raise InvalidRequest(f"{name} is not supported: {why}")

    return Check({"type": "null", "description": f"Not supported: {why}."}, check)


@dataclass(frozen=True, slots=True)
class Options:
    """What `options`, `format`, `logprobs` and `top_logprobs` mean for a generation."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SamplingParams."""
    num_ctx: int = 0
    """Minimum tokens of the context."""
    penalizes_all: bool = False
    """Penalties cover all tokens of the context (repeat_last_n -1)."""

    def of(self, served: ServedModel) -> SamplingParams:
        """The sampling parameters. Without num_predict, an answer ends when the context is full.

        Raises InvalidRequest if num_ctx is larger than the model's context.
        """
        self.check(served)
        defaults = replace(served.defaults, num_predict=MAX_INTEGER)
        if self.penalizes_all:
            defaults = replace(defaults, repeat_last_n=served.info.context)
        return defaults.from_fields(self.sampling)

    def check(self, served: ServedModel) -> None:
        """Raises InvalidRequest if num_ctx is larger than the model's context."""
        context = served.info.context
        if self.num_ctx > context:
            raise InvalidRequest(f"options.num_ctx must be at most {context}, the server's context")


def read_options(given: Mapping[str, Any]) -> Options:
    """The options of a generation, from a body's checked fields. Raises InvalidRequest."""
    options = given.get("options", {})
    sampling = {name: options[name] for name in SAME_OPTIONS if name in options}
    renamed = {"num_batch": "n_batch"} | {name: name for name in ("num_predict", "repeat_last_n")}
    for name, ours in renamed.items():
        if options.get(name) is not None:
            sampling[ours] = options[name]
    if options.get("seed", -1) != -1:
        sampling["seed"] = options["seed"]
    sampling |= given.get("format", {}) | _logprobs(given)
    SamplingParams().from_fields(sampling)
    penalizes_all = options.get("repeat_last_n", 0) is None
    return Options(sampling, options.get("num_ctx", 0), penalizes_all)


def read_embedding_options(given: Mapping[str, Any]) -> Options:
    """The options of an embedding, from a body's checked fields."""
    return Options(num_ctx=given.get("options", {}).get("num_ctx", 0))


def _or_unlimited(low: int, unlimited: tuple[int, ...]) -> Check[int | None]:
    """The check of an integer. It returns None for the numbers that mean the whole context."""

    def check(name: str, value: Any) -> int | None:
        if type(value) is int and value in unlimited:
            return None
        if type(value) is not int or not low <= value <= MAX_INTEGER:
            whole = " or ".join(map(str, unlimited))
            raise InvalidRequest(
                f"{name} must be an integer from {low} to {MAX_INTEGER}, or {whole}:"
                " the whole context"
            )
        return value

    return Check({"anyOf": [integers(low).schema, {"enum": list(unlimited)}]}, check)


def _format(name: str, value: Any) -> dict[str, Any]:
    if value == "":
        return {}
    if value == "json":
        return {"json_schema": ANY_OBJECT}
    if not isinstance(value, dict):
        raise InvalidRequest(f'{name} must be "json" or a JSON schema, an object')
    try:
        SamplingParams().from_fields({"json_schema": value})
    except InvalidRequest:
        raise InvalidRequest(
            f"{name}: a schema must have at most {MAX_GRAMMAR} characters"
        ) from None
    return {"json_schema": value}


def _logprobs(given: Mapping[str, Any]) -> dict[str, int]:
    top = given.get("top_logprobs", 0)
    if given.get("logprobs", False):
        return {"logprobs": top}
    if top:
        raise InvalidRequest("top_logprobs needs logprobs to be true")
    return {}


def _keep_alive(name: str, value: Any) -> None:
    """Check a duration, which has no effect. Raises InvalidRequest."""
    if not isinstance(value, str):
        _SECONDS(name, value)
    elif not DURATION.fullmatch(value):
        raise InvalidRequest(f'{name} must be a number of seconds, or a duration such as "5m"')


def _think(name: str, think: Any) -> dict[str, Any]:
    """The template variables for true, false or a level. Raises InvalidRequest."""
    if isinstance(think, bool):
        return {THINKING: think}
    if isinstance(think, str) and think in THINK_LEVELS:
        return {THINKING: True, "reasoning_effort": think}
    raise InvalidRequest(f"{name} must be true, false, or one of {', '.join(THINK_LEVELS)}")


_SECONDS = numbers(low=-(2.0**63), high=2.0**63)
_DURATION: Schema = {"type": "string", "pattern": f"^{DURATION.pattern}$"}
_NUM_CTX = integers(1).saying("Minimum tokens of the context.")
_FIXED = dict.fromkeys(RUNTIME_OPTIONS, _never("it is decided when the server starts"))
_OPTIONS = Form(
    {
        **{name: SAMPLING[name] for name in SAME_OPTIONS},
        "num_predict": _or_unlimited(1, (-1, -2)).saying("Maximum number of generated tokens."),
        "num_batch": SAMPLING["n_batch"].saying("Same as n_batch of /stream."),
        "num_ctx": _NUM_CTX,
        "repeat_last_n": _or_unlimited(0, (-1,)).saying(
            "Number of last tokens that penalties cover."
        ),
        "seed": Check(
            {"anyOf": [SAMPLING["seed"].schema, {"const": -1}]},
            lambda name, value: -1 if value == -1 else SAMPLING["seed"](name, value),
        ).saying("-1: a random seed."),
        **_FIXED,
    }
)
COMMON: Mapping[str, Check[Any]] = {
    "model": MODEL,
    "options": _OPTIONS.check(),
    "keep_alive": Check({"anyOf": [_SECONDS.schema, _DURATION]}, _keep_alive).saying(
        "Has no effect: the server decides how long a model stays loaded."
    ),
}
EMBEDDING: Mapping[str, Check[Any]] = {
    **COMMON,
    "options": Form({"num_ctx": _NUM_CTX, **_FIXED}).check(),
}
"""The common fields of both endpoints for vectors."""
TEXT_FIELDS: Mapping[str, Check[Any]] = {
    **COMMON,
    "stream": BOOLEAN.saying("True, the default: a stream of JSON lines; false: one object."),
    "format": Check({"anyOf": [{"enum": ["", "json"]}, {"type": "object"}]}, _format).saying(
        "A JSON Schema that the answer obeys; json: any JSON object."
    ),
    "think": Check({"enum": [True, False, *THINK_LEVELS]}, _think).saying(
        "Let the model think, and return its thoughts apart from its answer."
    ),
    "logprobs": BOOLEAN.saying("Report each token's log probability."),
    "top_logprobs": integers(0, MAX_TOP_LOGPROBS).saying(
        "Number of most likely tokens whose log probabilities are reported, too."
    ),
    "truncate": empty("messages that do not fit into the context are an error"),
    "shift": empty("an answer ends when the context is full"),
}
"""The common fields of /api/generate and /api/chat."""

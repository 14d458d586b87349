"""The fields of Ollama's requests, checked, in our own names."""

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
RUNTIME_OPTIONS = (
    "numa", "num_thread", "num_gpu", "main_gpu", "low_vram", "f16_kv", "use_mmap", "use_mlock",
    "vocab_only", "embedding_only", "logits_all",
)  # fmt: skip
"""What Ollama decides anew with each loading of a model."""


def empty(why: str) -> Check[None]:
    """Of a field that may only be empty or false. `why`: it is not supported."""

    def check(name: str, value: Any) -> None:
        if value:
            raise InvalidRequest(f"{name} is not supported: {why}")

    return Check(
        {"enum": ["", False, 0, [], {}, None], "description": f"Not supported: {why}."}, check
    )


def _never(why: str) -> Check[None]:
    """Of a field that may only be null. `why`: it is not supported."""

    def check(name: str, value: Any) -> None:
        raise InvalidRequest(f"{name} is not supported: {why}")

    return Check({"type": "null", "description": f"Not supported: {why}."}, check)


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


def read_options(given: Mapping[str, Any]) -> Options:
    """The options of a generation, by what a form has read. Raises InvalidRequest."""
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
    """The options of an embedding, which nothing else can change."""
    return Options(num_ctx=given.get("options", {}).get("num_ctx", 0))


def _or_unlimited(low: int, unlimited: tuple[int, ...]) -> Check[int | None]:
    """None for one of the numbers that stand for the whole context."""

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
    """Any duration is taken: how long a model stays is the server's rule. Raises InvalidRequest."""
    if not isinstance(value, str):
        _SECONDS(name, value)
    elif not DURATION.fullmatch(value):
        raise InvalidRequest(f'{name} must be a number of seconds, or a duration such as "5m"')


def _think(name: str, think: Any) -> dict[str, Any]:
    """The chat template's variables for true, false or a level. Raises InvalidRequest."""
    if isinstance(think, bool):
        return {THINKING: think}
    if isinstance(think, str) and think in THINK_LEVELS:
        return {THINKING: True, "reasoning_effort": think}
    raise InvalidRequest(f"{name} must be true, false, or one of {', '.join(THINK_LEVELS)}")


_SECONDS = numbers(low=-(2.0**63), high=2.0**63)
_DURATION: Schema = {"type": "string", "pattern": f"^{DURATION.pattern}$"}
_NUM_CTX = integers(1).saying("Tokens that the context must have at the least.")
_FIXED = dict.fromkeys(RUNTIME_OPTIONS, _never("it is decided when the server starts"))
_OPTIONS = Form(
    {
        **{name: SAMPLING[name] for name in SAME_OPTIONS},
        "num_predict": _or_unlimited(1, (-1, -2)).saying("Tokens to generate at the most."),
        "num_batch": SAMPLING["n_batch"].saying("As n_batch of /stream."),
        "num_ctx": _NUM_CTX,
        "repeat_last_n": _or_unlimited(0, (-1,)).saying("How many of the last tokens are recent."),
        "seed": Check(
            {"anyOf": [SAMPLING["seed"].schema, {"const": -1}]},
            lambda name, value: -1 if value == -1 else SAMPLING["seed"](name, value),
        ).saying("-1: a fresh one."),
        **_FIXED,
    }
)
COMMON: Mapping[str, Check[Any]] = {
    "model": MODEL,
    "options": _OPTIONS.check(),
    "keep_alive": Check({"anyOf": [_SECONDS.schema, _DURATION]}, _keep_alive).saying(
        "Taken, and without effect: how long a model stays is the server's rule."
    ),
}
EMBEDDING: Mapping[str, Check[Any]] = {
    **COMMON,
    "options": Form({"num_ctx": _NUM_CTX, **_FIXED}).check(),
}
"""What both endpoints for vectors take."""
TEXT_FIELDS: Mapping[str, Check[Any]] = {
    **COMMON,
    "stream": BOOLEAN.saying("Lines of JSON, which is the default, or one object."),
    "format": Check({"anyOf": [{"enum": ["", "json"]}, {"type": "object"}]}, _format).saying(
        "A JSON Schema that the answer obeys, or any JSON."
    ),
    "think": Check({"enum": [True, False, *THINK_LEVELS]}, _think).saying(
        "Tell the model's thoughts from its answer."
    ),
    "logprobs": BOOLEAN.saying("Report each token's log probability."),
    "top_logprobs": integers(0, MAX_TOP_LOGPROBS).saying("And so many of the likeliest."),
    "truncate": empty("messages that do not fit into the context are an error"),
    "shift": empty("an answer ends with the context"),
}
"""What chats and other texts take."""

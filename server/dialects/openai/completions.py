"""POST /v1/completions: continuations of texts or of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.dialects.openai.answers import (
    Choice,
    Head,
    Json,
    StreamRenderer,
    Totals,
    WholeRenderer,
    finite,
    repeated,
)
from server.dialects.openai.fields import COMMON, MAX_CHOICES, Common, only, take_common
from server.dialects.openai.prompts import PROMPTS, check_vocabulary
from server.generation.answer import Answer, Call
from server.generation.served_model import ServedModel
from server.generation.task import Generation
from server.http.fields import Form
from shared.errors import InvalidRequest
from shared.messages import Finished, Token
from shared.prompt import Prompt
from shared.validation import BOOLEAN, integers
from shared.values import Candidate

KIND = "text_completion"
DEFAULT_TOKENS = 16
COMPLETION = Form(
    {
        "prompt": PROMPTS,
        "echo": BOOLEAN.saying("Begin the answer with the prompt."),
        "best_of": integers(1, MAX_CHOICES).saying(
            "Number of choices generated for each prompt; the n most likely are returned."
        ),
        "suffix": only(""),
        **COMMON,
    },
    needed=("prompt",),
)


def parse_completion(body: bytes, headers: Mapping[str, str]) -> Call:
    """Parse a body of /v1/completions. Raises InvalidRequest, which names the field."""
    given = COMPLETION.read(body)
    common = take_common(given, "max_tokens")
    tries = given.get("best_of", common.n)
    request = CompletionRequest(common, given["prompt"], given.get("echo", False), tries)
    request.check()
    return Call(common.model, request.answer, common.timeout_s)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked body."""

    common: Common
    prompts: tuple[Prompt, ...]
    echoes: bool
    """The answer begins with the prompt."""
    tries: int
    """Choices that are generated for each prompt; the most likely are returned."""

    def check(self) -> None:
        """Raises InvalidRequest for fields that exclude each other."""
        common = self.common
        if self.tries < common.n:
            raise InvalidRequest("best_of must be at least n", field="best_of")
        if self.tries > common.n and common.is_stream:
            raise InvalidRequest("best_of must be n in a stream", field="best_of")
        if self.tries * len(self.prompts) > MAX_CHOICES:
            raise InvalidRequest(
                f"n: all prompts together may have at most {MAX_CHOICES} choices", field="n"
            )
        if self.echoes and "logprobs" in common.sampling:
            raise InvalidRequest("logprobs is not supported together with echo", field="logprobs")
        if self.echoes and any(prompt.tokens is not None for prompt in self.prompts):
            raise InvalidRequest("echo is not supported for prompts of tokens", field="echo")
        if common.prompt_id and len(self.prompts) > 1:
            raise InvalidRequest("cache is not supported for several prompts", field="cache")

    def answer(self, served: ServedModel) -> Answer:
        """Raises ServingError."""
        common = self.common
        for prompt in self.prompts:
            check_vocabulary("prompt", prompt, served)
        params = common.params(served, DEFAULT_TOKENS)
        shows_logprobs = params.logprobs is not None
        if self.tries > common.n and not shows_logprobs:
            params = replace(params, logprobs=0)
            common.check_supported(params, served, logprobs="best_of")
        tasks: list[Generation] = []
        choices: list[CompletionChoice] = []
        for prompt in self.prompts:
            echo = prompt.text if self.echoes else ""
            for task in repeated(Generation(prompt, params, common.prompt_id), self.tries):
                choices.append(CompletionChoice(len(tasks), echo, shows_logprobs=shows_logprobs))
                tasks.append(task)
        head, totals = Head.of(served.name, "cmpl-"), Totals(self.tries)
        if common.is_stream:
            return Answer(
                tuple(tasks),
                StreamRenderer(head, KIND, choices, totals, has_usage=common.has_usage),
            )
        best = BestOf(choices, self.tries, common.n)
        return Answer(tuple(tasks), WholeRenderer(head, KIND, choices, totals, best.chosen))


class CompletionChoice(Choice):
    """A continuation, after the text `echo`."""

    def __init__(self, index: int, echo: str, *, shows_logprobs: bool) -> None:
        self._index = index
        self._echo = echo
        self._texts: list[str] = []
        self._length = 0
        self._shows_logprobs = shows_logprobs
        self._logprobs = _no_logprobs()
        self._reason = ""

    def begin(self) -> list[Json]:
        """One chunk, even without echo, so that the choices first appear in their order."""
        return [self._piece(self._echo)]

    def token(self, token: Token) -> list[Json]:
        self._texts.append(token.text)
        logprobs = self._take_logprobs(token)
        self._length += len(token.text)
        shown = logprobs if self._shows_logprobs else None
        return [self._piece(token.text, shown)] if token.text or shown else []

    def finished(self, event: Finished) -> list[Json]:
        self._reason = event.reason
        return [{**self._piece(""), "finish_reason": event.reason}]

    def whole(self) -> Json:
        shown = self._logprobs if self._shows_logprobs else None
        text = self._echo + "".join(self._texts)
        return {**self._piece(text, shown), "finish_reason": self._reason}

    def likelihood(self) -> float:
        """Mean log probability of its tokens; -infinity without tokens."""
        values: list[float] = self._logprobs["token_logprobs"]
        return sum(values) / len(values) if values else float("-inf")

    def _piece(self, text: str, logprobs: Json | None = None) -> Json:
        return {"text": text, "index": self._index, "logprobs": logprobs, "finish_reason": None}

    def _take_logprobs(self, token: Token) -> Json | None:
        """The log probabilities of the token, which are also kept for `whole`."""
        if token.logprobs is None:
            return None
        new: dict[str, list[Any]] = {
            "tokens": [token.text],
            "token_logprobs": [finite(token.logprobs.logprob)],
            "top_logprobs": [_likeliest(token.logprobs.top)],
            "text_offset": [self._length],
        }
        for name, values in new.items():
            self._logprobs[name] += values
        return new


@dataclass(frozen=True, slots=True)
class BestOf:
    """The `n` most likely of each prompt's `tries` choices."""

    choices: Sequence[CompletionChoice]
    tries: int
    n: int

    def chosen(self) -> list[CompletionChoice]:
        if self.tries == self.n:
            return list(self.choices)
        groups = [
            self.choices[start : start + self.tries]
            for start in range(0, len(self.choices), self.tries)
        ]
        return [
            choice
            for group in groups
            for choice in sorted(group, key=CompletionChoice.likelihood, reverse=True)[: self.n]
        ]


def _no_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _likeliest(top: Sequence[Candidate]) -> dict[str, float]:
    """The log probabilities by text. Of tokens with equal texts, such as parts of characters, only
    the most likely one."""
    result: dict[str, float] = {}
    for candidate in top:
        result.setdefault(candidate.piece.decode(errors="replace"), finite(candidate.logprob))
    return result

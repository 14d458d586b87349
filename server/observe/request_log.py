"""A log line for each request, when it has ended."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote

from server.generation.record import RequestRecord
from server.generation.task import Task

LONGEST_PATH = 200
"""Characters of a path that are logged."""

logger = logging.getLogger("tokenflume.request")


class RequestLog:
    """Logs requests. `prompts`: with the text of their prompts (--log-prompts)."""

    def __init__(self, *, prompts: bool) -> None:
        self._prompts = prompts

    def __call__(self, record: RequestRecord) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        fields = fields_of(record)
        if self._prompts and record.tasks:
            fields["prompts"] = [prompt_of(task) for task in record.tasks]
        logger.info("%s", sentence(fields), extra={"fields": fields})


def fields_of(record: RequestRecord) -> dict[str, Any]:
    """The fields of the log line; times in seconds. None: unknown, or it did not happen."""
    usage = record.usage
    has_ended = bool(record.ends)
    return {
        "request_id": record.id,
        "client": record.address,
        "key_owner": record.owner,
        "path": record.path,
        "model": record.model or None,
        "workers": record.workers,
        "outcome": record.outcome,
        "reason": record.reason,
        "prompt_tokens": usage.prompt_tokens if has_ended else None,
        "cached_tokens": usage.cached_tokens if has_ended else None,
        "completion_tokens": usage.completion_tokens,
        "queued_s": _rounded(record.queued_s),
        "first_token_s": _rounded(record.first_token_s),
        "tokens_per_s": _rounded(record.tokens_per_s),
        "total_s": _rounded(record.total_s),
    }


def sentence(fields: dict[str, Any]) -> str:
    """The fields as a text for people, without those that are unknown."""
    owner, workers = fields["key_owner"], fields["workers"]
    asked = f"of {owner} at {fields['client']}" if owner else f"of {fields['client']}"
    # Quoted, because a path may contain anything, such as a line break.
    where = quote(fields["path"])[:LONGEST_PATH]
    if fields["model"] is not None:
        where += f" on {fields['model']}"
    if workers:
        where += f", worker {', '.join(map(str, workers))}"
    parts = [f"{fields['outcome']} ({fields['reason']})", *_counts(fields), *_times(fields)]
    line = f"{fields['request_id']} {asked}: {where}: {', '.join(parts)}"
    return line + "".join(f"; prompt {prompt!r}" for prompt in fields.get("prompts", ()))


def prompt_of(task: Task) -> str | list[int]:
    """The prompt's text, or its tokens if the client sent tokens."""
    prompt = task.prompt
    return prompt.text if prompt.tokens is None else list(prompt.tokens)


def _counts(fields: dict[str, Any]) -> list[str]:
    counts = []
    if fields["prompt_tokens"] is not None:
        counts.append(f"{fields['prompt_tokens']} prompt tokens, {fields['cached_tokens']} cached")
    if fields["workers"]:
        counts.append(f"{fields['completion_tokens']} tokens")
    return counts


def _times(fields: dict[str, Any]) -> list[str]:
    words = {
        "queued_s": "queued {:.3f} s",
        "first_token_s": "first token after {:.3f} s",
        "tokens_per_s": "{:.1f} tokens/s",
        "total_s": "{:.3f} s in all",
    }
    return [text.format(fields[name]) for name, text in words.items() if fields[name] is not None]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)

"""Prompts: of random words, or from a file."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scripts.load.request import Request
from scripts.load.words import WORDS
from scripts.loadtest.lengths import LONGEST, BadPlan, Lengths


class Source(Protocol):
    """Makes requests with prompts."""

    def draw(self, index: int, chance: random.Random, seed: str) -> Request:
        """Request number `index`. `seed` is the seed of the whole load."""


@dataclass(frozen=True, slots=True)
class RandomWords:
    """Prompts of random words. No two begin alike, except for the words that all share."""

    words: Lengths
    tokens: Lengths
    shared: int = 0
    """Number of words that all prompts begin with."""

    def draw(self, index: int, chance: random.Random, seed: str) -> Request:
        own = chance.choices(WORDS, k=self.words.draw(chance))
        shared = random.Random(f"{seed} shared").choices(WORDS, k=self.shared)
        prompt = " ".join([*shared, *own])
        return Request(prompt, self.tokens.draw(chance), chance.getrandbits(31))


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt of a file."""

    prompt: str
    messages: Sequence[Mapping[str, Any]] = ()
    tokens: int | None = None
    """Length of its answer; None: as the command line says."""


@dataclass(frozen=True, slots=True)
class FilePrompts:
    """The prompts of a file, in their order, repeated."""

    entries: Sequence[Entry]
    tokens: Lengths

    def draw(self, index: int, chance: random.Random, seed: str) -> Request:
        entry = self.entries[index % len(self.entries)]
        tokens = self.tokens.draw(chance) if entry.tokens is None else entry.tokens
        return Request(entry.prompt, tokens, chance.getrandbits(31), entry.messages)


def read_prompts(path: Path) -> list[Entry]:
    """Read a file with one prompt a line.

    A line of a *.jsonl file is an object with `prompt` or `messages`, and optionally
    `max_tokens`. Empty lines are skipped. Raises BadPlan, with the number of the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadPlan(f"{path} cannot be read: {error}") from None
    parse = _entry if path.suffix == ".jsonl" else Entry
    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append(parse(line))
            except ValueError as error:
                raise BadPlan(f"{path}, line {number}: {error}") from None
    if not entries:
        raise BadPlan(f"{path} has no prompts")
    return entries


def _entry(line: str) -> Entry:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadPlan(f"is not JSON: {error}") from None
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise BadPlan("must be an object with either prompt or messages")
    prompt, messages, tokens = value.get("prompt", ""), value.get("messages"), None
    if not isinstance(prompt, str) or (messages is None and not prompt):
        raise BadPlan("prompt must be a string that is not empty")
    if messages is not None and not _are_messages(messages):
        raise BadPlan("messages must be a list, not empty, of objects with role and content")
    if "max_tokens" in value:
        tokens = value["max_tokens"]
        if type(tokens) is not int or not 1 <= tokens <= LONGEST:
            raise BadPlan(f"max_tokens must be an integer from 1 to {LONGEST}")
    return Entry(prompt, tuple(messages or ()), tokens)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in value)
    )

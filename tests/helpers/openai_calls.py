"""Requests of OpenAI's dialect with few words, for its tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from server.chat.system_prompts import SystemPrompts
from server.dialects.openai import DIALECT
from server.generation.answer import Answer, Call
from server.generation.served_model import ServedModel
from server.generation.task import Generation
from shared.sampling import SamplingParams
from shared.values import ModelCard
from tests.helpers.support import served

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
NEEDED: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "x"},
    CHAT: {"messages": HELLO},
    EMBEDDINGS: {"input": "x"},
}
ALL_SAMPLING = tuple(field.name for field in fields(SamplingParams))
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}"
    "{% if reasoning_effort is defined %}[{{ reasoning_effort }}]{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def model(sampling: Sequence[str] = ALL_SAMPLING, system: str | None = None) -> ServedModel:
    """A model whose engine can do everything."""
    texts = SystemPrompts({"pirate": "Talk like a pirate."}, system)
    plain = served(card=ModelCard(chat_template=TEMPLATE), system=texts)
    return replace(plain, info=replace(plain.info, sampling=tuple(sampling), embedding=4))


def call(path: str, **body: Any) -> Call:
    return DIALECT.paths[path](json.dumps(NEEDED[path] | body).encode(), {})


def answer(path: str, served_model: ServedModel | None = None, **body: Any) -> Answer:
    return call(path, **body).answer(served_model or model())


def generations(
    path: str, served_model: ServedModel | None = None, **body: Any
) -> list[Generation]:
    tasks = answer(path, served_model, **body).tasks
    assert all(isinstance(task, Generation) for task in tasks)
    return [task for task in tasks if isinstance(task, Generation)]


def sampling(path: str, **body: Any) -> SamplingParams:
    return generations(path, **body)[0].sampling

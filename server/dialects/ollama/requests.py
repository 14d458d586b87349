"""Bodies of POST /api/generate, /api/chat, /api/embed and /api/embeddings to calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from server.chat.messages import checked_tools
from server.dialects.base import Answer, Call, Embedding, Generation, Renderer, ServedModel
from server.dialects.ollama.answers import (
    Head,
    LoadedRenderer,
    Shape,
    TextRenderer,
    VectorRenderer,
    VectorsRenderer,
    generated,
    message,
)
from server.dialects.ollama.fields import (
    THINKING,
    UNCUT,
    WHOLE_PROMPT,
    check_keep_alive,
    known_fields,
    plain_text,
    read_embedding_options,
    read_options,
    read_think,
)
from server.dialects.ollama.messages import read_messages
from server.dialects.ollama.parts import THINK, THOUGHT, CallReader, TextReader, ThinkingReader
from server.json_body import model_name
from shared.errors import InvalidRequest
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.validation import boolean, integer, text

COMMON = ("model", "options", "keep_alive")
TEXT = (*COMMON, "stream", "format", "think", "logprobs", "top_logprobs")
GENERATE = (*TEXT, "prompt", "system", "raw")
CHAT = (*TEXT, "messages", "tools")
EMBED = (*COMMON, "input", "truncate", "dimensions")
EMBEDDINGS = (*COMMON, "prompt")

MakeTask = Callable[[ServedModel, SamplingParams], Generation]


def parse_generate(body: bytes, headers: Mapping[str, str]) -> Call:
    """A body of /api/generate. Raises InvalidRequest, naming the field."""
    fields = known_fields(body, GENERATE, WHOLE_PROMPT)
    prompt = plain_text("prompt", fields.get("prompt", ""))
    system = plain_text("system", fields.get("system", "")) or None  # clients send it empty
    is_raw, think = boolean("raw", fields.get("raw", False)), read_think(fields)
    if is_raw and (system or think):
        raise InvalidRequest("raw: a prompt without a template has no place for system or think")

    def task(served: ServedModel, sampling: SamplingParams) -> Generation:
        if is_raw:
            return Generation(Prompt(prompt), sampling)
        messages = [{"role": "user", "content": prompt}]
        return served.reply(served.with_system(messages, system), sampling, variables=think)

    return _text_call(fields, generated, task if prompt else None, think)


def parse_chat(body: bytes, headers: Mapping[str, str]) -> Call:
    """A body of /api/chat. Raises InvalidRequest, naming the field."""
    fields = known_fields(body, CHAT, UNCUT)
    messages, think = read_messages(fields.get("messages", [])), read_think(fields)
    tools = checked_tools(fields.get("tools"))
    continues = bool(messages) and messages[-1]["role"] == "assistant"

    def task(served: ServedModel, sampling: SamplingParams) -> Generation:
        chat = served.with_system(messages)
        task = served.reply(chat, sampling, tools=tools, continues=continues, variables=think)
        is_shown = tools is not None and served.chat.tool_format.shows_control
        return replace(task, shows_control=is_shown)

    def reader(served: ServedModel) -> TextReader:
        if tools is None:
            return TextReader()
        return CallReader(served.chat.tool_format, tools)

    return _text_call(fields, message, task if messages else None, think, reader)


def parse_embed(body: bytes, headers: Mapping[str, str]) -> Call:
    """A body of /api/embed. Raises InvalidRequest, naming the field."""
    fields = known_fields(body, EMBED)
    boolean("truncate", fields.get("truncate", True))
    dimensions = fields.get("dimensions")
    if dimensions is not None:
        integer("dimensions", dimensions, 1)
    given = fields.get("input", "")
    texts = [given] if isinstance(given, str) and given else given or []
    if not isinstance(texts, list):
        raise InvalidRequest("input must be a string or a list of strings")
    prompts = [text(f"input[{place}]", value) for place, value in enumerate(texts)]
    return _vector_call(fields, prompts, lambda head: VectorsRenderer(head, dimensions))


def parse_embeddings(body: bytes, headers: Mapping[str, str]) -> Call:
    """A body of /api/embeddings. Raises InvalidRequest, naming the field."""
    fields = known_fields(body, EMBEDDINGS)
    prompt = plain_text("prompt", fields.get("prompt", ""))
    return _vector_call(fields, [prompt] if prompt else [], VectorRenderer)


def _text_call(
    fields: dict[str, Any],
    shape: Shape,
    make: MakeTask | None,
    think: Mapping[str, Any],
    reader: Callable[[ServedModel], TextReader] = lambda _: TextReader(),
) -> Call:
    """`make` is None where nothing is to be written: the model is only to be loaded."""
    asked = time.monotonic()
    model, is_stream = model_name(fields), boolean("stream", fields.get("stream", True))
    options = read_options(fields)
    check_keep_alive(fields)

    def answer(served: ServedModel) -> Answer:
        head = Head(served.name, asked, time.monotonic())
        sampling = options.of(served)
        if make is None:
            return Answer((), LoadedRenderer(head, shape, is_stream=is_stream))
        task, parts = make(served, sampling), reader(served)
        if think.get(THINKING):
            task, parts = _thinking(served, task, parts)
        return Answer((task,), TextRenderer(head, shape, parts, is_stream=is_stream))

    return Call(model, answer)


def _thinking(
    served: ServedModel, task: Generation, answer: TextReader
) -> tuple[Generation, TextReader]:
    """The same, with thoughts told from the answer. Some templates begin them in the prompt."""
    is_thinking = task.prompt.text.rstrip().endswith(THINK)
    has_control_marks = not {THINK, THOUGHT}.isdisjoint(served.info.card.control)
    task = replace(task, shows_control=task.shows_control or has_control_marks)
    return task, ThinkingReader(answer, is_thinking=is_thinking)


def _vector_call(
    fields: dict[str, Any], prompts: list[str], renderer: Callable[[Head], Renderer]
) -> Call:
    asked = time.monotonic()
    model, options = model_name(fields), read_embedding_options(fields)
    check_keep_alive(fields)

    def answer(served: ServedModel) -> Answer:
        options.check(served)
        head = Head(served.name, asked, time.monotonic())
        tasks = tuple(Embedding(Prompt(prompt, is_whole=True)) for prompt in prompts)
        return Answer(tasks, renderer(head))

    return Call(model, answer)

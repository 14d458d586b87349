"""Parses the bodies of POST /api/generate, /api/chat, /api/embed and /api/embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from server.chat.conversation import TOOL_LIST
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
from server.dialects.ollama.chat_messages import MESSAGES
from server.dialects.ollama.fields import (
    EMBEDDING,
    TEXT_FIELDS,
    THINKING,
    empty,
    read_embedding_options,
    read_options,
)
from server.dialects.ollama.parts import THINK, THOUGHT, CallReader, TextReader, ThinkingReader
from server.generation.answer import Answer, Call, Renderer
from server.generation.served_model import ServedModel
from server.generation.task import Embedding, Generation
from server.http.fields import PLAIN_TEXT, Form
from shared.errors import InvalidRequest
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.validation import BOOLEAN, TEXT, Check, integers, text


def _texts(name: str, value: Any) -> list[str]:
    """The texts: one, several or none."""
    texts = [value] if isinstance(value, str) and value else value or []
    if not isinstance(texts, list):
        raise InvalidRequest(f"{name} must be a string or a list of strings")
    return [text(f"{name}[{place}]", one) for place, one in enumerate(texts)]


TEXTS = Check(
    {"anyOf": [PLAIN_TEXT.schema, {"type": "array", "items": TEXT.schema}]}, _texts
).saying("A text or a list of texts.")
GENERATE = Form(
    {
        **TEXT_FIELDS,
        "prompt": PLAIN_TEXT,
        "system": PLAIN_TEXT.saying("A system prompt's name or its text."),
        "raw": BOOLEAN.saying("Use the prompt as it is, without the chat template."),
        "template": empty("the chat template is chosen when the server starts"),
        "suffix": empty("text cannot be inserted between two texts"),
        "context": empty("send the conversation to /api/chat"),
        "images": empty("the models read only text"),
    }
)
CHAT = Form({**TEXT_FIELDS, "messages": MESSAGES, "tools": TOOL_LIST})
EMBED = Form(
    {
        **EMBEDDING,
        "input": TEXTS,
        "truncate": BOOLEAN,
        "dimensions": integers(1).saying("Length of each vector."),
    }
)
EMBEDDINGS = Form({**EMBEDDING, "prompt": PLAIN_TEXT})

MakeTask = Callable[[ServedModel, SamplingParams], Generation]


def parse_generate(body: bytes, headers: Mapping[str, str]) -> Call:
    """Parse a body of /api/generate. Raises InvalidRequest, which names the field."""
    fields = GENERATE.read(body)
    prompt, system = fields.get("prompt", ""), fields.get("system") or None
    is_raw, think = fields.get("raw", False), fields.get("think", {})
    if is_raw and (system or think):
        raise InvalidRequest("raw: system and think need the chat template")

    def task(served: ServedModel, sampling: SamplingParams) -> Generation:
        if is_raw:
            return Generation(Prompt(prompt), sampling)
        messages = [{"role": "user", "content": prompt}]
        return served.reply(served.with_system(messages, system), sampling, variables=think)

    return _text_call(fields, generated, task if prompt else None, think, is_chat=not is_raw)


def parse_chat(body: bytes, headers: Mapping[str, str]) -> Call:
    """Parse a body of /api/chat. Raises InvalidRequest, which names the field."""
    fields = CHAT.read(body)
    messages, think = fields.get("messages", []), fields.get("think", {})
    tools = fields.get("tools")
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
    """Parse a body of /api/embed. Raises InvalidRequest, which names the field."""
    fields = EMBED.read(body)
    dimensions = fields.get("dimensions")
    return _vector_call(
        fields, fields.get("input", []), lambda head: VectorsRenderer(head, dimensions)
    )


def parse_embeddings(body: bytes, headers: Mapping[str, str]) -> Call:
    """Parse a body of /api/embeddings. Raises InvalidRequest, which names the field."""
    fields = EMBEDDINGS.read(body)
    prompt = fields.get("prompt", "")
    return _vector_call(fields, [prompt] if prompt else [], VectorRenderer)


def _text_call(
    fields: dict[str, Any],
    shape: Shape,
    make: MakeTask | None,
    think: Mapping[str, Any],
    reader: Callable[[ServedModel], TextReader] = lambda _: TextReader(),
    *,
    is_chat: bool = True,
) -> Call:
    """The call of a generation. `make` is None if the request only loads the model."""
    asked = time.monotonic()
    is_stream, options = fields.get("stream", True), read_options(fields)

    def answer(served: ServedModel) -> Answer:
        head = Head(served.name, asked, time.monotonic())
        sampling = options.of(served)
        if make is None:
            return Answer((), LoadedRenderer(head, shape, is_stream=is_stream))
        task, parts = make(served, sampling), reader(served)
        if think.get(THINKING):
            task, parts = _thinking(served, task, parts)
        return Answer((task,), TextRenderer(head, shape, parts, is_stream=is_stream))

    return Call(fields.get("model"), answer, is_chat=is_chat and make is not None)


def _thinking(
    served: ServedModel, task: Generation, answer: TextReader
) -> tuple[Generation, TextReader]:
    """The task and a reader that separate thoughts from the answer. Some templates begin the
    thoughts in the prompt."""
    is_thinking = task.prompt.text.rstrip().endswith(THINK)
    has_control_marks = not {THINK, THOUGHT}.isdisjoint(served.info.card.control)
    task = replace(task, shows_control=task.shows_control or has_control_marks)
    return task, ThinkingReader(answer, is_thinking=is_thinking)


def _vector_call(
    fields: dict[str, Any], prompts: list[str], renderer: Callable[[Head], Renderer]
) -> Call:
    asked = time.monotonic()
    options = read_embedding_options(fields)

    def answer(served: ServedModel) -> Answer:
        options.check(served)
        head = Head(served.name, asked, time.monotonic())
        tasks = tuple(Embedding(Prompt(prompt, is_whole=True)) for prompt in prompts)
        return Answer(tasks, renderer(head))

    return Call(fields.get("model"), answer)

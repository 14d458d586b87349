"""Templates make the same texts here as in transformers, for the same messages."""

import ast
import copy
import os
from pathlib import Path

import pytest
from llama_cpp import llama_chat_format
from transformers.models.llama4 import processing_llama4
from transformers.models.qwen2_audio import processing_qwen2_audio
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils.chat_template_utils import render_jinja_template

from server.chat.bounded_jinja import ChatTemplate, TemplateFailed
from server.chat.format import MODEL_OWN, built_in_names, chat_format
from server.chat.traits import ModelTemplate
from shared.values import ModelCard
from tests.helpers.paths import ROOT

OURS = ROOT / "server" / "chat" / "templates"
FOLDERS = [
    Path(__file__).parent / "templates",
    OURS,
    *map(Path, os.environ.get("CHAT_TEMPLATES", "").split()),
]
TEMPLATES = {
    path.stem if folder != OURS else f"our {path.stem}": path.read_text()
    for folder in FOLDERS
    for path in folder.glob("*.jinja")
}


def published_templates():
    """Of models' makers, as packages that are installed for the tests carry them."""
    modules = (llama_chat_format, processing_llama4, processing_smolvlm, processing_qwen2_audio)
    for module in modules:
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and "{%" in text and "messages" in text and "role" in text:
                yield f"{module.__name__.rpartition('.')[2]} {node.lineno}", text


PUBLISHED = dict(published_templates())
TEMPLATES |= PUBLISHED


def test_there_are_as_many_published_templates_as_are_promised() -> None:
    assert len(set(PUBLISHED.values())) >= 8


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'It\'s "<weather>" in é.',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "A city & more"},
                    "days": {"type": "integer", "description": "How many"},
                    "units": {
                        "type": "array",
                        "description": "Which",
                        "items": {"type": "string"},
                    },
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "time",
            "description": "",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    },
]


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def calls(*functions):
    return assistant(
        None,
        tool_calls=[
            {"id": f"call0000{i}", "type": "function", "function": {"name": n, "arguments": a}}
            for i, (n, a) in enumerate(functions)
        ],
    )


def result(index, content):
    return {
        "role": "tool",
        "name": "weather",
        "tool_call_id": f"call0000{index}",
        "content": content,
    }


ONE = calls(("weather", {"city": 'Pa"rís', "days": 3, "units": ["°C"]}))
TWO = calls(("weather", {"city": "<Bonn>"}), ("time", {}))
CHATS = {
    "one message": ([user("Hi & <b>you</b>?\n")], None),
    "system": ([system("Be kind. "), user("Hi")], None),
    "turns": ([user("a"), assistant(" b "), user("  c\n\nd  ")], None),
    "system and turns": ([system("x"), user("a"), assistant("b"), user("c"), assistant("d")], None),
    "thinking": ([user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c")], None),
    "two users": ([user("a"), user("b")], None),
    "late system": ([user("a"), assistant("b"), system("c"), user("d")], None),
    "tools": ([user("Weather?")], TOOLS),
    "a call": ([system("x"), user("Weather?"), ONE, result(0, '{"t": 18}')], TOOLS),
    "after a call": (
        [user("Weather?"), ONE, result(0, "18"), assistant("18 °C"), user("Thanks")],
        TOOLS,
    ),
    "two calls": ([user("Weather?"), TWO, result(0, "18"), result(1, "12:00")], TOOLS),
}


def by_transformers(source, chat, tools, is_open, **variables):
    (text,), _ = render_jinja_template(
        [copy.deepcopy(chat)],
        tools=copy.deepcopy(tools),
        chat_template=source,
        add_generation_prompt=is_open,
        bos_token="<s>",
        eos_token="</s>",
        **variables,
    )
    return text


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_template_makes_the_same_text_or_fails_as_in_transformers(template, chat, is_open):
    source, (messages, tools) = TEMPLATES[template], CHATS[chat]
    renderer = ModelTemplate(ChatTemplate(source), "<s>", "</s>")
    try:
        expected = by_transformers(source, messages, tools, is_open)
    except Exception:
        with pytest.raises(TemplateFailed):
            renderer.text(messages, tools=tools, is_open=is_open)
    else:
        assert renderer.text(messages, tools=tools, is_open=is_open) == expected


@pytest.mark.parametrize("is_thinking", [True, False])
def test_variables_are_those_of_transformers(is_thinking):
    source, (messages, _) = TEMPLATES["qwen3"], CHATS["turns"]
    variables = {"enable_thinking": is_thinking}
    text = ModelTemplate(ChatTemplate(source), "<s>", "</s>").text(messages, variables=variables)
    assert text == by_transformers(source, messages, None, True, **variables)


@pytest.mark.parametrize(
    ("template", "chat"),
    [
        (template, chat)
        for template in (
            "chatml",
            "hermes",
            "llama31",
            "mistral",
            "phi3",
            "qwen25",
            "qwen3",
            "zephyr",
        )
        for chat in ("system", "turns", "system and turns")
    ]
    + [(template, "a call") for template in ("hermes", "llama31", "mistral", "qwen25", "qwen3")],
)
def test_a_chat_that_the_template_supports_is_not_changed(template, chat):
    source, (messages, tools) = TEMPLATES[template], CHATS[chat]
    card = ModelCard(chat_template=source, bos="<s>", eos="</s>", control=("<|im_end|>",))
    form = chat_format(card, None)
    assert (form.name, form.is_guess) == (MODEL_OWN, False)
    prompt = form.render(messages, tools=tools)
    assert prompt.text == by_transformers(source, messages, tools, True)
    assert prompt.cuts == ()
    assert prompt.is_whole


def test_every_built_in_template_has_a_file():
    assert built_in_names() == [
        "alpaca", "chatml", "gemma", "llama2", "llama3", "mistral",
        "phi2", "phi3", "plain", "puffin", "zephyr",
    ]  # fmt: skip

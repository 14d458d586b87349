"""Templates of strangers in processes of their own: rendered as here, but unable to stop us."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from server.chat.bounded_jinja import MARKS, ChatTemplate, TemplateFailed, TemplateRefused
from server.chat.control_names import ControlNames
from server.chat.format import MODEL_OWN, chat_format
from server.chat.isolated_templates import TemplateProcesses
from server.chat.template_process import LIMIT_S, MAX_REPLY
from shared.errors import NotReady
from shared.values import ModelCard
from tests.helpers.support import run

ENDLESS = """
{%- set n = namespace(x=['a'], y=['a']) %}
{%- for i in range(60) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}
{{- n.x == n.y }}"""
"""2**60 comparisons in a single operation."""


@pytest.fixture(scope="module")
def processes() -> Iterator[TemplateProcesses]:
    with TemplateProcesses() as processes:
        yield processes


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "server.chat.template_process" in child.cmdline()
    ]


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        ("{{ x }} and {{ y | tojson }}", {"x": "é🎉", "y": {"b": [1.5, None, True]}}),
        ("{{ n + 1 }}", {"n": 10**100}),
        ("{% for m in messages %}{{ m.role }}{{ m['content'] }}\n{% endfor %}",
         {"messages": [{"role": "user", "content": "\ud7ff\n"}]}),
        ("{{ 'none' if tools is none else tools | length }}", {"tools": []}),
    ],
)  # fmt: skip
def test_a_text_is_the_same_as_in_this_process(
    processes: TemplateProcesses, source: str, variables: dict[str, object]
) -> None:
    here, there = ChatTemplate(source), processes.compiled(source)
    assert there.render(variables) == here.render(variables)
    assert there.words == here.words


def test_errors_are_those_of_the_template(processes: TemplateProcesses) -> None:
    with pytest.raises(TemplateFailed, match="Encountered unknown tag"):
        processes.compiled("{% nothing %}")
    with pytest.raises(TemplateRefused, match=r"^roles must alternate$"):
        processes.compiled("{{ raise_exception('roles must alternate') }}").render({})
    with pytest.raises(TemplateFailed, match="is undefined"):
        processes.compiled("{{ x.y.z }}").render({})
    with pytest.raises(TemplateFailed, match=f"more than {MAX_REPLY} bytes"):
        processes.compiled("{{ 'a' * 9999999 }}").render({})
    with pytest.raises(TemplateFailed, match="surrogates not allowed"):
        processes.compiled("{{ '%c' % 55296 }}").render({})


def test_what_a_template_makes_a_control_token_of_is_marked(processes: TemplateProcesses) -> None:
    template = processes.compiled("{{ v.replace('-', '') }}")
    remark = ControlNames.of(["<|end|>"]).remark(MARKS[0])
    assert template.render({"v": "<|e-nd|>"}, remark) == f"<{MARKS[0]}|end|>"


def test_a_model_s_own_template_is_rendered_there_and_ours_here(
    processes: TemplateProcesses,
) -> None:
    sources = []

    def compiled(source: str) -> ChatTemplate:
        sources.append(source)
        return ChatTemplate(source)

    own = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert chat_format(ModelCard(chat_template=own), None, compiled).name == MODEL_OWN
    chat_format(ModelCard(chat_template=own), "chatml", compiled)
    chat_format(ModelCard(), None, compiled)
    assert sources == [own]
    chat = chat_format(ModelCard(chat_template=own), None, processes.compiled)
    assert chat.render([{"role": "user", "content": "Hi"}]).text == "Hi"


def test_one_operation_that_never_ends_stops_neither_the_loop_nor_later_chats(
    processes: TemplateProcesses,
) -> None:
    """It held the GIL in one call of C: the front hung for good, its time limit with it."""
    longest_pause_s = 0.0

    async def watch() -> None:
        nonlocal longest_pause_s
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest_pause_s = max(longest_pause_s, time.monotonic() - before)

    async def go() -> None:
        watching = asyncio.create_task(watch())
        with pytest.raises(TemplateFailed, match=f"takes longer than {LIMIT_S:g} s"):
            await asyncio.to_thread(processes.compiled(ENDLESS).render, {})
        watching.cancel()

    run(go())
    assert longest_pause_s < LIMIT_S / 2
    assert processes.compiled("{{ 1 + 1 }}").render({}) == "2"


def test_a_process_that_was_killed_is_replaced() -> None:
    with TemplateProcesses() as processes:
        before = {child.pid for child in children()}
        template = processes.compiled("{{ 1 + 1 }}")
        (process,) = [child for child in children() if child.pid not in before]
        process.send_signal(signal.SIGKILL)
        assert template.render({}) == "2"
        (successor,) = [child for child in children() if child.pid not in before]
        assert successor.pid != process.pid
    assert not successor.is_running()


def test_a_process_that_cannot_be_started_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with TemplateProcesses() as processes:
        monkeypatch.setattr("sys.executable", "/nowhere/python")
        with pytest.raises(NotReady, match="No such file or directory"):
            processes.compiled("{{ 1 + 1 }}")
        monkeypatch.undo()
        assert processes.compiled("{{ 1 + 1 }}").render({}) == "2"

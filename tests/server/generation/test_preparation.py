"""What takes long with a request before it reaches the pool holds nobody else up."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.chat.system_prompts import SystemPrompts
from server.generation.models import Models
from server.generation.preparation import SMALL_BODY, THREADS, Preparation
from shared.errors import InvalidRequest
from shared.sampling import SamplingParams
from shared.settings import ModelSpec
from tests.helpers.support import pool_settings, run, until
from workers.pool.catalog import LoadedModels

SLOW = """
{%- if 'slow' in messages[-1].content %}
{%- for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}
{%- endif %}
{{- messages[-1].content }}"""
"""A template that takes as long as it may."""


@asynccontextmanager
async def slow_models(folder: Path) -> AsyncIterator[Models]:
    """An echo model whose template is SLOW."""
    file = folder / "slow.jinja"
    file.write_text(SLOW)
    async with LoadedModels([ModelSpec("echo", pool_settings())]) as catalog:
        models = Models(catalog, SamplingParams(), SystemPrompts(), str(file))
        await models.introduce()
        yield models


@asynccontextmanager
async def slow_server(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of its application."""
    async with slow_models(folder) as models:
        transport = httpx.ASGITransport(create_app(models))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 1, **more}


def test_others_are_answered_while_templates_are_rendered(tmp_path: Path) -> None:
    """They were rendered on the event loop: nobody got anything for two seconds a chat."""
    bodies = {
        "/v1/chat/completions": chat("slow"),
        "/api/chat": {"messages": [{"role": "user", "content": "slow"}]},
        "/api/generate": {"prompt": "slow"},
        "/token_stream": {"query": "slow"},
        "/stream": {"prompt": "slow", "system": "Be brief."},
        "/apply-template": {"messages": [{"role": "user", "content": "slow"}]},
    }

    async def go() -> None:
        async with slow_server(tmp_path) as client:
            posts = (client.post(path, json=body) for path, body in bodies.items())
            rendering = asyncio.gather(*posts)
            answers = 0
            while not rendering.done():
                assert (await client.get("/health")).status_code == 200
                answers += 1
                await asyncio.sleep(0.01)
            assert answers > 20
            for refused in rendering.result():
                assert refused.status_code == 400
                assert "the model's chat template fails: it takes longer than 2 s" in refused.text

    run(go())


def test_a_deadline_passes_while_a_template_is_rendered(tmp_path: Path) -> None:
    async def go() -> None:
        async with slow_server(tmp_path) as client:
            answer = await client.post("/v1/chat/completions", json=chat("slow", timeout_s=0.2))
            assert answer.status_code == 504
            assert (await client.post("/v1/chat/completions", json=chat("a"))).status_code == 200

    run(go())


def test_a_large_body_is_parsed_beside_the_loop_and_a_small_one_on_it() -> None:
    async def go() -> None:
        preparation = Preparation()

        def parse(body: bytes) -> str:
            return threading.current_thread().name

        assert await preparation.parsed(parse, b"x" * SMALL_BODY) == "MainThread"
        assert "prepare" in await preparation.parsed(parse, b"x" * (SMALL_BODY + 1))

    run(go())


def test_errors_are_those_of_what_is_run() -> None:
    def refuse(name: str, *, field: str) -> None:
        raise InvalidRequest(f"{name} is wrong", field=field)

    async def go() -> None:
        with pytest.raises(InvalidRequest, match="n is wrong") as caught:
            await Preparation().run(refuse, "n", field="n")
        assert caught.value.field == "n"

    run(go())


class Gate:
    """Work that goes on until it is let through."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self._opening = threading.Event()

    def work(self, number: int) -> int:
        self.begun.append(number)
        self._opening.wait(20)
        return number

    def open(self) -> None:
        self._opening.set()


def test_a_bounded_number_is_prepared_at_the_same_time_and_the_others_in_their_order() -> None:
    async def go() -> None:
        preparation, gate = Preparation(), Gate()
        numbers = range(THREADS + 3)
        tasks = [asyncio.create_task(preparation.run(gate.work, number)) for number in numbers]
        await until(lambda: len(gate.begun) == THREADS)
        await asyncio.sleep(0.05)
        assert sorted(gate.begun) == list(range(THREADS))
        gate.open()
        assert await asyncio.gather(*tasks) == list(numbers)

    run(go())


def test_a_cancelled_caller_does_not_wait_and_its_queued_work_is_dropped() -> None:
    async def go() -> None:
        preparation, gate = Preparation(), Gate()
        tasks = [asyncio.create_task(preparation.run(gate.work, n)) for n in range(THREADS + 1)]
        await until(lambda: len(gate.begun) == THREADS)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5)
        assert all(task.cancelled() for task in tasks)
        gate.open()
        assert await preparation.run(gate.work, 99) == 99
        assert THREADS not in gate.begun

    run(go())


def test_a_client_that_leaves_while_its_chat_is_rendered_ends_its_request(tmp_path: Path) -> None:
    async def go() -> None:
        async with slow_models(tmp_path) as models:
            reasons: list[str] = []
            app = create_app(models, observers=[lambda record: reasons.append(record.reason)])
            news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            news.put_nowait({"type": "http.request", "body": json.dumps(chat("slow")).encode()})
            scope = {
                "type": "http", "method": "POST", "path": "/v1/chat/completions",
                "query_string": b"", "http_version": "1.1", "headers": [(b"host", b"localhost")],
            }  # fmt: skip
            serving = asyncio.create_task(app(scope, news.get, lambda _: asyncio.sleep(0)))
            await asyncio.sleep(0.1)
            news.put_nowait({"type": "http.disconnect"})
            await asyncio.wait_for(serving, 1)
            assert reasons == ["client_left"]

    run(go())

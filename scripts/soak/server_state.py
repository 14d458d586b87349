"""What is known of the server under test."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from scripts.load.errors import MeasurementError
from scripts.load.server import START_S, ServerProcess
from scripts.soak.raw_http import OK, get, post

POLL_S = 0.1
"""Time between two requests to /ready."""
MARK = "MARK"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What requests depend on."""

    models: Sequence[str]
    is_echo: bool
    """Whether its engine is the echo engine, whose answers are known."""
    context: int
    """Context of its smallest model, in tokens."""
    before: str
    """The text that its chat template writes before a question."""
    after: str
    """The text that its chat template writes after a question."""
    makes_vectors: bool = True


async def explore(server: ServerProcess, *, is_echo: bool) -> ServerFacts:
    """The facts of a server, once all of its workers are ready. Raises MeasurementError."""
    state = await all_ready(server)
    names = [model["name"] for model in state["models"]]
    messages = [{"role": "user", "content": MARK}]
    answer = await post(server.port, "/apply-template", messages=messages)
    before, _, after = json.loads(answer.body)["prompt"].partition(MARK)
    vectors = await post(server.port, "/v1/embeddings", input="x", model=names[0])
    context = min(model.get("context", 512) for model in state["models"])
    return ServerFacts(names, is_echo, context, before, after, vectors.status == OK)


async def all_ready(server: ServerProcess) -> Mapping[str, Any]:
    """The answer of /ready, once every worker is ready. Raises MeasurementError."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        state = await ready_state(server.port)
        if state.get("workers") == len(workers_of(server.pid)):
            return state
        await asyncio.sleep(POLL_S)
    raise MeasurementError(f"not all workers were ready within {START_S:g} s")


async def ready_state(port: int) -> Mapping[str, Any]:
    """The answer of /ready; empty if the server is not ready."""
    try:
        answer = await get(port, "/ready")
        found = json.loads(answer.body) if answer.status == OK else {}
    except (OSError, TimeoutError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def workers_of(front: int) -> list[psutil.Process]:
    """The running worker processes of the server with this process id."""
    try:
        children = psutil.Process(front).children()
    except psutil.NoSuchProcess:
        return []
    found = []
    for child in children:
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it has just ended
    return found

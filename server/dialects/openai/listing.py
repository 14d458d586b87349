"""GET /v1/models and /v1/models/{id}: the models of the server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.dialects.openai.answers import Json
from server.generation.models import Models
from server.http.json_response import JsonResponse
from shared.values import ModelInfo
from workers.pool.catalog import ModelStatus, find

OWNER = "tokenflume"


def routes(models: Models) -> Sequence[BaseRoute]:
    """The two routes."""

    async def listing(_: Request) -> Response:
        statuses = await models.current_statuses()
        entries = await asyncio.to_thread(lambda: [describe(models, s) for s in statuses])
        return JsonResponse({"object": "list", "data": entries})

    async def one(request: Request) -> Response:
        statuses = {status.spec.name: status for status in await models.current_statuses()}
        spec = find(request.path_params["id"], {n: s.spec for n, s in statuses.items()})
        return JsonResponse(await asyncio.to_thread(describe, models, statuses[spec.name]))

    return [Route("/v1/models", listing), Route("/v1/models/{id:path}", one)]


def describe(models: Models, status: ModelStatus) -> Json:
    """The model's entry: OpenAI's four fields, and ours; few of ours before it is loaded."""
    info, file = status.info, _file_status(status.spec.model.path)
    return {
        "id": status.spec.name,
        "object": "model",
        "created": 0 if file is None else int(file.st_mtime),
        "owned_by": OWNER,
        "is_loaded": info is not None,
        "loaded": round(status.pool.loaded, 3),
        "chat": None if info is None else models.is_for_chats(info.card),
        "meta": _meta(info) if info else {"size": file.st_size} if file else {},
    }


def _file_status(path: Path | None) -> os.stat_result | None:
    """None if the model has no file, or it cannot be reached."""
    try:
        return None if path is None else path.stat()
    except OSError:
        return None


def _meta(info: ModelInfo) -> Json:
    """What the worker reports, without unknown values."""
    card = info.card
    meta = {
        "engine": info.engine,
        "architecture": info.architecture,
        "context": info.context,
        "vocabulary": info.vocabulary,
        "embedding": info.embedding,
        "slots": info.slots,
        "name": card.name,
        "parameters": card.parameters,
        "size": card.size,
        "quantization": card.quantization,
        "trained_context": card.trained_context,
    }
    return {name: value for name, value in meta.items() if value}

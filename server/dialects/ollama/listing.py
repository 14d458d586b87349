"""Lists and describes models: GET /api/tags, /api/ps and /api/version, POST /api/show."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.dialects.ollama.fields import THINKING, empty
from server.dialects.ollama.parts import THOUGHT
from server.generation.models import Models
from server.http.body import read_body
from server.http.fields import PLAIN_TEXT, Form
from server.http.json_response import JsonResponse
from server.version import VERSION
from shared.errors import ConfigurationError, InvalidRequest, ModelUnavailable
from shared.settings import ModelSpec
from shared.validation import BOOLEAN
from workers.model_files.details import UNKNOWN, DetailsCache, ModelDetails
from workers.model_files.fingerprint import files_identity
from workers.model_files.folder import ModelFile
from workers.model_files.gguf_header import read_gguf_header
from workers.model_files.magic import GGUF_MAGIC, read_magic
from workers.model_files.split_names import parts_of
from workers.pool.catalog import ModelStatus, find

CHAT_TEMPLATE = "tokenizer.chat_template"
TEMPLATE_WORDS = {"tools": ("tools",), "thinking": (THINKING, THOUGHT)}
"""The capabilities of models, with words that show them if they are in the chat template."""
SHOW = Form(
    {
        "model": PLAIN_TEXT,
        "name": PLAIN_TEXT.saying("Same as model, for older clients."),
        "verbose": BOOLEAN,
        **dict.fromkeys(
            ("system", "template", "options"), empty("the model is described as it is served")
        ),
    }
)

logger = logging.getLogger("tokenflume")


def routes(models: Models) -> Sequence[BaseRoute]:
    """The four routes."""
    cache = DetailsCache()

    async def tags(_: Request) -> Response:
        statuses = await models.current_statuses()
        found = await asyncio.to_thread(listed, statuses, describe, cache)
        return JsonResponse({"models": found})

    async def ps(_: Request) -> Response:
        loaded = [status for status in models.statuses() if status.info is not None]
        found = await asyncio.to_thread(listed, loaded, running, cache)
        return JsonResponse({"models": found})

    async def version(_: Request) -> Response:
        return JsonResponse({"version": VERSION})

    async def show(request: Request) -> Response:
        body = await read_body(request.headers, request.receive)
        name = await models.preparation.parsed(shown_name, body)
        statuses = {status.spec.name: status for status in await models.current_statuses()}
        specs = {name: status.spec for name, status in statuses.items()}
        status = statuses[find(name, specs).name]
        return JsonResponse(await asyncio.to_thread(shown, status, cache))

    return (
        Route("/api/tags", tags),
        Route("/api/ps", ps),
        Route("/api/version", version),
        Route("/api/show", show, methods=["POST"]),
    )


def shown_name(body: bytes) -> str:
    """The model's name in a body of /api/show. Raises InvalidRequest."""
    fields = SHOW.read(body)
    name = fields.get("model") or fields.get("name")
    if not name:
        raise InvalidRequest("model is missing")
    return str(name)


Describe = Callable[[ModelStatus, DetailsCache], dict[str, Any]]
"""Makes a model's entry in a list. Raises ModelUnavailable."""


def listed(
    statuses: Sequence[ModelStatus], describe: Describe, cache: DetailsCache
) -> list[dict[str, Any]]:
    """The entries of models whose files can be read. The others are logged and left out."""
    found = []
    for status in statuses:
        try:
            found.append(describe(status, cache))
        except ModelUnavailable as error:
            logger.warning("%s", error.message)
    return found


def describe(status: ModelStatus, cache: DetailsCache) -> dict[str, Any]:
    """A model's entry in /api/tags. Reads the file's header. Raises ModelUnavailable."""
    name = status.spec.name
    file = file_of(status.spec)
    details = details_of(status, file, cache)
    value: dict[str, Any] = {
        "name": name,
        "model": name,
        "size": 0 if file is None else file.size,
        "digest": details.digest,
        "details": {
            "parent_model": "",
            "format": details.format,
            "family": details.family,
            "families": [details.family] if details.family else [],
            "parameter_size": details.parameter_size,
            "quantization_level": details.quantization_level,
        },
    }
    if file is not None:
        changed = datetime.fromtimestamp(file.modified_ns / 1e9, UTC)
        value["modified_at"] = changed.isoformat().replace("+00:00", "Z")
    return value


def running(status: ModelStatus, cache: DetailsCache) -> dict[str, Any]:
    """A model's entry in /api/ps. It has no expiry, which is not known. Raises ModelUnavailable."""
    value = describe(status, cache)
    value.pop("modified_at", None)
    context = {} if status.info is None else {"context_length": status.info.context}
    return {**value, "size": status.spec.memory or value["size"], "size_vram": 0, **context}


def shown(status: ModelStatus, cache: DetailsCache) -> dict[str, Any]:
    """The description of a model in /api/show. Reads the file's header. Raises ModelUnavailable."""
    described = describe(status, cache)
    metadata = metadata_of(status.spec)
    template = str(metadata.pop(CHAT_TEMPLATE, ""))
    capabilities = ["completion"]
    for name, words in TEMPLATE_WORDS.items():
        capabilities += [name] if any(word in template for word in words) else []
    capabilities += ["embedding"] if status.info is not None and status.info.embedding else []
    value = {
        "details": described["details"],
        "model_info": metadata,
        "template": template,
        "parameters": "",
        "capabilities": capabilities,
    }
    if "modified_at" in described:
        value["modified_at"] = described["modified_at"]
    return value


def file_of(spec: ModelSpec) -> ModelFile | None:
    """The current state of the model's file or files; None: it has none. Raises
    ModelUnavailable."""
    path = spec.model.path
    if path is None or spec.model.engine == "echo":
        return None
    paths = tuple(Path(part) for part in parts_of(str(path)))
    try:
        stats = [part.stat() for part in paths]
    except OSError as error:
        raise _unreadable(spec, error) from None
    size, changed = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
    return ModelFile(spec.name, paths, size, changed)


def details_of(status: ModelStatus, file: ModelFile | None, cache: DetailsCache) -> ModelDetails:
    """The file's details; a missing family is the engine's. Raises ModelUnavailable."""
    family = "" if status.info is None else status.info.architecture
    if file is None:
        return ModelDetails("", family, "", UNKNOWN, None, files_identity(()))
    try:
        details = cache.of(file)
    except (ConfigurationError, OSError) as error:
        raise _unreadable(status.spec, error) from None
    return details if details.family else replace(details, family=family)


def metadata_of(spec: ModelSpec) -> dict[str, Any]:
    """The simple values in a GGUF header; empty for other files. Raises ModelUnavailable."""
    path = spec.model.path
    try:
        if path is None or read_magic(path) != GGUF_MAGIC:
            return {}
        header = read_gguf_header(path)
    except (ConfigurationError, OSError) as error:
        raise _unreadable(spec, error) from None
    values = {name: _json_value(value) for name, value in header.metadata.items()}
    return {**values, "general.parameter_count": header.n_params}


def _json_value(value: Any) -> Any:
    """The value; None instead of infinity and NaN, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unreadable(spec: ModelSpec, error: Exception) -> ModelUnavailable:
    return ModelUnavailable(f"the file of {spec.name} cannot be read: {error}")

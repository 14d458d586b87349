"""Ollama's API.

POST /api/generate, /api/chat       generate text, as JSON lines or one object
POST /api/embed, /api/embeddings    embed texts
GET /api/tags, /api/ps              list the models, or the loaded ones
POST /api/show, GET /api/version    describe a model, or the server
"""

from server.dialects.base import Dialect
from server.dialects.ollama.answers import error_body
from server.dialects.ollama.description import ERROR, OPERATIONS
from server.dialects.ollama.listing import routes
from server.dialects.ollama.requests import (
    parse_chat,
    parse_embed,
    parse_embeddings,
    parse_generate,
)
from shared.errors import NotReady, QueueFull

DIALECT = Dialect(
    name="ollama",
    paths={
        "/api/generate": parse_generate,
        "/api/chat": parse_chat,
        "/api/embed": parse_embed,
        "/api/embeddings": parse_embeddings,
    },
    error_body=error_body,
    prefix="/api/",
    routes=routes,
    operations=OPERATIONS,
    error_schema=ERROR,
    statuses={QueueFull.status: NotReady.status},
)

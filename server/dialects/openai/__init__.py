"""OpenAI's API: completions, chats, embeddings and models, under /v1/.

Errors are {"error": {"message", "type", "param", "code"}}. A field that is unknown or not supported
is a 400 with its name in `param`; a value that has no effect is accepted.
"""

from server.dialects.base import Dialect
from server.dialects.openai import listing
from server.dialects.openai.answers import error_body
from server.dialects.openai.chat import parse_chat
from server.dialects.openai.completions import parse_completion
from server.dialects.openai.description import ERROR, OPERATIONS
from server.dialects.openai.embeddings import parse_embeddings

DIALECT = Dialect(
    name="openai",
    paths={
        "/v1/completions": parse_completion,
        "/v1/chat/completions": parse_chat,
        "/v1/embeddings": parse_embeddings,
    },
    error_body=error_body,
    prefix="/v1/",
    routes=listing.routes,
    operations=OPERATIONS,
    error_schema=ERROR,
)

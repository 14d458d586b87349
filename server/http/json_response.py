"""A response whose body is one JSON value."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from shared.json_text import to_json


class JsonResponse(JSONResponse):
    """Starlette's, written as all our JSON is."""

    def render(self, content: Any) -> bytes:
        return to_json(content)

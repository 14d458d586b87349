"""POST /v1/embeddings: vectors of texts or of tokens."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping

from server.dialects.openai.answers import Json
from server.dialects.openai.fields import LABEL
from server.dialects.openai.prompts import PROMPTS, check_vocabulary
from server.generation.answer import Answer, Call, Renderer
from server.generation.served_model import ServedModel
from server.generation.task import Embedding
from server.http.fields import MODEL, TIMEOUT, Form, one_of
from shared.errors import InvalidRequest, Unsupported
from shared.json_text import to_json
from shared.messages import Finished
from shared.validation import integers

EMBEDDING = Form(
    {
        "input": PROMPTS,
        "model": MODEL,
        "timeout_s": TIMEOUT,
        "encoding_format": one_of("float", "base64"),
        "dimensions": integers(1).saying("Length of the vectors; only the model's is accepted."),
        "user": LABEL,
    },
    needed=("input",),
)


def parse_embeddings(body: bytes, headers: Mapping[str, str]) -> Call:
    """Parse a body of /v1/embeddings. Raises InvalidRequest, which names the field."""
    given = EMBEDDING.read(body)
    prompts, dimensions = given["input"], given.get("dimensions")
    form = given.get("encoding_format", "float")

    def answer(served: ServedModel) -> Answer:
        length = served.info.embedding
        if not length:
            raise Unsupported(f"the {served.info.engine} engine makes no embeddings", field="model")
        if dimensions not in (None, length):
            raise InvalidRequest(
                f"dimensions: the model's vectors have {length}", field="dimensions"
            )
        for prompt in prompts:
            check_vocabulary("input", prompt, served)
        tasks = tuple(Embedding(prompt) for prompt in prompts)
        return Answer(tasks, EmbeddingsRenderer(served.name, is_base64=form == "base64"))

    return Call(given.get("model"), answer, given.get("timeout_s"))


class EmbeddingsRenderer(Renderer):
    """One object with all vectors."""

    is_stream = False

    def __init__(self, model: str, *, is_base64: bool) -> None:
        self._model = model
        self._is_base64 = is_base64
        self._vectors: dict[int, str | list[float]] = {}
        self._tokens = 0

    def embedded(self, index: int, vector: bytes) -> bytes:
        self._vectors[index] = (
            base64.b64encode(vector).decode()
            if self._is_base64
            else list(struct.unpack(f"<{len(vector) // 4}f", vector))
        )
        return b""

    def finished(self, index: int, event: Finished, queued_s: float) -> bytes:
        self._tokens += event.usage.prompt_tokens
        return b""

    def end(self) -> bytes:
        data: list[Json] = [
            {"object": "embedding", "index": index, "embedding": self._vectors[index]}
            for index in sorted(self._vectors)
        ]
        usage = {"prompt_tokens": self._tokens, "total_tokens": self._tokens}
        return to_json({"object": "list", "data": data, "model": self._model, "usage": usage})

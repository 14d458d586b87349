"""The table of dialects. A new one is a file beside this one and a row here."""

from server.dialects import newline, ollama, openai
from server.dialects.base import Dialect

DIALECTS: tuple[Dialect, ...] = (
    newline.DIALECT,
    ollama.DIALECT,
    openai.DIALECT,
)

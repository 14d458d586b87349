"""The table of dialects. To add one, write a module or package beside this file and add a row."""

from server.dialects import newline, ollama, openai
from server.dialects.base import Dialect

DIALECTS: tuple[Dialect, ...] = (
    newline.DIALECT,
    ollama.DIALECT,
    openai.DIALECT,
)

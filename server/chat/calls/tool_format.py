"""How models mark their calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from server.chat.calls import named_call, tagged_call


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one kind of models marks its calls."""

    name: str
    openers: tuple[str, ...] = ()
    """Each may be followed by a call in JSON or by a list of such calls; those of named_call and
    tagged_call also by a call in that syntax."""
    closers: tuple[str, ...] = ()
    """Each may follow a call."""
    is_bare: bool = False
    """A JSON object at the beginning of an answer may be a call, too."""
    shows_control: bool = False
    """Some of `marks` are control tokens, so the worker must show control tokens in the text."""

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts that matter to the parser and may be control tokens."""
        named = named_call.MARKS if named_call.OPENER in self.openers else ()
        return (*self.openers, *self.closers, *named)

    def bare(self) -> ToolFormat:
        """The format of an answer that is forced to be a call: see server.chat.tool_schema."""
        return replace(self, is_bare=True)


HERMES = ToolFormat("hermes", (tagged_call.OPENER,), (tagged_call.CLOSER,))
LLAMA = ToolFormat("llama", ("<|python_tag|>",), is_bare=True)
MISTRAL = ToolFormat("mistral", (named_call.OPENER,))
GENERIC = ToolFormat(
    "generic",
    (
        *HERMES.openers,
        *MISTRAL.openers,
        "<|tool_call|>",
        *LLAMA.openers,
        "<|START_ACTION|>",
    ),
    (*HERMES.closers, "<|/tool_call|>", "<|END_ACTION|>"),
    is_bare=True,
)
"""For templates that contain no opener of the others."""


def tool_format(template: str, control: Collection[str]) -> ToolFormat:
    """The format whose opener a chat template contains. `control`: names of control tokens."""
    form = next((form for form in (MISTRAL, HERMES, LLAMA) if form.openers[0] in template), GENERIC)
    return replace(form, shows_control=any(mark in control for mark in form.marks))
